"""The pool: what a worker may do, what happens to one that does more, and that none outlives us."""
import json
import os
from pathlib import Path
import signal
import subprocess
import sys
import threading
import time

import pytest

from r1jax.grading import pool
from r1jax.types import UserError

ROOT = Path(__file__).parents[1]


def alive(pid):
  """Whether the process runs; one that is dead and not yet buried does not."""
  try:
    return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
  except OSError:
    return False


def ends(pids, seconds=10):
  deadline = time.monotonic() + seconds
  while any(map(alive, pids)) and time.monotonic() < deadline:
    time.sleep(0.02)
  return not any(map(alive, pids))


@pytest.fixture
def make():
  pools = []

  def start(*args, **kwargs):
    pools.append(pool.Pool(*args, **kwargs))
    return pools[-1]

  yield start
  for p in pools:
    p.close()


def test_results_come_in_order_and_equal_items_are_computed_once(make):
  many = make('time', 'perf_counter_ns', workers=1)
  assert isinstance(many.map([[]])[0], pool.Failure)  # it takes no argument
  many = make('math', 'factorial')
  assert many.map([5, 3, 0, 5, 20]) == [120, 6, 1, 120, 2432902008176640000]
  assert many.map([]) == [] and len(many.pids()) == 2
  many = make('random', 'getrandbits', workers=1)
  a, b, again = many.map([64, 63, 64])
  assert a == again != b
  assert many.map([64]) != [a]  # not from call to call


def test_two_workers_work_side_by_side(make):
  many = make('time', 'sleep')
  many.map([0, 0.001])
  start = time.monotonic()
  many.map([1, 1.001])
  assert 1 < time.monotonic() - start < 1.9


def test_a_late_worker_is_killed_and_replaced(make):
  many = make('time', 'sleep', seconds=0.5)
  many.map([0, 0.001])
  first = many.pids()
  late, good, later = many.map([60, 0.01, 61])
  assert good is None and type(late) is type(later) is TimeoutError
  assert not any(map(alive, first[:1])) or not any(map(alive, first[1:]))
  assert many.map([0.02]) == [None]
  # Arithmetic in C answers to no signal handler of Python.
  many = make('math', 'factorial', seconds=0.5)
  assert isinstance(many.map([10**9])[0], TimeoutError)


def test_a_failure_is_of_one_item(make):
  many = make('math', 'factorial')
  negative, right, text = many.map([-1, 4, 'x'])
  assert right == 24 and 'ValueError' in str(negative) and 'TypeError' in str(text)
  many = make('os', '_exit')
  assert all(isinstance(x, pool.Failure) for x in many.map([3, 4, 5]))
  assert all(isinstance(x, pool.Failure) for x in make('os', 'abort').map([[]]))
  many = make('builtins', 'bytearray')
  for item in (3 << 30, 5):  # memory beyond the cap; a result that is no JSON
    assert isinstance(many.map([item])[0], pool.Failure)


def test_sizes_are_capped(make):
  many = make('builtins', 'ascii', max_bytes=1000)
  inside, item, result = many.map(['x' * 400, 'y' * 1000, '\\' * 450])
  assert inside == "'" + 'x' * 400 + "'"
  assert 'more than 1000' in str(item) and 'more than 1000' in str(result)


def test_a_message_over_the_cap_is_not_read():
  ours, theirs = pool.socket.socketpair()
  with ours, theirs:
    theirs.sendall(pool._LENGTH.pack(1 << 31) + b'x' * 100)
    with pytest.raises(ValueError, match='too much'):
      pool._receive(ours, 1.0, 50)
    with pytest.raises(TimeoutError):
      pool._receive(theirs, 0.1, 50)


def test_any_text_survives_the_way(make):
  text = 'é\ud800\0\u202e\x1b"\\٣' * 10
  assert make('builtins', 'str').map([text, '']) == [text, '']


def test_a_worker_that_cannot_start_is_said():
  with pytest.raises(UserError, match='no.such.module did not start'):
    pool.Pool('no.such.module', 'f').map([1])


def test_a_worker_imports_no_jax_and_sees_no_secret(make, monkeypatch):
  monkeypatch.setenv('A_SECRET', 'x')
  many = make('subprocess', 'getoutput', workers=1)
  env, status = many.map(['env', 'cat /proc/$PPID/status'])
  assert 'A_SECRET' not in env and 'PYTHONHASHSEED=0' in env
  assert int(status.split('VmRSS:')[1].split()[0]) < 40_000  # kB
  limits = many.map(['cat /proc/$PPID/limits'])[0]
  assert f'Max address space         {pool.MEMORY_BYTES}' in limits
  assert 'Max core file size        0' in limits
  assert many.map(['ls /proc/$PPID/fd | wc -l'])[0] == '6'  # 0 to 2, null, the socket, ls's pipe


def test_what_a_worker_started_dies_with_it(make):
  many = make('subprocess', 'getoutput', workers=1, seconds=1.0)
  many.map([''])
  group = many.pids()[0]
  assert isinstance(many.map(['sleep 100 & sleep 100'])[0], TimeoutError)
  members = [int(p.name) for p in Path('/proc').glob('[0-9]*') if group_of(p) == group]
  assert ends(members)


def group_of(path):
  try:
    return int((path / 'stat').read_text().rpartition(')')[2].split()[2])
  except OSError:
    return None


def test_an_idle_worker_that_died_costs_no_item(make):
  many = make('math', 'factorial')
  many.map([1, 2])
  for pid in many.pids():
    os.kill(pid, signal.SIGKILL)
  assert ends(many.pids())
  assert many.map([3, 4]) == [6, 24]


def test_threads_take_turns(make):
  many = make('math', 'factorial')
  out = {}
  threads = [
      threading.Thread(target=lambda i=i: out.update({i: many.map([i, i + 1])})) for i in range(8)
  ]
  for t in threads:
    t.start()
  for t in threads:
    t.join()
  assert out[7] == [5040, 40320] and len(out) == 8 and len(many.pids()) == 2


def test_a_dropped_pool_ends_its_workers():
  many = pool.Pool('math', 'factorial')
  many.map([1, 2])
  pids = many.pids()
  del many
  assert len(pids) == 2 and not any(map(alive, pids))


PARENT = '''
import json, os, sys, threading
from r1jax.grading import pool
many = pool.Pool('time', 'sleep', seconds=2.0)
many.map([0, 0.001])
print(json.dumps(many.pids()), flush=True)
if sys.argv[1] == 'busy':
  many.map([50, 51])
if sys.argv[1] == 'killed':
  os.kill(os.getpid(), 9)
'''


@pytest.mark.parametrize('how', ['exits', 'killed', 'busy'])
def test_workers_do_not_outlive_their_parent(how):
  parent = subprocess.Popen([sys.executable, '-c', PARENT, how], stdout=subprocess.PIPE, text=True,
                            cwd=ROOT)
  with parent:
    pids = json.loads(parent.stdout.readline())
    assert len(pids) == 2
    if how == 'busy':
      time.sleep(0.2)
      parent.kill()  # what its workers are at would take 50 s: the kernel's alarm ends them
    parent.wait(timeout=20)
  assert ends(pids)
