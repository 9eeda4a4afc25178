"""Experts: who is chosen, what they compute on any mesh, and how their load is evened out."""
import dataclasses
import importlib.util
import math
import os
from pathlib import Path
import subprocess
import sys
from types import SimpleNamespace

import jax
from jax.experimental import topologies
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import numpy as np
import pytest

from r1jax import sharding
from r1jax.model import MoE, moe
from r1jax.model.parts import silu
from r1jax.plan import hlo

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

  def weight(name, letters, gather=True, **how):
    return sharding.gathered(weights[name], letters) if gather else weights[name]

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


def every_expert(x_BTD, weights, cfg):
  """The layer's definition: all experts for all tokens, weighted, mostly by 0. And the weights."""
  x_ND = x_BTD.reshape(-1, x_BTD.shape[-1])
  logits_NE = jnp.einsum('ND,DE->NE', x_ND, weights['router'], precision='highest')
  experts_Nk, shares_Nk = moe.route(cfg, logits_NE, weights['router_bias'])
  chosen_NkE = experts_Nk[..., None] == jnp.arange(cfg.E)[None, None]
  share_NE = jnp.einsum('Nk,NkE->NE', shares_Nk, chosen_NkE.astype(jnp.float32))
  gate, up = (jnp.einsum('ND,EDI->NEI', x_ND, weights[f'experts_{name}']) for name in
              ('gate', 'up'))  # yapf: disable
  out_ND = jnp.einsum('NEI,EID,NE->ND', silu(gate) * up, weights['experts_down'], share_NE)
  return out_ND.reshape(x_BTD.shape), share_NE


def draw(B, T, D, cfg):
  """x and what its results are weighted by, [B, T, D], and weights without shared experts."""
  shapes = dict(router=(D, cfg.E), router_bias=(cfg.E,), experts_gate=(cfg.E, D, cfg.I),
                experts_up=(cfg.E, D, cfg.I), experts_down=(cfg.E, cfg.I, D))
  rng = np.random.default_rng(2)
  normal = lambda shape: jnp.asarray(rng.normal(0, 0.7, shape), jnp.float32)
  return normal((B, T, D)), normal((B, T, D)), {k: normal(s) for k, s in shapes.items()}


def on_mesh(axes, cfg, devices):
  """The mesh, and jitted on it: x, aim, weights -> result, gradients of x and of the weights."""
  sizes = {axis: axes.get(axis, 1) for axis in sharding.AXES}
  mesh = jax.make_mesh(tuple(sizes.values()), sharding.AXES, (AxisType.Auto,) * 5,
                       devices=devices[:math.prod(axes.values())])
  letters = dict(router='De', router_bias='e', experts_gate='EDI', experts_up='EDI',
                 experts_down='EID')
  cut = sharding.shares(letters, mesh)

  def loss(x, weights, aim):
    out = layer(x, weights, cfg)
    return (out * aim).sum(), out

  def step(x, aim, weights):
    (x, weights), out = jax.grad(loss, (0, 1), has_aux=True)(x, weights, aim)
    return out, x, sharding.summed(weights, letters)

  rows = P(sharding.ROWS)
  return mesh, jax.jit(jax.shard_map(step, mesh=mesh, in_specs=(rows, rows, cut), out_specs=(
      rows, rows, cut), axis_names=set(sharding.ROWS), check_vma=False))  # yapf: disable


@pytest.mark.parametrize('axes', [
    dict(expert=4), dict(expert=2, tensor=2), dict(expert=2, context=2), dict(fsdp=2, expert=2),
    dict(context=2, tensor=2)], ids=str)  # yapf: disable
def test_experts_on_any_mesh_are_every_expert(axes, monkeypatch):
  monkeypatch.setattr(moe, 'ROWS_AT_ONCE', 4)  # so that tokens go through in parts
  cfg = dataclasses.replace(V3, I=4, M=0)
  x, aim, weights = draw(4, 32, 8, cfg)
  step = on_mesh(axes, cfg, jax.devices())[1]

  def loss(x, weights):
    out, share_NE = every_expert(x, weights, cfg)
    return (out * aim).sum(), (out, share_NE)

  want = jax.jit(jax.grad(loss, (0, 1), has_aux=True))
  skewed = np.float32([9, 8, 7, 6, 0, 0, 0, 0])  # all tokens go to experts 0, 1 and 2
  for bias in (weights['router_bias'], skewed):
    weights = {**weights, 'router_bias': bias}
    out, x_grad, grads = step(x, aim, weights)
    (want_x_grad, want_grads), (want_out, share_NE) = want(x, weights)
    want_grads['router_bias'] = (share_NE > 0).sum(axis=0)  # the load
    close(out, want_out, atol=2e-5)
    close(x_grad, want_x_grad, atol=1e-4)
    for name, grad in want_grads.items():
      close(grads[name], grad, atol=2e-4, err_msg=name)


def test_a_decoded_token_waits_only_for_those_that_share_experts_and_matrices():
  cfg = dataclasses.replace(V3, I=4, M=0)
  x, aim, weights = draw(4, 1, 8, cfg)
  mesh, step = on_mesh(dict(data=2, expert=2, tensor=2), cfg, jax.devices())
  forwards = jax.jit(lambda *args: step(*args)[0]).lower(x, aim, weights).compile()
  found = hlo.collectives(forwards.as_text(), mesh)
  assert {x.axes for x in found} == {('expert',), ('tensor',)}, found
  close(forwards(x, aim, weights), every_expert(x, weights, cfg)[0], atol=2e-5)


def test_rows_of_nobody_may_hold_anything(monkeypatch):
  real = jax.lax.ragged_dot

  def spoilt(y, sizes):  # as a kernel may leave what it does not compute
    return jnp.where((jnp.arange(len(y)) < sizes.sum())[:, None], y, jnp.nan)

  @jax.custom_vjp
  def ragged_dot(rows, w, sizes):
    return spoilt(real(rows, w, sizes), sizes)

  def back(saved, grad):
    rows, w, sizes = saved
    rows, w = jax.vjp(lambda rows, w: real(rows, w, sizes), rows, w)[1](grad)
    return spoilt(rows, sizes), w, None

  ragged_dot.defvjp(lambda *args: (ragged_dot(*args), args), back)
  (x_ND,), (aim_ND,), weights = draw(1, 10, 4, V3)
  experts = tuple(weights[f'experts_{name}'][:2] for name in ('gate', 'up', 'down'))
  order, sizes = jnp.arange(20 + 8), jnp.array([6, 5])  # 11 of 20 slots, in rounds of 8

  def grads():
    args = silu, x_ND, aim_ND[:, :2], experts, 8, order, sizes
    zeros = jax.tree.map(jnp.zeros_like, experts)
    return moe._rounds(*args), moe._rounds_backwards(*args, aim_ND, zeros)

  want = grads()
  monkeypatch.setattr(jax.lax, 'ragged_dot', ragged_dot)
  jax.tree.map(np.testing.assert_array_equal, grads(), want)


def compile_for_a_tpu():
  """Prints what a TPU's program calls. Needs a process whose environment is known to libtpu."""
  cfg = dataclasses.replace(V3, I=256, M=0)
  devices = topologies.get_topology_desc(platform='tpu', topology_name='v5e:2x2').devices
  mesh, step = on_mesh(dict(expert=2, tensor=2), cfg, devices)
  abstract = lambda x: jax.ShapeDtypeStruct(x.shape, 'bfloat16', sharding=NamedSharding(mesh, P()))
  args = jax.tree.map(abstract, draw(2, 64, 128, cfg))
  program = step.trace(*args).lower(lowering_platforms=('tpu',)).compile().as_text()
  print('kernels', program.count('custom_call_target="tpu_custom_call"'))


def test_a_tpu_multiplies_by_a_kernel():
  if not importlib.util.find_spec('libtpu'):
    pytest.skip('needs libtpu, of the extra plan')
  env = dict(os.environ, JAX_ENABLE_COMPILATION_CACHE='0', TPU_SKIP_MDS_QUERY='1',
             ALLOW_MULTIPLE_LIBTPU_LOAD='1', TPU_ACCELERATOR_TYPE='v5litepod-16',
             TPU_WORKER_HOSTNAMES='localhost', PYTHONPATH=str(Path(__file__).parents[1]))
  run = subprocess.run([sys.executable, '-c', 'import test_moe; test_moe.compile_for_a_tpu()'],
                       cwd=Path(__file__).parent, env=env, capture_output=True, text=True)
  assert run.returncode == 0, run.stderr
  assert int(run.stdout.split('kernels ')[1]) >= 8  # 3 products, and two gradients of each
