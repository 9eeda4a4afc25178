"""Group relative policy optimisation: DeepSeekMath (arXiv 2402.03300, eq. 3-4) and DeepSeek-R1
(arXiv 2501.12948, eq. 1-3), as pure functions that a variant replaces one by one.

For a question's completions o_1 .. o_G with rewards r_i, and with L(.) the level of the ratio,

  A_i    = (r_i - mean_G r) / (std_G r + eps)
  rho_it = exp L(log pi(o_it) - log pi_old(o_it))
  loss   = sum_it w_it [ -min(rho_it A_i, clip(rho_it, 1 - low, 1 + high) A_i)
                         + beta KL(L(log pi_ref(o_it) - log pi(o_it))) ]

DeepSeekMath's form has L = per_token and w = sequence_mean; R1's printed form has one ratio and one
KL for the whole output: L = per_sequence, w = sequence_mean.
"""
import dataclasses
from typing import Callable

import chex
import jax.numpy as jnp
import numpy as np

from r1jax.types import UserError

# -- advantages: rewards_PG -> advantages_PG, on the host ------------------------------------------


def group_advantages(rewards_PG, ddof=0, eps=1e-6):
  """A_ig = (r_ig - mean_g r_i) / (std_g r_i + eps), float32 [P, G].

  The standard deviation divides by G - ddof; neither paper states its estimator or eps. A group
  whose rewards are all equal has nothing to compare and gets exactly 0.
  """
  rewards_PG = np.asarray(rewards_PG, np.float64)
  chex.assert_rank(rewards_PG, 2)
  centred_PG = rewards_PG - rewards_PG.mean(axis=1, keepdims=True)
  advantages_PG = centred_PG / (rewards_PG.std(axis=1, ddof=ddof, keepdims=True) + eps)
  return np.where(degenerate(rewards_PG)[:, None], 0.0, advantages_PG).astype(np.float32)


def degenerate(rewards_PG):
  """True for each group whose rewards are all equal, bool [P]."""
  return (rewards_PG == rewards_PG[:, :1]).all(axis=1)


# -- level of the ratio: [B, C] per-token log-ratios -> [B, C] -------------------------------------


def per_token(log_ratio_BC, mask_BC):
  """Each token has its own ratio (DeepSeekMath eq. 3)."""
  return log_ratio_BC * mask_BC


def per_sequence(log_ratio_BC, mask_BC):
  """log pi(o|q) / pi'(o|q) of the whole output, at each of its tokens (R1 eq. 1-2)."""
  whole_B1 = (log_ratio_BC * mask_BC).sum(axis=1, keepdims=True)
  return jnp.broadcast_to(whole_B1, log_ratio_BC.shape) * mask_BC


# -- KL(policy || reference) from log_ref = log pi_ref - log pi ------------------------------------


def k3(log_ref):
  """exp(x) - x - 1: unbiased and never negative (Schulman, "Approximating KL Divergence")."""
  return jnp.exp(log_ref) - log_ref - 1


def k2(log_ref):
  """x^2 / 2: biased as a value, but its gradient is the KL's gradient on the policy's samples."""
  return 0.5 * log_ref**2


def k1(log_ref):
  """-x: unbiased as a value. As a loss term its expected gradient is zero; Objective refuses it."""
  return -log_ref


# -- aggregation: mask_PGC -> weights_PGC of the whole minibatch, so that sums over parts are exact


def sequence_mean(mask_PGC):
  """w_it = 1 / (N |o_i|): the mean over outputs of the mean over their tokens (DeepSeekMath)."""
  lengths_PG1 = np.maximum(mask_PGC.sum(axis=-1, keepdims=True), 1)
  return (mask_PGC / (lengths_PG1 * _outputs(mask_PGC))).astype(np.float32)


def token_mean(mask_PGC):
  """w_it = 1 / sum_i |o_i|: every token of the minibatch counts the same (DAPO, 2503.14476)."""
  return (mask_PGC / max(mask_PGC.sum(), 1)).astype(np.float32)


def sequence_sum(mask_PGC):
  """w_it = 1 / (N C) with C the token budget, a constant (Dr. GRPO, 2503.20783)."""
  return (mask_PGC / (_outputs(mask_PGC) * mask_PGC.shape[-1])).astype(np.float32)


def _outputs(mask_PGC):
  return mask_PGC.shape[0] * mask_PGC.shape[1]


# -- the objective ---------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Objective:
  """The loss of the module's docstring; a variant passes another function."""
  clip_low: float = 0.2  # the ratio is clipped at 1 - clip_low
  clip_high: float = 0.2  # and at 1 + clip_high
  beta: float = 0.001  # weight of the KL term; at 0 no reference is kept
  advantages: Callable = group_advantages
  level: Callable = per_token
  kl: Callable = k3
  aggregate: Callable = sequence_mean

  def __post_init__(self):
    if self.kl is k1:
      raise UserError('k1 as a loss term has zero expected gradient: take k3 or k2')


def loss(objective, logp_BC, logp_old_BC, logp_ref_BC, advantages_B, mask_BC, weights_BC):
  """The objective's sum over a part of a minibatch: loss_B, and sums for the metrics.

  logp_ref_BC is None where beta is 0. Sums of parts add up to the minibatch's value.
  """
  chex.assert_equal_shape([logp_BC, logp_old_BC, mask_BC, weights_BC])
  chex.assert_rank([logp_BC, advantages_B], [2, 1])
  A_B1 = advantages_B[:, None]
  low, high = 1 - objective.clip_low, 1 + objective.clip_high
  log_ratio_BC = objective.level(logp_BC - logp_old_BC, mask_BC)
  ratio_BC = jnp.exp(log_ratio_BC)
  surrogate_BC = jnp.minimum(ratio_BC * A_B1, jnp.clip(ratio_BC, low, high) * A_B1)
  clipped_BC = ((ratio_BC < low) & (A_B1 < 0)) | ((ratio_BC > high) & (A_B1 > 0))
  loss_BC = -surrogate_BC
  sums = dict(clipped=clipped_BC * mask_BC, gap=jnp.abs(logp_BC - logp_old_BC) * mask_BC,
              surprise=-logp_BC * mask_BC, tokens=mask_BC)
  if logp_ref_BC is not None:
    log_ref_BC = objective.level(logp_ref_BC - logp_BC, mask_BC)
    loss_BC += objective.beta * objective.kl(log_ref_BC)
    sums['kl'] = k3(logp_ref_BC - logp_BC) * mask_BC
  loss_B = jnp.where(mask_BC, loss_BC * weights_BC, 0).sum(axis=1)
  return loss_B, {name: x.sum().astype(jnp.float32) for name, x in sums.items()}
