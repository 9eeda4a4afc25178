"""GRPO and what others made of it, on one problem set, in the tiny world.

  bash launch/local.sh experiments/ablations/variants.py

R1-Zero from the base of experiments/tiny/r1.py with nine objectives, each a few lines of
r1jax/grpo.py: 24 updates of 16 problems x 8, two updates a rollout, so that ratios and clips act.
Six minutes on two CPU cores once the base is there, else two more. One setting suits no two of
them, so this shows that each one learns, not which is best. Measured (seed 0, commit 7e89940):
pass@1 from 0.619 to GRPO 0.998, Dr. GRPO 1.000, DAPO 0.990, GSPO 1.000, CISPO 0.939, TIS 0.986,
RLOO 0.971, REINFORCE++ 0.971 and 0.875 with a baseline; 347 s with tests beside it.
"""
from functools import partial

from experiments.tiny import r1
from r1jax import grpo, rewards
from r1jax.stages import evaluate, rl
from r1jax.types import Reward, Stage

RUNS = 'runs/ablations/variants'
OVERLONG = Reward('overlong', partial(rewards.overlong, max_tokens=112, cache=32))
VARIANTS = {  # name -> what differs
    'grpo': dict(objective=grpo.Objective()),
    'dr_grpo': dict(objective=grpo.DR_GRPO),
    'dapo': dict(objective=grpo.DAPO, resample=1, more_rewards=(OVERLONG,)),
    'gspo': dict(objective=grpo.GSPO),
    'cispo': dict(objective=grpo.CISPO),
    'tis': dict(objective=grpo.TIS),
    'rloo': dict(objective=grpo.RLOO),
    'reinforce_pp': dict(objective=grpo.REINFORCE_PP),
    'reinforce_pp_baseline': dict(objective=grpo.REINFORCE_PP_BASELINE),
}  # yapf: disable


def variant(objective, more_rewards=(), **changes):
  """One run."""
  terms = (r1.RIGHT, Reward('format', rewards.format), *more_rewards)
  return r1.reinforce(r1.BASE, rewards=terms, objective=objective, steps=24, batch=16, group=8,
                      minibatches=2, refresh_every=12, save_every=24, samples_every=12, **changes)


def experiment():
  """One run a variant, and a table of all."""
  runs = {name: f'{RUNS}/{name}' for name in VARIANTS}
  stages = [Stage(rl.run, variant(**changes), runs[name]) for name, changes in VARIANTS.items()]
  curves = (evaluate.Curves('accuracy', 'reward/accuracy', 'accuracy',
                            runs), evaluate.Curves('length', 'length', 'tokens', runs))
  table = evaluate.Config({'base': r1.BASE, **runs},
                          r1.tasks(k=4)[:1], max_prompt_tokens=r1.PROMPT, curves=curves)
  return (*r1.through(r1.BASE), *stages, Stage(evaluate.run, table, f'{RUNS}/table'))
