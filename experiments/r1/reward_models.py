"""The two reward models of the last stage: helpful, from pairs, and safety, from labels (sections
3.1, B.2).

  bash launch/local.sh experiments/r1/reward_models.py

Machine as in common.py. Expected: both beat judging by length alone on held-out prompts; the paper
gives no accuracy. Not yet run.

From selection.Pairs' and reward_model.Config's defaults, and checked by a test (all 3.1): each pair
judged 4 times by DeepSeek-V3 with the responses in random order, kept where the mean difference is
above 1, lengths balanced; batch 256, learning rate 6e-6, one epoch, at most 8,192 tokens. The
helpful model learns from 66,000 pairs and sees the summary, the safety model from 106,000 prompts,
each response labelled for itself and seen whole. The numbers of the verdicts, whose responses are
judged, and the pairwise loss are unconfirmed: chosen, 2 to -2, Dev3's, and Bradley-Terry's. Both
have R1's architecture (3.1); that they start from Dev3 is chosen. The labels were made by people's
guidelines (3.1): where you have such, judged=partial(lines.judged, FILE, prompts.R1) takes them,
and the stage `labels` is not needed.
"""
from functools import partial

from experiments.r1 import common, rejection
from r1jax import judges, losses, prompts, sample, selection
from r1jax.stages import generate, reward_model
from r1jax.tasks import lines
from r1jax.types import Reward, Stage

PAIRS = 'runs/r1/pairs'
LABELS = 'runs/r1/labels'
HELPFUL = 'runs/r1/helpful'
SAFETY = 'runs/r1/safety'


def first(folder, count):
  """The first so many of a folder's pairs or labels."""
  return generate.judged(folder)[:count]


def experiment():
  """Four stages: pairs, labels, and a model of each."""
  # Four judgements of a pair are to differ, so no greedy judge: 0.6 is chosen, as the rest here.
  v3 = common.ask_v3(max_tokens=8192, deadline_s=600.0, parallel=256, temperature=0.6)
  answers = dict(init=rejection.OUT, max_prompt_tokens=common.PROMPT,
                 sampling=sample.Sampling(max_tokens=32_768, temperature=0.7),  # chosen, stage 2's
                 machine=common.ONLY_SAMPLES)  # yapf: disable
  pairs = generate.Config(
      problems=common.helpful,
      select=selection.Pairs(partial(judges.preference, v3)),
      num_problems=66_000,  # table 4
      samples=4,  # two pairs a prompt, of which half may go: chosen
      **answers)
  labels = generate.Config(
      problems=partial(lines.requests, folder='data/safety_labels', kind=common.SAFETY),
      select=selection.Labels(Reward('safe', load=partial(judges.safety, v3))),
      num_problems=106_000,  # 3.1
      samples=1,  # chosen
      **answers)
  held_out = 0.02  # ours
  helpful = reward_model.Config(
      init=rejection.OUT,
      judged=partial(first, PAIRS, 66_000),  # 3.1
      view=prompts.summary,  # the final summary only (3.1)
      held_out=held_out,
      machine=common.MACHINE)
  safety = reward_model.Config(
      init=rejection.OUT,
      judged=partial(generate.judged, LABELS),
      view=prompts.whole,  # the whole response (3.1)
      loss=losses.pointwise,  # 3.1
      held_out=held_out,
      machine=common.MACHINE)
  return (Stage(generate.run, pairs, PAIRS), Stage(generate.run, labels, LABELS),
          Stage(reward_model.run, helpful, HELPFUL), Stage(reward_model.run, safety, SAFETY))
