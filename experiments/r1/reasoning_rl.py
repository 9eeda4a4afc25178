"""Reasoning RL, stage 1: Dev1 to Dev2 (section 3.2.1; v1, section 2.3.2).

  bash launch/local.sh experiments/r1/reasoning_rl.py

Machine as in common.py; all of R1's training took about 80 hours (B.4.4). Expected: AIME 2024 from
59.0 to 74.0, MATH-500 95.9, GPQA Diamond 70.7 (table 3), and language consistency that does not
decay (B.6, figure 7). Not yet run.

From rl.Config's defaults, and checked by a test (3.2.1): learning rate 3e-6, 32 questions with 16
outputs each an update, 8,192 outputs a rollout in 16 minibatches, a reference refreshed every 400
updates. To accuracy and format comes language consistency, each with weight 1 (eq. 4, 7 and 8; v1
adds accuracy and language alone).

The number of updates is not stated (v1: until convergence): chosen, 2,400. R1-Zero's pace, 10,400
updates in 198 hours, would be 4,200 in R1's 80, and stage 2 takes 1,700 of them [derived].
"""
from experiments.r1 import cold_start, common
from r1jax import optim, sample
from r1jax.stages import rl
from r1jax.types import Stage

OUT = 'runs/r1/dev2'


def experiment():
  """One stage."""
  config = rl.Config(
      init=cold_start.OUT,
      problems=common.reasoning,
      evaluation=common.aime(),
      rewards=common.RULES,
      steps=2400,  # unconfirmed: chosen
      max_prompt_tokens=common.PROMPT,
      sampling=sample.Sampling(max_tokens=32_768),  # 3.2.1, and temperature 1
      optimizer=optim.Optimizer(lr=3e-6, moments=common.MOMENTS),
      objective=common.LATENT,  # clip 10 and KL 0.001 (3.2.1)
      save_every=16,  # ours: after each rollout, which takes hours
      eval_every=400,  # ours
      machine=common.MACHINE,
  )
  return Stage(rl.run, config, OUT)
