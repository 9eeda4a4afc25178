"""GRPO on a real pretrained model: stories that keep to their beginning and come to an end.

  bash launch/local.sh experiments/stories/zero.py --init PATH/TO/stories260K/hf

The model is a Hugging Face folder of Karpathy's 260k-parameter Llama, trained on TinyStories, or of
another model that writes such stories. Five minutes on two CPU cores. Expected: the share of good
stories (tasks/stories.py) at least doubles and gains 0.2. Measured: 0.023 to 0.893, 275 s (commit
b3ae39b); before_after.md beside this file shows ten of them.
"""
from r1jax import evals, grpo, optim, sample
from r1jax.stages import rl
from r1jax.tasks import stories
from r1jax.types import Reward, Stage

OUT = 'runs/stories/zero'
BUDGET = sample.Sampling(max_tokens=192)


def experiment():
  """One stage: RL from a Hugging Face folder."""
  return Stage(
      rl.run,
      rl.Config(
          init='models/stories260K',
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
