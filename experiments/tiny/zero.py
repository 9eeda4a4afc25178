"""R1-Zero in the tiny world: GRPO with rule rewards, from a base that mostly answers wrong.

  bash launch/local.sh experiments/tiny/zero.py
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
