"""GRPO against numbers by hand, the papers' formulas in NumPy, and sums over all outcomes."""
import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import experiment
from r1jax import grpo, metrics, optim, rollout, sharding
from r1jax.stages import rl
from r1jax.types import Rollout, UserError

close = np.testing.assert_allclose
VARIANTS = (grpo.Objective(), grpo.DR_GRPO, grpo.DAPO, grpo.GSPO, grpo.CISPO, grpo.TIS, grpo.RLOO,
            grpo.REINFORCE_PP, grpo.REINFORCE_PP_BASELINE)

# -- advantages ------------------------------------------------------------------------------------


def test_advantages_by_hand():
  rewards = [[0, 1, 0, 0], [2, 2, 0, 0]]  # means 1/4 and 1, variances 3/16 and 1
  low, high = -0.5773503, 1.7320508  # -1/4 and 3/4 over sqrt(3/16)
  close(grpo.group_advantages(rewards), [[low, high, low, low], [1, 1, -1, -1]], rtol=1e-5)
  close(grpo.group_advantages(rewards, ddof=1)[0], [-0.5, 1.5, -0.5, -0.5], rtol=1e-5)
  close(grpo.group_advantages(rewards, eps=1.0)[1], [0.5, 0.5, -0.5, -0.5])
  assert grpo.group_advantages(rewards).dtype == np.float32


def test_advantages_without_a_division_by_hand():
  rewards = [[1, 0, 0, 0], [1, 1, 0, 0]]
  close(grpo.centred(rewards), [[0.75, -0.25, -0.25, -0.25], [0.5, 0.5, -0.5, -0.5]])
  third = 1 / 3  # the others of a 1 have mean 0 and 1/3, those of a 0 have 1/3 and 2/3
  close(grpo.leave_one_out(rewards),
        [[1, -third, -third, -third], [2 * third, 2 * third, -2 * third, -2 * third]], rtol=1e-6)
  rewards = np.random.default_rng(0).normal(size=(5, 8))
  close(grpo.centred(rewards), 7 / 8 * grpo.leave_one_out(rewards), rtol=1e-5)


def test_a_penalty_of_the_whole_output_is_taken_off_its_reward():
  rewards, penalty = [[1, 0]], np.array([[[0.1, 0.3], [0.2, 0]]])  # R is 0.6 and -0.2
  close(grpo.group_advantages(rewards, penalty), [[1, -1]], rtol=1e-5)
  close(grpo.centred(rewards, penalty), [[0.4, -0.4]], rtol=1e-6)
  close(grpo.leave_one_out(rewards, penalty), [[0.8, -0.8]], rtol=1e-6)


def test_batch_normalised_by_hand():
  """r minus the penalties to go is 1, 3 | 1, - || 3, - | 3, 1: mean 2 and standard deviation 1."""
  mask = np.array([[[1, 1], [1, 0]], [[1, 0], [1, 1]]], bool)
  penalty = np.array([[[2, -1], [0, 0]], [[0, 0], [-2, 0]]], np.float32)
  A = grpo.batch_normalised([[2, 1], [3, 1]], penalty, mask)
  close(A, [[[-1, 1], [-1, 0]], [[1, 0], [1, -1]]], rtol=1e-5)
  assert A.dtype == np.float32


def test_centred_batch_normalised_by_hand():
  rewards, tokens = [[2, 0], [1, 1]], np.arange(3)  # less their means 1, -1 and 0, 0
  A = grpo.centred_batch_normalised(rewards, None, tokens < np.ones((2, 2, 1)))
  close(A[..., 0], [[2**0.5, -2**0.5], [0, 0]], rtol=1e-5)
  # One output of three tokens: the mean of six is -1/3, their variance 4/6 - 1/9 = 5/9.
  A = grpo.centred_batch_normalised(rewards, None, tokens < np.array([[[1], [3]], [[1], [1]]]))
  close(A[..., 0], np.array([[4, -2], [1, 1]]) / 5**0.5, rtol=1e-5)
  close(A[0, 1], A[0, 1, [0, 0, 0]])


@pytest.mark.parametrize('advantages', [
    grpo.group_advantages,
    functools.partial(grpo.group_advantages, ddof=1, eps=0), grpo.centred, grpo.leave_one_out
])
@pytest.mark.parametrize('reward', [0.0, 1.0, 0.1, 0.3, 1 / 3, 1e8 / 7, 0.1 + 0.2])
def test_equal_rewards_have_advantage_exactly_zero(reward, advantages):
  rewards = np.full((1, 3), reward)  # the mean of three is not always the number itself
  assert grpo.degenerate(rewards).all()
  assert not advantages(rewards).any()
  rewards[0, 1] = np.nextafter(reward, np.inf)
  assert not grpo.degenerate(rewards).any()


def test_token_advantages():
  """Broadcast, the reward's penalty, and importance weights: ratios 3/2, 4, 1/2 and a cap of 2."""
  mask = np.array([[[1, 1], [1, 0]]], bool)
  rewards, plain = np.array([[1.0, 0.0]]), [[[0.5, 0.5], [-0.5, -0.5]]]
  close(grpo.token_advantages(grpo.DR_GRPO, rewards, mask), plain)
  over = np.log(np.array([[[1.5, 4], [0.5, 1]]], np.float32))
  objective = dataclasses.replace(grpo.DR_GRPO, importance=grpo.truncated, reward_beta=0.1)
  A = grpo.token_advantages(objective, rewards, mask, over_sampler_PGC=over)
  close(A, [[[0.75, 1], [-0.25, -0.5]]], rtol=1e-6)
  # R is 1 - 0.1 ln 6 and 0.1 ln 2: half their difference is 1/2 - 0.05 ln 12
  A = grpo.token_advantages(objective, rewards, mask, over)
  close(A[..., 0], [[0.5 - 0.05 * np.log(12), 0.05 * np.log(12) - 0.5]], rtol=1e-5)


# -- the loss --------------------------------------------------------------------------------------

LN2 = float(np.log(2))


def wide(advantages_B, C=6):
  """The same advantage for each token."""
  return np.repeat(np.float32(advantages_B)[:, None], C, axis=1)


def test_loss_by_hand():
  """Three outputs of two tokens at most, ratios 2, 1/2 and 1, a clip at 0.8 and 1.5, beta 0.1.

  output  A   ratios   -surrogate    pi_ref/pi   k3                     over 3 |o|
  0       1   2, 1     -1.5, -1      1, 2        0, 2 - ln 2 - 1        / 6
  1      -1   1/2, -   0.8           1           0                      / 3
  2      -1   2, 1/2   2, 0.8        1/2, 1      1/2 + ln 2 - 1, 0      / 6
  """
  old = np.log([[0.1, 0.3], [0.4, 0.9], [0.2, 0.6]])
  new = old + np.array([[LN2, 0], [-LN2, 7.0], [LN2, -LN2]])
  ref = new + np.array([[0, LN2], [0, -3.0], [-LN2, 0]])
  mask = np.array([[1, 1], [1, 0], [1, 1]], bool)
  weights = grpo.sequence_mean(mask[None])[0]
  objective = grpo.Objective(clip_low=0.2, clip_high=0.5, beta=0.1)
  args = map(jnp.float32, (new, old, ref, wide([1, -1, -1], 2)))
  loss, sums = grpo.loss(objective, *args, mask, weights)
  close(loss, [(-2.5 + 0.1 * (1 - LN2)) / 6, 0.8 / 3, (2.8 + 0.1 * (LN2 - 0.5)) / 6], rtol=1e-5)
  close(sums['clipped'], 3)  # the 2 of output 0, and the 1/2 of outputs 1 and 2
  close(sums['tokens'], 5)
  close(sums['gap'], 4 * LN2, rtol=1e-6)
  close(sums['kl'], 0.5, rtol=1e-5)  # 1 - ln 2 + ln 2 - 1/2
  close(sums['surprise'], -(new * mask).sum(), rtol=1e-6)


def token_form(new, old, ref, advantages, lengths, low, high, beta):
  """DeepSeekMath, arXiv 2402.03300, eq. 3-4, to be maximised; float64, an output at a time."""
  total = 0.0
  for i, length in enumerate(lengths):
    inner = 0.0
    for t in range(length):
      ratio = np.exp(new[i, t]) / np.exp(old[i, t])
      clipped = min(max(ratio, 1 - low), 1 + high)
      to_ref = np.exp(ref[i, t]) / np.exp(new[i, t])
      kl = to_ref - np.log(to_ref) - 1
      inner += min(ratio * advantages[i], clipped * advantages[i]) - beta * kl
    total += inner / length
  return total / len(lengths)


def sequence_form(new, old, ref, advantages, lengths, low, high, beta):
  """DeepSeek-R1, arXiv 2501.12948, eq. 1-2 as printed: pi(o|q) is the probability of an output."""
  total = 0.0
  for i, length in enumerate(lengths):
    p_new, p_old, p_ref = (np.prod(np.exp(x[i, :length])) for x in (new, old, ref))
    ratio = p_new / p_old
    clipped = min(max(ratio, 1 - low), 1 + high)
    kl = p_ref / p_new - np.log(p_ref / p_new) - 1
    total += min(ratio * advantages[i], clipped * advantages[i]) - beta * kl
  return total / len(lengths)


def drawn(seed=0, B=24, C=6):
  """Log-probabilities of three policies a few tenths apart, advantages, lengths from 1 to C."""
  rng = np.random.default_rng(seed)
  old = -rng.uniform(0.2, 3.0, (B, C))
  new, ref = (old + rng.normal(0, 0.5, (B, C)) for _ in range(2))
  return new, old, ref, rng.normal(size=B), rng.integers(1, C + 1, B).tolist()


@pytest.mark.parametrize('level, formula', [(grpo.per_token, token_form),
                                            (grpo.per_sequence, sequence_form)])
@pytest.mark.parametrize('low, high', [(0.2, 0.2), (0.1, 0.4), (10, 10)])
def test_loss_is_the_papers_formula(level, formula, low, high):
  new, old, ref, advantages, lengths = drawn()
  objective = grpo.Objective(clip_low=low, clip_high=high, beta=0.3, level=level)
  mask = np.arange(6) < np.array(lengths)[:, None]
  args = [jnp.float32(x) for x in (new, old, ref, wide(advantages))]
  weights = grpo.sequence_mean(mask[None])[0]
  loss, sums = jax.jit(lambda *x: grpo.loss(objective, *x))(*args, mask, weights)
  close(loss.sum(), -formula(new, old, ref, advantages, lengths, low, high, 0.3), rtol=2e-5)
  if high < 1:  # the draw has both signs of the advantage beyond both ends of the clip
    log_ratio = (new - old) * mask
    log_ratio = log_ratio.sum(1, keepdims=True) * mask if formula is sequence_form else log_ratio
    sides = {(bool(r > 0), bool(a > 0))
             for row, a in zip(log_ratio, advantages)
             for r in row
             if r > np.log(1 + high) or r < np.log(1 - low)}
    assert len(sides) == 4
    assert 0 < sums['clipped'] < sums['tokens']


def test_gradient_where_the_policy_has_not_moved():
  """A_t + beta (pi_ref / pi - 1) for each token's log-probability: DeepSeekMath eq. 21."""
  new, _, ref, advantages, lengths = drawn()
  mask = np.arange(6) < np.array(lengths)[:, None]
  weights = grpo.sequence_mean(mask[None])[0]
  objective = grpo.Objective(beta=0.3)
  total = lambda x: grpo.loss(objective, x, *args, mask, weights)[0].sum()
  args = [jnp.float32(x) for x in (new, ref, wide(advantages))]
  want = advantages[:, None] + 0.3 * (np.exp(ref - new) - 1)
  close(jax.grad(total)(jnp.float32(new)), -want * weights, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize('variant', [grpo.TIS, grpo.GSPO, grpo.CISPO, grpo.RLOO])
def test_what_stands_after_the_end_does_not_matter(variant):
  new, old, ref, advantages, lengths = drawn()
  mask = np.arange(6) < np.array(lengths)[:, None]
  objective = dataclasses.replace(variant, beta=0.3)
  rest = (wide(advantages), mask, grpo.token_mean(mask[None])[0])

  @jax.jit
  def value_and_grad(*logps):
    total = lambda x: grpo.loss(objective, x, *logps[1:], *rest)[0].sum()
    return jax.value_and_grad(total)(logps[0])

  clean = value_and_grad(*(jnp.float32(np.where(mask, x, -1.0)) for x in (new, old, ref)))
  wild = value_and_grad(
      *(jnp.float32(np.where(mask, x, y)) for x, y in ((new, -50.0), (old, -0.01), (ref, -9.0))))
  jax.tree.map(np.testing.assert_array_equal, clean, wild)


def test_parts_add_up_to_the_whole():
  new, old, ref, advantages, lengths = drawn()
  mask = np.arange(6) < np.array(lengths)[:, None]
  for objective in VARIANTS:
    weights = objective.aggregate(mask[None])[0]
    rows = [*map(jnp.float32, (new, old, ref, wide(advantages))), mask, weights]
    loss = jax.jit(lambda *x: grpo.loss(objective, *x))
    whole, sums = loss(*rows)
    parts = [loss(*(x[part] for x in rows)) for part in (slice(0, 7), slice(7, 24))]
    close(np.concatenate([p[0] for p in parts]), whole, rtol=1e-6)
    for name in sums:
      close(sum(p[1][name] for p in parts), sums[name], rtol=1e-6)


def test_without_a_reference_there_is_no_kl():
  new, old, _, advantages, _ = drawn()
  new, old, ones = map(jnp.float32, (new, old, np.ones_like(new)))
  rest = (wide(advantages), ones > 0, ones)
  loss, sums = grpo.loss(grpo.Objective(beta=0), new, old, None, *rest)
  assert 'kl' not in sums
  close(loss, grpo.loss(grpo.Objective(beta=0), new, old, new - 1, *rest)[0])


# -- variants --------------------------------------------------------------------------------------


def two_outputs(objective):
  """(loss, its gradient for each log-prob, sums) of two outputs with the ratios 4, 1/2 and 2 and
  the advantages 1, -1; clip_high is 1/2."""
  objective = dataclasses.replace(objective, clip_high=0.5)
  new, mask = np.log([[0.4, 0.1], [0.6, 0.9]]), np.array([[1, 1], [1, 0]], bool)
  old = np.log([[0.1, 0.2], [0.3, 0.9]])
  weights = objective.aggregate(mask[None])[0]

  def loss(x):
    out = grpo.loss(objective, x, jnp.float32(old), None, wide([1, -1], 2), mask, weights)
    return out[0].sum(), out[1]

  (value, sums), gradient = jax.value_and_grad(loss, has_aux=True)(jnp.float32(new))
  return value, gradient, sums


def test_dapo_by_hand():
  """min(4, 1.5) + 1/2 - 2 over three tokens; the first has no gradient, the others their ratio."""
  value, gradient, sums = two_outputs(grpo.DAPO)
  close(value, 0, atol=1e-6)
  close(gradient, -np.array([[0, 0.5], [-2, 0]]) / 3, rtol=1e-5)
  close(sums['clipped'], 1)


def test_dr_grpo_by_hand():
  """The same over two outputs of two tokens at most."""
  close(two_outputs(grpo.DR_GRPO)[1], -np.array([[0, 0.5], [-2, 0]]) / 4, rtol=1e-5)


def test_gspo_by_hand():
  """s is sqrt(4 / 2) and 2: (1.414 - 2) / 2, and each output's gradient is shared by its tokens."""
  value, gradient, sums = two_outputs(grpo.GSPO)
  close(value, -(2**0.5 - 2) / 2, rtol=1e-5)
  close(gradient, -np.array([[2**0.5 / 2, 2**0.5 / 2], [-2, 0]]) / 2, rtol=1e-5)
  close(sums['clipped'], 0)


def test_gspo_is_the_papers_formula():
  new, old, _, advantages, lengths = drawn()
  mask = np.arange(6) < np.array(lengths)[:, None]
  objective = dataclasses.replace(grpo.GSPO, clip_low=0.1, clip_high=0.3)
  loss, sums = grpo.loss(objective, *map(jnp.float32, (new, old)), None, wide(advantages), mask,
                         grpo.sequence_mean(mask[None])[0])
  s = np.array([np.exp(np.mean((x - y)[:n])) for x, y, n in zip(new, old, lengths)])
  want = np.minimum(s * advantages, np.clip(s, 0.9, 1.3) * advantages)
  close(loss, -want / len(want), rtol=1e-5)
  assert 0 < sums['clipped'] < sums['tokens']


def test_cispo_by_hand():
  """The weights min(r, 1.5) are 1.5, 1/2 and 1.5, and every token has its gradient."""
  value, gradient, sums = two_outputs(grpo.CISPO)
  close(gradient, -np.array([[1.5, 0.5], [-1.5, 0]]) / 3, rtol=1e-5)
  close(value, -(1.5 * np.log(0.4) + 0.5 * np.log(0.1) - 1.5 * np.log(0.6)) / 3, rtol=1e-5)
  close(sums['clipped'], 2)


def test_rloo_by_hand():
  """A log pi over two outputs, whatever the old policy was."""
  value, gradient, sums = two_outputs(grpo.RLOO)
  close(gradient, -np.array([[1, 1], [-1, 0]]) / 2)
  close(value, -(np.log(0.4) + np.log(0.1) - np.log(0.6)) / 2, rtol=1e-5)
  close(sums['clipped'], 0)


def test_an_importance_weight_multiplies_the_clipped_surrogate():
  new, old, _, advantages, _ = drawn()
  new, old, A = (jnp.float32(x).reshape(-1, 1) for x in (new, old, wide(advantages)))
  weight = np.random.default_rng(1).uniform(0, 2, A.shape).astype(np.float32)
  ones = np.ones_like(weight)
  loss = lambda A: grpo.loss(grpo.Objective(), new, old, None, A, ones > 0, ones)[0]
  close(loss(A * weight), loss(A) * weight[:, 0], rtol=1e-5)


# -- KL --------------------------------------------------------------------------------------------


def test_estimators_by_hand():
  log_ref = jnp.array([0.0, LN2, -LN2])
  close(grpo.k1(log_ref), [0, -LN2, LN2], rtol=1e-6)
  close(grpo.k2(log_ref), [0, 0.2402265, 0.2402265], rtol=1e-5)
  close(grpo.k3(log_ref), [0, 0.3068528, 0.1931472], rtol=1e-5)


def test_expected_estimators_and_their_gradients():
  """Over a vocabulary of five: E_pi k, and E_pi grad k, the sampled tokens being constants."""
  theta, reference = jnp.array([0.5, -1.0, 0.2, 1.5, -0.3]), jnp.array([0.1, 0.4, -0.7, 0.9, 0.0])
  ref = jax.nn.log_softmax(reference)
  pi = jax.nn.softmax(theta)

  def kl(theta):
    logp = jax.nn.log_softmax(theta)
    return (jnp.exp(logp) * (logp - ref)).sum()

  def expected(estimator, theta):
    return (pi * estimator(ref - jax.nn.log_softmax(theta))).sum()

  reverse = lambda theta: -(jnp.exp(ref) * jax.nn.log_softmax(theta)).sum()
  value, gradient = jax.value_and_grad(kl)(theta)
  k1, k2, k3 = (
      jax.value_and_grad(lambda x, k=k: expected(k, x))(theta) for k in (grpo.k1, grpo.k2, grpo.k3))
  close(k1[0], value, rtol=1e-5)
  close(k3[0], value, rtol=1e-5)
  assert abs(k2[0] - value) > 0.01 * value  # biased as a value
  close(k2[1], gradient, atol=1e-6)  # and right as a loss term
  close(k1[1], np.zeros(5), atol=1e-6)  # as a loss term k1 is noise
  close(k3[1], jax.grad(reverse)(theta), atol=1e-6)  # k3 pulls as KL(ref || pi) does,
  near = lambda k: jax.grad(lambda x: expected_at(k, x, ref))(reference + 0.01 * theta)
  close(near(grpo.k3), near(grpo.k2), atol=2e-4)  # which near the reference is the same
  assert abs(near(grpo.k2)).max() > 1e-3


def expected_at(estimator, theta, ref):
  """E_pi of the estimator, pi held constant."""
  logp = jax.nn.log_softmax(theta)
  return (jax.lax.stop_gradient(jnp.exp(logp)) * estimator(ref - logp)).sum()


def test_k1_is_refused_as_a_loss_term():
  with pytest.raises(UserError, match='k1.*k3 or k2'):
    grpo.Objective(kl=grpo.k1)
  with pytest.raises(UserError, match='k1'):
    dataclasses.replace(grpo.Objective(), kl=grpo.k1)


# -- aggregation -----------------------------------------------------------------------------------

MASK = np.arange(4) < np.array([[4, 1], [2, 3]])[..., None]


def test_aggregations_weigh_as_they_say():
  close(grpo.sequence_mean(MASK).sum(-1), [[1 / 4, 1 / 4], [1 / 4, 1 / 4]])
  close(grpo.sequence_mean(MASK)[1, 1], [1 / 12, 1 / 12, 1 / 12, 0], rtol=1e-6)
  close(grpo.token_mean(MASK), MASK / 10, rtol=1e-6)
  close(grpo.sequence_sum(MASK), MASK / 16, rtol=1e-6)
  close(grpo.output_sum(MASK), MASK / 4)
  for aggregate in (grpo.sequence_mean, grpo.token_mean, grpo.sequence_sum, grpo.output_sum):
    assert aggregate(MASK).dtype == np.float32
    assert np.isfinite(aggregate(np.zeros_like(MASK))).all()


@pytest.mark.parametrize('aggregate, weight', [(grpo.sequence_sum, 1 / (4 * 64)),
                                               (grpo.token_mean, 1 / 10)])
def test_weights_are_of_the_budget_and_not_of_the_bucket(aggregate, weight):
  """Completions of 4 tokens at most, of a budget of 64, are trained on in arrays of 32."""
  lengths = MASK.sum(-1).astype(np.int32)
  samples = Rollout(np.zeros((2, 3), np.int32), np.full(2, 3, np.int32),
                    np.zeros((2, 2, 64), np.int32), lengths, lengths < 4,
                    np.zeros((2, 2, 64), np.float32))
  graded = rollout.Graded(samples, [], [], {}, np.array([[0, 1], [1, 1]], np.float32), [])
  machine = sharding.Machine(data=1, micro_rows=1, pieces=4)
  cfg = rl.Config(init='', problems=None, evaluation=None, group=2,
                  objective=grpo.Objective(aggregate=aggregate))
  batch = rl.make_batch(cfg, graded, machine, sharding.make_mesh(machine))
  assert batch.tokens_PGC.shape == (4, 1, 32)
  weights = np.asarray(batch.weights_PGC).reshape(2, 2, 32)
  close(weights[..., :4], MASK * weight, rtol=1e-6)
  assert not weights[..., 4:].any()
  close(np.asarray(batch.advantages_PGC)[..., 0].ravel(), [-1, 1, 0, 0], rtol=1e-5)


# -- in the loop -----------------------------------------------------------------------------------


def test_a_rollout_is_weighed_as_a_whole():
  """Six problems in updates of three, on two devices: a fake policy's log-probs come back in place,
  and meet the sampler's in the importance weights and the reference's in the reward."""
  P, G, C = 6, 2, 64
  rng = np.random.default_rng(0)
  lengths = rng.integers(1, 20, (P, G)).astype(np.int32)
  mask = np.arange(C) < lengths[..., None]
  sampled = rng.uniform(-2, 0, (P, G, C)).astype(np.float32)
  prompts = (np.zeros((P, 3), np.int32), np.full(P, 3, np.int32))
  samples = Rollout(*prompts, np.zeros((P, G, C), np.int32), lengths, lengths > 0, sampled)
  texts = [''] * P
  graded = rollout.Graded(samples, texts, texts, {}, rng.random((P, G)).astype(np.float32), texts)
  machine = sharding.Machine(data=2, micro_rows=2, pieces=4)
  state = types.SimpleNamespace(params={'w': 0.5}, reference={'w': 2.0})
  logp = lambda params, batch: params['w'] * batch.logp_old_PGC

  def weigh(objective, logp):
    cfg = rl.Config(init='', problems=None, evaluation=None, batch=3, group=G, minibatches=2,
                    objective=objective)
    return rl.weigh(cfg, graded, state, logp, machine, sharding.make_mesh(machine))

  objective = dataclasses.replace(grpo.RLOO, reward_beta=0.1, importance=grpo.truncated)
  weighed, A, over = weigh(objective, logp)
  old = weighed.rollout.logp_PGC
  close(old[mask], 0.5 * sampled[mask])
  close(over, -0.5 * sampled * mask)
  R = graded.rewards_PG - 0.1 * ((0.5 - 2) * sampled * mask).sum(-1)
  want = (R - R[:, ::-1])[..., None] * np.minimum(np.exp(-0.5 * sampled * mask), 2)
  close(A, want, rtol=1e-4, atol=1e-5)

  same, A, over = weigh(grpo.Objective(), None)  # which evaluates nothing
  assert over is None and same.rollout.logp_PGC is sampled
  close(A[..., 5], grpo.group_advantages(graded.rewards_PG))


def test_sampler_and_trainer_agree_and_half_the_weight_is_half_the_gradient(tmp_path):
  """Two rollouts with the reference in the reward, twice: Adam sees no factor in the gradient."""
  base, zero = experiment.experiment()
  base.run(dataclasses.replace(base.config, evaluation=None), str(tmp_path / 'base'))

  def run(name, **changes):
    objective = dataclasses.replace(grpo.REINFORCE_PP, reward_beta=0.1, **changes)
    cfg = dataclasses.replace(zero.config, init=str(tmp_path / 'base'), objective=objective,
                              steps=4, optimizer=optim.Optimizer(lr=1e-3, clip_norm=1e6))
    zero.run(cfg, str(tmp_path / name))
    return [row for row in metrics.read(f'{tmp_path}/{name}/metrics.jsonl') if 'loss' in row]

  plain, weighted = run('plain'), run('weighted', importance=lambda x: grpo.truncated(x) / 2)
  for a, b in zip(plain, weighted, strict=True):
    close([a['grad_norm'], a['reward']], [2 * b['grad_norm'], b['reward']], rtol=1e-3)
    assert 0 < b['mismatch'] < 1e-4 and 'mismatch' not in a
  assert weighted[0]['gap'] < 1e-6 < weighted[1]['gap']
