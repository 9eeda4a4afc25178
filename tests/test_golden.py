"""Twelve updates of R1-Zero's loop on an easy rule: it learns, and exactly as it did."""
import dataclasses
import json

import numpy as np
import pytest

import experiment
from r1jax import optim
from r1jax.types import Reward

GOLDEN = {
    'reward': [0.172031, 0.176913, 0.25527, 0.337365, 0.422125, 0.375133,
               0.534189, 0.56444, 0.660568, 0.662305, 0.775866, 0.836386],
    'kl': [0.0, 0.135183, 0.072787, 0.238755, 0.18552, 0.303917,
           0.0, 0.013481, 0.032277, 0.070124, 0.114485, 0.168431],
    'grad_norm': [0.504124, 0.531756, 0.630733, 0.609726, 0.466239, 0.231314,
                  0.373535, 0.490936, 0.328923, 0.185902, 0.365597, 0.220187],
}  # yapf: disable
BROKEN = '''
The learning curve is not the one on record. If you changed what is computed on purpose (the loss,
the sampler's draws, the optimizer, the initial parameters, the tokenizer), look at the new numbers
below, see that reward still rises, put them into GOLDEN in this file and say in the commit why they
moved. If you changed only how it is computed (speed, layout, names), this is a bug: find it.
  GOLDEN = {}'''


def digits(problem, completion):
  """The share of characters that are digits."""
  del problem
  return sum(c.isdigit() for c in completion.text) / max(1, len(completion.text))


@pytest.fixture(scope='module')
def learn(tmp_path_factory):
  """(name, changed settings) -> the rows of metrics.jsonl that are updates."""
  base, zero = experiment.experiment()
  folder = tmp_path_factory.mktemp('golden')
  base.run(dataclasses.replace(base.config, evaluation=None), str(folder / 'base'))

  def run(name, **changes):
    cfg = dataclasses.replace(zero.config, init=str(folder / 'base'), steps=12, batch=4, group=8,
                              refresh_every=6, save_every=12, optimizer=optim.Optimizer(lr=1e-2))
    zero.run(dataclasses.replace(cfg, **changes), str(folder / name))
    rows = map(json.loads, (folder / name / 'metrics.jsonl').read_text().splitlines())
    return [row for row in rows if 'loss' in row]

  return run


@pytest.fixture(scope='module')
def curve(learn):
  """name -> the numbers of each update."""
  rows = learn('zero', rewards=(Reward('digits', digits),))
  return {name: [round(row[name], 6) for row in rows] for name in ('reward', 'kl', 'grad_norm')}


def test_reward_rises(curve):
  first, last = np.mean(curve['reward'][:2]), np.mean(curve['reward'][-2:])
  assert last > first + 0.3, curve['reward']


def test_the_learning_curve_is_the_one_on_record(curve):
  for name, values in GOLDEN.items():
    np.testing.assert_allclose(curve[name], values, rtol=1e-3, atol=1e-4,
                               err_msg=name + BROKEN.format(curve))


def sometimes(problem, completion):
  """The share of digits for problems with an odd answer; nothing for the others."""
  return digits(problem, completion) if int(problem.answer) % 2 else 0.0


def test_groups_with_equal_rewards_are_replaced_by_fresh_problems(learn):
  terms = (Reward('sometimes', sometimes),)
  share = lambda rows: np.mean([row['degenerate'] for row in rows])
  kept = share(learn('kept', rewards=terms, steps=6))
  replaced = share(learn('replaced', rewards=terms, steps=6, resample=4))
  assert kept > 0.3 and replaced < kept / 2, (kept, replaced)
