"""Rotary position embeddings (arXiv 2104.09864) and the published ways to stretch them.

Each is a frozen dataclass with the field names of a Hugging Face `rope_parameters` entry, and a
method `frequencies(W)`: the angle of each of the W / 2 pairs a position (float64 [W / 2]) and the
factor on cos and sin. Pairs are (i, i + W / 2), as in transformers.
"""
import dataclasses
import math

import numpy as np


@dataclasses.dataclass(frozen=True)
class Default:
  """f_i = theta^(-2 i / W)."""
  rope_theta: float = 10000.0

  def frequencies(self, W):
    """Angles a position [W / 2], and 1."""
    return self.rope_theta**(-np.arange(0, W, 2) / W), 1.0


@dataclasses.dataclass(frozen=True)
class Linear:
  """Position interpolation (arXiv 2306.15595): f_i / factor."""
  rope_theta: float
  factor: float

  def frequencies(self, W):
    """Angles a position [W / 2], and 1."""
    return self.rope_theta**(-np.arange(0, W, 2) / W) / self.factor, 1.0


@dataclasses.dataclass(frozen=True)
class Llama3:
  """Llama 3.1: long waves are slowed by `factor`, short ones kept, those between mixed linearly."""
  rope_theta: float
  factor: float
  low_freq_factor: float
  high_freq_factor: float
  original_max_position_embeddings: int

  def frequencies(self, W):
    """Angles a position [W / 2], and 1."""
    f = self.rope_theta**(-np.arange(0, W, 2) / W)
    turns = self.original_max_position_embeddings * f / (2 * math.pi)  # in the original context
    low, high = self.low_freq_factor, self.high_freq_factor
    keep = np.clip((turns - low) / (high - low), 0, 1)
    return f * (keep + (1 - keep) / self.factor), 1.0


@dataclasses.dataclass(frozen=True)
class Yarn:
  """YaRN (arXiv 2309.00071): pairs that turn often in the original context are kept, pairs that
  turn rarely are slowed by `factor`, a linear ramp between; attention is sharpened by
  (0.1 ln factor + 1) on cos and sin, unless `attention_factor` or both mscales say otherwise."""
  rope_theta: float
  factor: float
  original_max_position_embeddings: int
  beta_fast: float = 32.0
  beta_slow: float = 1.0
  attention_factor: float | None = None
  mscale: float | None = None
  mscale_all_dim: float | None = None
  truncate: bool = True

  def frequencies(self, W):
    """Angles a position [W / 2], and the factor on cos and sin."""
    f = self.rope_theta**(-np.arange(0, W, 2) / W)

    def pair_that_turns(times):
      context = self.original_max_position_embeddings
      return W * math.log(context / (times * 2 * math.pi)) / (2 * math.log(self.rope_theta))

    low, high = pair_that_turns(self.beta_fast), pair_that_turns(self.beta_slow)
    if self.truncate:
      low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, W - 1)
    slow = np.clip((np.arange(W // 2) - low) / max(high - low, 0.001), 0, 1)
    return f * (1 - slow + slow / self.factor), self._sharpen()

  def _sharpen(self):
    grow = lambda mscale: 0.1 * mscale * math.log(self.factor) + 1 if self.factor > 1 else 1.0
    if self.attention_factor is not None:
      return self.attention_factor
    if self.mscale and self.mscale_all_dim:
      return grow(self.mscale) / grow(self.mscale_all_dim)
    return grow(1.0)
