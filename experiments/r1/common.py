"""What the stages of DeepSeek-R1 share: folders, data, the judge, and the settings that the paper
repeats. Sections are of arXiv 2501.12948 v2 unless v1 is named.

None of these files has been run: MACHINE has 512 chips. `r1jax plan FILE` compiles every step for
MACHINE's topology and says what it needs of a device, and tests/test_experiments.py traces each
with V3's own architecture. Answers are compared as mathematics, programs run against their tests in
a sandbox (r1jax/grading).

What you put in place, relative to the checkout (r1jax/tasks/lines.py says how a line looks):

  models/DeepSeek-V3-Base           the base, a Hugging Face folder
  data/reasoning/train.jsonl        table 4: 26K maths, 17K code, 22K STEM, 15K logic, each line
                                    with its kind: math, code, stem or logic; the answer of code is
                                    what grading/code.py says
  data/added/train.jsonl            further problems, whose answers DeepSeek-V3 compares (B.3.3)
  data/helpful/train.jsonl          table 4: 66K requests
  data/safety/train.jsonl           table 4: 12,000 requests
  data/safety_labels/train.jsonl    106,000 requests (section 3.1)
  data/general/train.jsonl          documents, the 200K of DeepSeek-V3's own pipeline (B.3.3)
  data/aime24/test.jsonl, data/math500/test.jsonl, data/gpqa/test.jsonl      30, 500, 198 problems

All questions are English or Chinese, from contests before 2023 and none of a benchmark's, by
overlap of 10-grams (D.1). DeepSeek-V3 is served by you, at SERVER.
"""
import dataclasses
from functools import partial

from r1jax import ask, evals, grpo, optim, prompts, rewards, sample, sharding
from r1jax.grading import code, math
from r1jax.stages import sft
from r1jax.tasks import lines
from r1jax.types import Reward

BASE = 'models/DeepSeek-V3-Base'
SERVER, V3 = 'http://localhost:8000/v1', 'deepseek-ai/DeepSeek-V3'

# The paper's were 64 x 8 H800 (B.4.4); ours are as many chips: 4 x 32 parts of the rows, each row's
# positions cut in 4, a chip keeping 1/512 of every weight. Sampling: copies on 64 chips each.
MACHINE = sharding.Machine(fsdp=4, expert=32, context=4, sample_expert=16, sample_tensor=4,
                           topology='v5p:8x8x8', micro_rows=1, sample_rows=1024, dtype='bfloat16')
ONLY_SAMPLES = dataclasses.replace(MACHINE, param_dtype='bfloat16')  # what it reads is not trained
MOMENTS = 'bfloat16'  # of Adam; V3's pretraining kept them so (2412.19437, 3.3.2), R1 does not say
PROMPT = 2048  # tokens; unconfirmed: chosen (means are 122 in maths, 161 in STEM, 420 in logic)

MATHS, CODE = ('reasoning', 'math', 'stem', 'logic'), 'code'  # answers and programs
REASONING = (*MATHS, CODE)  # kinds with a reference (table 4)
HELPFUL, SAFETY = 'helpful', 'safety'  # kinds of requests: each is of one set (section 3.1)

# A line's question, in R1-Zero's template (v1, table 1) and in R1's from the cold start on.
reasoning = partial(lines.load, folder='data/reasoning', kinds=REASONING)
reasoning_zero = partial(reasoning, template=prompts.R1_ZERO)
helpful = partial(lines.requests, folder='data/helpful', kind=HELPFUL)
safety = partial(lines.requests, folder='data/safety', kind=SAFETY)

# How maths is asked in an evaluation, to the letter (appendix J).
BOXED = prompts.R1.replace(
    '{question}',
    '{question}\nPlease reason step by step, and put your final answer within \\boxed{{}}.')

# Stage 1's clip is 10 (section 3.2.1). R1-Zero's is not stated and stage 2's not restated: chosen,
# the same. 1 - 10 is below any ratio, so the lower end never binds [derived]. KL 0.001 (2.1 and
# 3.2.1). The level of the ratio and 1 / |o| are unconfirmed: chosen, grpo.Objective's default,
# DeepSeekMath's token form (2402.03300, eq. 3); level=grpo.per_sequence is R1's eq. 1 as printed.
OBJECTIVE = grpo.Objective(clip_low=10, clip_high=10, beta=0.001)

# In bfloat16 V3's attention samples with other rounding than it trains (model/mla.py). How
# DeepSeek meets that is not stated: chosen, importance weights cut at 2.
LATENT = dataclasses.replace(OBJECTIVE, importance=grpo.truncated)


def answer(text):
  """What the summary's last box holds: cons@k votes with it."""
  return prompts.boxed(prompts.summary(text) or '')


# Accuracy of answers, and of programs, which pass all their tests or get nothing (B.3.1).
RIGHT = Reward('accuracy', load=partial(math.load, extract=answer), kinds=MATHS)
PASSES = Reward('programs', load=code.load, kinds=(CODE,))
FORMAT = Reward('format', rewards.think_format, kinds=REASONING)
LANGUAGE = Reward('language', rewards.consistency)  # of all data, added with weight 1 (eq. 7 and 8)
RULES = (RIGHT, PASSES, FORMAT, LANGUAGE)

# R1-Zero's, whose answer stands between its tags: the same weight (eq. 4).
RIGHT_ZERO = Reward('accuracy', load=partial(math.load, extract=prompts.last_answer), kinds=MATHS)
RULES_ZERO = (RIGHT_ZERO, PASSES, Reward('format', rewards.format))


def ask_v3(**settings):
  """DeepSeek-V3 on your server; its sampling is unconfirmed everywhere: chosen in place."""
  return partial(ask.endpoint, SERVER, V3, **settings)


def sampled(folder, k, template, answer, problems):
  """An evaluation as in D.1: temperature 0.6, top-p 0.95, at most 32,768 tokens, k samples."""
  return evals.Evaluation(partial(lines.load, folder=folder, template=template, kinds=REASONING),
                          num_problems=problems, k=k, sampling=sample.Sampling(32_768, 0.6, 0.95),
                          answer=answer, same=math.same)  # yapf: disable


def aime(k=16, template=BOXED, answer=answer):
  """AIME 2024's 30 problems; 16 samples each are those of the training curve (v1, figure 2)."""
  return sampled('data/aime24', k, template, answer, 30)


def fine_tune(documents, epochs):
  """SFT of V3-Base; both times with the same settings (B.4.2)."""
  return sft.Config(
      init=BASE,
      documents=documents,
      evaluation=aime(),
      rewards=RULES,
      epochs=epochs,
      batch=128,  # B.4.2, without a unit: chosen, packed rows
      row_tokens=32_768,  # the context (B.4.2)
      max_prompt_tokens=PROMPT,
      # B.4.2: cosine from 5e-5 to 5e-6. Warm-up, AdamW's betas, its weight decay and the clip of
      # the gradient are unconfirmed: chosen, none and optim.Optimizer's defaults.
      optimizer=optim.Optimizer(lr=5e-5, schedule=optim.cosine, end_lr=5e-6, moments=MOMENTS),
      save_every=100,  # ours
      machine=MACHINE,
  )
