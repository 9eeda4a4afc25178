"""Several processes as one: each runs the same program on the same inputs, with jax.distributed.

What must be the same everywhere and may not be (what a file says, what took too long) is decided in
one process and told to the others: `agree` for what process 0 finds out, `gather` for what each
finds out of its share. Process 0 alone writes files, which all must be able to read: the output
folder is on a file system that they share. With one process everything here is the identity.
"""
import contextlib
import contextvars
import itertools
import json
import os
import signal
import sys
import threading
from typing import Any, Callable

import jax
from jax.experimental import multihost_utils
import numpy as np

from r1jax.types import Together, UserError

HEARTBEAT_S = 30  # a process that says nothing for so long is lost, and the others end
ERROR = '__error__'  # the key of an exception in JSON

_alone = contextvars.ContextVar('alone', default=False)  # in what the processes do apart
_terminated = threading.Event()  # SIGTERM came
_asks = itertools.count(1)  # calls of stop_requested: the same number in every process

# -- one of several --------------------------------------------------------------------------------


def start():
  """Joins the other processes, where the environment says that there are some; once.

  Before any device is touched. JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID say it
  in any case; for Slurm, Open MPI and TPUs jax finds out by itself.
  """
  if jax.distributed.is_initialized() or not several(os.environ):
    return
  number = lambda name: int(os.environ[name]) if os.environ.get(name) else None
  try:
    jax.distributed.initialize(num_processes=number('JAX_NUM_PROCESSES'),
                               process_id=number('JAX_PROCESS_ID'),
                               heartbeat_timeout_seconds=HEARTBEAT_S,
                               shutdown_timeout_seconds=HEARTBEAT_S)
  except (ValueError, RuntimeError) as error:
    raise UserError(f'this process could not join the others ({str(error).splitlines()[0]}): check '
                    'JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or what the '
                    'cluster sets in their place, and that process 0 is up') from error


def several(env) -> bool:
  """Whether an environment is that of one of several processes.

  R1JAX_PROCESSES=auto leaves it to jax, for TPU VMs, whose metadata server alone knows. A Slurm
  allocation of many tasks is none as long as no step runs them.
  """
  tasks = env.get('SLURM_STEP_NUM_TASKS') or env.get('SLURM_NTASKS')
  hosts = env.get('TPU_WORKER_HOSTNAMES', '')  # libtpu may put a complaint there instead
  counts = [tasks if 'SLURM_STEP_NODELIST' in env and 'SLURM_PROCID' in env else 1,
            len(hosts.split(',')) if ' ' not in hosts else 1,
            env.get('OMPI_COMM_WORLD_SIZE'), env.get('MEGASCALE_NUM_SLICES')]  # yapf: disable
  told = env.get('JAX_COORDINATOR_ADDRESS') or env.get('R1JAX_PROCESSES') == 'auto'
  return bool(told) or max(int(count or 1) for count in counts) > 1


def count() -> int:
  """How many processes there are."""
  return jax.process_count() if jax.distributed.is_initialized() else 1


def index() -> int:
  """Which of them this one is, from 0."""
  return jax.process_index() if jax.distributed.is_initialized() else 0


def first() -> bool:
  """Whether this is the one that writes files and speaks."""
  return index() == 0


def silence():
  """Nothing that is printed comes out, except in process 0."""
  if not first():
    sys.stdout = open(os.devnull, 'w', encoding='utf-8')


# -- what all must agree on ------------------------------------------------------------------------


def exchange(value) -> list:
  """Every process's value, in every process. Values are JSON and may hold NaN, numpy's numbers and
  Exceptions, which keep their names and what they say. All processes must call this."""
  if count() == 1:
    return [value]
  check_together('an exchange')
  data = np.frombuffer(json.dumps(value, default=_encode).encode(), np.uint8)
  sizes = multihost_utils.process_allgather(np.int32(len(data)))
  size = 1 << (int(sizes.max()) - 1).bit_length()  # few sizes, few programs
  rows = multihost_utils.process_allgather(np.pad(data, (0, size - len(data))))
  return [json.loads(row[:n].tobytes(), object_hook=_decode) for row, n in zip(rows, sizes)]


def _encode(x):
  if isinstance(x, np.generic):
    return x.item()
  if isinstance(x, Exception):
    return {ERROR: [type(x).__name__, str(x), isinstance(x, TimeoutError)]}
  raise TypeError(f'{x!r} cannot be told to other processes')


def _decode(row):
  if row.keys() != {ERROR}:
    return row
  name, said, late = row[ERROR]
  return type(name, (TimeoutError if late else Exception,), {})(said)


def agree(f: Callable[[], Any]):
  """What f() gives in process 0, which alone calls it, or the UserError that it raises, in every
  process. All processes must call this."""
  if count() == 1:
    return f()
  found = None
  if first():
    try:
      with _apart():
        found = [f(), None]
    except UserError as error:
      found = [None, str(error)]
  value, wrong = exchange(found)[0]
  if wrong is not None:
    raise UserError(wrong)
  return value


# -- work that is divided --------------------------------------------------------------------------


def share(items):
  """Those of the items that are this process's: every count()-th."""
  return items[index()::count()]


def mine(f: Callable[..., list], *columns) -> list | UserError:
  """f's results for this process's share of the rows, or the UserError for `gather` to raise. What
  is Together is asked about all rows, and its results for the share are kept."""
  if isinstance(f, Together) or count() == 1:
    return share(f(*columns))
  try:
    with _apart():
      return f(*map(share, columns))
  except UserError as error:  # the others do not have it
    return error


def gather(shares: list[list | UserError]) -> list[list]:
  """Several lists whole, in every process, from each process's shares of them; in one exchange,
  which waits for what has been sent to the devices. Raises the UserError of any process in all."""
  if count() == 1:
    return shares
  out = []
  for parts in zip(*exchange(shares), strict=True):
    for error in (part for part in parts if isinstance(part, Exception)):
      raise UserError(str(error))
    whole = [None] * sum(map(len, parts))
    for i, part in enumerate(parts):
      whole[i::count()] = part
    out.append(whole)
  return out


def divided(f: Callable[..., list]) -> Callable[..., list]:
  """f(columns) -> a list, for each row one, with the rows divided between the processes."""
  return lambda *columns: gather([mine(f, *columns)])[0]


@contextlib.contextmanager
def _apart():
  """Within it each process is on its own."""
  token = _alone.set(count() > 1)
  try:
    yield
  finally:
    _alone.reset(token)


def check_together(what: str):
  """Raises UserError where one process alone is about to do what all must do at once: it would wait
  for the others for ever."""
  if _alone.get():
    raise UserError(f'{what} is of all processes at once, and was asked for in what each does for '
                    'itself: let the load of a reward, gate or judge that uses the mesh return '
                    'types.Together(many)')


# -- ends ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def heeding_sigterm():
  """Within it SIGTERM is a request to stop, for stop_requested. Where there are several processes
  jax hears it, and other notices of preemption, in any of them."""
  if jax.distributed.is_initialized():
    yield
    return
  before = signal.signal(signal.SIGTERM, lambda *_: _terminated.set())
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, before)
    _terminated.clear()


def stop_requested() -> bool:
  """Whether to save and to end here, at the same call in every process."""
  if jax.distributed.is_initialized():
    if multihost_utils.reached_preemption_sync_point(next(_asks)):
      _terminated.set()  # it is said of one call only
  return _terminated.is_set()


def leave(status: int):
  """Ends this process at once: not even the others are told, who may not be there any more."""
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)
