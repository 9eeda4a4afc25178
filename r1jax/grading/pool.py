"""A pool of worker processes that may be killed at any moment, for input that may be hostile.

A worker is a fresh Python process that imports one module and calls one function of it, again and
again. It is no fork of this process, so that jax may have started, and it imports only what its
module does. What passes between the two is JSON behind its length, never a pickle, and neither side
takes more than a cap. A worker that has not answered in time is killed with its whole process group
and replaced. One whose parent is gone ends by itself: at the end of its input, or at the alarm that
stands behind each deadline.
"""
from concurrent import futures
import gc
import importlib
import json
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from typing import NamedTuple
import weakref

from r1jax.types import UserError

START_SECONDS = 120.0  # for a worker's imports, on a busy machine
MEMORY_BYTES = 2 << 30  # address space of a worker
_LENGTH = struct.Struct('>I')
_DEAD = os.WEXITED | os.WNOHANG | os.WNOWAIT  # looks whether a process has ended and lets it lie


class Failure(Exception):
  """A worker's function raised on this item, or the worker died of it."""


class Pool:
  """`function` of `module`, computed by worker processes.

  Workers start when items come and end with the pool, or with this process. `map` may be called
  from any thread; the calls take turns.

  Args:
    module, function: what a worker imports, and calls with one item; items and results are JSON.
    workers: processes that work side by side.
    seconds: after which the worker of an item is killed.
    max_bytes: of an item and of a result, as JSON.
  """

  def __init__(self, module: str, function: str, workers: int = 2, seconds: float = 4.0,
               max_bytes: int = 1 << 20):
    self.target, self.size = (module, function), workers
    self.seconds, self.max_bytes = seconds, max_bytes
    self._turn, self._workers = threading.Lock(), []  # those that nobody is using
    weakref.finalize(self, _end, self._workers)

  def map(self, items) -> list:
    """For each item the function's result, or the exception that kept it from one: TimeoutError, or
    Failure where it raised, its worker died, or a size was over the cap. Equal items are computed
    once. Raises UserError if a worker cannot start."""
    texts = [json.dumps(item).encode() for item in items]
    distinct = list(dict.fromkeys(texts))
    with self._turn, futures.ThreadPoolExecutor(self.size) as threads:
      try:
        found = dict(zip(distinct, threads.map(self._compute, distinct)))
      except BaseException:
        threads.shutdown(cancel_futures=True)
        raise
    return [found[text] for text in texts]

  def close(self):
    """Ends the workers; the next `map` starts new ones."""
    with self._turn:
      _end(self._workers)

  def pids(self) -> list[int]:
    """Process ids of the workers, between two calls of `map`."""
    return [worker.process.pid for worker in self._workers]

  def _compute(self, text):
    """The result of one item, or an exception. Runs in as many threads as there are workers."""
    if len(text) > self.max_bytes:
      return Failure(f'{len(text)} bytes, more than {self.max_bytes}')
    worker = self._take()
    try:
      worker.sock.settimeout(self.seconds)
      worker.sock.sendall(_LENGTH.pack(len(text)) + text)
      result, error = json.loads(_receive(worker.sock, self.seconds, self.max_bytes))
    except BaseException as reason:  # the pool's end, too: nobody waits for what it is at
      _end([worker])
      if isinstance(reason, TimeoutError):
        return TimeoutError(f'no result in {self.seconds:g} s')
      if isinstance(reason, (OSError, EOFError, ValueError, TypeError, RecursionError)):
        return Failure(f'{reason!r}, and it ended with {worker.process.returncode}')
      raise
    self._workers.append(worker)
    return result if error is None else Failure(error)

  def _take(self):
    """A worker that is alive and ours, and that nobody else is using."""
    while self._workers:
      worker = self._workers.pop()
      if worker.parent == os.getpid() and not os.waitid(os.P_PID, worker.process.pid, _DEAD):
        return worker
      _end([worker])
    return _start(*self.target, self.seconds, self.max_bytes)


class _Worker(NamedTuple):
  process: subprocess.Popen
  sock: socket.socket
  parent: int  # process id: a fork of that process has no say over this worker


def _start(module, function, seconds, max_bytes) -> _Worker:
  """A new process that serves items from a socket and inherits nothing else, no secret either."""
  ours, theirs = socket.socketpair()
  kept = ('PATH', 'LD_LIBRARY_PATH', 'LANG', 'TMPDIR')
  env = {name: os.environ[name] for name in kept if name in os.environ}
  env['PYTHONPATH'] = os.pathsep.join(path or os.getcwd() for path in sys.path)
  env['PYTHONHASHSEED'] = '0'  # the same results every time
  command = [sys.executable, '-P', '-m', 'r1jax.grading.pool', module, function,
             str(theirs.fileno()), str(seconds), str(max_bytes)]  # yapf: disable
  with theirs:
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                               env=env, pass_fds=[theirs.fileno()], start_new_session=True)
  worker = _Worker(process, ours, os.getpid())
  try:
    _receive(ours, START_SECONDS, max_bytes)
  except (OSError, EOFError) as error:
    _end([worker])
    raise UserError(f'a worker of {module} did not start ({error!r}): see its message above, if '
                    'there is one') from error
  return worker


def _receive(sock, seconds, max_bytes) -> bytes:
  """The next message. Raises TimeoutError, EOFError, or ValueError where it is over the cap."""
  text, deadline = b'', time.monotonic() + seconds
  while len(text) < _LENGTH.size or len(text) < _LENGTH.size + _LENGTH.unpack_from(text)[0]:
    sock.settimeout(max(1e-3, deadline - time.monotonic()))
    chunk = sock.recv(1 << 16)
    text += chunk
    if not chunk:
      raise EOFError('the worker ended')
    if len(text) > _LENGTH.size + max_bytes:
      raise ValueError('the worker said too much')
  return text[_LENGTH.size:]


def _end(workers):
  """Kills the workers and all that they started, and empties the list."""
  while workers:
    worker = workers.pop()
    worker.sock.close()
    if worker.parent == os.getpid():
      try:
        os.killpg(worker.process.pid, signal.SIGKILL)  # not reaped yet: the number is its own
      except ProcessLookupError:
        pass
      worker.process.wait()


# -- in the worker ---------------------------------------------------------------------------------


def serve(module: str, function: str, descriptor: int, seconds: float, max_bytes: int):
  """A worker's life: says that it is ready, then answers [result, None] or [None, error] to each
  item, until its input ends."""
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
  sock = socket.socket(fileno=descriptor)
  call = getattr(importlib.import_module(module), function)
  gc.freeze()
  gc.set_threshold(50_000)  # parsers make many objects and few cycles
  os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # where parsers complain about what is not maths
  _send(sock, b'true')
  while head := sock.recv(_LENGTH.size, socket.MSG_WAITALL):
    text = sock.recv(_LENGTH.unpack(head)[0], socket.MSG_WAITALL)
    # The kernel ends this process, whatever it is at, should its parent not live to do it.
    signal.setitimer(signal.ITIMER_REAL, seconds + 1)
    try:
      answer = json.dumps([call(json.loads(text)), None]).encode()
      if len(answer) > max_bytes:
        raise ValueError(f'a result of {len(answer)} bytes, more than {max_bytes}')
    except Exception as error:  # whatever a hostile item can provoke
      answer = json.dumps([None, f'{type(error).__name__}: {str(error)[:200]}']).encode()
    signal.setitimer(signal.ITIMER_REAL, 0)
    _send(sock, answer)


def _send(sock, text):
  sock.sendall(_LENGTH.pack(len(text)) + text)


if __name__ == '__main__':
  serve(*sys.argv[1:3], int(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5]))
