"""R1-Zero: reinforcement learning of DeepSeek-V3-Base with rule rewards alone (section 2).

  bash launch/local.sh experiments/r1/r1_zero.py

64 x 8 H800, about 198 hours (B.4.4). Expected: AIME 2024 pass@1 from 15.6 to 77.9 (v1: 71.0),
majority vote 86.7, answers that grow from hundreds of tokens to thousands. Not yet run.

From rl.Config's defaults, and checked by a test (all section 2.1): learning rate 3e-6, temperature
1, 32 questions with 16 outputs each an update, 512 in all; 8,192 outputs a rollout, split into 16
minibatches, each trained once; the reference becomes the policy every 400 updates; accuracy and
format with the same weight (eq. 4).

10,400 updates in all (2.1), in two stages, as the budget is 32,768 tokens until "step 8.2k" and
65,536 from there on (2.1). 8,200 is no multiple of the 16 updates of a rollout; 8,192, which is 512
rollouts, is [derived]. The second stage starts afresh: with new moments, with its reference at
update 8,192 and every 400 from there (the paper's would come at 8,400), and with seed 1, else the
questions would come in the first stage's order again. Schedule, moments and clip of the optimizer
are unconfirmed: chosen, constant and optim.Optimizer's defaults. How many prompts there were is
unconfirmed, too: 1.6 epochs of 10,400 x 32 would be 208,000, and table 4 has 80,000.
"""
import dataclasses

from experiments.r1 import common
from r1jax import optim, prompts, sample
from r1jax.stages import rl
from r1jax.types import Stage

OUT_32K = 'runs/r1/zero_32k'
OUT = 'runs/r1/zero'


def experiment():
  """Two stages, the second with twice the budget."""
  first = rl.Config(
      init=common.BASE,
      problems=common.reasoning_zero,
      evaluation=common.aime(template=prompts.R1_ZERO, answer=prompts.last_answer),
      steps=8192,  # "8.2k" (2.1); 512 rollouts [derived]
      rewards=common.RULES_ZERO,
      max_prompt_tokens=common.PROMPT,
      sampling=sample.Sampling(max_tokens=32_768),  # 2.1, and temperature 1
      optimizer=optim.Optimizer(lr=3e-6, moments=common.MOMENTS),
      objective=common.LATENT,  # KL 0.001 (2.1); clip unconfirmed: chosen, 10
      save_every=16,  # ours: after each rollout, which takes hours
      eval_every=400,  # ours
      machine=common.MACHINE,
  )
  budget = sample.Sampling(max_tokens=65_536)  # 2.1
  # 10,400 updates in all (2.1)
  machine = dataclasses.replace(common.MACHINE, sample_rows=512)  # as many tokens at once
  second = dataclasses.replace(first, init=OUT_32K, steps=10_400 - 8192, sampling=budget, seed=1,
                               machine=machine)  # yapf: disable
  return Stage(rl.run, first, OUT_32K), Stage(rl.run, second, OUT)
