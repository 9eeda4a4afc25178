"""The optimizer as a small config over optax, and one update with exact gradient accumulation."""
import dataclasses
import math
from typing import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from r1jax import losses, sharding
from r1jax.model import lora, moe
from r1jax.types import TrainState, UserError


def constant(optimizer, steps):
  """The learning rate after warm-up, throughout."""
  del steps
  return optax.constant_schedule(optimizer.lr)


def cosine(optimizer, steps):
  """Half a cosine from lr to end_lr over the steps that follow the warm-up."""
  return optax.cosine_decay_schedule(optimizer.lr, max(1, steps - optimizer.warmup_steps),
                                     optimizer.end_lr / optimizer.lr)


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """AdamW (arXiv 1711.05101) behind a clip of the global gradient norm."""
  lr: float = 3e-6
  schedule: Callable = constant  # Optimizer, steps -> optax schedule
  warmup_steps: int = 0  # linear, the first update with lr / warmup_steps
  end_lr: float = 0.0  # where `cosine` ends
  b1: float = 0.9
  b2: float = 0.95
  eps: float = 1e-8
  weight_decay: float = 0.0  # on matrices only
  clip_norm: float = 1.0  # of the whole gradient
  moments: str = 'float32'  # dtype that Adam's are kept in; DeepSeek-V3: bfloat16 (3.3.2)
  balance: float = 0.0  # step of experts' selection biases (model/moe.py); DeepSeek-V3: 0.001


def learning_rate(optimizer: Optimizer, steps: int) -> Callable:
  """The schedule: update number (from 0) -> learning rate."""
  schedule = optimizer.schedule(optimizer, steps)
  if not optimizer.warmup_steps:
    return schedule
  n = optimizer.warmup_steps  # the first update has lr / n, so that it is not lost
  warmup = optax.linear_schedule(optimizer.lr / n, optimizer.lr, max(1, n - 1))
  return optax.join_schedules([warmup, schedule], [optimizer.warmup_steps])


def chain(optimizer: Optimizer, steps: int) -> optax.GradientTransformation:
  """Clip, Adam, decoupled weight decay, learning rate; and for selection biases, moe.balance."""
  adam = optax.chain(
      optax.clip_by_global_norm(optimizer.clip_norm),
      kept_as(optimizer.moments, optax.scale_by_adam(optimizer.b1, optimizer.b2, optimizer.eps)),
      optax.add_decayed_weights(optimizer.weight_decay, _is_matrix),
      optax.scale_by_learning_rate(learning_rate(optimizer, steps)),
  )

  def update(grads, state, params=None):
    loads = [path for path, _ in jax.tree.leaves_with_path(grads) if _is_load(path)]
    if optimizer.balance and not loads:
      raise UserError('optimizer.balance moves the selection biases of experts, and nothing that '
                      'learns here has any: leave it at 0')
    changes, state = adam.update(without_loads(grads), state, params)
    pick = lambda path, load, x: moe.balance(load, optimizer.balance) if _is_load(path) else x
    return jax.tree.map_with_path(pick, grads, changes), state

  return optax.GradientTransformation(adam.init, update)


def kept_as(dtype, tx) -> optax.GradientTransformation:
  """tx with its arrays, float32 whatever the parameters are, kept in another dtype between
  updates."""

  def cast(tree, old, new):
    return jax.tree.map(lambda x: x.astype(new) if x.dtype == old else x, tree)

  def update(grads, state, params=None):
    changes, state = tx.update(grads, cast(state, dtype, jnp.float32), params)
    return changes, cast(state, jnp.float32, dtype)

  return optax.GradientTransformation(
      lambda params: cast(tx.init(single(params)), jnp.float32, dtype), update)


def single(tree):
  """A tree of float32."""
  return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def without_loads(grads):
  """Gradients with 0 for what is none: an expert's load, in the place of its selection bias."""
  pick = lambda path, x: jnp.zeros_like(x) if _is_load(path) else x
  return jax.tree.map_with_path(pick, grads)


def _is_load(path):
  return path[-1].key == losses.LOAD


def _is_matrix(params):
  name = lambda path: path[-1].key
  return jax.tree.map_with_path(lambda path, _: not name(path).endswith(('norm', 'bias')), params)


def init(tx, params, reference=()) -> TrainState:
  """A fresh state: moments lie where what is learnt lies; the reference is one of `copy`.

  Of what is learnt, matrices of layers may be bfloat16 (`changed` says how they learn); all else,
  which is little, becomes float32. The caller should keep the state's parameters, not `params`.
  Raises UserError for other dtypes.
  """
  like = abstract_state(tx, params)
  params = jax.tree.map(lambda x, like: x
                        if x.dtype == like.dtype else x.astype(like.dtype), params, like.params)
  learnt = lora.learnt(params)
  where = jax.tree.map(lambda x: x.sharding, like.opt)
  opt = jax.jit(tx.init, out_shardings=where)(learnt)
  step = sharding.put(np.zeros((), np.int32), like.step.sharding)
  return TrainState(step, params, opt, reference)


def abstract_state(tx, params, reference=()) -> TrainState:
  """The shapes and shardings of a state, from parameters or their shapes and shardings."""
  whole = sharding.replicated(jax.tree.leaves(params)[0].sharding.mesh)
  like = lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)

  def in_its_dtype(path, x):
    if x.dtype not in (jnp.float32, jnp.bfloat16):
      raise UserError(f'parameters in {x.dtype} cannot learn: set machine.param_dtype to float32 '
                      'or bfloat16')
    layers = path[0].key in ('dense', 'layers')
    rounded = layers and not path[-1].key.endswith(('norm', 'bias', 'router'))
    dtype = x.dtype if rounded or x.dtype == jnp.float32 else jnp.float32
    return jax.ShapeDtypeStruct(x.shape, dtype, sharding=x.sharding)

  learnt = jax.tree.map_with_path(in_its_dtype, lora.learnt(params))
  params = {**params, **learnt}
  opt = optax.tree_utils.tree_map_params(tx, lambda x, p: like(x, p.sharding),
                                         jax.eval_shape(tx.init, learnt), learnt,
                                         transform_non_params=lambda x: like(x, whole))
  return TrainState(jax.ShapeDtypeStruct((), jnp.int32, sharding=whole), params, opt, reference)


def copy(params, model, dtype):
  """What updates change, as fresh arrays, so that donating the one tree leaves the other; in dtype
  where the model's maths in that dtype reads it so, which changes no number that it computes."""
  as_read = lambda path, x: jnp.copy(x) if model.exact(path[-1].key) else jnp.array(x, dtype)
  return jax.tree.map_with_path(as_read, lora.learnt(params))


def reference(state: TrainState):
  """The parameters that KL is measured against: they share a frozen base with the policy's."""
  return {**state.params, **state.reference}


def make_update(loss_fn, model, tx, mesh, micro):
  """The jitted update: state, batch -> state, metrics.

  loss_fn(split params, part of the batch) -> (loss_B, sums) must be a plain sum over rows, so that
  parts of `micro` leading rows, accumulated one after the other and over the mesh's ROWS, give the
  gradient of the whole. Every leaf of batch has its leading axis divisible by rows(mesh) * micro.
  metrics: loss, grad_norm, each of `sums`, and `loss_by_row` [rows]. An update whose
  loss or gradient is not finite changes nothing but `finite` in the metrics: the caller stops.
  """

  axes = model.axes()

  def accumulate(params, batch):
    parts = jax.tree.map(lambda x: x.reshape(-1, micro, *x.shape[1:]), batch)
    params = model.split(params)
    learnt = lora.learnt(params)

    def total(learnt, part):
      loss_B, sums = loss_fn({**params, **learnt}, part)
      return loss_B.sum(), (loss_B, sums)

    def add(carry, part):
      (_, (loss_B, sums)), grads = jax.value_and_grad(total, has_aux=True)(learnt, part)
      return jax.tree.map(jnp.add, carry, (grads, sums)), loss_B

    first = jax.tree.map(lambda x: x[0], parts)
    if len(jax.tree.leaves(parts)[0]) == 1:  # nothing to add up, and no room for it
      (_, (loss_rows, sums)), grads = jax.value_and_grad(total, has_aux=True)(learnt, first)
      return together(grads, sums, loss_rows)
    grads, (_, sums) = jax.eval_shape(jax.grad(total, has_aux=True), learnt, first)
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), (grads, sums))
    (grads, sums), loss_rows = jax.lax.scan(add, zero, parts)
    return together(grads, sums, loss_rows)

  def together(grads, sums, loss_rows):
    grads = sharding.summed(model.join(grads), lora.learnt(axes))
    sums = sharding.summed(sums, jax.tree.map(lambda _: '', sums))
    return grads, sums, loss_rows.reshape(-1)

  cut = sharding.shares(axes, mesh)
  accumulate = sharding.over_rows(accumulate, mesh, (cut, sharding.BY_ROWS),
                                  (lora.learnt(cut), sharding.WHOLE, sharding.BY_ROWS))

  def as_stored(learnt):
    where = sharding.shardings(lora.learnt(axes), learnt, mesh)
    return jax.lax.with_sharding_constraint(learnt, where)

  def update(state, batch):
    grads, sums, loss_by_row = accumulate(state.params, batch)
    grads = single(as_stored(grads))
    loss_by_row = jax.lax.with_sharding_constraint(loss_by_row, sharding.replicated(mesh))
    norm, total = optax.tree.norm(without_loads(grads)), loss_by_row.sum()
    finite = jnp.isfinite(norm) & jnp.isfinite(total)
    learnt = lora.learnt(state.params)
    changes, opt = tx.update(grads, state.opt, learnt)
    keep = lambda new, old: jnp.where(finite, new, old)
    learnt = as_stored(jax.tree.map(keep, changed(learnt, changes, state.step), learnt))
    opt = jax.tree.map(keep, opt, state.opt)
    state = TrainState(state.step + finite, {**state.params, **learnt}, opt, state.reference)
    return state, dict(sums, loss=total, grad_norm=norm, finite=finite, loss_by_row=loss_by_row)

  return jax.jit(update, donate_argnums=0)


def changed(params, changes, step):
  """params + changes, in the dtypes of params. Where that is bfloat16 the sum is rounded up or down
  by chance, such that its mean is the sum: a small change, which the nearest bfloat16 would lose
  every time, is made now and then (stochastic rounding, 2010.06192). The chance is the step's."""
  leaves, treedef = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.fold_in(jax.random.key(0), step), len(leaves))

  def add(p, change, key):
    total = p.astype(jnp.float32) + change
    return total if p.dtype == jnp.float32 else _rounded_by_chance(total, key).astype(p.dtype)

  return treedef.unflatten(map(add, leaves, treedef.flatten_up_to(changes), keys))


def _rounded_by_chance(x, key):
  """float32 -> float32 whose last 16 bits are 0, as in bfloat16: to add 16 random bits carries into
  the others as often as the last 16 are far from 0."""
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
  bits += jax.random.bits(key, x.shape, jnp.uint16)
  return jax.lax.bitcast_convert_type(bits & jnp.uint32(0xFFFF0000), jnp.float32)


def check_finite(step, numbers, describe):
  """Raises FloatingPointError where update number `step` failed, with describe(row) of its row."""
  if not numbers['finite']:
    bad = [i for i, x in enumerate(numbers['loss_by_row']) if not math.isfinite(x)]
    where = describe(bad[0]) if bad else 'in the gradient, while the loss of every sample is finite'
    raise FloatingPointError(f'step {step}: the loss is not finite, {where}; the update was undone')


def read(pending, log):
  """Writes a dispatched update's numbers, (step, learning rate, numbers, tokens or rows of it), to
  the metrics.Log; returns None, nothing pending. FloatingPointError if one is not finite."""
  if pending:
    step, lr, numbers, size = pending
    numbers = jax.device_get(numbers)
    check_finite(step, numbers, lambda row: f'in row {row} of the batch')
    row = dict(loss=float(numbers['loss']), grad_norm=float(numbers['grad_norm']), lr=lr)
    log.step(step, row, size, log.lap())


def make_map(f, model, mesh, micro):
  """The jitted f(split params, batch) -> array by row, computed `micro` leading rows at a time."""

  def mapped(params, batch):
    params = model.split(params)
    parts = jax.tree.map(lambda x: x.reshape(-1, micro, *x.shape[1:]), batch)
    out = jax.lax.map(lambda part: f(params, part), parts)
    return out.reshape(-1, *out.shape[2:])

  ins = sharding.shares(model.axes(), mesh), sharding.BY_ROWS
  return jax.jit(sharding.over_rows(mapped, mesh, ins, sharding.BY_ROWS))
