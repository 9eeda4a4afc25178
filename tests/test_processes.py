"""Several processes give what one gives, end together, and go on where they ended."""
import json
import os
from pathlib import Path
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from r1jax import judges, processes, rewards
from r1jax.types import Completion, Problem, Reward, Together

ROOT = Path(__file__).parents[1]
MESH = [f'--{stage}.machine.{axis}={size}' for stage in ('base', 'zero')
        for axis, size in (('cpu-devices', 2), ('fsdp', 2), ('tensor', 2))]  # yapf: disable


def launch(number, *args, cwd):
  """So many running processes of one program, which are to find one another."""
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  env = {**os.environ, 'PYTHONPATH': str(ROOT)}
  join = lambda i: dict(JAX_COORDINATOR_ADDRESS=f'127.0.0.1:{port}', JAX_NUM_PROCESSES=str(number),
                        JAX_PROCESS_ID=str(i))  # yapf: disable
  return [
      subprocess.Popen([sys.executable, *args], cwd=cwd, env=env | (join(i) if number > 1 else {}),
                       text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
      for i in range(number)
  ]


def run(number, cwd):
  """The pipeline in the folder `out`, in so many processes."""
  mesh = MESH if number > 1 else []
  return launch(number, '-m', 'r1jax', 'run', str(ROOT / 'tests/even.py'), '--out', 'out', *mesh,
                cwd=cwd)


def end(running):
  """(status, stdout, stderr) of each, when all have ended."""
  said = [process.communicate() for process in running]
  return [(process.returncode, *texts) for process, texts in zip(running, said)]


def wait_for(running, file, step):
  """Returns when the file has a row of that step."""
  while not (file.exists() and any(row['step'] >= step for row in read(file))):
    if any(process.poll() is not None for process in running):
      pytest.fail(f'ended before step {step} was in {file}: {end(running)}')
    time.sleep(0.01)


def read(file):
  return [json.loads(line) for line in file.read_text().splitlines(keepends=True) if '\n' in line]


def last_word(out):
  name, said = out.splitlines()[-1].split(' ', 1)
  return name, json.loads(said)


def begun(alone, folder):
  """A copy of the pipeline with its first stage alone."""
  shutil.copytree(alone / 'out/base', folder / 'out/base')
  return folder


# -- one run on many devices -----------------------------------------------------------------------


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
  """The folder of a run in one process, which was asked to stop in between."""
  folder = tmp_path_factory.mktemp('alone')
  running = run(1, folder)
  wait_for(running, folder / 'out/base/metrics.jsonl', 1)
  running[0].send_signal(signal.SIGTERM)
  (status, out, err), = end(running)
  name, said = last_word(out)
  assert (status, name, said['stage']) == (0, 'again', 'base'), err
  assert [row['step'] for row in read(folder / 'out/base/metrics.jsonl')][-1] == said['step']
  (status, out, err), = end(run(1, folder))
  assert status == 0 and last_word(out)[0] == 'result', err
  return folder


@pytest.fixture(scope='module')
def whole(alone, tmp_path_factory):
  """The folder of a run in two processes of two devices, and what each of them said."""
  folder = begun(alone, tmp_path_factory.mktemp('whole'))
  ended = end(run(2, folder))
  assert [status for status, _, _ in ended] == [0, 0], ended
  return folder, [out for _, out, _ in ended]


def test_two_processes_learn_what_one_learns(alone, whole):
  one, two = (read(folder / 'out/zero/metrics.jsonl') for folder in (alone, whole[0]))
  assert [row.keys() for row in one] == [row.keys() for row in two]
  updates = [(a, b) for a, b in zip(one, two) if 0 < a['step'] <= 4 and 'loss' in a]
  assert len(updates) == 4
  for a, b in updates:
    assert b == pytest.approx(a, abs=1e-5)
  assert len(read(whole[0] / 'out/zero/samples.jsonl')) == len(
      read(alone / 'out/zero/samples.jsonl'))


def test_the_first_alone_speaks(whole):
  first, second = whole[1]
  assert 'base: finished already' in first and last_word(first)[0] == 'result'
  gloo = r'\[Gloo\]|Rank|is connected to|peer ranks\.|Expected number of connected peer ranks is :'
  assert not re.sub(gloo + r'|\d', '', second).strip()  # its lines may run into each other


@pytest.fixture(scope='module')
def broken(alone, tmp_path_factory):
  """The folder of a run that was asked to stop and, when it had gone on, lost a process; a copy of
  it as it was then; and a list of what was seen."""
  folder, rng = begun(alone, tmp_path_factory.mktemp('broken')), random.Random()
  metrics = folder / 'out/zero/metrics.jsonl'
  running = run(2, folder)
  wait_for(running, metrics, 0)
  running[rng.randrange(2)].send_signal(signal.SIGTERM)  # one is enough
  stopped = end(running)
  state = max(int(path.name) for path in folder.glob('out/zero/state/*') if path.name.isdigit())
  running = run(2, folder)
  wait_for(running, metrics, state + 1)
  time.sleep(rng.random() / 5)
  lost = rng.randrange(2)
  running[lost].kill()
  killed = time.monotonic()
  left = end(running)[1 - lost]
  copy = tmp_path_factory.mktemp('elsewhere')
  shutil.copytree(folder / 'out', copy / 'out')
  return folder, copy, (stopped, state, lost, left, time.monotonic() - killed)


def test_asked_to_stop_they_save_and_say_so(broken):
  stopped, state = broken[2][:2]
  assert [status for status, _, _ in stopped] == [0, 0], stopped
  assert last_word(stopped[0][1]) == ('again', dict(stage='zero', step=state))


def test_one_lost_the_other_ends(broken):
  *_, lost, (status, _, err), seconds = broken[2]
  assert status != 0 and seconds < 60
  # Where the other was not waiting for it, or it was process 0, jax ends it before it can speak.
  assert f'process {1 - lost} of 2 lost the others' in err or 'another task died' in err, err


def test_they_go_on_to_the_same_bytes(broken, whole):
  folder = broken[0]
  ended = end(run(2, folder))
  assert [status for status, _, _ in ended] == [0, 0], ended
  for file in ('metrics.jsonl', 'samples.jsonl', 'result.json'):  # with the parameters' fingerprint
    got, want = ((x / 'out/zero' / file).read_bytes() for x in (folder, whole[0]))
    assert got == want, file


def test_one_process_goes_on_where_two_were(broken, whole):
  folder = broken[1]
  (status, out, err), = end(run(1, folder))
  assert status == 0 and last_word(out)[0] == 'result', err
  got, want = ([row['loss']
                for row in read(x / 'out/zero/metrics.jsonl')
                if 'loss' in row]
               for x in (folder, whole[0]))
  assert len(got) == 6 and got == pytest.approx(want, abs=1e-4)


# -- what they tell one another --------------------------------------------------------------------

TOGETHER = '''
import math, os
import jax
jax.config.update('jax_num_cpu_devices', 1)
from r1jax import metrics, processes, rollout, rewards
from r1jax.types import Together, UserError, Reward

processes.start()
processes.start()
i, n = processes.index(), processes.count()
assert (n, i, processes.first()) == (2, int(os.environ['JAX_PROCESS_ID']), i == 0)

found = processes.exchange(dict(i=i, x=[math.nan, None, '样\\ud800'], e=TimeoutError(f'late {i}')))
assert [x['i'] for x in found] == [0, 1] and math.isnan(found[1]['x'][0])
assert found[0]['x'][1:] == [None, '样\\ud800']
assert isinstance(found[1]['e'], TimeoutError) and repr(found[1]['e']) == "TimeoutError('late 1')"

assert processes.agree(lambda: [i, os.getpid()]) == processes.exchange([0, os.getpid()])[0]

def wrong():
  assert processes.first()
  raise UserError('only the first sees it')

def refused(f, says):
  try:
    f()
  except UserError as error:
    assert says in str(error), error
  else:
    raise AssertionError(f'{says}: not refused')

refused(lambda: processes.agree(wrong), 'only the first sees it')

seen = []
def judge(numbers, texts):
  seen.append(list(numbers))
  return [ValueError(text) if x == 3 else x + 10 * i for x, text in zip(numbers, texts)]

columns = [0, 1, 2, 3, 4], list('abcde')
got = processes.divided(judge)(*columns)
assert seen == [[[0, 2, 4], [1, 3]][i]]
assert got[:3] == [0, 11, 2] and repr(got[3]) == "ValueError('d')" and got[4] == 4
got = processes.divided(Together(judge))(*columns)  # all of them see all; the owners are believed
assert seen[1] == [0, 1, 2, 3, 4] and got[:3] == [0, 11, 2]
assert processes.divided(judge)([], []) == []

inner = lambda xs: processes.divided(judge)(xs, xs)
refused(lambda: processes.divided(inner)([1]), 'types.Together')
refused(lambda: processes.agree(lambda: processes.exchange(1)), 'types.Together')

metrics.write_aside(f'written by {i}', '')
log = metrics.Log(['run', 'nowhere'][i], 1, 0)
log.step(1, dict(loss=1.0), 10, 1.0)
log.samples(1, [dict(text='x')])
log.close()
processes.exchange(0)
assert sorted(os.listdir('.')) == ['nowhere', 'run', 'written by 0']
assert not os.listdir('nowhere') and 'metrics.jsonl' in os.listdir('run')
print('all of it holds')
'''


def test_what_they_tell_one_another(tmp_path):
  for folder in ('run', 'nowhere'):
    (tmp_path / folder).mkdir()
  for status, out, err in end(launch(2, '-c', TOGETHER, cwd=tmp_path)):
    assert status == 0 and 'all of it holds' in out, err


# -- one process -----------------------------------------------------------------------------------


@pytest.mark.parametrize('env, several', [
    ({}, False),
    (dict(JAX_COORDINATOR_ADDRESS='host:1'), True),
    (dict(R1JAX_PROCESSES='auto'), True),
    (dict(SLURM_NTASKS='2'), False),  # an allocation without a step
    (dict(SLURM_NTASKS='2', SLURM_STEP_NODELIST='a', SLURM_PROCID='0'), True),
    (dict(SLURM_NTASKS='2', SLURM_STEP_NUM_TASKS='1', SLURM_STEP_NODELIST='a',
          SLURM_PROCID='0'), False),  # a shell in it
    (dict(TPU_WORKER_HOSTNAMES='a'), False),
    (dict(TPU_WORKER_HOSTNAMES='a,b'), True),
    (dict(TPU_WORKER_HOSTNAMES='WARNING: no hosts, and more'), False),
    (dict(OMPI_COMM_WORLD_SIZE='4'), True),
    (dict(MEGASCALE_NUM_SLICES='2'), True),
])  # yapf: disable
def test_the_environment_says_whether_there_are_several(env, several):
  assert processes.several(env) is several


def test_one_process_does_everything_itself():
  assert processes.exchange('x') == ['x'] and processes.agree(lambda: 3) == 3
  assert processes.share([1, 2, 3]) == [1, 2, 3] and processes.first()
  assert processes.divided(lambda xs: [x + 1 for x in xs])([1, 2]) == [2, 3]
  nested = lambda xs: processes.divided(list)(xs)  # there is nobody to wait for
  assert processes.divided(nested)([1, 2]) == [1, 2]


def test_sigterm_is_heeded_within_a_run_alone():
  before = signal.getsignal(signal.SIGTERM)
  with processes.heeding_sigterm():
    assert not processes.stop_requested()
    os.kill(os.getpid(), signal.SIGTERM)
    assert processes.stop_requested()
  assert not processes.stop_requested() and signal.getsignal(signal.SIGTERM) is before


def test_a_judge_is_asked_together_where_its_model_is():
  write = lambda prompts, draws: ['{"analysis": "", "safety": "safe"}' for _ in prompts]
  for opened in (write, Together(write)):
    many = judges.safety(lambda *_, opened=opened: opened, None, None, None)
    loaded, = rewards.load([Reward('safe', load=lambda *_, many=many: many)], None, None, None)
    scorer = rewards.scorer(loaded)
    assert isinstance(scorer, Together) == (opened is not write)
    assert scorer([Problem('q', '')], [Completion('a', 1, True)]) == [1.0]
