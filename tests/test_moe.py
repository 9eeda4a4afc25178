"""Experts: who is chosen, what they compute, and how their load is evened out."""
import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.model import MoE, moe
from r1jax.model.parts import silu

close = np.testing.assert_allclose
V3 = MoE(E=8, I=3, top=3, groups=4, top_groups=2, group_score=moe.best_two, normalise=True,
         scale=2.5, bias=True, score=moe.sigmoid, M=5)  # yapf: disable


def test_the_bias_chooses_and_does_not_weigh():
  logits = jnp.array([[0.0, 1.0, 2.0, -1.0]])
  bias = jnp.array([0.0, 0.0, -1.0, 1.0])  # sigmoids .5 .731 .881 .269 -> .5 .731 -.119 1.269
  cfg = MoE(E=4, I=1, top=2, score=moe.sigmoid, bias=True, normalise=True, scale=2.5)
  experts, weights = moe.route(cfg, logits, bias)
  assert experts.tolist() == [[3, 1]]
  close(weights, [[2.5 * 0.26894 / 1.0, 2.5 * 0.73106 / 1.0]], atol=1e-4)  # they add up to 1


def test_only_the_best_groups_are_looked_at():
  scores = np.array([[0.9, 0.1, 0.6, 0.5, 0.7, 0.0, 0.3, 0.35]])  # groups of two
  logits = jnp.log(scores / (1 - scores).clip(1e-9))
  sums = dataclasses.replace(V3, bias=False)
  # Two best: 1.0, 1.1, 0.7, 0.65: groups 0 and 1.
  assert sorted(moe.route(sums, logits)[0][0].tolist()) == [0, 2, 3]
  # Best: 0.9, 0.6, 0.7, 0.35: groups 0 and 2.
  single = dataclasses.replace(sums, group_score=moe.best)
  assert sorted(moe.route(single, logits)[0][0].tolist()) == [0, 1, 4]


def layer(x_BTD, weights, cfg=V3):
  weight = lambda name, letters, **how: weights[name]
  return moe.ffn(SimpleNamespace(moe=cfg, activation=silu), weight, x_BTD)


def random_weights(D=4):
  rng = np.random.default_rng(0)
  shapes = dict(router=(D, 8), router_bias=(8,), experts_gate=(8, D, 3), experts_up=(8, D, 3),
                experts_down=(8, 3, D), shared_gate_up=(D, 2, 5), shared_down=(5, D))
  return {k: jnp.asarray(rng.normal(0, 0.7, s), jnp.float32) for k, s in shapes.items()}


def test_sorted_experts_are_each_expert_for_itself():
  weights = random_weights()
  x = np.random.default_rng(1).normal(size=(2, 5, 4)).astype(np.float32)
  got = layer(jnp.asarray(x), weights)
  w = {name: np.asarray(value, np.float64) for name, value in weights.items()}
  gated = lambda h: h[0] / (1 + np.exp(-h[0])) * h[1]
  for token, out in zip(x.reshape(10, 4), np.asarray(got).reshape(10, 4)):
    experts, share = moe.route(V3, jnp.asarray(token @ w['router'])[None], weights['router_bias'])
    want = gated(np.einsum('D,DUM->UM', token, w['shared_gate_up'])) @ w['shared_down']
    for e, s in zip(experts[0], share[0]):
      both = token @ w['experts_gate'][e], token @ w['experts_up'][e]
      want += s * gated(both) @ w['experts_down'][e]
    close(out, want, atol=1e-5)


def test_the_bias_gets_the_load_of_tokens_that_the_loss_depends_on():
  weights = random_weights()
  x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 5, 4)), jnp.float32)
  mask = jnp.array([[1, 1, 1, 0, 0], [1, 1, 0, 0, 0]])[..., None]
  loss = lambda weights: (layer(x, weights)**2 * mask).sum()
  load = jax.grad(loss)(weights)['router_bias']
  logits = (x.reshape(10, 4) @ weights['router'])[np.flatnonzero(mask)]
  experts = moe.route(V3, logits, weights['router_bias'])[0]
  np.testing.assert_array_equal(load, np.bincount(np.ravel(experts), minlength=8))
  assert load.sum() == 5 * 3


def test_balance_moves_by_one_rate():
  load = jnp.array([[4.0, 0.0, 2.0, 2.0], [1.0, 1.0, 1.0, 1.0]])
  close(moe.balance(load, 0.001), [[-0.001, 0.001, 0, 0], [0, 0, 0, 0]])
