"""GRPO on a real pretrained model: stories that keep to their beginning and come to an end.

  bash launch/local.sh experiments/stories/zero.py --init PATH/TO/stories260K/hf
"""
import pathlib

from r1jax import evals, grpo, optim, sample
from r1jax.stages import rl
from r1jax.tasks import stories
from r1jax.types import Reward, Stage

OUT = 'runs/stories/zero'
ROOT = pathlib.Path(__file__).resolve().parents[2]
MODEL = ROOT.parent / 'shared' / 'data' / 'models' / 'stories260K' / 'hf'
BUDGET = sample.Sampling(max_tokens=192)


def experiment():
  """One stage: RL from a Hugging Face folder."""
  return Stage(
      rl.run,
      rl.Config(
          init=str(MODEL),
          problems=stories.load,
          evaluation=evals.Evaluation(stories.load, num_problems=256, k=2, sampling=BUDGET),
          rewards=(Reward('good', stories.good), Reward('mentions', stories.mentions, 0.3),
                   Reward('ends', stories.ends, 0.3), Reward('readable', stories.readable, 0.3)),
          steps=40,
          batch=16,
          group=16,
          minibatches=1,
          max_prompt_tokens=64,
          sampling=BUDGET,
          objective=grpo.Objective(beta=0.05),
          optimizer=optim.Optimizer(lr=5e-4, warmup_steps=5),
          refresh_every=0,
          save_every=20,
          samples_every=10,
      ), OUT)
