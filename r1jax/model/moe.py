"""Mixture of experts: DeepSeekMoE (arXiv 2401.06066; V3: 2412.19437, sections 2.1.2-3), Qwen3.

Every token goes to `top` of E routed experts, chosen by a router, and to the shared ones. No token
is dropped. E experts, I the ffn width of one, M that of the shared ones together, U = 2: gate, up.
"""
import dataclasses
from functools import partial
from typing import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from r1jax.model.grouped import product
from r1jax.sharding import auto_spec, by_hand, constrain, cuts, gathered, RULES


def softmax(logits_NE):
  """Scores that add up to 1 over the experts (V2, Qwen3)."""
  return jax.nn.softmax(logits_NE, axis=-1)


def sigmoid(logits_NE):
  """Scores of each expert for itself (V3)."""
  return jax.nn.sigmoid(logits_NE)


def best(scores_NGE):
  """A group's score: its best expert's (V2)."""
  return scores_NGE.max(axis=-1)


def best_two(scores_NGE):
  """A group's score: the sum of its two best experts' (V3)."""
  return jax.lax.top_k(scores_NGE, 2)[0].sum(axis=-1)


@dataclasses.dataclass(frozen=True)
class MoE:
  """Sizes by axis letter, and how experts are chosen."""
  E: int  # routed experts
  I: int  # ffn width of one  # noqa: E741
  top: int  # experts a token
  M: int = 0  # ffn width of the shared experts together; 0: none
  dense: int = 0  # the first so many layers have an ordinary ffn of width F
  score: Callable = softmax  # router logits -> scores, both float32 [N, E]
  bias: bool = False  # added to the scores for choosing only, moved by `balance`
  groups: int = 1  # consecutive experts form so many groups,
  top_groups: int = 1  # of which so many are looked at
  group_score: Callable = best  # scores of a group's experts -> its score
  normalise: bool = False  # the chosen experts' weights add up to 1
  scale: float = 1.0  # factor on the weights

  e = property(lambda self: self.E)  # where each device has it whole


def route(moe: MoE, logits_NE, bias_E=None):
  """The experts of each token, int32 [N, top], and their weights, float32 [N, top].

  Chosen by score + bias inside the best groups; weighted by the score alone.
  """
  scores_NE = moe.score(logits_NE)
  choice_NE = jax.lax.stop_gradient(scores_NE)
  if bias_E is not None:
    choice_NE += jax.lax.stop_gradient(bias_E)[None]
  if moe.groups > 1:
    N, E = choice_NE.shape
    choice_NGE = choice_NE.reshape(N, moe.groups, E // moe.groups)
    groups_N = jax.lax.top_k(moe.group_score(choice_NGE), moe.top_groups)[1]
    kept_NG = (groups_N[:, :, None] == jnp.arange(moe.groups)[None, None]).any(axis=1)
    choice_NE = jnp.where(kept_NG[:, :, None], choice_NGE, -jnp.inf).reshape(N, E)
  experts_Nk = jax.lax.top_k(choice_NE, moe.top)[1]
  weights_Nk = jnp.take_along_axis(scores_NE, experts_Nk, axis=-1)
  if moe.normalise:
    weights_Nk /= weights_Nk.sum(axis=-1, keepdims=True) + 1e-20
  return experts_Nk, weights_Nk * moe.scale


def ffn(cfg, weight, h_BTD, counted_1T=None):
  """Routed and shared experts' sum, [B, T, D]: each activation(gate) * up, then down.

  weight(name, letters, ...): a weight, of the experts' the share that this device stores. Where
  that is only a part of the E experts, the mesh axis `expert` holds them all, each device its own
  rows of B too, and this runs inside a shard_map over that axis.
  """
  moe, h_BTD = cfg.moe, constrain(h_BTD, 'BTD')  # gathered over tensor once for both
  # The router's experts are `e`, since each device scores its tokens for all of them.
  router_DE = weight('router', 'De', dtype=jnp.float32)
  bias_E = weight('router_bias', 'e', zero=True, dtype=jnp.float32) if moe.bias else None
  # Two weights, as one would be cut or joined along I, which a mesh may have cut already.
  gate, up = (weight(f'experts_{name}', 'EDI', gather=False) for name in ('gate', 'up'))
  shares = gate, up, weight('experts_down', 'EID', narrow=True, gather=False)
  out_BTD, experts_BTk = _on_own_tokens(cfg, h_BTD, (router_DE, bias_E), shares)
  if moe.bias:
    out_BTD = count_load(out_BTD, bias_E, experts_BTk, counted_1T)
  if moe.M:
    gate_up = jnp.einsum('BTD,DUM->BTUM', h_BTD, weight('shared_gate_up', 'DUM'))
    h_BTM = cfg.activation(gate_up[:, :, 0]) * gate_up[:, :, 1]
    out_BTD += jnp.einsum('BTM,MD->BTD', h_BTM, weight('shared_down', 'MD', narrow=True))
  return out_BTD


def _on_own_tokens(cfg, h_BTD, router, shares):
  """`_routed`, on each device's part of T (mesh axis context) and of I (tensor), where these are
  cut: left to itself, XLA would gather all tokens to sort them. The experts' shares are gathered
  inside, so that their gradients, the most by far, go back without being made whole."""
  T = 'context' if cuts('context') > 1 and h_BTD.shape[1] % cuts('context') == 0 else None
  I = 'tensor' if cuts('tensor') > 1 else None  # noqa: E741

  letters = 'EDI', 'EDI', 'EID'

  def part(h_1BTD, router, shares):
    experts = tuple(map(gathered, shares, letters))
    out_BTD, experts_BTk = _routed(cfg, h_1BTD[0], router, experts)
    return out_BTD[None], experts_BTk

  # A part of I makes a part of each sum. These are added out here, as are the gradients of copies
  # of the tokens, so that XLA makes of it what it needs, all-reduce or reduce-scatter.
  stored = tuple(auto_spec(x, w.shape, RULES) for x, w in zip(letters, shares))
  tokens = P(I, None, T)
  f = by_hand(part, (tokens, P(), stored), (tokens, P(None, T)))
  copies = jnp.broadcast_to(h_BTD[None], (cuts('tensor'), *h_BTD.shape))
  sums, experts_BTk = f(copies, router, shares)
  return jax.lax.reduce_sum(sums, (0,)), experts_BTk


def _routed(cfg, h_BTD, router, experts):
  """The routed experts' weighted sum, [B, T, D], and each token's experts, [B, T, top]."""
  moe, (B, T, D) = cfg.moe, h_BTD.shape
  x_ND, (router_DE, bias_E) = h_BTD.reshape(B * T, D), router
  logits_NE = jnp.einsum('ND,DE->NE', x_ND.astype(jnp.float32), router_DE, precision='highest')
  experts_Nk, weights_Nk = route(moe, logits_NE, bias_E)
  mix = _here if len(experts[0]) == moe.E else _everywhere
  out_ND = mix(cfg, x_ND, experts_Nk, weights_Nk, experts)
  return out_ND.reshape(B, T, D), experts_Nk.reshape(B, T, moe.top)


def _here(cfg, x_ND, experts_Nk, weights_Nk, experts):
  """All experts are here. The tokens are sorted by expert, so that each has consecutive rows:
  where products have a kernel, as on TPUs, it multiplies these alone, top / E of the work of all
  experts for any routing. XLA:CPU multiplies every row by every expert.
  """
  gate, up, down_EID = experts
  (N, D), moe = x_ND.shape, cfg.moe
  flat_M = experts_Nk.reshape(-1)  # slot n * top + i: token n's i-th expert
  order_M = jnp.argsort(flat_M, stable=True)
  back_M = jnp.argsort(order_M)
  sizes_E = jnp.bincount(flat_M, length=moe.E).astype(jnp.int32)
  rows_MD = jnp.repeat(x_ND, moe.top, axis=0)[order_M]
  gate, up = (product(rows_MD, w, sizes_E) for w in (gate, up))
  out_MD = product(cfg.activation(gate) * up, down_EID, sizes_E)
  out_NkD = out_MD[back_M].reshape(N, moe.top, D)
  return jnp.einsum('NkD,Nk->ND', out_NkD, weights_Nk.astype(out_NkD.dtype))


ROWS_AT_ONCE = 256  # twice what fills a matrix unit


def _everywhere(cfg, x_ND, experts_Nk, weights_Nk, experts):
  """Each device of the axis `expert` has its part of the experts and its own tokens.

  The tokens come to all devices, each adds up what its experts make of those that chose them, and
  the sums go back to where the tokens came from. One part of the tokens after the other, since all
  would be many: equal ones, as small as leaves an expert about ROWS_AT_ONCE to multiply.
  """
  moe, N = cfg.moe, len(x_ND)
  least = ROWS_AT_ONCE * moe.E // (moe.top * cuts('expert'))
  parts = max(n for n in range(1, max(1, N // least) + 1) if N % n == 0)
  return _in_parts(cfg.activation, moe.E, parts, x_ND, weights_Nk, experts, experts_Nk)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _in_parts(activation, E, parts, x_ND, weights_Nk, experts, experts_Nk):
  """The experts' weighted sum for each of this device's tokens, [N, D].

  With a gradient of its own: that of the experts is added up in one place for all parts, and their
  rounds, of which there are only as many as there is work for, have none that jax could find.
  """

  def one(part):
    x_ND, weights_Nk, experts_Nk = map(_meet, part)
    queue = _queue(E, experts_Nk, len(experts[0]))
    return _back(_rounds(activation, x_ND, weights_Nk, experts, *queue))

  return jax.lax.map(one, _cut(parts, (x_ND, weights_Nk, experts_Nk))).reshape(x_ND.shape)


def _in_parts_forwards(activation, E, parts, *args):
  return _in_parts(activation, E, parts, *args), args


def _in_parts_backwards(activation, E, parts, saved, grad_ND):
  x_ND, weights_Nk, experts, experts_Nk = saved

  def one(of_experts, part):
    x_ND, weights_Nk, experts_Nk, grad_ND = map(_meet, part)  # the transpose of _back
    queue = _queue(E, experts_Nk, len(experts[0]))
    of_x, of_weights, of_experts = _rounds_backwards(activation, x_ND, weights_Nk, experts, *queue,
                                                     grad_ND, of_experts)
    return of_experts, (_back(of_x), _back(of_weights))

  of_experts, grads = jax.lax.scan(one, jax.tree.map(jnp.zeros_like, experts),
                                   _cut(parts, (x_ND, weights_Nk, experts_Nk, grad_ND)))
  of_x, of_weights = (g.reshape(like.shape) for g, like in zip(grads, (x_ND, weights_Nk)))
  return of_x, of_weights, of_experts, None


_in_parts.defvjp(_in_parts_forwards, _in_parts_backwards)


def _cut(parts, of_tokens):
  return jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), of_tokens)


def _meet(x):
  return jax.lax.all_gather(x, 'expert', tiled=True)


def _back(x):
  return jax.lax.psum_scatter(x, 'expert', tiled=True)


def _queue(E, experts_Nk, own):
  """(slots of a round n, slots sorted by expert [M + n], how many each local expert has [own]).

  Slot token * top + i is a token's i-th expert; those of this device's experts come first.
  """
  M = experts_Nk.size
  flat_M = experts_Nk.reshape(-1) - own * jax.lax.axis_index('expert')
  flat_M = jnp.where((flat_M >= 0) & (flat_M < own), flat_M, own)  # others' come last
  sizes_E = jnp.bincount(flat_M, length=own + 1)[:own].astype(jnp.int32)
  # As many slots at once as come with an even load and a quarter more: so memory is bounded, and
  # mostly one round is enough. 128 fill a matrix unit.
  n = -(-5 * M * own // (4 * 128 * E)) * 128
  n = min(n, len(experts_Nk) * min(experts_Nk.shape[1], own))
  order_M = jnp.pad(jnp.argsort(flat_M, stable=True), (0, n))  # so that the last round is whole
  return n, order_M, sizes_E


def _rounds(activation, x_ND, weights_Nk, experts, n, order_M, sizes_E):
  """The local experts' weighted sum for each token, [N, D], n slots at a time."""

  def add(i, out_ND):
    slots_n, sizes, ours = _slots(i, n, order_M, sizes_E)
    tokens_n, weights_n = slots_n // weights_Nk.shape[1], weights_Nk.reshape(-1)[slots_n]
    rows_nD = _gated(activation, sizes, ours, x_ND[tokens_n], weights_n, experts)
    return out_ND.at[tokens_n].add(rows_nD)

  return jax.lax.fori_loop(0, -(-sizes_E.sum() // n), add, jnp.zeros_like(x_ND))


def _rounds_backwards(activation, x_ND, weights_Nk, experts, n, order_M, sizes_E, grad_ND,
                      of_experts):
  """Gradients of x_ND and weights_Nk, and of_experts with those of the experts added."""

  def add(i, grads):
    slots_n, sizes, ours = _slots(i, n, order_M, sizes_E)
    tokens_n, weights_n = slots_n // weights_Nk.shape[1], weights_Nk.reshape(-1)[slots_n]
    gated = partial(_gated, activation, sizes, ours)
    x_nD, w_n, here = jax.vjp(gated, x_ND[tokens_n], weights_n, experts)[1](grad_ND[tokens_n])
    x, w, more = grads
    return x.at[tokens_n].add(x_nD), w.at[slots_n].add(w_n), jax.tree.map(jnp.add, more, here)

  zeros = jnp.zeros_like(x_ND), jnp.zeros(weights_Nk.size, weights_Nk.dtype)
  x, w, more = jax.lax.fori_loop(0, -(-sizes_E.sum() // n), add, (*zeros, of_experts))
  return x, w.reshape(weights_Nk.shape), more


def _slots(i, n, order_M, sizes_E):
  """Round i's slots [n], how many of them each expert has, and which rows are anyone's [n, 1]."""
  ends_E = jnp.cumsum(sizes_E) - i * n
  ours = jnp.arange(n)[:, None] < ends_E[-1]
  sizes = ends_E.clip(0, n) - (ends_E - sizes_E).clip(0, n)
  return jax.lax.dynamic_slice_in_dim(order_M, i * n, n), sizes, ours


def _gated(activation, sizes, ours, x_nD, weights_n, experts):
  """weight * down(activation(gate) * up) of sorted rows, 0 for a row that is nobody's."""
  gate, up, down = experts

  def dot(rows, w):  # what a product gives nobody's rows, and their gradients, is not defined
    return jnp.where(ours, product(jnp.where(ours, rows, 0), w, sizes), 0)

  h_nI = activation(dot(x_nD, gate)) * dot(x_nD, up)
  # Weighted here and not at the end: so the gradient of a weight needs no third product again.
  return dot(h_nI * weights_n[:, None].astype(h_nI.dtype), down)


@jax.custom_vjp
def count_load(out_BTD, bias_E, experts_BTk, counted_1T):
  """out_BTD as it is. Backwards, the bias gets as its "gradient" each expert's load: the number of
  tokens that chose it, of the counted ones that the loss depends on (padding does not count).

  The bias has no gradient of its own, since it only chooses. So the load takes the gradient's way
  to the optimizer, summed over micro-batches and devices with the others, and `balance` is its
  update.
  """
  del bias_E, experts_BTk, counted_1T
  return out_BTD


def _count_forwards(out_BTD, bias_E, experts_BTk, counted_1T):
  return out_BTD, (experts_BTk, bias_E, counted_1T)


def _count_backwards(saved, grad_BTD):
  experts_BTk, bias_E, counted_1T = saved
  counts_BT = (grad_BTD != 0).any(axis=-1)
  if counted_1T is not None:
    counts_BT &= counted_1T
  load_E = jnp.zeros_like(bias_E).at[experts_BTk].add(counts_BT[..., None].astype(bias_E.dtype))
  return grad_BTD, load_E, None, None


count_load.defvjp(_count_forwards, _count_backwards)


def balance(load_E, rate):
  """The change of the selection bias after an update (2412.19437, section 2.1.2, "auxiliary-loss-
  free"): -rate for an expert with more than the mean load, +rate for one with less."""
  return rate * jnp.sign(load_E.mean(axis=-1, keepdims=True) - load_E)
