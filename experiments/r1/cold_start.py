"""The cold start: R1-Zero's readable outputs, rewritten, and SFT of V3-Base with them, which is
Dev1 (section 3; B.3.2, B.4.2; v1, section 2.3.1).

  bash launch/local.sh experiments/r1/cold_start.py

Machine as in common.py; making all SFT data took 5K GPU hours (B.4.4). Expected: AIME 2024 59.0,
MATH-500 94.2, GPQA Diamond 66.1 (table 3). Not yet run.

"Thousands" of samples (3, B.3.2), of several trajectories a prompt at temperature 1 (B.3.2), which
must be right and readable, without repetition and in one language, whichever (B.3.2). DeepSeek-V3
rewrites the thinking in the question's language and a summary for people; what no longer boxes the
reference then goes. People's part (B.3.2), a style by hand and a last look, is yours: add documents
with `others`, also for questions too simple for long thinking (listing 3). R1-Zero was asked with
its own template, and Dev1 learns with R1's.
"""
from functools import partial

from experiments.r1 import common, r1_zero
from r1jax import judges, prompts, rewards, sample, selection
from r1jax.grading import math
from r1jax.stages import generate, sft
from r1jax.types import Reward, Stage

DATA = 'runs/r1/cold_start'
OUT = 'runs/r1/dev1'


def rewriter(opener, machine, mesh, tokenizer):
  """judges.rewriter, and None for a text that does not box the reference any more."""
  many = judges.rewriter(opener, machine, mesh, tokenizer)

  def right(problem, completion, text):
    unasked = isinstance(text, Exception) or problem.kind == common.CODE
    return unasked or math.accuracy(problem, completion._replace(text=text))

  def checked(problems, completions):
    texts = many(problems, completions)
    return [x if right(p, c, x) else None for p, c, x in zip(problems, completions, texts)]

  return checked


def documents(folder):
  """The rewritten texts with R1's template where R1-Zero's was, or around a bare question."""
  before, after = prompts.R1_ZERO.split('{question}')
  question = lambda prompt: prompt.removeprefix(before).removesuffix(after)
  return [document._replace(prompt=prompts.R1.format(question=question(document.prompt)))
          for document in generate.documents(folder)]  # yapf: disable


def experiment():
  """Two stages: the data, and SFT."""
  v3 = common.ask_v3(max_tokens=32_768, deadline_s=3600.0, parallel=256)  # ours
  data = generate.Config(
      init=r1_zero.OUT,
      problems=common.reasoning_zero,
      # The gates' thresholds are unconfirmed: chosen, in rewards.py; one kept a prompt: chosen.
      select=selection.Documents(
          (common.RIGHT_ZERO, common.PASSES, *rewards.READABLE, Reward('mixed', rewards.unmixed)),
          keep=1, rewriter=partial(rewriter, v3)),
      num_problems=8192,  # "thousands" (B.3.2): chosen; of these, what passes
      samples=4,  # "several" (B.3.2): chosen
      max_prompt_tokens=common.PROMPT,
      sampling=sample.Sampling(max_tokens=32_768),  # temperature 1 (B.3.2); budget chosen
      machine=common.ONLY_SAMPLES,
  )
  tuned = common.fine_tune(partial(documents, DATA), epochs=3)  # 2-3 (B.4.2): chosen, little data
  return Stage(generate.run, data, DATA), Stage(sft.run, tuned, OUT)
