"""Randomness is counted, not threaded: what is drawn depends on the seed, a purpose and a number.

So a run that was killed and continued draws what an uninterrupted one draws.
"""
from typing import Any, Callable, Sequence
import zlib

import jax
import numpy as np


def key(seed: int, purpose: str, count: int = 0) -> jax.Array:
  """The random key for the count-th use of a purpose."""
  folded = jax.random.fold_in(jax.random.key(seed), zlib.crc32(purpose.encode()))
  return jax.random.fold_in(folded, count)


def stream(items: Sequence[Any], seed: int) -> Callable[[int], Any]:
  """number -> item, for ever: all items in a new order each epoch."""
  orders = {}  # epoch -> its order, so that each is drawn once

  def item(number):
    epoch, index = divmod(number, len(items))
    if epoch not in orders:
      orders[epoch] = np.asarray(jax.random.permutation(key(seed, 'order', epoch), len(items)))
    return items[orders[epoch][index]]

  return item
