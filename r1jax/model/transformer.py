"""Decoder-only transformer (Llama, Qwen2, Qwen3) as a value: GQA, RoPE, RMSNorm, SwiGLU.

One letter an axis, the same in einsums, weights, suffixes and sharding.RULES (see types.py), and
N = R + 2: a key-value head's R queries, its key and its value, projected by one matrix.
U = 2: gate and up. Softmax, norms, rotations and logits are float32 whatever the dtype.
"""
import dataclasses
import functools
from functools import partial

from flax import linen as nn
import jax
import jax.numpy as jnp

from r1jax.model import rope
from r1jax.sharding import Machine, gather_weight
from r1jax.types import KV, Model

Rope = rope.Default | rope.Linear | rope.Llama3 | rope.Yarn


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes by axis letter, and the choices that change the maths."""
  V: int  # vocabulary
  L: int = 4  # layers
  D: int = 128  # model width
  H: int = 4  # query heads
  K: int = 2  # key-value heads
  W: int = 32  # head width
  F: int = 512  # ffn width
  max_tokens: int = 1024  # context length
  rope: Rope = rope.Default()  # how positions turn queries and keys
  norm_eps: float = 1e-6  # of RMSNorm
  qkv_bias: bool = False  # Qwen2
  qk_norm: bool = False  # Qwen3: RMSNorm over each query's and key's W
  tied: bool = True  # the head is the embedding
  init_std: float = 0.02  # of random weights; those into the residual are narrower by sqrt(2 L)

  R = property(lambda self: self.H // self.K)
  N = property(lambda self: self.H // self.K + 2)
  U = property(lambda self: 2)


def make(cfg: Config, machine: Machine = Machine(unroll=True, remat=False)) -> Model:
  """The architecture as a value; `machine` says how its layers are compiled, not what they are."""
  split, join = (_split, _join) if machine.unroll else (lambda params: params,) * 2
  return Model(cfg, partial(_init, cfg), partial(_axes, cfg), split, join,
               partial(_init_cache, cfg, machine), partial(_apply, cfg, machine),
               partial(_logits, cfg))


def _init(cfg, key):
  return nn.unbox(_boxed(cfg, key))


def _axes(cfg):
  boxed = jax.eval_shape(lambda: _boxed(cfg, jax.random.key(0)))
  return jax.tree.map(lambda box: ''.join(box.names), boxed, is_leaf=_is_box)


def _is_box(x):
  return isinstance(x, nn.Partitioned)


def _boxed(cfg, key):
  outer, inner = jax.random.split(key)
  x, positions = jnp.zeros((1, 1, cfg.D)), jnp.zeros((1, 1), jnp.int32)
  seen = jnp.ones((1, 1, 1), bool)
  layer = lambda k: _Layer(cfg).init(k, x, _rotation(cfg, positions), seen)['params']
  layers = jax.vmap(layer)(jax.random.split(inner, cfg.L))
  stacked = lambda box: box.replace(names=('L', *box.names))
  layers = jax.tree.map(stacked, layers, is_leaf=_is_box)
  return {**_Ends(cfg).init(outer, x, method=_Ends.all)['params'], 'layers': layers}


def _split(params):
  layers = params['layers']
  L = len(jax.tree.leaves(layers)[0])
  return {**params, 'layers': tuple(jax.tree.map(lambda w: w[i], layers) for i in range(L))}


def _join(params):
  return {**params, 'layers': jax.tree.map(lambda *w: jnp.stack(w), *params['layers'])}


def _init_cache(cfg, machine, B, S):
  layer = KV(jnp.zeros((B, cfg.K, cfg.W, S), machine.dtype),
             jnp.zeros((B, cfg.K, S, cfg.W), machine.dtype))
  if machine.unroll:
    return KV((layer.k,) * cfg.L, (layer.v,) * cfg.L)
  return jax.tree.map(lambda x: jnp.broadcast_to(x, (cfg.L, *x.shape)), layer)


def _logits(cfg, params, hidden_BTD):
  return _Ends(cfg).apply({'params': _ends(params)}, hidden_BTD, method=_Ends.logits)


def _apply(cfg, machine, params, tokens_BT, positions_BT, segments_BT=None, past=()):
  """Final hidden states [B, T, D], and the keys and values of these T positions.

  A query sees the earlier positions of its own row (of its own segment, where segments are given),
  itself, and every slot that a `types.Past` shows. Positions are for the rotation alone.
  """
  T = tokens_BT.shape[1]
  seen_BTT = jnp.tril(jnp.ones((T, T), bool))[None]
  if segments_BT is not None:
    seen_BTT &= segments_BT[:, :, None] == segments_BT[:, None, :]
  x_BTD = _Ends(cfg).apply({'params': _ends(params)}, tokens_BT, method=_Ends.embed)
  x_BTD = x_BTD.astype(machine.dtype)
  masks, kvs = [p.mask_PS for p in past], [p.kv for p in past]
  rotation = _rotation(cfg, positions_BT)

  def layer(x_BTD, weights, kvs):
    look_back = [(k, v, mask) for (k, v), mask in zip(kvs, masks)]
    return _Layer(cfg).apply({'params': weights}, x_BTD, rotation, seen_BTT, look_back)

  if machine.remat:
    layer = jax.checkpoint(layer, policy=jax.checkpoint_policies.nothing_saveable)
  if machine.unroll:
    fresh = []
    for i, weights in enumerate(params['layers']):
      x_BTD, kv = layer(x_BTD, weights, [KV(kv.k[i], kv.v[i]) for kv in kvs])
      fresh.append(kv)
    kv = KV(*(tuple(kv[i] for kv in fresh) for i in (0, 1)))
  else:
    x_BTD, kv = jax.lax.scan(lambda x, xs: layer(x, *xs), x_BTD, (params['layers'], kvs))
  return _Ends(cfg).apply({'params': _ends(params)}, x_BTD, method=_Ends.norm), kv


def _ends(params):
  return {name: w for name, w in params.items() if name != 'layers'}


def _rotation(cfg, positions_BT):
  """cos and sin of every position's angles, each [B, T, 1, 1, W / 2], float32."""
  frequencies, factor = cfg.rope.frequencies(cfg.W)
  frequencies = jnp.asarray(frequencies, jnp.float32)[None, None, None, None]
  angles = positions_BT[:, :, None, None, None] * frequencies
  return jnp.cos(angles) * factor, jnp.sin(angles) * factor


def rotate(x_BTKRW, rotation):
  """Turns the pairs (i, i + W / 2) of each vector by its position's angles."""
  cos, sin = rotation
  a, b = jnp.split(x_BTKRW.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BTKRW.dtype)


def rms_norm(x, scale, eps):
  """x / sqrt(mean(x^2) + eps) * scale over the last axis, in float32 (arXiv 1910.07467)."""
  x32 = x.astype(jnp.float32)
  x32 *= jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
  return (x32 * jnp.expand_dims(scale, range(x.ndim - 1))).astype(x.dtype)


def attention(q_BTKRW, blocks):
  """Softmax attention over the positions of all blocks together; returns [B, T, K, R, W].

  A block is keys [P, K, W, S], values [P, K, S, W] and a mask [P, T, S] or [P, S] (or with 1 for
  P). Where P < B, a block's row serves G = B / P consecutive query rows. Each block is computed in
  its own shape; one maximum and one sum over all of them make it one softmax.
  """
  B, T, K, R, W = q_BTKRW.shape
  dtype = q_BTKRW.dtype
  q_BKXW = (q_BTKRW * jnp.asarray(W**-0.5, dtype)).transpose(0, 2, 3, 1, 4).reshape(B, K, R * T, W)

  def fold(x_BKX, P):  # rows that share a block become more queries of one row
    x = x_BKX.reshape(P, B // P, K, R * T, *x_BKX.shape[3:]).swapaxes(1, 2)
    return x.reshape(P, K, B // P * R * T, *x_BKX.shape[3:])

  def unfold(x_PKY, P):
    x = x_PKY.reshape(P, K, B // P, R * T, *x_PKY.shape[3:]).swapaxes(1, 2)
    return x.reshape(B, K, R * T, *x_PKY.shape[3:])

  def scores(k, mask):
    P, _, _, S = k.shape
    s = jnp.einsum('PKYW,PKWS->PKYS', fold(q_BKXW, P), k, preferred_element_type=jnp.float32)
    if mask.ndim == 2:
      return jnp.where(mask[:, None, None], s, -1e30)
    s = jnp.where(mask[:, None, None], s.reshape(P, -1, B // P * R, T, S), -1e30)
    return s.reshape(P, K, -1, S)

  all_scores = [scores(k, mask) for k, _, mask in blocks]
  top = [unfold(s.max(axis=-1), len(s)) for s in all_scores]
  top_BKX = jax.lax.stop_gradient(functools.reduce(jnp.maximum, top))
  total_BKX, out_BKXW = 0.0, 0.0
  for s, (_, v, _) in zip(all_scores, blocks):
    P = len(s)
    weights = jnp.exp(s - fold(top_BKX, P)[..., None])
    total_BKX += unfold(weights.sum(axis=-1), P)
    out_BKXW += unfold(
        jnp.einsum('PKYS,PKSW->PKYW', weights.astype(v.dtype), v,
                   preferred_element_type=jnp.float32), P)
  out_BKXW = (out_BKXW / total_BKX[..., None]).astype(dtype)
  return out_BKXW.reshape(B, K, R, T, W).transpose(0, 3, 1, 2, 4)


class _Weights(nn.Module):
  """A module that declares each weight by its axis letters."""
  cfg: Config

  def weight(self, name, letters, init=None, dtype=jnp.float32):
    init = init or nn.initializers.normal(self.cfg.init_std)
    shape = tuple(getattr(self.cfg, letter) for letter in letters)
    boxed = nn.with_logical_partitioning(init, tuple(letters))
    return self.param(name, boxed, shape, jnp.float32).astype(dtype)


class _Layer(_Weights):

  @nn.compact
  def __call__(self, x_BTD, rotation, seen_BTT, past=()):
    cfg, ones, zeros = self.cfg, nn.initializers.ones, nn.initializers.zeros
    weight = partial(self.weight, dtype=x_BTD.dtype)
    narrow = nn.initializers.normal(cfg.init_std / (2 * cfg.L)**0.5)  # GPT-2's residual scaling

    h = rms_norm(x_BTD, self.weight('attn_norm', 'D', ones), cfg.norm_eps)
    qkv = jnp.einsum('BTD,DKNW->BTKNW', h, weight('qkv', 'DKNW'))
    if cfg.qkv_bias:
      qkv += weight('qkv_bias', 'KNW', zeros)[None, None]
    q, k, v = jnp.split(qkv, [cfg.R, cfg.R + 1], axis=3)
    if cfg.qk_norm:
      q = rms_norm(q, self.weight('q_norm', 'W', ones), cfg.norm_eps)
      k = rms_norm(k, self.weight('k_norm', 'W', ones), cfg.norm_eps)
    q, k = rotate(q, rotation), rotate(k, rotation)
    kv = KV(k[:, :, :, 0].transpose(0, 2, 3, 1), v[:, :, :, 0].transpose(0, 2, 1, 3))
    a = attention(q, [*past, (*kv, seen_BTT)])
    x_BTD += jnp.einsum('BTKRW,KRWD->BTD', a, weight('o', 'KRWD', narrow))

    h = rms_norm(x_BTD, self.weight('ffn_norm', 'D', ones), cfg.norm_eps)
    gate_up = jnp.einsum('BTD,DUF->BTUF', h, weight('gate_up', 'DUF'))
    h = nn.silu(gate_up[:, :, 0]) * gate_up[:, :, 1]
    x_BTD += jnp.einsum('BTF,FD->BTD', h, weight('down', 'FD', narrow))
    return x_BTD, kv


class _Ends(_Weights):
  """What stands before and after the layers: embedding, final norm, head."""

  def setup(self):
    self.table = self.weight('embed', 'VD')
    self.scale = self.weight('final_norm', 'D', nn.initializers.ones)
    self.matrix = self.table if self.cfg.tied else self.weight('head', 'VD')

  def embed(self, tokens_BT):
    return gather_weight(self.table)[tokens_BT]  # rows are looked up in the whole table

  def norm(self, x_BTD):
    return rms_norm(x_BTD, self.scale, self.cfg.norm_eps)

  def logits(self, x_BTD):
    matrix = self.matrix.astype(x_BTD.dtype)
    return jnp.einsum('BTD,VD->BTV', x_BTD, matrix, preferred_element_type=jnp.float32)

  def all(self, x_BTD):
    return self.logits(self.norm(x_BTD))
