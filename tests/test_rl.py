"""Which problems an update sees, and what its rewards come to on record."""
import collections
import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from r1jax import grpo, metrics, rollout, sharding
from r1jax.model import MLA
from r1jax.stages import rl
from r1jax.types import Completion, Problem, Rollout, Source, Stopped, UserError
from tests import experiment as tiny


class Letters:
  """A tokenizer of nothing but lengths."""
  encode = staticmethod(lambda text: [1] * len(text))


def source(kind, count):
  return lambda split: [Problem(f'{split}{i}', '', kind) for i in range(count)]


def config(**changes):
  base = tiny.experiment()[1].config
  return dataclasses.replace(base, problems=source('own', 6), batch=4, minibatches=1, steps=8,
                             max_prompt_tokens=9, **changes)


def kinds(cfg):
  """The kinds of each step's problems."""
  problem = rl.make_stream(cfg, Letters)
  return [[problem(n).kind for n in rl.problem_numbers(cfg, step)] for step in range(cfg.steps)]


def test_other_problems_join_in_their_updates():
  more = (Source(source('a', 3), 1, 2), Source(source('b', 3), 2, 4, 6))
  own, with_a, with_both = ['own'] * 4, ['own'] * 3 + ['a'], ['own', 'b', 'b', 'a']
  assert kinds(config(more=more)) == [own] * 2 + [with_a] * 2 + [with_both] * 2 + [with_a] * 2
  assert kinds(config(more=more, resample=2)) == kinds(config(more=more))


def test_every_problem_has_its_turn():
  problem = rl.make_stream(config(more=(Source(source('a', 6), 2),)), Letters)
  seen = collections.Counter(problem(n) for n in range(4 * 6))  # six updates
  assert [n for p, n in seen.items() if p.kind == 'a'] == [2] * 6
  alone = rl.make_stream(config(), Letters)
  assert collections.Counter(
      alone(n) for n in range(12)) == {p: 2 for p in source('own', 6)('train')}


def test_no_problems_is_a_sentence():
  with pytest.raises(UserError, match='no problems to train on'):
    rl.make_stream(config(more=(Source(lambda split: [], 1),)), Letters)


def test_shares_and_windows_are_checked():
  with pytest.raises(UserError, match='add up to more than the batch of 4'):
    rl.check(config(more=(Source(source('a', 1), 5),)))
  with pytest.raises(UserError, match='multiples of minibatches, 2'):
    rl.check(dataclasses.replace(config(more=(Source(source('a', 1), 1, 3),)), minibatches=2))


def test_latent_attention_in_half_precision_needs_importance_weights():
  model = SimpleNamespace(config=SimpleNamespace(mla=MLA(4, 4, 4, 4, 4)))
  half, full = sharding.Machine(dtype='bfloat16'), sharding.Machine()
  with pytest.raises(UserError, match='latent attention decodes by another route'):
    rl.check_rounding(config(), model, half)
  rl.check_rounding(config(), model, full)
  rl.check_rounding(config(objective=grpo.Objective(importance=grpo.truncated)), model, half)


def test_a_mean_is_over_what_a_reward_applies_to():
  ones = np.ones((2, 2), np.float32)
  sampled = Rollout(None, None, None, ones, ones, None)
  scores = {'rule': np.float32([[1, 0], [np.nan, np.nan]]), 'never': ones * np.nan}
  problems = [Problem('p', '', 'x'), Problem('q', '', 'y')]
  texts = [[Completion('t', 1, True)] * 2] * 2
  graded = rollout.Graded(sampled, problems, texts, scores, ones,
                          [['timed out: reward r', 'failed: reward r'], []])
  numbers = rl.summarise(graded)
  assert numbers['reward/rule'] == 0.5 and 'reward/never' not in numbers
  assert numbers['reward/errors'] == numbers['reward/timeouts'] == 1
  assert [row['scores'] for row in rl.records(graded)] == [{'rule': 1.0}, {'rule': 0.0}, {}, {}]


def test_rollouts_ahead_are_stale_and_the_others_are_not(finished, tmp_path):
  """On a device of its own for sampling, with 4 rollouts of 2 updates and a state saved after 2 of
  them: the second and the fourth come from parameters that are one rollout old."""
  base = tiny.experiment()[1].config
  objective = dataclasses.replace(base.objective, importance=grpo.truncated)

  def run(name, **changes):
    out = tmp_path / name
    out.mkdir(exist_ok=True)
    cfg = dataclasses.replace(base, init=str(finished / 'out/base'), objective=objective,
                              save_every=4, **changes)
    rl.run(cfg, str(out))
    rows = [row for row in metrics.read(out / 'metrics.jsonl') if 'mismatch' in row]
    return np.array([[row['loss'], row['mismatch']] for row in rows])

  apart = sharding.Machine(data=1, sample_devices=1)
  together, fresh = run('together'), run('fresh', machine=apart)
  np.testing.assert_array_equal(fresh, together)
  ahead = run('ahead', machine=apart, staleness=1)
  stale = np.array([0, 0, 1, 1, 0, 0, 1, 1], bool)
  assert (fresh[:, 1] < 1e-6).all() and (ahead[~stale, 1] < 1e-6).all()
  assert (ahead[stale, 1] > 1e-4).all()
  again = run('again', staleness=1, resample=1)  # where the sampler has no copy of its own
  assert np.isfinite(again).all() and (again[[2, 3, 6, 7], 1] > 1e-4).all()
  # Asked to stop, it goes on to the next saved state: what is ahead could not be sampled again.
  with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped) as stopped:
    patch.setattr(rl.processes, 'stop_requested', lambda: True)
    run('stopped', machine=apart, staleness=1)
  assert stopped.value.step == 4
  np.testing.assert_array_equal(run('stopped', machine=apart, staleness=1), ahead)
  with pytest.raises(UserError, match='older than the one that learns'):
    rl.check(dataclasses.replace(base, staleness=1))
