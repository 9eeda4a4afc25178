"""GRPO on GSM8K with a model that runs anywhere: every part is real but the hope of a right answer.

  R1JAX_DATA=PATH/TO/DATA bash launch/local.sh experiments/gsm8k/laptop.py \\
      --init PATH/TO/stories260K/hf

PATH/TO/DATA/gsm8k holds train.jsonl and test.jsonl (or .jsonl.gz). The model is Karpathy's
260k-parameter Llama, which has read nothing but children's stories. It cannot reckon; what it can
learn is that an answer is a number, so saying one earns a little, and a right one more. Everything
else is what a large model goes through: import of safetensors and tokenizer, TFDS, the grader with
its worker processes, sampling, update, records, evaluation.

Expected: every completion says a number in the end. Measured: 0.002 to 1.000 of the test's, and
0.000 to 0.027 right (standard error 0.010), which is what small numbers in a row are worth; 91 s
on two CPU cores (commit 52b6ff1).
"""
from r1jax import evals, grpo, optim, sample
from r1jax.grading import math as math_grader
from r1jax.stages import rl
from r1jax.tasks import gsm8k
from r1jax.types import Reward, Stage

OUT = 'runs/gsm8k/laptop'
BUDGET = sample.Sampling(max_tokens=64)


def problems(split):
  """The shorter problems, which leave room in a context of 512 tokens, put as a story would."""
  found = [p._replace(prompt=f'{p.question} The answer is') for p in gsm8k.load(split)]
  return [p for p in found if len(p.prompt) < 300]


def number(problem, completion):
  """1 if the completion says a number at all."""
  del problem
  return float(any(c.isdecimal() for c in math_grader.extract(completion.text) or ''))


def experiment():
  """One stage: RL from a Hugging Face folder."""
  return Stage(
      rl.run,
      rl.Config(
          init='models/stories260K',
          problems=problems,
          evaluation=evals.Evaluation(problems, num_problems=256, k=2, sampling=BUDGET),
          rewards=(gsm8k.REWARD, Reward('number', number, 0.2)),
          steps=40,
          batch=16,
          group=16,
          minibatches=1,
          max_prompt_tokens=256,
          sampling=BUDGET,
          objective=grpo.Objective(beta=0.01),
          optimizer=optim.Optimizer(lr=5e-4, warmup_steps=5),
          refresh_every=0,
          save_every=20,
          samples_every=10,
      ), OUT)
