"""The matrix products that a step needs, counted from the architecture's axis letters.

A product of [n, a] and [a, b] is 2 n a b floating-point operations; norms, softmax and rotations
are not counted (2001.08361, section 2.1; 2204.02311, appendix B). Of a position's attention, only
what it may see is counted: half of a row's scores in the mean.
"""
from typing import Any, NamedTuple

import jax


class Work(NamedTuple):
  """Rows whose positions start .. end - 1 go through the layers, and so many through the head."""
  rows: int
  start: int
  end: int
  heads: int  # of a row


class Model(NamedTuple):
  """What the counts below need of an architecture."""
  cfg: Any  # its config
  matrices: int  # entries of those that a position goes through in all layers together


def count(model) -> Model:
  """Counts an architecture's matrices: of E routed experts, the `top` that a position chooses.
  Neither embedding, head, norms nor biases."""
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  total, moe = 0, model.config.moe
  leaves = zip(jax.tree.leaves_with_path(shapes), jax.tree.leaves(model.axes()))
  for (path, x), letters in leaves:
    if path[0].key in ('dense', 'layers') and not path[-1].key.endswith(('norm', 'bias')):
      total += x.size * moe.top // moe.E if letters.startswith('LE') else x.size
  return Model(model.config, total)


def pairs(start, end, window=0) -> int:
  """How many (query, key) pairs positions start .. end - 1 have, each seeing itself and those
  before it, in a windowed layer at most `window` in all."""
  seen = lambda n: n * (n + 1) // 2  # of positions 0 .. n - 1
  if not window or end <= window:
    return seen(end) - seen(start)
  first = max(start, window)
  return (seen(first) - seen(start) if start < window else 0) + (end - first) * window


def scores(cfg, start, end, decoding=False) -> int:
  """Multiplications of attention for one row's positions start .. end - 1, over all layers: for
  each pair, H heads' q k over W and their sum over values. Latent attention's values have O, and in
  decoding both products run over the X numbers of a latent (model/mla.py)."""
  width = 2 * cfg.W
  if cfg.mla:
    width = 2 * cfg.mla.X if decoding else cfg.W + cfg.mla.O
  windowed = len(cfg.windowed)
  seen = (cfg.L - windowed) * pairs(start, end) + windowed * pairs(start, end, cfg.window)
  return cfg.H * width * seen


def passes(model: Model, work: Work, of_matrices, of_scores, decoding=False) -> int:
  """FLOPs of `work` where each product with a matrix is done so many times, and each of attention.
  The head's matrix has D V entries."""
  cfg = model.cfg
  products = (work.end - work.start) * model.matrices + work.heads * cfg.D * cfg.V
  attention = scores(cfg, work.start, work.end, decoding)
  return 2 * work.rows * (of_matrices * products + of_scores * attention)


def forward(model: Model, work: Work, decoding=False) -> int:
  """FLOPs of computing hidden states, and logits where `work` has heads."""
  return passes(model, work, 1, 1, decoding)


def update(model: Model, work: list[Work], frozen: bool, remat: bool) -> int:
  """FLOPs of a gradient: forward, and backward twice as much, once for the gradient of each factor
  (2001.08361, section 2.1); a frozen matrix has none (LoRA; the adapters' own products are left
  out). Recomputing layers and logits (remat) is one more forward.
  """
  return sum(passes(model, part, 3 - frozen + remat, 3 + remat) for part in work)
