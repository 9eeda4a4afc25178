"""local.sh and test.sh: what they say and do where something is missing, cut off, or there.

Each test works in a copy of the scripts (scripts.py). One makes a real virtual environment, and is
stopped by pip having nowhere to fetch from.
"""
import os
from pathlib import Path
import shutil
import signal
import subprocess
import sys
import time

import pytest
from scripts import Checkout, fails, mistake, PYTHON, ROOT

SCRIPTS = [*sorted((ROOT / 'launch').glob('*.s*')), ROOT / '.ci/run']


@pytest.fixture
def checkout(tmp_path):
  root = tmp_path / 'a checkout'  # people do have spaces in their paths
  root.mkdir()
  return Checkout(root)


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda path: path.name)
def test_it_is_bash(script):
  subprocess.run(['bash', '-n', script], check=True)


def test_shellcheck_has_nothing_to_say():
  beside = Path(sys.executable).parent / 'shellcheck'
  shellcheck = beside if beside.exists() else shutil.which('shellcheck')
  if not shellcheck:
    pytest.skip('no shellcheck: the extra `test` installs it')
  done = subprocess.run([shellcheck, '-x', *SCRIPTS], cwd=ROOT, capture_output=True, text=True,
                        check=False)
  assert done.returncode == 0, done.stdout + done.stderr


def test_usage(checkout):
  asked, empty = checkout.run('launch/local.sh', '--help'), checkout.run('launch/local.sh')
  assert asked.returncode == 0 and 'EXPERIMENT.py' in asked.stdout and 'PYTHON' in asked.stdout
  assert empty.returncode == 2 and 'EXPERIMENT.py' in empty.stderr
  assert not checkout.pip_calls()


def test_first_run_installs_and_the_next_does_not(checkout):
  first = checkout.local('--steps', '3', '--note', 'two words')
  assert first.returncode == 0, first.stderr
  assert first.stdout == 'r1jax run x.py --steps 3 --note two words\n'
  assert 'some minutes' in first.stderr
  second = checkout.local()
  assert (second.stdout, second.stderr) == ('r1jax run x.py\n', '')
  assert checkout.pip_calls() == ['-m pip install -e .']


def test_an_install_for_the_tests_serves_the_plain_run(checkout):
  tested = checkout.run('launch/test.sh', 'tests/x.py')
  assert tested.returncode == 0, tested.stderr
  assert '-m pytest tests/x.py' in tested.stdout
  assert checkout.local().stderr == ''
  assert checkout.pip_calls() == ['-m pip install -e .[test]']


def test_an_accelerator_is_added_and_kept(checkout):
  checkout.local(R1JAX_EXTRA='cuda')
  checkout.local()
  checkout.run('launch/test.sh')
  assert checkout.pip_calls() == ['-m pip install -e .[cuda]', '-m pip install -e .[test,cuda]']
  fails(checkout.local(R1JAX_EXTRA='gpu'), 'cuda, tpu, plan or nothing', "'gpu'")


@pytest.mark.parametrize('change', ['setup.cfg', 'pyproject.toml', 'version'])
def test_a_change_installs_again(checkout, change):
  checkout.local()
  if change != 'version':
    with open(checkout.root / change, 'a') as f:
      f.write('\n# changed\n')
  assert checkout.local(VERSION='3.13' if change == 'version' else '3.12').returncode == 0
  assert len(checkout.pip_calls()) == 2


def test_an_interrupted_install_is_not_trusted(checkout):
  process = checkout.command('launch/local.sh', 'x.py', PIP_SECONDS=30)
  deadline = time.time() + 30
  while not checkout.pip_calls():
    assert time.time() < deadline and process.poll() is None
    time.sleep(0.02)
  os.killpg(process.pid, signal.SIGKILL)
  process.communicate(timeout=60)
  leftover = checkout.root / '.venv/leftover'
  leftover.touch()
  again = checkout.local()
  assert again.returncode == 0 and 'removing .venv' in again.stderr, again.stderr
  assert len(checkout.pip_calls()) == 2 and not leftover.exists()


@pytest.mark.parametrize('part', ['bin/python', 'bin/pip'])
def test_a_broken_venv_is_made_again(checkout, part):
  checkout.local()
  (checkout.root / '.venv' / part).unlink()
  again = checkout.local()
  assert again.returncode == 0 and 'removing .venv' in again.stderr, again.stderr
  assert len(checkout.pip_calls()) == 2


def test_two_starts_at_once_install_once(checkout):
  if not shutil.which('flock'):
    pytest.skip('no flock on this machine: setup.sh goes without it')
  starts = [checkout.command('launch/local.sh', 'x.py', PIP_SECONDS=0.5) for _ in range(2)]
  assert [start.communicate(timeout=60)[0] for start in starts] == ['r1jax run x.py\n'] * 2
  assert len(checkout.pip_calls()) == 1


def test_wrong_python(checkout):
  fails(checkout.local(VERSION='3.9'), 'needs Python 3.11, 3.12 or 3.13', 'python (3.9)')
  fails(checkout.local(VERSION='3.14'), 'python (3.14)')
  fails(checkout.local(VERSION=''), 'python (does not run)')
  fails(checkout.local(PYTHON='no-such-python'), 'none under the names no-such-python')
  assert not (checkout.root / '.venv').exists()


def test_the_search_passes_over_what_does_not_run(checkout):
  for name, text in {'python3.13': 'exit 127', 'python3.12': 'echo 3.9', 'python3.11': ''}.items():
    checkout.script(f'names/{name}', f'#!/usr/bin/env bash\n{text}\n')
  shutil.copy(checkout.python, checkout.root / 'names/python3')
  path = f"{checkout.root / 'names'}:{os.environ['PATH']}"
  found = checkout.local(PYTHON='', PATH=path, VERSION='3.11')
  assert found.returncode == 0 and 'names/python3 (Python 3.11)' in found.stderr, found.stderr


def test_python_without_venv(checkout):
  fails(checkout.local(NO_VENV=1), 'no venv module', 'sudo apt install python3.12-venv')


def test_full_disk(checkout):
  text = '#!/usr/bin/env bash\necho head\necho "/dev/x 9000000 8900000 102400 99% /"\n'
  checkout.script('full/df', text)
  path = f"{checkout.root / 'full'}:{os.environ['PATH']}"
  fails(checkout.local(PATH=path), 'takes about 1500 MB', 'has 100 MB free')
  fails(checkout.local(PATH=path, R1JAX_EXTRA='cuda'), 'takes about 9500 MB')
  assert not checkout.pip_calls() and not (checkout.root / '.venv').exists()


@pytest.mark.parametrize('said, reason', [
    ("WARNING: Retrying after connection broken by 'NewConnectionError'", 'is there a network?'),
    ('ERROR: Could not install: [Errno 28] No space left on device', 'disk filled up'),
    ('ERROR: No matching distribution found for jax', 'could not install the packages'),
])
def test_pip_fails(checkout, said, reason):
  failed = checkout.local(PIP_SAYS=said)
  fails(failed, reason, '.venv/install.log')
  assert f'  | {said}' in failed.stderr
  assert checkout.local().returncode == 0  # once pip can


@pytest.mark.parametrize('said, kept', [
    ('ERROR: No matching distribution found for pytest', True),
    ('Installing collected packages: pytest', False),
])
def test_what_a_failed_addition_leaves(checkout, said, kept):
  """Without a network the tests cannot be had, but the experiments run as before."""
  checkout.local()
  fails(checkout.run('launch/test.sh', PIP_SAYS=said), 'could not install')
  after = checkout.local()
  assert after.returncode == 0 and (after.stderr == '') == kept
  assert len(checkout.pip_calls()) == (2 if kept else 3)


def test_no_network_for_real(checkout):
  """The true interpreter and pip; the index is a closed port of this machine."""
  env = dict(PIP_CONFIG_FILE=os.devnull, PIP_INDEX_URL='http://127.0.0.1:9/simple', PIP_RETRIES=1,
             PIP_EXTRA_INDEX_URL='', PIP_FIND_LINKS='', PIP_NO_INDEX=0, PIP_NO_CACHE_DIR=1)
  failed = checkout.local(PYTHON=sys.executable, **env)
  fails(failed, 'is there a network?', '.venv/install.log')
  assert (checkout.root / '.venv/install.log').stat().st_size > 0


def test_paths_are_the_callers_or_the_checkouts(checkout, tmp_path):
  checkout.local()
  script = checkout.root / 'launch/local.sh'
  (tmp_path / 'mine.py').touch()
  assert checkout.run(script, 'x.py', cwd=tmp_path).stdout == 'r1jax run x.py\n'
  assert checkout.run(script, 'mine.py', cwd=tmp_path).stdout == f'r1jax run {tmp_path}/mine.py\n'
  inside = checkout.run('local.sh', '../x.py', cwd=checkout.root / 'launch')
  assert inside.stdout == 'r1jax run x.py\n'
  mistake(checkout.run(script, 'y.py', cwd=tmp_path), 'no experiment file y.py')


def test_test_sh_runs_everything_and_fails_if_one_does(checkout):
  (checkout.root / 'tests').mkdir()
  flake8 = "'-m flake8 '*) exit 1 ;;"
  checkout.script('fake/python', PYTHON.replace("  '-m pip '", f"  {flake8}\n  '-m pip '"))
  failed = checkout.run('launch/test.sh')
  assert '-m yapf' in failed.stdout and '-m pytest' in failed.stdout
  fails(failed, 'failed: flake8')


def test_ci_runs_test_sh(checkout):
  checkout.script('launch/test.sh', 'echo "test.sh in $PWD with [$*]"\n')
  done = checkout.run('../.ci/run', cwd=checkout.root / 'launch')
  assert done.stdout == f'test.sh in {checkout.root} with []\n'
  assert os.access(ROOT / '.ci/run', os.X_OK)
