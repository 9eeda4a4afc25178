"""Many processes: what local.sh, Slurm and TPU VMs are told, and that it works.

srun, scontrol, squeue and gcloud are small scripts here, which write down how they were called and
do on this machine what the real ones do on a cluster. Nothing here saw a real cluster.
"""
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time

import pytest
from scripts import calls, Checkout, fails, mistake, RECORD, ROOT

# What r1jax is in most tests: it says who it is and waits, until it is told how to end.
RUN = """#!/usr/bin/env bash
trap 'echo "again {\\"step\\": 3}"; exit 0' TERM
trap 'exit 130' INT
me=${JAX_PROCESS_ID:-0}
echo "process $me of ${JAX_NUM_PROCESSES:-1}: $*"
touch "started$me"
until [[ -e end$me ]]; do sleep 0.05; done
exit "$(cat "end$me")"
"""


@pytest.fixture
def checkout(tmp_path):
  root = tmp_path / 'a checkout'
  root.mkdir()
  out = Checkout(root)
  assert out.local().returncode == 0  # installed
  out.script('.venv/bin/r1jax', RUN)
  return out


def wait_for(*paths):
  deadline = time.time() + 30
  while not all(path.exists() for path in paths):
    assert time.time() < deadline, paths
    time.sleep(0.02)


# -- local.sh --------------------------------------------------------------------------------------


def local_processes(checkout, *args, **env):
  """Two processes of local.sh, begun: the script's process."""
  args = args or ('--processes', 2, '--devices', 2)
  process = checkout.command('launch/local.sh', *args, 'x.py', '--a', 'b c', **env)
  wait_for(checkout.root / 'started0', checkout.root / 'started1')
  return process


def test_a_dry_run_says_what_each_process_gets(checkout):
  dry = lambda *args, **env: checkout.run('launch/local.sh', '--dry-run', *args, 'x.py', **env)
  assert dry().stdout == 'env .venv/bin/r1jax run x.py\n'
  assert dry('--devices',
             4).stdout == ('env JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=4 .venv/bin/r1jax run x.py\n')
  lines = dry('--processes', 2, CUDA_VISIBLE_DEVICES='4,5,6,7').stdout.splitlines()
  for number, (line, gpus) in enumerate(zip(lines, ('0,1', '2,3'), strict=True)):
    for setting in ('JAX_COORDINATOR_ADDRESS=127.0.0.1:PORT', 'JAX_NUM_PROCESSES=2',
                    f'JAX_PROCESS_ID={number}', f'JAX_LOCAL_DEVICE_IDS={gpus}'):
      assert f' {setting} ' in line
  mistake(dry('--processes', 3, CUDA_VISIBLE_DEVICES='0,1,2,3'), 'cannot share 4 GPUs', '--devices')
  mistake(dry('--processes', 0), '--processes takes a number')
  mistake(dry('--proceses', 2), 'no option --proceses')


def test_processes_print_once_and_end_together(checkout):
  process = local_processes(checkout)
  for number in '10':
    (checkout.root / f'end{number}').write_text('0')
  out, err = process.communicate(timeout=30)
  assert (process.returncode, out) == (0, 'process 0 of 2: run x.py --a b c\n')
  assert err == 'process 1 of 2: run x.py --a b c\n'


@pytest.mark.parametrize('sent, status', [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_reaches_every_process(checkout, sent, status):
  # What is started behind an `&`, as tests may be, hands on an ignored SIGINT, and no shell can
  # trap that.
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  try:
    process = local_processes(checkout)
  finally:
    signal.signal(signal.SIGINT, before)
  process.send_signal(sent)
  out, err = process.communicate(timeout=30)
  assert process.returncode == status
  assert (out + err).count('again {"step": 3}') == (2 if sent == signal.SIGTERM else 0)
  assert 'asking the 2 processes to stop' in err


def test_a_lost_process_ends_the_others(checkout):
  """Those that do not end by themselves are killed, and with them their children, which would keep
  the output open here for minutes."""
  checkout.replace('launch/local.sh', 'GRACE=60', 'GRACE=1')
  checkout.script('.venv/bin/r1jax', RUN.replace('touch', 'sleep 300 &\ntouch'))
  process = local_processes(checkout)
  (checkout.root / 'end1').write_text('3')
  out, err = process.communicate(timeout=30)
  assert process.returncode == 3 and out == 'process 0 of 2: run x.py --a b c\n'
  said = 'r1jax: process 1 of 2 ended with status 3; the others have 1 s to end.'
  assert err.splitlines()[1:] == [said]


CONFIG = """
import dataclasses
from r1jax import sharding


@dataclasses.dataclass(frozen=True)
class Config:
  machine: sharding.Machine = sharding.Machine()
"""
EXPERIMENT = """
import pathlib
import jax
from config import Config
from r1jax import processes
from r1jax.types import Stage


def run(cfg, out):
  (pathlib.Path(out) / 'table.json').write_text('{}')
  return dict(ranks=processes.exchange(jax.process_index()), devices=jax.device_count())


def experiment():
  return Stage(run, Config(), 'out')
"""


def test_local_processes_for_real(checkout):
  """r1jax itself, two processes of three virtual devices: they meet, and the first one speaks."""
  checkout.script('.venv/bin/r1jax', f'#!/usr/bin/env bash\nexec {sys.executable} -m r1jax "$@"\n')
  (checkout.root / 'config.py').write_text(CONFIG)
  (checkout.root / 'x.py').write_text(EXPERIMENT)
  done = checkout.run('launch/local.sh', '--processes', 2, '--devices', 3, 'x.py', PYTHONPATH=ROOT)
  assert done.returncode == 0, done.stderr
  word, result = done.stdout.splitlines()[-1].split(' ', 1)
  assert word == 'result'
  result = json.loads(result)
  assert (result['ranks'], result['devices']) == ([0, 1], 6)


# -- again.sh --------------------------------------------------------------------------------------


@pytest.mark.parametrize('does, status', [
    ('echo "result {}"', 0),
    ('echo "again {}"', 75),
    ('echo "again {}"; echo more', 0),
    ('echo "again {}"; exit 2', 2),
    ('printf "again {}"', 75),
    ('kill -KILL $$', 137),
])
def test_again_is_a_status(checkout, does, status):
  done = checkout.run('launch/again.sh', '--status', 'the status', 'bash', '-c', does)
  assert done.returncode == status
  assert (checkout.root / 'the status').read_text() == f'{status}\n'


def test_again_passes_sigterm_on(checkout):
  process = checkout.command('launch/again.sh', '.venv/bin/r1jax', 'run')
  wait_for(checkout.root / 'started0')
  process.terminate()
  out, _ = process.communicate(timeout=30)
  assert process.returncode == 75 and out.endswith('\nagain {"step": 3}\n')


# -- Slurm -----------------------------------------------------------------------------------------


def slurm(checkout, status, says='', state='RUNNING'):
  """A job whose run ends like this: the finished batch script."""
  checkout.script('bin/srun', f'{RECORD}echo "{says}"\nexit {status}\n')
  checkout.script('bin/scontrol', RECORD)
  checkout.script('bin/squeue', f'#!/usr/bin/env bash\necho "{state}"\n')
  path = f"{checkout.root / 'bin'}:{os.environ['PATH']}"
  copy = checkout.root / 'spool/slurm_script'  # Slurm runs a copy, where it likes
  copy.parent.mkdir(exist_ok=True)
  copy.write_text((checkout.root / 'launch/slurm.sbatch').read_text())
  return checkout.run(copy, 'x.py', '--a', 'b c', PATH=path, SLURM_JOB_ID=7, SLURM_CPUS_PER_TASK=8)


def test_slurm_starts_the_run(checkout):
  done = slurm(checkout, 0, 'result {}')
  assert done.returncode == 0 and done.stdout == 'result {}\n', done
  (call,) = calls(checkout)
  options, _, run = call.partition(' .venv/bin/r1jax ')
  assert run == 'run x.py --a b c'
  assert {'--kill-on-bad-exit=0', '--wait=90', '--gpu-bind=none'} == set(options.split()[1:])


def test_slurm_goes_back_into_the_queue(checkout):
  done = slurm(checkout, 0, 'again {}')
  assert done.returncode == 0 and 'has saved its state: back into the queue' in done.stderr
  assert calls(checkout)[1:] == ['scontrol requeue 7']
  cancelled = slurm(checkout, 0, 'again {}', state='COMPLETING')
  assert cancelled.returncode == 75 and 'the job is COMPLETING' in cancelled.stderr
  assert len(calls(checkout)) == 1


def test_slurm_loses_a_process_three_times(checkout):
  """In a row: an orderly end between them begins the count anew."""
  for says, status, requeued in [('', 1, True), ('again {}', 0, True), ('', 1, True),
                                 ('', 137, True), ('', 1, True), ('', 1, False)]:
    done = slurm(checkout, status, says)
    assert (calls(checkout)[1:] == ['scontrol requeue 7']) == requeued
  assert done.returncode == 1 and '4 times in a row' in done.stderr
  assert not (checkout.root / 'r1jax-7.lost').exists()


def test_slurm_never_repeats_a_mistake(checkout):
  mistake(slurm(checkout, 2), 'what to mend')
  assert len(calls(checkout)) == 1


def test_slurm_by_hand(checkout):
  dry = checkout.run('launch/slurm.sbatch', '--dry-run', 'x.py', '--a', 'b c')
  assert dry.stdout.splitlines() == [
      "sbatch launch/slurm.sbatch x.py --a 'b c'", 'srun --kill-on-bad-exit=0 --wait=90 '
      "--gpu-bind=none .venv/bin/r1jax run x.py --a 'b c'"]  # yapf: disable
  mistake(checkout.run('launch/slurm.sbatch', 'x.py'), 'submit it: sbatch')
  mistake(checkout.run('launch/slurm.sbatch', '--dry-run', 'y.py'), 'no experiment file y.py')
  options = re.findall('^#SBATCH --([a-z-]+)(?:=(.*))?$',
                       (ROOT / 'launch/slurm.sbatch').read_text(), re.M)
  assert dict(options).items() >= {
      'signal': 'TERM@120', 'requeue': '', 'open-mode': 'append', 'ntasks-per-node': '8',
      'gpus-per-node': '8'
  }.items()


JOIN = """
from r1jax import processes
processes.start()
import jax
print(processes.exchange(jax.process_index()))
"""


def test_slurm_is_detected():
  """What srun tells its tasks is enough for two of them to meet. The port is jax's choice: by the
  number of the job, from 61,440."""
  for job in range(os.getpid() % 4000, 4096):
    with socket.socket() as probe:
      if probe.connect_ex(('localhost', 61_440 + job)):
        break
  tasks = []
  for rank in '01':
    env = dict(SLURM_JOB_ID=str(job), SLURM_STEP_NODELIST='localhost', SLURM_NTASKS='2',
               SLURM_PROCID=rank, SLURM_LOCALID=rank, PYTHONPATH=str(ROOT))
    tasks.append(
        subprocess.Popen([sys.executable, '-c', JOIN], env={**os.environ, **env},
                         stdout=subprocess.PIPE, text=True))
  for task in tasks:
    assert task.communicate(timeout=60)[0].endswith('\n[0, 1]\n')  # after a line of Gloo's


# -- TPU VMs ---------------------------------------------------------------------------------------

# One host, whose home is a folder; the slice is made by the second look, and is what `state` says.
GCLOUD = """#!/usr/bin/env bash
echo "$3 $4" >>calls
case "$3 $4" in
  'queued-resources list') cat state 2>/dev/null; true ;;
  'queued-resources create') echo ACTIVE >state; printf '%s\\n' "$@" >created ;;
  'queued-resources delete') rm state ;;
  'tpu-vm scp') cp "$5" host/ ;;
  'tpu-vm ssh')
    for word; do case $word in --command=*) line=${word#*=} ;; esac; done
    export HOME=$PWD/host
    cd host && bash -c "$line" ;;
esac
"""
SLICE = ['--name', 'n', '--project', 'p', '--zone', 'z']
FIELDS = ['--type', 'v5p-64', '--runtime', 'v2', '--nfs', '10.0.0.2:/a share']

# The run on that host: the first line that is left of ~/does.
DOES = '#!/usr/bin/env bash\nline=$(head -n 1 ~/does) && sed -i 1d ~/does && eval "$line"\n'


@pytest.fixture
def tpu(checkout):
  """tpu_vm.sh with these runs, one after the other, to its end: the finished process."""
  root = checkout.root
  for name in ('host/shared', 'bin'):
    (root / name).mkdir(parents=True)
  checkout.script('bin/gcloud', GCLOUD)
  checkout.script('bin/mountpoint', '#!/usr/bin/env bash\n[[ $2 == *shared ]]\n')
  checkout.script('bin/sleep', '#!/usr/bin/env bash\nexec /bin/sleep 0.05\n')
  for name in ('python3.13', 'python3.12', 'python3.11'):
    checkout.script(f'bin/{name}', f'#!/usr/bin/env bash\nexec "{checkout.python}" "$@"\n')
  checkout.script('fake/r1jax', DOES)
  checkout.replace('fake/python', 'chmod', f'cp "{root}/fake/r1jax" "$3/bin/r1jax"; chmod')
  checkout.replace('launch/tpu_vm.sh', '/mnt/r1jax', '~/shared')
  (root / '.gitignore').write_text('*\n')
  git = ['git', '-C', root, '-c', 'user.name=a', '-c', 'user.email=a@b']
  for line in ('init -q', 'add -f launch x.py setup.cfg pyproject.toml', 'commit -qm first'):
    subprocess.run([*git, *line.split()], check=True)

  def run(*does, args=(*FIELDS, 'x.py', '--a', 'b c')):
    (root / 'host/does').write_text(''.join(f'{line}\n' for line in does))
    path = f"{root / 'bin'}:{os.environ['PATH']}"
    return checkout.run('launch/tpu_vm.sh', *SLICE, *args, PATH=path)

  run.root, run.calls = root, lambda: [c for c in calls(checkout) if not c.endswith('list')]
  return run


def test_a_tpu_slice_is_made_used_and_kept(tpu):
  done = tpu('echo "$PWD $*" >ran; env >environment')
  assert done.returncode == 0 and 'finished' in done.stderr, done
  created = (tpu.root / 'created').read_text().split('\n')
  assert {'n', '--project=p', '--zone=z', '--node-id=n', '--accelerator-type=v5p-64',
          '--runtime-version=v2'} < set(created)  # yapf: disable
  host = tpu.root / 'host'
  assert (host / 'shared/ran').read_text() == f'{host}/shared run {host}/r1jax/x.py --a b c\n'
  environment = (host / 'shared/environment').read_text().splitlines()
  assert {'R1JAX_PROCESSES=auto', f'GIT_DIR={host}/r1jax/.git'} < set(environment)
  assert (host / 'r1jax/pip_calls').read_text() == '-m pip install -e .[tpu]\n'
  tpu.calls()
  assert tpu(args=('--delete',)).returncode == 0
  assert tpu.calls() == ['queued-resources delete']


def test_a_tpu_run_is_started_again(tpu):
  """After a word to do so, after losses, and on a new slice; not after a mistake, until it is
  asked for again."""
  taken = f'echo SUSPENDED >{shlex.quote(str(tpu.root / "state"))}; rm -rf ~/r1jax-* ~/x-*; exit 1'
  done = tpu('echo "again {}"', 'exit 1', taken, 'exit 3', 'echo "again {}"', 'exit 2')
  mistake(done, 'a mistake to mend')
  assert [line for line in done.stderr.splitlines() if 'slice n' in line] == [
      f'r1jax: the slice n: {state}.' for state in ('ACTIVE', 'SUSPENDED', 'not there', 'ACTIVE')
  ]
  assert 'ended with 1: failure 1' in done.stderr and 'ended with 3' in done.stderr
  assert tpu('echo "result {}"').returncode == 0


def test_a_tpu_run_that_always_fails_is_given_up(tpu):
  fails(tpu(*['exit 1'] * 4), 'giving up')
  assert tpu.calls().count('tpu-vm scp') == 4


def test_tpu_words(tpu):
  dry = tpu(args=('--spot', '--dry-run', *FIELDS, 'x.py', '--a', "b'c"))
  lines = dry.stdout
  assert not tpu.calls() and lines.startswith('gcloud compute tpus queued-resources create n ')
  sent = [line for line in shlex.split(lines) if line.startswith('--command=')]
  assert [line.rsplit('}; ', 1)[1].split()[0] for line in sent] == ['prepare', 'start', 'look']
  assert shlex.split(sent[1].rsplit('}; ', 1)[1])[2:] == ['x.py', '--a', "b'c"]
  mistake(tpu(args=('x.py',)), '--type is missing')
  mistake(tpu(args=(*FIELDS, 'y.py')), 'has no file y.py', 'commit it')
  mistake(tpu(args=('--nane', 'n')), 'no option --nane')
  mistake(tpu(args=('--nfs', '--spot')), '--nfs takes a value')
