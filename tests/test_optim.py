"""The optimizer by hand, and updates that do not depend on how the work is spread."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from r1jax import grpo, optim, packing, rollout, sharding
from r1jax import losses as losses_lib
from r1jax.model import head_norm, moe
from r1jax.optim import Optimizer
from r1jax.sharding import Machine
from r1jax.stages import rl, sft
from r1jax.types import Rollout, UserError
from tests.test_model import KINDS

close, same = np.testing.assert_allclose, np.testing.assert_array_equal

# -- the chain -------------------------------------------------------------------------------------


def test_schedules_by_hand():
  rate = optim.learning_rate(Optimizer(lr=1.0, schedule=optim.cosine, warmup_steps=2, end_lr=0.1),
                             6)
  middle = 0.1 + 0.9 * (1 + np.cos(np.pi / 4)) / 2
  close([rate(i) for i in range(8)], [0.5, 1, 1, middle, 0.55, 1.1 - middle, 0.1, 0.1], rtol=1e-5)
  rate = optim.learning_rate(Optimizer(lr=2.0, warmup_steps=4), 100)
  close([rate(i) for i in (0, 1, 3, 4, 99)], [0.5, 1, 2, 2, 2])
  assert optim.learning_rate(Optimizer(lr=2.0), 100)(0) == 2


def adamw(cfg, rates, params, grads):
  """AdamW, arXiv 1711.05101 algorithm 2, behind a clip of the global norm; float64."""
  first, second = ({k: np.zeros_like(x) for k, x in params.items()} for _ in range(2))
  for t, (rate, grad) in enumerate(zip(rates, grads), 1):
    norm = np.sqrt(sum((g**2).sum() for g in grad.values()))
    for k, g in grad.items():
      g = g * min(1, cfg.clip_norm / norm)
      first[k] = cfg.b1 * first[k] + (1 - cfg.b1) * g
      second[k] = cfg.b2 * second[k] + (1 - cfg.b2) * g**2
      step = first[k] / (1 - cfg.b1**t) / (np.sqrt(second[k] / (1 - cfg.b2**t)) + cfg.eps)
      decay = 0 if k.endswith(('norm', 'bias')) else cfg.weight_decay
      params = {**params, k: params[k] - rate * (step + decay * params[k])}
  return params


def test_five_steps_are_those_of_adamw():
  rng = np.random.default_rng(0)
  shapes = {'o': (3, 4), 'attn_norm': (4,), 'qkv_bias': (2, 2)}
  draw = lambda scale: {k: scale * rng.normal(size=s) for k, s in shapes.items()}
  params, grads = draw(1.0), [draw(scale) for scale in (0.01, 3, 0.1, 10, 0.3)]
  cfg = Optimizer(lr=0.1, warmup_steps=2, weight_decay=0.2, clip_norm=1.5, eps=1e-3)
  tx = optim.chain(cfg, 5)
  single = lambda tree: {k: jnp.float32(x) for k, x in tree.items()}

  @jax.jit
  def step(params, opt, grad):
    changes, opt = tx.update(grad, opt, params)
    return optax.apply_updates(params, changes), opt

  got, opt = single(params), tx.init(single(params))
  for grad in grads:
    got, opt = step(got, opt, single(grad))
  want = adamw(cfg, [0.05, 0.1, 0.1, 0.1, 0.1], params, grads)
  for k in want:
    close(got[k], want[k], rtol=1e-5, atol=1e-6)


def test_norms_and_biases_do_not_decay(tiny):
  _, params = tiny(qkv_bias=True, qk_norm=head_norm, tied=False)
  tx = optim.chain(Optimizer(lr=1.0, weight_decay=0.25), 10)
  changes, _ = jax.jit(tx.update)(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
  layers = changes.pop('layers')
  decayed = {k for k, x in {**changes, **layers}.items() if jnp.abs(x).max() > 0}
  assert decayed == {'embed', 'head', 'qkv', 'o', 'gate_up', 'down'}
  close(layers['o'], -0.25 * params['layers']['o'], rtol=1e-6)


def test_selection_biases_follow_their_load_and_nothing_else_feels_it(tiny):
  experts = moe.MoE(E=4, I=8, top=2, bias=True, score=moe.sigmoid)
  model, params = tiny(moe=experts)
  grads = jax.tree.map(lambda x: jnp.full_like(x, 1e-3), params)
  load = jnp.array([[8.0, 0, 4, 4], [3, 3, 5, 1]])
  grads['layers']['router_bias'] = load
  tx = optim.chain(Optimizer(lr=0.1, balance=0.001, clip_norm=1e9), 10)
  changes, _ = jax.jit(tx.update)(grads, tx.init(params), params)
  close(changes['layers']['router_bias'], [[-1e-3, 1e-3, 0, 0], [0, 0, -1e-3, 1e-3]])
  close(changes['layers']['router'], -0.1, rtol=1e-3)
  assert optax.tree.norm(optim.without_loads(grads)) < 1 < optax.tree.norm(grads)


# -- updates ---------------------------------------------------------------------------------------

P, G, T, C = 4, 4, 5, 8
CFG = rl.Config(init='', problems=None, evaluation=None, batch=P, group=G, steps=10,
                objective=grpo.Objective(beta=0.2), optimizer=Optimizer(lr=1e-2))


def graded():
  """P x G completions of random tokens and lengths, with log-probabilities near the policy's."""
  rng = np.random.default_rng(0)
  integers = lambda low, high, shape: rng.integers(low, high, shape).astype(np.int32)
  samples = Rollout(integers(0, 37, (P, T)), integers(1, T + 1, P), integers(0, 37, (P, G, C)),
                    integers(1, C + 1, (P, G)), np.ones((P, G), bool),
                    rng.normal(-3, 0.5, (P, G, C)).astype(np.float32))
  return rollout.Graded(samples, [], [], {}, rng.random((P, G)).astype(np.float32), [])


def ready(model, params, micro_rows, logp=None, **axes):
  """(update, state, batch) of the RL loss; `logp` is put in the place of one token's own."""
  machine = Machine(micro_rows=micro_rows, pieces=1, logp_chunk=0, **axes)
  mesh = sharding.make_mesh(machine)
  update, _, tx = rl.make_steps(CFG, model, machine, mesh)
  where = sharding.shardings(model.axes(), params, mesh)
  params = jax.tree.map(lambda x, s: jax.device_put(np.asarray(x), s), params, where)
  part = graded()
  if logp is not None:
    part.rollout.logp_PGC[2, 1, 0] = logp
  batch = rl.make_batch(CFG, part, machine, mesh)
  reference = np.full(batch.logp_old_PGC.shape, -3.0, np.float32)
  batch = batch._replace(logp_ref_PGC=sharding.put_rows(reference, mesh))
  return update, optim.init(tx, params), batch


def test_small_changes_of_bfloat16_are_made_now_and_then():
  x = jnp.full(10000, 1.0, jnp.bfloat16)  # the next is 1 + 2^-7
  one, = jax.tree.leaves(optim.changed({'w': x}, {'w': jnp.full(10000, 2.0**-9)}, 3))
  assert one.dtype == jnp.bfloat16 and set(np.float32(one)) == {1, 1 + 2.0**-7}
  assert abs((np.float32(one) > 1).mean() - 1 / 4) < 0.02
  two, = jax.tree.leaves(optim.changed({'w': x}, {'w': jnp.full(10000, 2.0**-9)}, 4))
  assert 0.3 < (one != two).mean() < 0.45  # 2 / 4 * 3 / 4: each step's chance is its own
  exact, = jax.tree.leaves(optim.changed({'w': -x}, {'w': jnp.full(10000, 0.25)}, 3))
  same(exact, -0.75)


@pytest.mark.parametrize('axes', [dict(data=1), dict(data=2, fsdp=2)], ids=str)
@pytest.mark.parametrize('micro_rows', [4, 16])
def test_matrices_in_bfloat16_learn_as_in_float32(tiny, micro_rows, axes, monkeypatch):
  model, params = tiny(unroll=False)
  mesh, moments = sharding.make_mesh(Machine(data=1)), optim.chain(Optimizer(), 1)
  half = jax.tree.map(lambda x: x.astype('bfloat16'), params)
  where = sharding.shardings(model.axes(), half, mesh)
  opt = optim.init(moments, jax.device_put(half, where)).opt
  assert {x.dtype.name for x in jax.tree.leaves(opt)} == {'float32', 'int32'}
  monkeypatch.setattr(optim, 'chain', lambda *_: optax.sgd(1.0))
  after = []
  for params in (half, jax.tree.map(jnp.float32, half)):
    update, state, batch = ready(model, params, micro_rows, **axes)
    state, numbers = update(state, batch)
    after.append((state, float(numbers['grad_norm'])))
  (state, norm), (want, want_norm) = after
  assert abs(norm / want_norm - 1) < 2e-3  # gradients of matrices are rounded once
  in_half = [path[-1].key for path, x in jax.tree.leaves_with_path(state.params)
             if x.dtype == jnp.bfloat16]  # yapf: disable
  assert sorted(in_half) == ['down', 'gate_up', 'o', 'qkv']
  for x, y, old in zip(*map(jax.tree.leaves, (state.params, want.params, half)), strict=True):
    x, y, old = np.float32(x), np.asarray(y), np.float32(old)
    assert (abs(x - y) <= 2**-7 * (abs(y) + abs(y - old).max())).all()  # as bfloat16 rounds


@pytest.fixture(scope='module')
def gradient(tiny):
  """micro_rows, mesh axes -> (gradient, numbers) of one update with the RL loss."""
  model, params = tiny(unroll=False)

  @functools.cache
  def run(micro_rows, **axes):
    with pytest.MonkeyPatch.context() as patch:  # a step of 1 against the gradient, whole
      patch.setattr(optim, 'chain', lambda *_: optax.sgd(1.0))
      update, state, batch = ready(model, params, micro_rows, **axes)
    state, numbers = jax.device_get(update(state, batch))
    return jax.tree.map(lambda new, old: np.asarray(old) - new, state.params, params), numbers

  return run


def check_equal(got, want):
  jax.tree.map(lambda a, b: close(a, b, atol=1e-5, rtol=1e-5), got[0], want[0])
  rows = want[1]['loss_by_row'].size
  for name in ('loss', 'grad_norm', 'kl', 'clipped', 'gap', 'surprise', 'tokens'):
    close(got[1][name], want[1][name], rtol=1e-5, err_msg=name)
  close(got[1]['loss_by_row'].ravel()[:rows], want[1]['loss_by_row'], atol=1e-5)


@pytest.mark.parametrize('micro_rows', [1, 8])
def test_the_gradient_does_not_change_with_the_micro_batch(gradient, micro_rows):
  check_equal(gradient(micro_rows, data=1), gradient(16, data=1))


@pytest.mark.parametrize(
    'axes', [dict(data=2), dict(data=4), dict(data=8), dict(data=2, fsdp=2, tensor=2),
             dict(fsdp=8), dict(fsdp=2, context=2, tensor=2)], ids=str)  # yapf: disable
def test_the_gradient_does_not_change_with_the_mesh(gradient, axes):
  check_equal(gradient(4, **axes), gradient(16, data=1))


@pytest.mark.parametrize('kind', ['deepseek', 'gemma'])
def test_nor_does_that_of_experts_or_windows(tiny, kind):
  """The load of experts, which takes the gradient's place, is counted alike as well; and the head,
  whose 40 rows expert and tensor divide, is computed in parts."""
  model, params = tiny(unroll=False, **{**KINDS[kind], 'V': 40})

  def run(micro_rows, **axes):
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(optim, 'chain', lambda *_: optax.sgd(1.0))
      update, state, batch = ready(model, params, micro_rows, **axes)
    state = jax.device_get(update(state, batch)[0])
    return jax.tree.map(lambda new, old: np.asarray(old) - new, state.params, params)

  want = run(16, data=1)
  for axes in dict(fsdp=2, expert=2, tensor=2), dict(data=2, expert=2, context=2):
    jax.tree.map(lambda a, b: close(a, b, atol=5e-5, rtol=1e-4), run(1, **axes), want)
  if kind == 'deepseek':
    load = want['layers']['router_bias'].sum()
    assert load == 3 * (graded().rollout.lengths_PG - 1).sum()  # the last token is not read again


def test_a_balance_of_nothing_is_refused(tiny):
  _, params = tiny()
  tx = optim.chain(Optimizer(balance=0.001), 10)
  with pytest.raises(UserError, match='nothing that learns here has any'):
    tx.update(params, tx.init(params), params)


def test_the_gradient_is_not_trivial(gradient):
  grads, numbers = gradient(16, data=1)
  assert all(np.abs(g).max() > 1e-3 for g in jax.tree.leaves(grads))
  assert 0 < numbers['clipped'] < numbers['tokens'] == graded().rollout.lengths_PG.sum()
  close(numbers['grad_norm'], np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(grads))), rtol=1e-4)


# With a ratio of infinity the loss is clipped and its gradient is not a number.
@pytest.mark.parametrize('logp, rows', [(np.nan, [2 * G + 1]), (-np.inf, [])])
def test_an_update_that_is_not_finite_changes_nothing(tiny, logp, rows):
  update, state, batch = ready(*tiny(unroll=False), micro_rows=4, logp=logp, data=2)
  before = jax.tree.map(np.array, state)  # a copy: the update takes the state's memory
  state, numbers = jax.device_get(update(state, batch))
  assert not numbers['finite']
  jax.tree.map(same, state, before)
  assert np.flatnonzero(~np.isfinite(numbers['loss_by_row'])).tolist() == rows


def test_a_finite_update_changes_everything(tiny):
  update, state, batch = ready(*tiny(unroll=False), micro_rows=4, data=2)
  before = jax.tree.map(np.array, state)
  state, numbers = jax.device_get(update(state, batch))
  assert numbers['finite'] and state.step == before.step + 1
  jax.tree.map(lambda a, b: close(abs(a - b).max(), 1e-2, rtol=0.02), state.params, before.params)


def test_the_reference_does_not_change_with_the_mesh(tiny):
  model, params = tiny(unroll=False)

  def run(micro_rows, **axes):
    machine = Machine(micro_rows=micro_rows, pieces=1, logp_chunk=0, **axes)
    mesh = sharding.make_mesh(machine)
    where = sharding.shardings(model.axes(), params, mesh)
    there = jax.tree.map(lambda x, s: jax.device_put(np.asarray(x), s), params, where)
    batch = rl.make_batch(CFG, graded(), machine, mesh)
    out = rl.make_steps(CFG, model, machine, mesh)[1](there, batch)
    return np.asarray(out).reshape(-1, C)[:P * G]

  close(run(4, data=2, fsdp=2, tensor=2), run(16, data=1), atol=1e-5)


def test_the_supervised_gradient_does_not_change_with_the_mesh(tiny):
  model, params = tiny(unroll=False)
  rng = np.random.default_rng(0)
  documents = [(rng.integers(0, 37, n).tolist(), 1) for n in rng.integers(2, 12, 20)]
  rows = packing.pack(documents, 12)
  indices = range(7)  # not a multiple of anything: rows of padding must weigh nothing

  def run(micro, data):
    mesh = sharding.make_mesh(Machine(data=data))
    loss = lambda params, part: losses_lib.cross_entropy(model, params, part)
    update = optim.make_update(loss, model, optax.sgd(1.0), mesh, micro)
    where = sharding.shardings(model.axes(), params, mesh)
    there = jax.tree.map(lambda x, s: jax.device_put(np.asarray(x), s), params, where)
    batch = sft.make_batch(rows, indices, micro, mesh)
    close(np.asarray(batch.weights_BT).sum(), 1, rtol=1e-6)
    return jax.device_get(update(optim.init(optax.sgd(1.0), there), batch))

  (want, numbers), (got, others) = run(7, 1), run(2, 4)
  jax.tree.map(lambda a, b: close(a, b, atol=1e-5, rtol=1e-5), got.params, want.params)
  close(others['loss'], numbers['loss'], rtol=1e-5)
