"""A reward model: an architecture with a scalar head on the last position's hidden state."""
from functools import partial

import jax.numpy as jnp

from r1jax.types import Model


def make(trunk: Model) -> Model:
  """The same architecture with two more parameters, score_head [D] and score_bias []."""
  return trunk._replace(init=partial(_init, trunk), axes=partial(_axes, trunk),
                        exact=lambda name: name.startswith('score_') or trunk.exact(name))


def _init(trunk, key):
  return add_head(trunk.init(key), trunk.config.D)


def _axes(trunk):
  return {**trunk.axes(), 'score_head': 'D', 'score_bias': ''}


def add_head(params, D):
  """A language model's parameters with a head that gives every text 0."""
  return {**params, 'score_head': jnp.zeros(D), 'score_bias': jnp.zeros(())}
