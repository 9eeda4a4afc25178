"""R1-Zero in the tiny world: GRPO with rule rewards, from a base that mostly answers wrong.

  bash launch/local.sh experiments/tiny/zero.py

The recipe of arXiv 2501.12948 v2, section 2: accuracy + format with equal weight, groups of 16, KL
0.001 to a reference that is refreshed, here in miniature. Six minutes on two CPU cores, base
included. Expected: test pass@1 from 0.10-0.40 to at least 0.90, and longer completions. Measured,
seeds 0, 1, 2: 0.345 to 0.978, 0.338 to 0.958, 0.359 to 0.954; 30 to 58 tokens (commits ace3f87,
f4df988, 3dc95e2).
"""
from experiments.tiny import base
from r1jax import grpo, optim, sample
from r1jax.stages import rl
from r1jax.tasks import chain
from r1jax.types import Stage

OUT = 'runs/tiny/zero'


def experiment():
  """Two stages: the base, and R1-Zero from it."""
  zero = rl.Config(
      init=base.OUT,
      problems=chain.load,
      evaluation=base.EVALUATION,
      steps=60,
      batch=32,
      group=16,
      minibatches=1,
      max_prompt_tokens=64,
      sampling=sample.Sampling(max_tokens=128),
      objective=grpo.Objective(beta=0.001),
      optimizer=optim.Optimizer(lr=6e-4, warmup_steps=5),
      refresh_every=20,
      save_every=20,
      samples_every=10,
  )
  return base.experiment(), Stage(rl.run, zero, OUT)
