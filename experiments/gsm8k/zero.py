"""R1-Zero on GSM8K with a small model that you have: Qwen2.5-0.5B unless you name another.

  bash launch/local.sh experiments/gsm8k/zero.py --init PATH/TO/Qwen2.5-0.5B

GSM8K lies in data/gsm8k (train.jsonl and test.jsonl; r1jax/datasets.py says how and where else), or
in the folder that R1JAX_DATA names. One GPU of 80 GB. Expected: the share of right answers, judged
as mathematics and not as text, rises within the first hundred updates. Not yet run.

--lora.rank 16 trains adapters alone. laptop.py beside this file is the same with a model that needs
no GPU.
"""
from functools import partial

from r1jax import evals, grpo, optim, prompts, rewards, sample
from r1jax.grading import math as math_grader
from r1jax.stages import rl
from r1jax.tasks import gsm8k
from r1jax.types import Reward, Stage

OUT = 'runs/gsm8k/zero'
BUDGET = sample.Sampling(max_tokens=512)
problems = partial(gsm8k.load, template=prompts.R1_ZERO)


def experiment():
  """One stage: RL from a Hugging Face folder."""
  return Stage(
      rl.run,
      rl.Config(
          init='models/Qwen2.5-0.5B',
          problems=problems,
          evaluation=evals.Evaluation(problems, num_problems=256, sampling=BUDGET,
                                      answer=math_grader.extract, same=math_grader.same),
          rewards=(gsm8k.REWARD, Reward('format', rewards.format)),
          steps=200,
          batch=32,
          group=8,
          minibatches=1,
          sampling=BUDGET,
          objective=grpo.Objective(beta=0.001),
          optimizer=optim.Optimizer(lr=1e-6, warmup_steps=10),
          refresh_every=0,
          eval_every=50,
          save_every=50,
          samples_every=10,
      ), OUT)
