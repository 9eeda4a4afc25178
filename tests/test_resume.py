"""A run that is killed, again and again, leaves the bytes of one that was not."""
import json
from pathlib import Path
import random
import time

import pytest

EXPERIMENT = Path(__file__).parent / 'experiment.py'
# Where each run is killed: when one more of these appears. The first lie inside of a save.
KILLS = [
    'base/state/*tmp*', 'base/params*tmp*', 'zero/state/*tmp*', 'zero/state/4', 'zero/params*tmp*'
]


def seen(folder, pattern):
  """Entries by name and inode: what is made again is new."""
  out = set()
  for path in folder.glob(pattern):
    try:
      out.add((path.name, path.stat().st_ino))
    except FileNotFoundError:  # renamed meanwhile
      pass
  return out


@pytest.fixture(scope='module')
def killed(start, tmp_path_factory):
  """(the folder of a run that was killed at each of KILLS and then ended, its files each time)."""
  folder = tmp_path_factory.mktemp('killed')
  rng, reached = random.Random(0), []
  for pattern in KILLS:
    before = seen(folder / 'out', pattern)
    process = start('run', EXPERIMENT, '--out', 'out', cwd=folder)
    while not seen(folder / 'out', pattern) - before:
      if process.poll() is not None:
        pytest.fail(f'ended before {pattern} appeared: {process.communicate()}')
      time.sleep(0.0005)
    if 'tmp' not in pattern:
      time.sleep(rng.random() / 10)
    process.kill()
    process.communicate()
    reached.append(sorted(p.name for p in folder.glob('out/*/*')))
  process = start('run', EXPERIMENT, '--out', 'out', cwd=folder)
  _, err = process.communicate()
  assert process.returncode == 0, err
  return folder, reached


def test_the_kills_came_before_the_end(killed):
  assert [names.count('result.json') for names in killed[1]] == [0, 0, 1, 1, 1]


@pytest.mark.parametrize('stage', ['base', 'zero'])
def test_killed_runs_end_with_the_same_bytes(killed, finished, stage):
  for file in ('metrics.jsonl', 'samples.jsonl', 'config.json', 'tokenizer.model'):
    got, want = ((folder / 'out' / stage / file).read_bytes() for folder in (killed[0], finished))
    assert got == want, file
  got, want = (json.loads((folder / 'out' / stage / 'result.json').read_text())
               for folder in (killed[0], finished))
  assert got == want  # the fingerprint of the parameters among them


def test_nothing_unfinished_is_left(killed):
  assert not list(killed[0].rglob('*tmp*'))
