"""Group relative policy optimisation: DeepSeekMath (arXiv 2402.03300, eq. 3-4) and DeepSeek-R1
(arXiv 2501.12948, eq. 1-3), as pure functions that a variant replaces one by one.

For a question's completions o_1 .. o_G with rewards r_i, and with L(.) the level of the ratio,

  A_it   = (r_i - mean_G r) / (std_G r + eps)                                       advantages
  rho_it = exp L(log pi(o_it) - log pi_old(o_it))                                   level
  S_it   = min(rho_it A_it, clip(rho_it, 1 - low, 1 + high) A_it)                   surrogate
  loss   = sum_it w_it [ -S_it + beta KL(L(log pi_ref(o_it) - log pi(o_it))) ]      aggregate, kl

DeepSeekMath's form has L = per_token and w = sequence_mean; R1's printed form has one ratio and one
KL for the whole output: L = per_sequence, w = sequence_mean. The variants that others published are
at the end of this file.
"""
import dataclasses
import math
from typing import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np

from r1jax.types import UserError

# -- advantages, on the host: rewards_PG, penalty_PGC, mask_PGC -> [P, G] or [P, G, C], float32 ----
#
# The penalty is reward_beta log(pi_old / pi_ref) of each token, or None where reward_beta is 0. A
# group whose rewards (penalties taken off) are all equal has nothing to compare and gets exactly 0
# from the functions that compare within a group.


def group_advantages(rewards_PG, penalty_PGC=None, mask_PGC=None, ddof=0, eps=1e-6):
  """A_i = (R_i - mean_G R) / (std_G R + eps) with R_i = r_i - sum_t penalty_it.

  The standard deviation divides by G - ddof; neither paper states its estimator or eps.
  """
  del mask_PGC
  R_PG = _penalised(rewards_PG, penalty_PGC)
  spread_PG = np.where(degenerate(R_PG)[:, None], 1, R_PG.std(1, ddof=ddof, keepdims=True) + eps)
  return (_centre(R_PG) / spread_PG).astype(np.float32)


def centred(rewards_PG, penalty_PGC=None, mask_PGC=None):
  """A_i = R_i - mean_G R: to divide by the spread would favour questions that are nearly always or
  nearly never answered (Dr. GRPO, arXiv 2503.20783)."""
  del mask_PGC
  return _centre(_penalised(rewards_PG, penalty_PGC)).astype(np.float32)


def leave_one_out(rewards_PG, penalty_PGC=None, mask_PGC=None):
  """A_i = R_i - mean of the group's other R_j = G / (G - 1) (R_i - mean_G R) (RLOO, 2402.14740)."""
  del mask_PGC
  R_PG = _penalised(rewards_PG, penalty_PGC)
  G = R_PG.shape[1]
  return (_centre(R_PG) * G / (G - 1)).astype(np.float32)


def batch_normalised(rewards_PG, penalty_PGC, mask_PGC, eps=1e-6):
  """A_it = (R_it - mean R) / (std R + eps), R_it = r_i - sum_{s >= t} penalty_is (REINFORCE++,
  arXiv 2501.03262).

  Mean and standard deviation are of all tokens of the whole rollout. Questions are compared with
  each other, so a group with equal rewards is not 0 here, unless all rewards are equal.
  """
  R_PGC = np.broadcast_to(np.asarray(rewards_PG, np.float64)[..., None], mask_PGC.shape)
  if penalty_PGC is not None:
    R_PGC = R_PGC - np.cumsum(penalty_PGC[..., ::-1], axis=-1, dtype=float)[..., ::-1]
  of_tokens = R_PGC[mask_PGC]
  return ((R_PGC - of_tokens.mean()) / (of_tokens.std() + eps) * mask_PGC).astype(np.float32)


def centred_batch_normalised(rewards_PG, penalty_PGC, mask_PGC):
  """batch_normalised of r_i - mean_G r (REINFORCE++ with baseline). A group with equal rewards gets
  -mean / std of the batch, which is 0 only where good and bad outputs are equally long."""
  return batch_normalised(_centre(np.asarray(rewards_PG, np.float64)), penalty_PGC, mask_PGC)


def degenerate(rewards_PG):
  """True for each group whose rewards are all equal, bool [P]."""
  return (rewards_PG == rewards_PG[:, :1]).all(axis=1)


def _penalised(rewards_PG, penalty_PGC):
  rewards_PG = np.asarray(rewards_PG, np.float64)
  chex.assert_rank(rewards_PG, 2)
  return rewards_PG if penalty_PGC is None else rewards_PG - penalty_PGC.sum(axis=-1, dtype=float)


def _centre(x_PG):
  centred_PG = x_PG - x_PG.mean(axis=1, keepdims=True)
  return np.where(degenerate(x_PG)[:, None], 0.0, centred_PG)  # the mean is not always the number


# -- importance, on the host: log(pi_old / pi_sampled) [P, G, C], 0 after the end -> weights >= 0 --


def truncated(log_ratio_PGC, cap=2.0):
  """min(pi_old / pi_sampled, cap) of each token (TIS; the cap is free, 2 in verl and TRL)."""
  return np.exp(np.minimum(log_ratio_PGC, math.log(cap)))


# -- level of the ratio: [B, C] per-token log-ratios -> [B, C] -------------------------------------


def per_token(log_ratio_BC, mask_BC):
  """Each token has its own ratio (DeepSeekMath eq. 3)."""
  return log_ratio_BC * mask_BC


def per_sequence(log_ratio_BC, mask_BC):
  """log pi(o|q) / pi'(o|q) of the whole output, at each of its tokens (R1 eq. 1-2)."""
  whole_B1 = (log_ratio_BC * mask_BC).sum(axis=1, keepdims=True)
  return jnp.broadcast_to(whole_B1, log_ratio_BC.shape) * mask_BC


def per_sequence_mean(log_ratio_BC, mask_BC):
  """The mean over the output's tokens: log (pi(o|q) / pi'(o|q))^(1 / |o|) (GSPO, 2507.18071)."""
  return per_sequence(log_ratio_BC, mask_BC) / jnp.maximum(mask_BC.sum(axis=1, keepdims=True), 1)


# -- surrogate: what is maximised at each token, and where a clip was at work ----------------------


def clipped(ratio_BC, A_BC, logp_BC, low, high):
  """min(r A, clip(r, low, high) A), without a gradient where it clips (PPO, arXiv 1707.06347)."""
  del logp_BC
  cut_BC = ((ratio_BC < low) & (A_BC < 0)) | ((ratio_BC > high) & (A_BC > 0))
  return jnp.minimum(ratio_BC * A_BC, jnp.clip(ratio_BC, low, high) * A_BC), cut_BC


def cispo(ratio_BC, A_BC, logp_BC, low, high):
  """sg(clip(r, low, high)) A log pi: the clip bounds a token's weight, and none loses its gradient
  (MiniMax-M1, arXiv 2506.13585, eq. 4-5)."""
  weight_BC = jax.lax.stop_gradient(jnp.clip(ratio_BC, low, high))
  return weight_BC * A_BC * logp_BC, (ratio_BC < low) | (ratio_BC > high)


def reinforce(ratio_BC, A_BC, logp_BC, low, high):
  """A log pi, whose gradient is A grad log pi: no ratio and no clip."""
  del low, high
  return A_BC * logp_BC, jnp.zeros_like(ratio_BC, bool)


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


def output_sum(mask_PGC):
  """w_it = 1 / N: the mean over outputs of the sum over their tokens (RLOO)."""
  return (mask_PGC / _outputs(mask_PGC)).astype(np.float32)


def _outputs(mask_PGC):
  return mask_PGC.shape[0] * mask_PGC.shape[1]


# -- the objective ---------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Objective:
  """The loss of the module's docstring; a variant passes another function."""
  clip_low: float = 0.2  # the ratio is clipped at 1 - clip_low
  clip_high: float = 0.2  # and at 1 + clip_high
  beta: float = 0.001  # weight of the KL term of the loss
  reward_beta: float = 0.0  # weight of log(pi_old / pi_ref) that is taken off the reward
  advantages: Callable = group_advantages
  level: Callable = per_token
  surrogate: Callable = clipped
  kl: Callable = k3
  aggregate: Callable = sequence_mean
  importance: Callable | None = None  # None: the sampler's log-probs are the old policy's

  def __post_init__(self):
    if self.kl is k1:
      raise UserError('k1 as a loss term has zero expected gradient: take k3 or k2')

  @property
  def needs_reference(self):
    """Whether a reference policy is kept."""
    return bool(self.beta or self.reward_beta)


def token_advantages(objective, rewards_PG, mask_PGC, over_reference_PGC=None,
                     over_sampler_PGC=None):
  """A_it of every token of a rollout, float32 [P, G, C], on the host.

  With log(pi_old / pi_ref), the reward is penalised. With log(pi_old / pi_sampled), the importance
  weight w is multiplied in: min(r A w, clip(r) A w) = w min(r A, clip(r) A), as w >= 0. Both are 0
  after a completion's end.
  """
  penalty_PGC = None
  if over_reference_PGC is not None:
    penalty_PGC = objective.reward_beta * over_reference_PGC
  A_PGC = objective.advantages(rewards_PG, penalty_PGC, mask_PGC)
  A_PGC = np.broadcast_to(A_PGC if A_PGC.ndim == 3 else A_PGC[..., None], mask_PGC.shape)
  if over_sampler_PGC is not None:
    A_PGC = A_PGC * objective.importance(over_sampler_PGC)
  return A_PGC.astype(np.float32, copy=False)


def loss(objective, logp_BC, logp_old_BC, logp_ref_BC, advantages_BC, mask_BC, weights_BC):
  """The objective's sum over a part of a minibatch: loss_B, and sums for the metrics.

  logp_ref_BC is None where beta is 0. Sums of parts add up to the minibatch's value.
  """
  chex.assert_equal_shape([logp_BC, logp_old_BC, advantages_BC, mask_BC, weights_BC])
  chex.assert_rank(logp_BC, 2)
  low, high = 1 - objective.clip_low, 1 + objective.clip_high
  ratio_BC = jnp.exp(objective.level(logp_BC - logp_old_BC, mask_BC))
  surrogate_BC, clipped_BC = objective.surrogate(ratio_BC, advantages_BC, logp_BC, low, high)
  loss_BC = -surrogate_BC
  sums = dict(clipped=clipped_BC * mask_BC, gap=jnp.abs(logp_BC - logp_old_BC) * mask_BC,
              surprise=-logp_BC * mask_BC, tokens=mask_BC)
  if logp_ref_BC is not None:
    log_ref_BC = objective.level(logp_ref_BC - logp_BC, mask_BC)
    loss_BC += objective.beta * objective.kl(log_ref_BC)
    sums['kl'] = k3(logp_ref_BC - logp_BC) * mask_BC
  loss_B = jnp.where(mask_BC, loss_BC * weights_BC, 0).sum(axis=1)
  return loss_B, {name: x.sum().astype(jnp.float32) for name, x in sums.items()}


# -- published variants, with their papers' numbers; their other settings belong to a stage --------

DR_GRPO = Objective(beta=0, advantages=centred, aggregate=sequence_sum)  # 2503.20783

# 2503.14476; with the stage's `resample` and a reward for the length, its eq. 13
DAPO = Objective(clip_low=0.2, clip_high=0.28, beta=0, aggregate=token_mean)

# 2507.18071; four minibatches a rollout
GSPO = Objective(clip_low=3e-4, clip_high=4e-4, beta=0, level=per_sequence_mean)

# 2506.13585: no lower end, as clip_low = 1 is a ratio of 0. The upper end is not disclosed: 1 + 4
# is TRL's, for ScaleRL (2510.13786).
CISPO = Objective(clip_low=1, clip_high=4, beta=0, surrogate=cispo, aggregate=token_mean)

# Yao et al., fengyao.notion.site/off-policy-rl: of any objective, here of GRPO's
TIS = Objective(importance=truncated)

# 2402.14740: beta 0.03 for summaries, 0.10 for dialogue; groups of 2 or 4. Without a ratio nothing
# corrects a rollout's later updates: take few.
RLOO = Objective(beta=0, reward_beta=0.03, advantages=leave_one_out, surrogate=reinforce,
                 aggregate=output_sum)

# 2501.03262 v2: clip 0.2, beta 0.001. How tokens are averaged could not be confirmed.
REINFORCE_PP = Objective(beta=0, reward_beta=0.001, advantages=batch_normalised)

# The same paper. The weight of its KL loss could not be confirmed (OpenRLHF's scripts differ, 1e-5
# and 1e-4): 0.001 as in REINFORCE++.
REINFORCE_PP_BASELINE = Objective(beta=0.001, advantages=centred_batch_normalised, kl=k2)
