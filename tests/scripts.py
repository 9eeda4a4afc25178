"""A copy of launch/ to run the scripts in, with an interpreter that only pretends to be one.

Nothing is installed, and the checkout's own .venv is never touched.
"""
import os
from pathlib import Path
import shutil
import subprocess
import sys

ROOT = Path(__file__).parents[1]

# Answers what setup.sh asks of an interpreter, and writes down what pip is asked to install.
PYTHON = """#!/usr/bin/env bash
case "$*" in
  *version_info*) echo "$VERSION" ;;
  *ensurepip*) exit "$NO_VENV" ;;
  *'import socket'*) exec "$REAL_PYTHON" "$@" ;;
  '-m venv '*)
    mkdir -p "$3/bin" && cp "$0" "$3/bin/python"
    printf '#!/usr/bin/env bash\\necho "r1jax $*"\\n' | tee "$3/bin/pip" >"$3/bin/r1jax"
    chmod +x "$3/bin/r1jax" ;;
  '-m pip '*)
    echo "$*" >>pip_calls
    if [[ -n $PIP_SAYS ]]; then echo "$PIP_SAYS"; exit 1; fi
    sleep "$PIP_SECONDS" ;;
  *) echo "$*" ;;
esac
"""


class Checkout:
  """A copy of what the scripts need; `run` gives the finished process, its output as text."""

  def __init__(self, root):
    self.root = root
    shutil.copytree(ROOT / 'launch', root / 'launch')
    shutil.copytree(ROOT / '.ci', root / '.ci')
    for name in ('setup.cfg', 'pyproject.toml'):
      shutil.copy(ROOT / name, root)
    self.python = self.script('fake/python', PYTHON)
    (root / 'x.py').touch()

  def script(self, name, text):
    path = self.root / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path

  def replace(self, name, old, new):
    text = (self.root / name).read_text()
    assert old in text
    (self.root / name).write_text(text.replace(old, new))

  def command(self, *args, cwd=None, **env):
    defaults = dict(PYTHON=self.python, REAL_PYTHON=sys.executable, VERSION='3.12', NO_VENV=0,
                    PIP_SAYS='', PIP_SECONDS=0, R1JAX_EXTRA='')
    env = {k: str(v) for k, v in {**os.environ, **defaults, **env}.items()}
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen(['bash', *map(str, args)], cwd=cwd or self.root, env=env,
                            start_new_session=True, **pipes)

  def run(self, *args, **kwargs):
    process = self.command(*args, **kwargs)
    out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(args, process.returncode, out, err)

  def local(self, *args, **kwargs):
    return self.run('launch/local.sh', 'x.py', *args, **kwargs)

  def pip_calls(self):
    calls = self.root / 'pip_calls'
    return calls.read_text().splitlines() if calls.exists() else []


def fails(process, *words):
  """One sentence, which has these words, and no traceback."""
  assert process.returncode not in (0, 2), process
  lines = [line for line in process.stderr.splitlines() if line.startswith('r1jax: ')]
  for word in words:
    assert word in lines[-1], process.stderr
  assert 'Traceback' not in process.stderr and 'line ' not in lines[-1]
  return lines


def mistake(process, *words):
  """Status 2 and one sentence that has these words."""
  assert process.returncode == 2, process
  for word in words:
    assert word in process.stderr.splitlines()[-1], process.stderr


# The first lines of a command that only writes down how it was called.
RECORD = '#!/usr/bin/env bash\nprintf "%s\\n" "${0##*/} $*" >>calls\n'


def calls(checkout):
  """What the pretended commands were called with, since the last look."""
  file = checkout.root / 'calls'
  out = file.read_text().splitlines() if file.exists() else []
  file.unlink(missing_ok=True)
  return out
