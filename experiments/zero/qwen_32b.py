"""R1-Zero's recipe on Qwen2.5-32B: RL of a smaller base, which distillation beats (sections B.4.1,
F.1; v1, section 4.1).

  bash launch/local.sh experiments/zero/qwen_32b.py

Expected (table 16): AIME 2024 pass@1 47.0, cons@64 60.0, MATH-500 91.6, GPQA Diamond 55.0,
LiveCodeBench 40.2, against 72.6 for the distilled model on AIME. 64 chips of v5p. Not yet run.

B.4.1: learning rate 2e-6, KL 0.001, temperature 1, 32 questions with 16 outputs each an update,
32,768 tokens, rollouts of 8,192 outputs in 16 minibatches, a reference refreshed every 400 updates;
all but the first are rl.Config's defaults, and checked by a test. "More than 10K" updates (v1, 4.1;
F.1): chosen, R1-Zero's 10,400. The clip is not stated: chosen, 10, R1's. Maths, code and STEM
(F.1). Which template it was is unconfirmed: chosen, R1-Zero's.
"""
from experiments.r1 import common
from r1jax import optim, prompts, sample, sharding
from r1jax.stages import rl
from r1jax.types import Stage

OUT = 'runs/zero/qwen_32b'


def problems(split):
  """Those of R1-Zero without logic."""
  return [problem for problem in common.reasoning_zero(split) if problem.kind != 'logic']


def experiment():
  """One stage."""
  config = rl.Config(
      init='models/Qwen2.5-32B',
      problems=problems,
      evaluation=common.aime(template=prompts.R1_ZERO, answer=prompts.last_answer),
      rewards=common.RULES_ZERO,
      steps=10_400,  # ">10K": chosen
      max_prompt_tokens=common.PROMPT,
      sampling=sample.Sampling(max_tokens=32_768),  # B.4.1
      objective=common.OBJECTIVE,  # KL 0.001 (B.4.1); clip chosen
      optimizer=optim.Optimizer(lr=2e-6),  # B.4.1
      save_every=16,  # ours: after each rollout, which takes hours
      eval_every=400,  # ours
      machine=sharding.Machine(
          fsdp=16,
          tensor=4,
          topology='v5p:4x4x4',
          micro_rows=1,  # ours
          sample_rows=128,
          dtype='bfloat16'),
  )
  return Stage(rl.run, config, OUT)
