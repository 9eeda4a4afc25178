"""Mixture of experts: DeepSeekMoE (arXiv 2401.06066; V3: 2412.19437, sections 2.1.2-3), Qwen3.

Every token goes to `top` of E routed experts, chosen by a router, and to the shared ones. No token
is dropped. E experts, I the ffn width of one, M that of the shared ones together, U = 2: gate, up.
"""
import dataclasses
from typing import Callable

import jax
import jax.numpy as jnp


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


def ffn(cfg, weight, h_BTD):
  """Routed and shared experts' sum, [B, T, D]: each activation(gate) * up, then down.

  The tokens are sorted by expert, so that each expert has consecutive rows: where ragged_dot has a
  kernel, as on TPUs, it multiplies these alone, top / E of the work of all experts for any routing.
  XLA:CPU multiplies every row by every expert.
  """
  moe, (B, T, D) = cfg.moe, h_BTD.shape
  x_ND = h_BTD.reshape(B * T, D)
  router_DE = weight('router', 'DE', dtype=jnp.float32)
  logits_NE = jnp.einsum('ND,DE->NE', x_ND.astype(jnp.float32), router_DE, precision='highest')
  bias_E = weight('router_bias', 'E', zero=True, dtype=jnp.float32) if moe.bias else None
  experts_Nk, weights_Nk = route(moe, logits_NE, bias_E)

  flat_M = experts_Nk.reshape(-1)  # slot n * top + i: token n's i-th expert
  order_M = jnp.argsort(flat_M, stable=True)
  back_M = jnp.argsort(order_M)
  sizes_E = jnp.bincount(flat_M, length=moe.E).astype(jnp.int32)
  rows_MD = jnp.repeat(x_ND, moe.top, axis=0)[order_M]
  # Two weights, as one would be cut or joined along I, which a mesh may have cut already.
  gate, up = (jax.lax.ragged_dot(rows_MD, weight(name, 'EDI'), sizes_E)
              for name in ('experts_gate', 'experts_up'))  # yapf: disable
  down_EID = weight('experts_down', 'EID', narrow=True)
  out_MD = jax.lax.ragged_dot(cfg.activation(gate) * up, down_EID, sizes_E)
  out_NkD = out_MD[back_M].reshape(B * T, moe.top, D)
  out_ND = jnp.einsum('NkD,Nk->ND', out_NkD, weights_Nk.astype(out_NkD.dtype))
  if moe.bias:
    out_ND = count_load(out_ND, bias_E, experts_Nk)
  if moe.M:
    gate_up = jnp.einsum('ND,DUM->NUM', x_ND, weight('shared_gate_up', 'DUM'))
    h_NM = cfg.activation(gate_up[:, 0]) * gate_up[:, 1]
    out_ND += jnp.einsum('NM,MD->ND', h_NM, weight('shared_down', 'MD', narrow=True))
  return out_ND.reshape(B, T, D)


@jax.custom_vjp
def count_load(out_ND, bias_E, experts_Nk):
  """out_ND as it is. Backwards, the bias gets as its "gradient" each expert's load: the number of
  tokens that chose it, of those that the loss depends on (padding does not count).

  The bias has no gradient of its own, since it only chooses. So the load takes the gradient's way
  to the optimizer, summed over micro-batches and devices with the others, and `balance` is its
  update.
  """
  del bias_E, experts_Nk
  return out_ND


def _count_forwards(out_ND, bias_E, experts_Nk):
  return out_ND, (experts_Nk, bias_E)


def _count_backwards(saved, grad_ND):
  experts_Nk, bias_E = saved
  counts_N = (grad_ND != 0).any(axis=-1).astype(bias_E.dtype)
  load_E = jnp.zeros_like(bias_E).at[experts_Nk].add(counts_N[:, None])
  return grad_ND, load_E, None


count_load.defvjp(_count_forwards, _count_backwards)


def balance(load_E, rate):
  """The change of the selection bias after an update (2412.19437, section 2.1.2, "auxiliary-loss-
  free"): -rate for an expert with more than the mean load, +rate for one with less."""
  return rate * jnp.sign(load_E.mean(axis=-1, keepdims=True) - load_E)
