"""The smallest pipeline in sizes that a mesh can cut: all of them are even."""
import dataclasses

from r1jax import grpo, model, tokenizer
from r1jax.prompts import TAGS
from tests import experiment as tiny


def train_tokenizer(corpus, size):
  """A tokenizer of the texts and of one letter more."""
  return tokenizer.train([*corpus, 'z'], size, TAGS)


def experiment():
  """Both stages, the second in three rollouts."""
  base, zero = tiny.experiment()
  sizes = model.Config(V=276, L=1, D=32, H=2, K=2, W=16, F=32)
  learn = dataclasses.replace(base.config, scratch=sizes, tokenizer=train_tokenizer,
                              evaluation=None)
  act = dataclasses.replace(zero.config, steps=6,
                            objective=grpo.Objective(importance=grpo.truncated))
  return dataclasses.replace(base, config=learn), dataclasses.replace(zero, config=act)
