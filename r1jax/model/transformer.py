"""Decoder-only transformers as a value: Llama, Mistral, Qwen, Gemma, OLMo, SmolLM, DeepSeek.

One letter an axis, the same in einsums, weights, suffixes and sharding.RULES (see types.py), and
N = R + 2: a key-value head's R queries, its key and its value, projected by one matrix.
U = 2: gate and up. Softmax, norms, rotations and logits are float32 whatever the dtype.
"""
import dataclasses
import functools
from functools import partial
from typing import Any, Callable, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from r1jax import sharding
from r1jax.model import attention
from r1jax.model import mla as mla_lib
from r1jax.model import moe as moe_lib
from r1jax.model import rope
from r1jax.model.mla import MLA
from r1jax.model.moe import MoE
from r1jax.model.parts import look_up, rms_norm, rotate, silu
from r1jax.sharding import Machine, constrain
from r1jax.types import KV, Model, UserError

Rope = rope.Default | rope.Linear | rope.Llama3 | rope.Yarn


def head_norm(norm, q_BTKRW, k_BTK1W):
  """RMSNorm over each query's and each key's W (Qwen3, Gemma 3)."""
  return norm('q_norm', 'W', q_BTKRW), norm('k_norm', 'W', k_BTK1W)


def whole_norm(norm, q_BTKRW, k_BTK1W):
  """RMSNorm over all heads' queries together, and over all keys (OLMo 2, 2501.00656, section 2)."""
  flat = lambda x: x.reshape(*x.shape[:2], -1)
  return (norm('q_norm', 'KRW',
               flat(q_BTKRW)).reshape(q_BTKRW.shape), norm('k_norm', 'KW',
                                                           flat(k_BTK1W)).reshape(k_BTK1W.shape))


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
  qk_norm: Callable | None = None  # head_norm or whole_norm
  tied: bool = True  # the head is the embedding
  init_std: float = 0.02  # of random weights; those into the residual are narrower by sqrt(2 L)
  activation: Callable = silu  # of the gate; Gemma: parts.gelu_tanh
  pre_norm: bool = True  # norms before attention and ffn
  post_norm: bool = False  # norms of their results (Gemma; OLMo 2, without the others)
  norm_offset: float = 0.0  # RMSNorm scales by weight + offset; Gemma: 1
  embed_scale: float = 1.0  # of the embedding; Gemma: sqrt(D)
  attn_scale: float | None = None  # of the scores; None: W^-1/2
  attn_cap: float = 0.0  # Gemma 2's soft cap of scores; 0: none
  logit_cap: float = 0.0  # and of logits
  window: int = 0  # positions that a windowed layer looks back on, its own included
  windowed: tuple[int, ...] = ()  # the layers that have it
  rope_windowed: Rope | None = None  # their own rope (Gemma 3); None: the others'
  unrotated: tuple[int, ...] = ()  # layers without rotation (SmolLM 3)
  mla: MLA | None = None  # latent attention (DeepSeek); then K = H and W = A + J
  moe: MoE | None = None  # mixture of experts
  mtp: int = 0  # DeepSeek's layers for predicting further tokens: carried along, not computed

  R = property(lambda self: self.H // self.K)
  N = property(lambda self: self.H // self.K + 2)
  U = property(lambda self: 2)
  d = property(lambda self: self.D)  # where a weight has it twice, since its letters differ
  scale = property(lambda self: self.attn_scale or self.W**-0.5)
  windows = property(lambda self: tuple(  # how far its layers see, each once; None: all the way
      dict.fromkeys(self.window if i in self.windowed else None for i in range(self.L))))
  dense = property(lambda self: self.moe.dense if self.moe else 0)

  def __post_init__(self):
    mla, moe = self.mla, self.moe
    for wrong, what in (
        (self.H % self.K, f'K = {self.K} does not divide H = {self.H}'),
        (mla and (self.K, self.W) != (self.H, mla.A + mla.J), 'latent attention has K = H and '
         'W = A + J'),
        (mla and (self.qkv_bias or self.qk_norm or self.attn_cap), 'latent attention has no '
         'qkv_bias, qk_norm or attn_cap'),
        (moe and moe.E % moe.groups, 'groups do not divide the experts'),
        (moe and moe.top > moe.E // moe.groups * moe.top_groups, 'a token has more experts than '
         'there are to choose from'),
        (moe and not 0 <= moe.dense < self.L, 'no layer has experts'),
    ):  # yapf: disable
      if wrong:
        raise UserError(f'there is no such model: {what}; correct its config')


def size(cfg: Config, letter: str) -> int:
  """An axis letter's size, of the model or of its latent attention or experts."""
  return next(getattr(of, letter) for of in (cfg, cfg.mla, cfg.moe) if hasattr(of, letter))


STACKS = ('dense', 'layers')  # parameters whose leading axis is layers, in their order


def make(cfg: Config, machine: Machine = Machine(unroll=True, remat=False)) -> Model:
  """The architecture as a value; `machine` says how its layers are compiled, not what they are."""
  split, join = (_split, _join) if machine.unroll else (lambda params: params,) * 2
  return Model(cfg, partial(_init, cfg), partial(_axes, cfg), split, join,
               partial(_init_cache, cfg, machine),
               partial(_apply, cfg, machine, attention.choose(cfg, machine)), partial(_logits, cfg),
               _exact)


def _init(cfg, key):
  return nn.unbox(_boxed(cfg, key))


@functools.cache  # it is asked for often, and tracing a large model's init takes a second
def _axes(cfg):
  boxed = jax.eval_shape(lambda: _boxed(cfg, jax.random.key(0)))
  return jax.tree.map(lambda box: ''.join(box.names), boxed, is_leaf=_is_box)


def _is_box(x):
  return isinstance(x, nn.Partitioned)


def _boxed(cfg, key):
  outer, inner = jax.random.split(key)
  x, positions = jnp.zeros((1, 1, cfg.D)), jnp.zeros((1, 1), jnp.int32)
  view = _views(cfg, positions, None)[0]
  keys, n = jax.random.split(inner, cfg.L), cfg.dense

  def stack(keys, module, *args):
    layers = jax.vmap(lambda k: module.init(k, *args)['params'])(keys)
    return jax.tree.map(lambda box: box.replace(names=('L', *box.names)), layers, is_leaf=_is_box)

  params = {'layers': stack(keys[n:], _Layer(cfg, sparse=bool(cfg.moe)), x, view)}
  if n:
    params['dense'] = stack(keys[:n], _Layer(cfg), x, view)
  if cfg.mtp:
    keys = jax.random.split(jax.random.fold_in(inner, cfg.L), cfg.mtp)
    params['mtp'] = {**stack(keys, _Ahead(cfg), x),
                     **stack(keys, _Layer(cfg, sparse=bool(cfg.moe)), x, view)}  # yapf: disable
  return {**_Ends(cfg).init(outer, x, method=_Ends.all)['params'], **params}


def _split(params):
  apart = lambda layers: tuple(
      jax.tree.map(lambda w: w[i], layers) for i in range(len(jax.tree.leaves(layers)[0])))
  return {**params, **{name: apart(params[name]) for name in STACKS if name in params}}


def _join(params):
  stack = lambda layers: jax.tree.map(lambda *w: jnp.stack(w), *layers)
  return {**params, **{name: stack(params[name]) for name in STACKS if name in params}}


def _heights(cfg):
  """{stack: its layers}, in their order."""
  return {name: n for name, n in zip(STACKS, (cfg.dense, cfg.L - cfg.dense)) if n}


def _init_cache(cfg, machine, B, S):
  heads, k_width, v_width = (1, cfg.mla.X, 0) if cfg.mla else (cfg.K, cfg.W, cfg.W)
  layer = KV(jnp.zeros((B, heads, k_width, S), machine.dtype),
             jnp.zeros((B, heads, S, v_width), machine.dtype))
  if machine.unroll:
    return KV((layer.k,) * cfg.L, (layer.v,) * cfg.L)
  stack = lambda x: tuple(jnp.broadcast_to(x, (n, *x.shape)) for n in _heights(cfg).values())
  return KV(stack(layer.k), stack(layer.v))


def _exact(name):
  return name.endswith(('norm', 'router', 'router_bias'))


def _logits(cfg, params, hidden_BTD, part=False):
  ends = _Ends(cfg, hidden_BTD.dtype)
  return ends.apply({'params': _ends(params)}, hidden_BTD, part, method=_Ends.logits)


def _apply(cfg, machine, attend, params, tokens_BT, positions_BT, segments_BT=None, past=(),
           uncounted=0):
  """Final hidden states [B, T, D], and the keys and values of these T positions.

  A query sees the earlier positions of its own row (of its own segment, where segments are given),
  itself, and every slot that a `types.Past` shows; in a windowed layer only the nearest of them.
  The first `uncounted` positions do not count for the load of experts.
  """
  ends = _Ends(cfg, machine.dtype)
  x_BTD = ends.apply({'params': _ends(params)}, tokens_BT, method=_Ends.embed)
  x_BTD = _between(x_BTD * jnp.asarray(cfg.embed_scale, machine.dtype))
  counted_1T = jnp.arange(tokens_BT.shape[1])[None] >= uncounted
  views = [view._replace(counted_1T=counted_1T) for view in _views(cfg, positions_BT, segments_BT)]
  kinds = _kinds(cfg)
  which = [sorted(set(kinds)).index(kind) for kind in kinds]

  def make_layer(sparse):

    def layer(x_BTD, weights, kvs, view):
      look_back = [p._replace(kv=kv) for p, kv in zip(past, kvs)]
      if not machine.unroll and machine.dtype != 'float32':
        weights = _each_in_its_turn(weights, view.places.positions_BT)
      return _Layer(cfg, sparse, attend).apply({'params': weights}, x_BTD, view, look_back)

    if machine.remat:
      return jax.checkpoint(layer, policy=jax.checkpoint_policies.nothing_saveable)
    return layer

  fresh, first = [], 0
  at = lambda i: [KV(p.kv.k[i], p.kv.v[i]) for p in past]
  for number, (name, n) in enumerate(_heights(cfg).items()):
    layer = make_layer(sparse=bool(cfg.moe) and name == 'layers')
    mine = range(first, first + n)
    if machine.unroll:
      for i, weights in zip(mine, params[name]):
        x_BTD, kv = layer(x_BTD, weights, at(i), views[which[i]])
        fresh.append(kv)
    else:

      def step(x_BTD, xs, layer=layer):
        weights, kvs, kind = xs
        view = jax.tree.map(lambda *of: jax.lax.select_n(kind, *of), *
                            views) if views[1:] else views[0]
        return layer(x_BTD, weights, kvs, view)

      kinds_L = jnp.asarray([which[i] for i in mine])
      x_BTD, kv = jax.lax.scan(step, x_BTD, (params[name], at(number), kinds_L))
      fresh.append(kv)
    first += n
  kv = KV(*(tuple(kv[i] for kv in fresh) for i in (0, 1)))
  return ends.apply({'params': _ends(params)}, x_BTD, method=_Ends.normed), kv


def _each_in_its_turn(weights, positions_BT):
  """A layer's weights, times a 1 that XLA cannot foresee: otherwise it rounds the float32 matrices
  of all layers ahead of the loop over them, and holds both forms through it. Matrices whose layout
  it changes it would then change in float32: these it had better round."""
  one = jnp.where(positions_BT[0, 0] < attention.FAR, 1.0, 0.0)
  times_1 = lambda w: w * one if w.dtype == jnp.float32 and w.ndim > 1 else w
  return {name: w if name.endswith(('qkv', 'gate_up')) else jax.tree.map(times_1, w)
          for name, w in weights.items()}  # yapf: disable


def _ends(params):
  return {name: w for name, w in params.items() if name not in (*STACKS, 'mtp')}


class _View(NamedTuple):
  """What layers of one kind see, and how positions turn their queries and keys."""
  rotation: tuple  # cos and sin, each [B, T, 1, 1, W / 2], float32
  places: attention.Places
  window: jax.Array | None  # which of cfg.windows; None where there is one
  counted_1T: jax.Array | None = None  # bool, whether a position counts for the load of experts


def _kinds(cfg):
  """(windowed, unrotated) of each layer."""
  return [(i in cfg.windowed, i in cfg.unrotated) for i in range(cfg.L)]


def _views(cfg, positions_BT, segments_BT):
  """The _View of each kind of layer that the model has."""
  places = attention.Places(jnp.arange(positions_BT.shape[1])[None], positions_BT, segments_BT)
  return [_view(cfg, *kind, places) for kind in sorted(set(_kinds(cfg)))]


def _view(cfg, windowed, unrotated, places):
  rope_ = (cfg.rope_windowed if windowed else None) or cfg.rope
  rotation = _rotation(cfg, rope_, places.positions_BT)
  if unrotated:
    rotation = jnp.ones_like(rotation[0]), jnp.zeros_like(rotation[1])
  window = cfg.windows.index(cfg.window if windowed else None)
  return _View(rotation, places, jnp.asarray(window) if cfg.windows[1:] else None)


def _rotation(cfg, rope_, positions_BT):
  """cos and sin of every position's angles, each [B, T, 1, 1, W / 2] (J / 2 with MLA), float32."""
  frequencies, factor = rope_.frequencies(cfg.mla.J if cfg.mla else cfg.W)
  frequencies = jnp.asarray(frequencies, jnp.float32)[None, None, None, None]
  angles = positions_BT[:, :, None, None, None] * frequencies
  return jnp.cos(angles) * factor, jnp.sin(angles) * factor


class _Weights(nn.Module):
  """A module that declares each weight by its axis letters."""
  cfg: Config

  def weight(self, name, letters, init=None, dtype=jnp.float32, gather=True):
    init = init or nn.initializers.normal(self.cfg.init_std)
    shape = tuple(size(self.cfg, letter) for letter in letters)
    if self.has_variable('params', name):  # in a loop over rows it may be a share
      w = nn.unbox(self.get_variable('params', name))
    else:
      boxed = nn.with_logical_partitioning(init, tuple(letters))
      w = self.param(name, boxed, shape, jnp.float32)
    return sharding.gathered(w.astype(dtype), letters) if gather else w.astype(dtype)

  def norm(self, name, letters, x):
    """RMSNorm over the last axis, which the letters make up together."""
    offset = self.cfg.norm_offset
    scale = self.weight(name, letters, nn.initializers.constant(1 - offset)) + offset
    return rms_norm(x, scale.reshape(-1), self.cfg.norm_eps)


class _Layer(_Weights):
  sparse: bool = False  # experts instead of one ffn
  attend: Callable = attention.at_once

  @nn.compact
  def __call__(self, x_BTD, view, past=()):
    cfg = self.cfg

    def weight(name, letters, zero=False, narrow=False, dtype=x_BTD.dtype, gather=True):
      std = 0 if zero else cfg.init_std / (2 *
                                           cfg.L)**0.5 if narrow else cfg.init_std  # as in GPT-2
      return self.weight(name, letters, nn.initializers.normal(std), dtype, gather)

    def added(x_BTD, name, f):  # x + f(norm(x)), with the norms that the model has
      h = self.norm(f'{name}_norm', 'D', x_BTD) if cfg.pre_norm else x_BTD
      h, more = f(h)
      return x_BTD + (self.norm(f'{name}_post_norm', 'D', h) if cfg.post_norm else h), more

    heads = mla_lib.attend if cfg.mla else _attend
    see = partial(self.attend, places=view.places, scale=cfg.scale, cap=cfg.attn_cap,
                  windows=cfg.windows, kind=view.window)
    x_BTD, kv = added(x_BTD, 'attn',
                      lambda h: heads(cfg, weight, self.norm, see, h, view.rotation, past))
    experts = partial(moe_lib.ffn, counted_1T=view.counted_1T)
    ffn = partial(experts if self.sparse else _ffn, cfg, weight)
    x_BTD, _ = added(_between(x_BTD), 'ffn', lambda h: (ffn(h), None))
    return _between(x_BTD), kv


def _between(x_BTD):
  """What passes between the halves of layers, whose positions tensor cuts as well: remat keeps it,
  and norms and sums of it are done once (sequence parallelism, 2205.05198, section 4.2)."""
  return constrain(x_BTD, 'BTD', T=('context', 'tensor'))


def _attend(cfg, weight, norm, see, h_BTD, rotation, past):
  """Grouped-query attention (2305.13245): its result [B, T, D], and keys and values."""
  qkv = jnp.einsum('BTD,DKNW->BTKNW', constrain(h_BTD, 'BTD'), weight('qkv', 'DKNW'))
  qkv = constrain(qkv, 'BTKNW')
  if cfg.qkv_bias:
    qkv += weight('qkv_bias', 'KNW', zero=True)[None, None]
  q, k, v = jnp.split(qkv, [cfg.R, cfg.R + 1], axis=3)
  if cfg.qk_norm:
    q, k = cfg.qk_norm(norm, q, k)
  q, k = rotate(q, rotation), rotate(k, rotation)
  kv = KV(k[:, :, :, 0].transpose(0, 2, 3, 1), v[:, :, :, 0].transpose(0, 2, 1, 3))
  a = constrain(see(q, kv, past=past), 'BTKRW')
  return _between(jnp.einsum('BTKRW,KRWD->BTD', a, weight('o', 'KRWD', narrow=True))), kv


def _ffn(cfg, weight, h_BTD):
  """down(activation(gate) * up), SwiGLU (2002.05202) or its kin, [B, T, D]."""
  gate_up = jnp.einsum('BTD,DUF->BTUF', constrain(h_BTD, 'BTD'), weight('gate_up', 'DUF'))
  gate_up = constrain(gate_up, 'BTUF')
  h = cfg.activation(gate_up[:, :, 0]) * gate_up[:, :, 1]
  return _between(jnp.einsum('BTF,FD->BTD', h, weight('down', 'FD', narrow=True)))


class _Ahead(_Weights):
  """What a layer for predicting further tokens (DeepSeek-V3, 2412.19437, section 2.2) has besides
  an ordinary layer's weights."""

  @nn.compact
  def __call__(self, x_BTD):
    for name in ('embed_norm', 'hidden_norm', 'head_norm'):
      self.norm(name, 'D', x_BTD)
    self.weight('project', 'UDd')  # from [embedding, hidden state]


class _Ends(_Weights):
  """What stands before and after the layers: embedding, final norm, head."""
  dtype: Any = jnp.float32

  def setup(self):
    cfg = self.cfg
    self.table = self.weight('embed', 'VD', gather=False)
    self.scale = self.weight('final_norm', 'D', nn.initializers.constant(1 - cfg.norm_offset))
    self.head = self.table if cfg.tied else self.weight('head', 'VD', gather=False)

  def embed(self, tokens_BT):
    return look_up(self.table, tokens_BT, self.dtype)

  def normed(self, x_BTD):
    return rms_norm(x_BTD, self.scale + self.cfg.norm_offset, self.cfg.norm_eps)

  def logits(self, x_BTD, part=False):
    # Rounded after it is gathered (XLA does it before): so its gradient is summed in float32.
    cap, matrix = self.cfg.logit_cap, sharding.gathered(self.head, 'VD', part).astype(self.dtype)
    logits = jnp.einsum('BTD,VD->BTV', constrain(x_BTD, 'BTD'), matrix,
                        preferred_element_type=jnp.float32)
    logits = constrain(logits, 'BTV')
    return cap * jnp.tanh(logits / cap) if cap else logits

  def all(self, x_BTD):
    return self.logits(self.normed(x_BTD))
