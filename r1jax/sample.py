"""Sampling: prompts in, completions and their log-probabilities out. One jitted loop a shape.

Each prompt is prefilled once; its G completions share the prompt's keys and values. A completion's
own keys and values live in a cache that grows in pieces, so that attention never reads much more
than has been written. The loop ends when every row of a device has ended.
"""
import dataclasses
from functools import partial
import math

import chex
import jax
import jax.numpy as jnp

from r1jax import sharding
from r1jax.losses import last_hidden, log_prob
from r1jax.types import KV, Past, UserError


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How completions are drawn."""
  max_tokens: int = 1024  # the budget of a completion, EOS included
  temperature: float = 1.0  # 0 is greedy
  top_p: float = 1.0  # smallest set of tokens with this probability; 1: all
  top_k: int = 0  # the k likeliest tokens; 0: all

  def __post_init__(self):
    if self.max_tokens < 1 or self.temperature < 0 or not 0 < self.top_p <= 1 or self.top_k < 0:
      raise UserError(f'{self} makes no sense: max_tokens is at least 1, temperature and top_k at '
                      'least 0, top_p above 0 and at most 1')


def make_sampler(model, cfg: Sampling, eos_ids, G, mesh, pieces=1):
  """The jitted sampler: params, key, rows_P, prompts_PT, lengths_P, firsts_P=0 -> four arrays.

  Prompts are right-padded, rows_P are problem numbers: completion g of problem p draws its i-th
  token with fold_in(key, p, g, i), whatever else is in the batch. A row's completions are those
  from firsts_P on, so that several calls can share a problem's. Returns tokens_PGC (EOS kept,
  zeros after it), lengths_PG, finished_PG, and logp_PGC: float32 log-probabilities under
  softmax(logits / temperature), which is what training uses. It is not renormalised over top-p or
  top-k; greedy sampling reports temperature 1. P must be divisible by sharding.rows(mesh).
  """
  eos_E = jnp.asarray(sorted(eos_ids) or [-1], jnp.int32)

  def sample(params, key, rows_P, prompts_PT, lengths_P, firsts_P):
    chex.assert_rank([rows_P, prompts_PT, lengths_P, firsts_P], [1, 2, 1, 1])
    (P, T), C = prompts_PT.shape, cfg.max_tokens
    B = P * G
    params = model.split(params)
    keys_B = _row_keys(key, rows_P, firsts_P, G)
    hidden_PTD, kv = model.apply(params, prompts_PT, jnp.arange(T)[None])
    prompt = Past(kv, jnp.arange(T)[None] < lengths_P[:, None], jnp.arange(T)[None])
    lengths_B = jnp.repeat(lengths_P, G)

    def draw(i, u_B2, hidden_B1D, alive_B, out):
      # Whole on each device: an operation across devices in drawing would wait, for ever, for rows
      # of other copies of the parameters whose loop has ended.
      logits_BV = sharding.whole(model.logits(params, hidden_B1D)[:, 0])
      token_B, logp_B = choose(cfg, u_B2, logits_BV)
      tokens_CB, logp_CB, count_B = out
      out = (tokens_CB.at[i].set(jnp.where(alive_B, token_B, 0)),
             logp_CB.at[i].set(jnp.where(alive_B, logp_B, 0.0)), count_B + alive_B)
      return token_B, alive_B & (token_B[:, None] != eos_E[None]).all(axis=1), out

    def any_alive(alive_B):  # devices that share experts go on together
      more = alive_B.any()
      return jax.lax.pmax(more, 'expert') if mesh.shape['expert'] > 1 else more

    def step(start, u_IB2, state):
      i, _, token_B, alive_B, cache, out = state
      S = jax.tree.leaves(cache.k)[0].shape[-1]
      slots_1S = jnp.arange(S)[None]
      written = Past(cache, slots_1S < i - 1, lengths_B[:, None] + slots_1S)
      hidden_B1D, fresh = model.apply(params, token_B[:, None], (lengths_B + i - 1)[:, None],
                                      past=(prompt, written))
      token_B, alive_B, out = draw(i, u_IB2[i - start], hidden_B1D, alive_B, out)
      # A token is never negative: the slot is i - 1, and known only after every read of the cache,
      # which lets XLA write in place. Otherwise it copies the cache for every token.
      slot = jnp.minimum(i - 1, i - 1 + token_B[0])
      return i + 1, any_alive(alive_B), token_B, alive_B, write(cache, fresh, slot), out

    out = (jnp.zeros((C, B), jnp.int32), jnp.zeros((C, B)), jnp.zeros(B, jnp.int32))
    first_B1D = jnp.repeat(last_hidden(hidden_PTD, lengths_P), G, axis=0)
    alive_B = lengths_B > 0  # rows without a prompt only fill up the batch
    token_B, alive_B, out = draw(0, uniforms(keys_B, 0, 1)[0], first_B1D, alive_B, out)
    i, more, cache, start = 1, any_alive(alive_B), model.init_cache(B, 0), 1
    for end in piece_ends(C, pieces) if C > 1 else ():  # the first token is drawn already
      unfinished = lambda state, end=end: (state[0] < end) & state[1]
      body = partial(step, start, uniforms(keys_B, start, end))
      i, more, token_B, alive_B, cache, out = jax.lax.while_loop(
          unfinished, body, (i, more, token_B, alive_B, grow(cache, end), out))
      start = end
    tokens_CB, logp_CB, count_B = out
    back = lambda x_CB: x_CB.T.reshape(P, G, C)
    return back(tokens_CB), count_B.reshape(P, G), ~alive_B.reshape(P, G), back(logp_CB)

  ins = (sharding.shares(model.axes(), mesh), sharding.WHOLE) + (sharding.BY_ROWS,) * 4
  mapped = sharding.over_rows(sample, mesh, ins, (sharding.BY_ROWS,) * 4)

  def sampler(params, key, rows_P, prompts_PT, lengths_P, firsts_P=0):
    firsts_P = jnp.zeros_like(rows_P) + firsts_P
    out = mapped(params, key, rows_P, prompts_PT, lengths_P, firsts_P)
    # Whole in every process, brought together as part of the call: asked for later, it would have
    # to wait for the calls that follow.
    return jax.lax.with_sharding_constraint(out, sharding.replicated(mesh))

  return jax.jit(sampler)


def make_copy(model, machine, mesh, merge=lambda params: params):
  """(params -> the parameters as sampling reads them, the mesh that they lie on and that samples).

  merge(params), in machine.dtype but for what the layers read in float32, so that the same numbers
  are multiplied as in training, in the layout of sharding.sampling_mesh. Where all that is so
  already, the parameters themselves.
  """
  there = sharding.sampling_mesh(machine, mesh)
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  where = sharding.shardings(model.axes(), shapes, there)

  def read(params):
    return jax.tree.map_with_path(lambda path, x: x if model.exact(path[-1].key) else x.astype(
        machine.dtype), merge(params))  # yapf: disable

  reread = jax.jit(read, out_shardings=None if machine.sample_devices else where)

  def copy(params):
    wanted = jax.eval_shape(read, params)
    lies = lambda x, like, where: x.dtype == like.dtype and x.sharding.is_equivalent_to(
        where, x.ndim)
    if jax.tree.structure(params) == jax.tree.structure(wanted) and jax.tree.all(
        jax.tree.map(lies, params, wanted, where)):
      return params
    return jax.device_put(reread(params), where)  # to other devices, where others sample

  return copy, there


def _row_keys(key, rows_P, firsts_P, G):
  keys_P = jax.vmap(jax.random.fold_in, (None, 0))(key, rows_P)
  fold_group = jax.vmap(jax.random.fold_in, (None, 0))
  numbers_PG = firsts_P[:, None] + jnp.arange(G)[None]
  return jax.vmap(fold_group)(keys_P, numbers_PG).reshape(len(rows_P) * G)


def piece_ends(C, pieces):
  """Where each piece of a budget of C tokens ends: about equal, each a multiple of 32 but the last.

  Each piece is compiled for itself, so a short budget has fewer.
  """
  size = -(-C // (32 * pieces)) * 32
  return [*range(size, C, size), C]


def grow(cache, S):
  """The cache with room for S positions."""

  def longer(x, axis):
    pads = [(0, 0)] * x.ndim
    pads[axis] = (0, S - x.shape[axis])
    return jnp.pad(x, pads)

  lay = lambda x, letters: sharding.constrain(x, 'L' * (x.ndim - 4) + letters)
  return KV(jax.tree.map(lambda k: lay(longer(k, -1), 'BKWS'), cache.k),
            jax.tree.map(lambda v: lay(longer(v, -2), 'BKSW'), cache.v))


def write(cache, fresh, slot):
  """The cache with one position's keys and values at `slot`."""
  put = lambda axis: lambda x, new: jax.lax.dynamic_update_slice_in_dim(
      x, new.astype(x.dtype), slot, axis % x.ndim)
  return KV(jax.tree.map(put(-1), cache.k, fresh.k), jax.tree.map(put(-2), cache.v, fresh.v))


def uniforms(keys_B, start, end):
  """Two uniform numbers a row for each of the draws start .. end - 1, [end - start, B, 2]."""
  draw = lambda key, i: jax.random.uniform(jax.random.fold_in(key, i), (2,))
  return jax.vmap(jax.vmap(draw, (0, None)), (None, 0))(keys_B, jnp.arange(start, end))


def choose(cfg, u_B2, logits_BV):
  """Draws one token a row; returns it and its log-probability, float32."""
  scaled_BV = logits_BV / (cfg.temperature or 1.0)
  if cfg.temperature == 0:
    token_B = jnp.argmax(logits_BV, axis=-1)
  else:
    token_B = categorical(u_B2, keep_likeliest(scaled_BV, cfg.top_k, cfg.top_p))
  token_B = token_B.astype(jnp.int32)
  return token_B, log_prob(scaled_BV, token_B)


def keep_likeliest(logits_BV, top_k=0, top_p=1.0):
  """-inf for every token outside the k likeliest, then outside the smallest set with mass top_p.

  Tokens that tie with the last one kept are kept too; at least one token is.
  """
  V = logits_BV.shape[-1]
  if 0 < top_k < V:
    kth_B1 = jax.lax.top_k(logits_BV, top_k)[0][:, -1:]
    logits_BV = jnp.where(logits_BV >= kth_B1, logits_BV, -jnp.inf)
  if top_p < 1:
    sorted_BV = -jnp.sort(-logits_BV, axis=-1)
    probs_BV = jax.nn.softmax(sorted_BV, axis=-1)
    before_BV = jnp.cumsum(probs_BV, axis=-1) - probs_BV
    last_B1 = jnp.maximum((before_BV < top_p).sum(axis=-1, keepdims=True) - 1, 0)
    logits_BV = jnp.where(logits_BV >= jnp.take_along_axis(sorted_BV, last_B1, axis=-1), logits_BV,
                          -jnp.inf)
  return logits_BV


def categorical(u_B2, logits_BV):
  """A draw from softmax(logits) a row, from two uniform numbers. Tokens of -inf are never drawn.

  Inverse CDF in two levels, a block of tokens and then one in it: two uniform numbers a row where
  the Gumbel trick needs V, and the 2^-23 grain of a float32 uniform applies to each level alone.
  """
  B, V = logits_BV.shape
  size = 2**math.ceil(math.log2(V) / 2)
  blocks = -(-V // size)
  weights_BV = jnp.exp(logits_BV - logits_BV.max(axis=-1, keepdims=True))
  weights_BNM = jnp.pad(weights_BV, [(0, 0), (0, blocks * size - V)]).reshape(B, blocks, size)
  block_B = _inverse_cdf(weights_BNM.sum(axis=-1), u_B2[:, 0])
  inside_BM = jnp.take_along_axis(weights_BNM, block_B[:, None, None], axis=1)[:, 0]
  return block_B * size + _inverse_cdf(inside_BM, u_B2[:, 1])


def _inverse_cdf(weights_BN, u_B):
  cdf_BN = jnp.cumsum(weights_BN, axis=-1)
  total_B1 = cdf_BN[:, -1:]
  # Below the total whatever the rounding, so that the token found has a weight above 0.
  target_B1 = jnp.minimum(u_B[:, None] * total_B1, jnp.nextafter(total_B1, 0.0))
  return (cdf_BN <= target_B1).sum(axis=-1)
