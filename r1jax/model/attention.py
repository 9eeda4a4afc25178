"""Softmax attention by one of three paths, which agree.

`attend` is what layers call. A query sees the positions up to its own of its row and segment, and
every slot that past blocks show; in a windowed layer only the nearest of them. Where a row has one
query (decoding), or on the einsum path few, all scores exist at once. Otherwise no array has both
axes T and S: queries go through in chunks (`by_chunks`), or a kernel keeps the scores of a tile on
chip (`splash`, `cudnn`; FlashAttention, arXiv 2205.14135). Over a mesh each device then computes
its own heads (tensor) and its own queries (context), and is given the keys and values of whole
rows. Contiguous queries are uneven work, as the last see the most: a device with the last quarter
of a row has 1.75 times the mean. Only the kernels pass over tiles that nobody sees.
"""
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
from jax.experimental.pallas.ops.tpu import splash_attention as kernels
import jax.numpy as jnp
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from r1jax.sharding import cuts
from r1jax.types import KV, Past, UserError

TILE, LANES = 512, 128  # positions of a kernel's tile: so many at most, and a multiple of these
FAR = 2**30  # no position is so far from another


class Places(NamedTuple):
  """Where positions of rows stand; B may be 1."""
  index_BT: Any  # int32, 0 .. T - 1 within the row's array
  positions_BT: Any  # int32, as rotations count them
  segments_BT: Any = None  # int32; None: a row is one segment


def choose(cfg, machine):
  """The machine's way to attend: `attend` without its first two arguments.

  Raises UserError for a name that is not one of PATHS, and for what cuDNN cannot do.
  """
  name = machine.attention or 'einsum'
  if name not in PATHS:
    raise UserError(f'there is no attention {name}: choose one of {", ".join(PATHS)}')
  half = machine.dtype in ('bfloat16', 'float16')
  if name == 'cudnn' and (cfg.attn_cap or not half):
    refused = 'a soft cap of scores (attn_cap)' if half else f'dtype {machine.dtype}'
    raise UserError(
        f'cuDNN attention cannot do {refused}: choose the machine\'s dtype bfloat16, or '
        'its attention einsum')
  return partial(attend, PATHS[name], machine.query_chunk or 0)


def attend(path, chunk, q_BTKRW, kv, places, past, scale, cap=0.0, windows=(None,), kind=None):
  """Attention of each row's T queries to the row and its past: [B, T, K, R, W of values].

  kv: the row's own keys [B, K, W, T] and values [B, K, T, W]. past: types.Past of one layer, keys
  [P, K, W, S] and values [P, K, S, W], where a row serves B / P consecutive rows. Scores are
  scale * q k, and with a cap, cap * tanh(scores / cap) (Gemma 2, 2408.00118, section 2). windows:
  how far each kind of layer sees, its own position included, None for all the way; kind says which
  of them this layer is, and may be traced. chunk: queries of a row whose scores exist at a time on
  the einsum path, 0 for all.
  """
  T = q_BTKRW.shape[1]
  if T == 1 or path is by_chunks and T <= (chunk or T):
    window = windows[0] if kind is None else jnp.asarray([w or FAR for w in windows])[kind]
    return einsum(q_BTKRW, _blocks(places, kv, places, past, window), scale, cap)
  by_kind = [partial(path, chunk, scale, cap, window) for window in windows]
  if kind is None:
    return by_kind[0](q_BTKRW, kv, places, past)
  return jax.lax.switch(kind, by_kind, q_BTKRW, kv, places, past)


# -- all scores at once, or a chunk of queries at a time -------------------------------------------


def einsum(q_BTKRW, blocks, scale, cap=0.0):
  """Softmax attention over the positions of all blocks together; returns [B, T, K, R, W of values].

  A block is keys [P, K, W, S], values [P, K, S, W] and a mask [P, T, S] or [P, S] (1 for P or T
  stands for all). Where P < B, a block's row serves G = B / P consecutive query rows. Each block is
  computed in its own shape; one maximum and one sum over all of them make it one softmax.
  """
  B, T, K, R, W = q_BTKRW.shape
  dtype = q_BTKRW.dtype
  q_BKXW = (q_BTKRW * jnp.asarray(scale, dtype)).transpose(0, 2, 3, 1, 4).reshape(B, K, R * T, W)

  def fold(x_BKX, P):  # rows that share a block become more queries of one row
    x = x_BKX.reshape(P, B // P, K, R * T, *x_BKX.shape[3:]).swapaxes(1, 2)
    return x.reshape(P, K, B // P * R * T, *x_BKX.shape[3:])

  def unfold(x_PKY, P):
    x = x_PKY.reshape(P, K, B // P, R * T, *x_PKY.shape[3:]).swapaxes(1, 2)
    return x.reshape(B, K, R * T, *x_PKY.shape[3:])

  def scores(k, mask):
    P, _, _, S = k.shape
    s = jnp.einsum('PKYW,PKWS->PKYS', fold(q_BKXW, P), k, preferred_element_type=jnp.float32)
    s = cap * jnp.tanh(s / cap) if cap else s
    if mask.ndim == 2:
      return jnp.where(mask[:, None, None], s, -1e30)
    s = jnp.where(mask[:, None, None], s.reshape(P, -1, B // P * R, T, S), -1e30)
    return s.reshape(P, K, -1, S)

  all_scores = [scores(k, mask) for k, _, mask in blocks]
  top = [unfold(s.max(axis=-1), len(s)) for s in all_scores]
  top_BKX = jax.lax.stop_gradient(reduce(jnp.maximum, top))
  total_BKX, out_BKXW = 0.0, 0.0
  for s, (_, v, _) in zip(all_scores, blocks):
    P = len(s)
    weights = jnp.exp(s - fold(top_BKX, P)[..., None])
    total_BKX += unfold(weights.sum(axis=-1), P)
    out_BKXW += unfold(
        jnp.einsum('PKYS,PKSW->PKYW', weights.astype(v.dtype), v,
                   preferred_element_type=jnp.float32), P)
  out_BKXW = (out_BKXW / total_BKX[..., None]).astype(dtype)
  return out_BKXW.reshape(B, K, R, T, -1).transpose(0, 3, 1, 2, 4)


def by_chunks(chunk, scale, cap, window, q_BTKRW, kv, places, past):
  """The path named einsum. The scores of a chunk are computed again in the backward pass."""

  def local(q_BTKRW, queries, kv, keys, past):
    piece = lambda q_BTKRW, queries: einsum(q_BTKRW, _blocks(queries, kv, keys, past, window),
                                            scale, cap)
    return _in_chunks(piece, chunk, q_BTKRW, queries)

  return _with_queries_cut(local, q_BTKRW, kv, places, past)


def _blocks(queries, kv, keys, past, window):
  """einsum's blocks: keys, values, and what of them the queries see."""
  seen_BTT = queries.index_BT[:, :, None] >= keys.index_BT[:, None]
  if keys.segments_BT is not None:
    seen_BTT &= queries.segments_BT[:, :, None] == keys.segments_BT[:, None]
  masks = [p.mask_PS for p in past]
  if window is not None:
    near = lambda query, key: query[:, :, None] - key[:, None] < window
    at_BT = queries.positions_BT
    seen_BTT &= near(at_BT, keys.positions_BT)
    first = [at_BT[::max(1, len(at_BT) // len(p.kv.k))] for p in past]  # of the rows it serves
    masks = [p.mask_PS[:, None] & near(at, p.positions_PS) for p, at in zip(past, first)]
  return [*((*p.kv, mask) for p, mask in zip(past, masks)), (*kv, seen_BTT)]


def _in_chunks(piece, chunk, q_BTKRW, queries):
  """piece(queries [B, chunk, K, R, W], their Places) over all of T, one after the other."""
  B, T = q_BTKRW.shape[:2]
  chunk = min(chunk or T, T)
  n = -(-T // chunk)
  cut = lambda x: jnp.moveaxis(_pad(x, 1, n * chunk).reshape(len(x), n, chunk, *x.shape[2:]), 1, 0)
  out = jax.lax.map(lambda x: jax.checkpoint(piece)(*x), jax.tree.map(cut, (q_BTKRW, queries)))
  return jnp.moveaxis(out, 0, 1).reshape(B, n * chunk, *out.shape[3:])[:, :T]


# -- kernels ---------------------------------------------------------------------------------------


def splash(chunk, scale, cap, window, q_BTKRW, kv, places, past, interpret=False):
  """jax's kernel for TPUs, forward and backward: tiles that no query sees are passed over.

  What its masks cannot say goes through in chunks: a past of windowed layers or of packed rows.
  """
  if past and (window or places.segments_BT is not None):
    return by_chunks(chunk, scale, cap, window, q_BTKRW, kv, places, past)
  B, T, K, R, _ = q_BTKRW.shape
  kv_BKSW, seen_BS = _joined(kv, past)
  S, devices = kv_BKSW.k.shape[2], cuts('context')
  (tile_T, to_T), (tile_S, to_S) = _tiles(T, devices), _tiles(S, 1)
  ids = None  # a query sees the keys of its own number
  if past:
    ids = kernels.SegmentIds(jnp.ones((B, T), jnp.int32), seen_BS.astype(jnp.int32))
  elif places.segments_BT is not None:
    ids = kernels.SegmentIds(places.segments_BT, places.segments_BT)
  if ids:
    ids = kernels.SegmentIds(_pad(ids.q, 1, to_T), _pad(ids.kv, 1, to_S))

  back = None if window is None else window - 1
  mask = kernels.LocalMask((to_T, to_S), (back, 0), offset=S - T)
  names = ('block_q', 'block_q_dkv', 'block_q_dq', 'block_kv', 'block_kv_dkv', 'block_kv_dq')
  tiles = kernels.BlockSizes(**{name: tile_S if '_kv' in name else tile_T for name in names})
  kernel = kernels.make_splash_mha(
      kernels.MultiHeadMask([mask] * (K * R // cuts('tensor'))), block_sizes=tiles, head_shards=1,
      q_seq_shards=devices, attn_logits_soft_cap=cap or None, interpret=interpret)  # yapf: disable

  def local(kernel, q_BTKRW, k_BKSW, v_BKSW, ids):
    B, T, K, R, W = q_BTKRW.shape
    q_BHTW = (q_BTKRW * jnp.asarray(scale, q_BTKRW.dtype)).transpose(0, 2, 3, 1, 4)
    out_BHTW = jax.vmap(kernel)(q_BHTW.reshape(B, K * R, T, W), k_BKSW, v_BKSW, ids)
    return out_BHTW.reshape(B, K, R, T, -1).transpose(0, 3, 1, 2, 4)

  only_T = NamedSharding(AbstractMesh((devices,), ('context',)), _cut(' T'))
  masks = kernel.manual_sharding_spec(only_T)
  args = kernel, _pad(q_BTKRW, 1, to_T), *(_pad(x, 2, to_S) for x in kv_BKSW), ids
  ids_cut = kernels.SegmentIds(_cut('BT'), _cut('BS')) if ids else None
  return _on_each_device(local, (masks, _cut('BTKRW'), _cut('BKSW'), _cut('BKSW'), ids_cut),
                         args)[:, :T]


def _tiles(T, devices):
  """The size of tiles, and T with as many positions more as whole tiles on each device need."""
  n = -(-T // (devices * TILE))
  tile = -(-T // (devices * n * LANES)) * LANES
  return tile, devices * n * tile


def cudnn(chunk, scale, cap, window, q_BTKRW, kv, places, past):
  """cuDNN's kernel, forward and backward, in bfloat16 or float16.

  It knows rows that are one segment. Of any other mask the bits [chunk, S] of a chunk of queries
  exist at a time, for all heads together.
  """
  del cap  # `choose` has refused it
  plain = not past and places.segments_BT is None and cuts('context') == 1

  def local(q_BTKRW, queries, kv, keys, past):
    heads = partial(_cudnn_heads, _joined(kv, past)[0], scale)
    if plain:
      back = None if window is None else (window - 1, 0)
      return heads(q_BTKRW, is_causal=True, local_window_size=back)

    def piece(q_BTKRW, queries):
      B, T = q_BTKRW.shape[:2]
      of_all = lambda mask: jnp.broadcast_to(mask if mask.ndim == 3 else mask[:, None],
                                             (len(mask), T, mask.shape[-1]))
      masks = [of_all(mask) for _, _, mask in _blocks(queries, kv, keys, past, window)]
      seen_BTS = jnp.concatenate([jnp.repeat(m, B // len(m), axis=0) for m in masks], axis=-1)
      return heads(q_BTKRW, mask=seen_BTS[:, None])

    return _in_chunks(piece, chunk, q_BTKRW, queries)

  return _with_queries_cut(local, q_BTKRW, kv, places, past)


def _cudnn_heads(kv_BKSW, scale, q_BTKRW, mask=None, **how):
  """Attention of all heads [B, T, K, R, O], with a mask [B, 1, T, S].

  Widths, and the axes of a mask, are padded to what cuDNN takes, values to the width of the keys.
  """
  (B, T, K, R, W), O = q_BTKRW.shape, kv_BKSW.v.shape[-1]  # noqa: E741
  q_BTHW, k_BSKW, v_BSKW = q_BTKRW.reshape(B, T, K * R, W), *(x.swapaxes(1, 2) for x in kv_BKSW)
  to = lambda x, axis, size, multiple: _pad(x, axis, -(-size // multiple) * multiple)
  q_BTHW, k_BSKW, v_BSKW = (to(x, 3, max(W, O), 8) for x in (q_BTHW, k_BSKW, v_BSKW))
  if mask is not None:
    mask = to(to(mask, 2, T, LANES), 3, mask.shape[3], LANES)
    q_BTHW = _pad(q_BTHW, 1, mask.shape[2])
    k_BSKW, v_BSKW = (_pad(x, 1, mask.shape[3]) for x in (k_BSKW, v_BSKW))
  try:
    out = jax.nn.dot_product_attention(q_BTHW, k_BSKW, v_BSKW, mask=mask, scale=scale,
                                       implementation='cudnn', **how)
  except (NotImplementedError, RuntimeError) as error:
    raise UserError(
        f'cuDNN attention cannot be had here ({error}): choose the machine\'s attention '
        'einsum') from error
  return out[:, :T, :, :O].reshape(B, T, K, R, O)


PATHS = {'einsum': by_chunks, 'splash': splash, 'cudnn': cudnn}
at_once = partial(attend, by_chunks, 0)  # the whole of every row


def _joined(kv, past):
  """Keys [B, K, S, W] and values of the past and the rows themselves, and what is there [B, S]."""
  B = len(kv.k)
  of_rows = lambda x: jnp.repeat(x, B // len(x), axis=0)
  k = [*(of_rows(p.kv.k) for p in past), kv.k]
  v = [*(of_rows(p.kv.v) for p in past), kv.v]
  seen = [*(of_rows(p.mask_PS) for p in past), jnp.ones((B, kv.k.shape[-1]), bool)]
  k_BKWS, v_BKSW = jnp.concatenate(k, axis=-1), jnp.concatenate(v, axis=-2)
  return KV(k_BKWS.swapaxes(-1, -2), v_BKSW), jnp.concatenate(seen, axis=-1)


# -- over the mesh ---------------------------------------------------------------------------------


def _with_queries_cut(local, q_BTKRW, kv, places, past):
  """local(q, places of the queries, kv, places of the keys, past) on each device."""
  T = q_BTKRW.shape[1]
  longer = lambda x: _pad(x, 1, -(-T // cuts('context')) * cuts('context'))
  kv_cut = KV(_cut('BKWS'), _cut('BKSW'))
  ins = _cut('BTKRW'), _cut('BT'), kv_cut, _cut('BS'), [
      Past(kv_cut, _cut('PS'), _cut('PS')) for _ in past
  ]
  args = longer(q_BTKRW), jax.tree.map(longer, places), kv, places, list(past)
  return _on_each_device(local, ins, args)[:, :T]


def _on_each_device(local, ins, args):
  """local(*args) -> [B, T, K, R, W], with what is left to XLA elsewhere taken in hand."""
  mesh = jax.sharding.get_abstract_mesh()
  axes = set(mesh.axis_names) - set(mesh.manual_axes)
  if not axes:
    return local(*args)
  return jax.shard_map(local, in_specs=ins, out_specs=_cut('BTKRW'), axis_names=axes,
                       check_vma=False)(*args)


def _cut(letters):
  axes = {'T': 'context', 'K': 'tensor'}
  cut = lambda letter: axes.get(letter) if cuts(axes.get(letter)) > 1 else None
  return PartitionSpec(*map(cut, letters))


def _pad(x, axis, size):
  return jnp.pad(x, [(0, size - n if i == axis else 0) for i, n in enumerate(x.shape)])
