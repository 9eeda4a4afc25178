"""Every kind of stage in one pipeline: what it leaves, kills, and what a person may do wrong."""
import json
from pathlib import Path
import random
import shutil
import time

import pytest

from r1jax import losses, metrics, optim, prompts, scoring, sharding, tokenizer
from r1jax.stages import reward_model
from r1jax.types import Completion, Judged, Problem
from tests.test_processes import end, launch

PIPELINE = Path(__file__).parent / 'pipeline.py'
NAMES = ('base', 'data', 'dev', 'pairs', 'labels', 'helpful', 'safety', 'zero', 'table')
MADE = ('result.json', 'metrics.jsonl', 'samples.jsonl', 'data/result.jsonl', 'data/report.json',
        'data/shard-00000.jsonl', 'data/shard-00001.jsonl', 'table.json', 'table.md', 'reward.svg')
# Where the second run is killed: when one of these appears for the first time.
KILLS = ('data/data/shard-00000.jsonl', 'dev/params*tmp*', 'pairs/data/shard-00001.jsonl',
         'helpful/state/2', 'zero/state/2', 'table/rows/base.json')


def run(start, cwd, *args):
  """The exit status and what was said on stderr."""
  process = start('run', PIPELINE, '--out', 'out', *args, cwd=cwd)
  out, err = process.communicate()
  return process.returncode, out, err


@pytest.fixture(scope='module')
def made(start, tmp_path_factory):
  """The folder of a pipeline that ran undisturbed. To be read only."""
  folder = tmp_path_factory.mktemp('made')
  status, out, err = run(start, folder)
  assert status == 0 and 'Traceback' not in err, err
  last = out.splitlines()[-1]
  assert set(json.loads(last.removeprefix('result '))) == {'base', 'zero', 'seconds'}
  return folder / 'out'


def test_killed_runs_end_with_the_same_bytes(made, start, tmp_path):
  for pattern in KILLS:
    process = start('run', PIPELINE, '--out', 'out', cwd=tmp_path)
    while not list(tmp_path.glob(f'out/{pattern}')):
      assert process.poll() is None, f'ended before {pattern}: {process.communicate()}'
      time.sleep(0.002)
    process.kill()
    process.communicate()
  status, _, err = run(start, tmp_path)
  assert status == 0, err
  compared = 0
  for name in NAMES:
    for file in MADE:
      want = made / name / file
      if want.exists():
        assert (tmp_path / 'out' / name / file).read_bytes() == want.read_bytes(), want
        compared += 1
  assert compared > 25 and not list(tmp_path.rglob('*tmp*'))


def test_every_stage_in_two_processes_on_a_mesh(made, tmp_path):
  """Weights cut over fsdp and context, rows and positions as well: the same data and verdicts."""
  mesh = [f'--{name}.machine.{field}=2' for name in NAMES
          for field in ('cpu-devices', 'fsdp', 'context')]  # yapf: disable
  ended = end(launch(2, '-m', 'r1jax', 'run', str(PIPELINE), '--out', 'out', *mesh, cwd=tmp_path))
  assert [status for status, _, _ in ended] == [0, 0], ended
  for name in NAMES:
    for file in ('data/result.jsonl', 'data/report.json', 'table.json'):
      here, there = tmp_path / 'out' / name / file, made / name / file
      assert here.exists() == there.exists()
      assert not here.exists() or here.read_bytes() == there.read_bytes(), here
    if (made / name / 'metrics.jsonl').exists():
      here, there = (metrics.read(out / name / 'metrics.jsonl') for out in (tmp_path / 'out', made))
      assert [row.keys() for row in here] == [row.keys() for row in there]
      for a, b in zip(here, there):
        assert a == pytest.approx(b, abs=1e-4)


def test_counts_add_up(made):
  for name in ('data', 'pairs', 'labels'):
    report = json.loads((made / name / 'data/report.json').read_text())
    rows = [row for shard in sorted((made / name / 'data').glob('shard-*'))
            for row in metrics.read(shard)]  # yapf: disable
    samples = sum(counts['samples'] for counts in report['kinds'].values())
    kept = sum(counts['kept'] for counts in report['kinds'].values())
    written = sum(counts['written'] for counts in report['kinds'].values())
    dropped = sum(sum(counts['dropped'].values()) for counts in report['kinds'].values())
    assert samples == len(rows) and kept == sum(len(row['kept']) for row in rows)
    assert dropped == sum(bool(row['reason']) for row in rows)
    left = metrics.read(made / name / 'data/result.jsonl')
    assert len(left) == kept + written - sum(report['removed'].values())
  report = json.loads((made / 'data/data/report.json').read_text())
  counts = report['kinds']['reasoning']
  assert counts['problems'] == 20 and counts['written'] == 80 and counts['dropped']['even'] > 0
  turns = {row['turn'] for row in metrics.read(made / 'data/data/shard-00000.jsonl')}
  assert turns <= {0, 1}


def test_parents_are_recorded(made):
  record = json.loads((made / 'zero/experiment.json').read_text())
  names = sorted(Path(name).name for name in record['parents'])
  assert names == ['dev', 'helpful', 'safety'] and record['run'] == 'r1jax.stages.rl.run'
  fingerprint = json.loads((made / 'helpful/result.json').read_text())['fingerprint']
  assert record['parents']['out/helpful'] == fingerprint


def test_preference_rewards_count_when_they_should(made):
  rows = [row for row in metrics.read(made / 'zero/metrics.jsonl') if 'reward' in row]
  assert ['reward/helpful' in row for row in rows] == [False, False, True, True]


def copy(made, folder):
  shutil.copytree(made, folder / 'out')
  return folder / 'out'


def test_a_parent_that_changed_is_named(made, start, tmp_path):
  out = copy(made, tmp_path)
  shutil.rmtree(out / 'zero')  # not finished, so it starts from what helpful is now
  done = json.loads((out / 'helpful/result.json').read_text())
  (out / 'helpful/result.json').write_text(json.dumps(dict(done, fingerprint='other')))
  (out / 'zero').mkdir()
  shutil.copy(made / 'zero/experiment.json', out / 'zero')
  status, _, err = run(start, tmp_path)
  assert status == 2 and err.count('\n') == 1
  assert 'out/helpful has changed since out/zero was made from it: move out/zero away' in err


def test_an_empty_filter_result_loses_nothing(made, start, tmp_path):
  out = copy(made, tmp_path)
  for name in NAMES[1:]:
    shutil.rmtree(out / name)
  status, _, err = run(start, tmp_path, '--data.num-problems', '2', '--data.samples', '1',
                       '--data.rounds', '1', '--data.sampling.max-tokens', '1')
  assert status == 2 and err.count('\n') == 1
  assert 'nothing was kept of 2 completions' in err and "'even': 2" in err
  assert len(metrics.read(out / 'data/data/shard-00000.jsonl')) == 2


def test_a_reward_model_of_another_tokenizer_is_refused(made, start, tmp_path):
  out = copy(made, tmp_path)
  shutil.rmtree(out / 'zero')
  tokenizer.train(['something else, in other words'], 275).save(out / 'helpful')
  status, _, err = run(start, tmp_path)
  assert status == 2 and err.count('\n') == 1 and 'tokenizer' in err and 'out/helpful' in err


def test_the_page(made, start):
  process = start('report', made, cwd=made)
  out, err = process.communicate()
  assert process.returncode == 0, err
  page = (made / 'report.html').read_text(encoding='utf-8')
  assert all(name in page for name in NAMES) and out.startswith('wrote ')


@pytest.mark.parametrize('loss', [losses.bradley_terry, losses.pointwise])
def test_a_reward_model_learns_what_is_better(made, tmp_path, loss):
  """Nines are better than zeros, on prompts it has not seen; lengths say nothing."""
  rng = random.Random(0)

  def judged():
    for i in range(120):
      good, bad = ('<think>' + digit * rng.randint(1, 6) for digit in '90')
      if loss is losses.bradley_terry:
        yield Judged(f'{i}=', (good, bad))
      else:
        yield Judged(f'{i}=', *[((good,), 1.0), ((bad,), 0.0)][i % 2])

  items = list(judged())
  cfg = reward_model.Config(str(made / 'dev'), lambda: items, prompts.whole, loss, held_out=0.3,
                            epochs=3, batch=12, max_tokens=64, optimizer=optim.Optimizer(lr=1e-2),
                            machine=sharding.Machine())
  result = reward_model.run(cfg, str(tmp_path))
  assert result['accuracy'] > 0.9 and result['length_only'] < 0.8 and result['held_out'] == 36
  many = scoring.model(str(tmp_path), *sharding.start(cfg.machine), tokenizer.load(made / 'dev'))
  texts = [Completion('<think>99', 1, True), Completion('<think>00', 1, True),
           Completion('9' * 2000, 1, True)]  # yapf: disable
  high, low, long = many([Problem('200=', '')] * 3, texts)
  assert 1 > high > 0.5 > low > 0 and isinstance(long, ValueError)
