"""Machines and meshes: what the hardware wants, and which axis letter lives on which mesh axis.

The mesh has five axes. Rows of a batch are spread over the first three, ROWS, by shard_map: each
device loops over rows of its own, and what it needs of others is said in plain sight.

  data     copies of everything, which meet once an update
  fsdp     each weight is cut, most along D, and made whole where it is used (ZeRO-3, 1910.02054)
  expert   routed experts are spread; tokens travel to them (model/moe.py)
  context  one row's positions are spread, for rows too long for a device
  tensor   heads, ffn and vocabulary are cut (Megatron, 1909.08053), positions between the layers

The last two are left to XLA, told by `constrain` what lies where. Sampling has a mesh of its own
over the same devices, or over others, in which fsdp and context are 1: a token waits for no weight.
"""
import ctypes
import dataclasses
import math
import os
from typing import Any

import jax
from jax.experimental import mesh_utils, multihost_utils
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import numpy as np

from r1jax import processes
from r1jax.types import UserError

AXES = ('data', 'fsdp', 'expert', 'context', 'tensor')
ROWS = AXES[:3]
GPU_SHARE = 0.92  # of a GPU's memory that jax takes; CUDA, cuDNN and NCCL want some of their own

SHARED = ('fsdp', 'expert', 'context')  # cut a weight in storage, not where it is used
RULES = {  # axis letter of a weight -> mesh axes, but those of letters before it; others: none
    'D': SHARED, 'Q': SHARED, 'Z': SHARED, 'E': ('expert',), 'K': ('tensor',), 'H': ('tensor',),
    'F': ('tensor',), 'I': ('tensor',), 'M': ('tensor',), 'V': ('tensor',),
}  # yapf: disable
ACTIVATIONS = {  # of what the layers compute, whose rows are a device's own
    'T': ('context',), **{letter: RULES[letter] for letter in 'KHFIMV'}}  # yapf: disable


@dataclasses.dataclass(frozen=True)
class Machine:
  """What the hardware wants. The maths does not know it; None is the platform's default."""
  data: int = -1  # copies of the parameters, -1: as many as the devices allow
  fsdp: int = 1  # devices that share one copy, each weight cut, most along D
  expert: int = 1  # devices that share the routed experts
  context: int = 1  # devices that share the positions of a row
  tensor: int = 1  # devices that share one copy, cut along heads, ffn and vocabulary
  sample_tensor: int | None = None  # the same while sampling; None: as above
  sample_expert: int | None = None
  sample_devices: int = 0  # the last so many devices sample, the others train; 0: all do both
  topology: str = ''  # what the sizes are chosen for, as v5p:4x4x4 or h100:64, for `r1jax plan`
  cpu_devices: int | None = None  # virtual CPU devices, one a core by default
  unroll: bool | None = None  # layers one by one (small models on CPU) or scanned
  micro_rows: int | None = None  # completions, or packed rows, a device trains on at once
  sample_rows: int | None = None  # completions a call samples, over all devices
  pieces: int | None = None  # the sampling loop's cache grows in so many pieces
  remat: bool | None = None  # recompute a layer's activations in the backward pass
  attention: str | None = None  # its path: einsum, splash on TPUs, cudnn on GPUs
  query_chunk: int | None = None  # queries of a row whose scores einsum holds at once, 0: all
  logp_chunk: int | None = None  # positions whose logits are held at once, 0: all
  dtype: str = 'float32'  # of activations and matrix products
  param_dtype: str = 'float32'  # of parameters in memory; how bfloat16 learns: optim.changed

  def __post_init__(self):
    for name in ('micro_rows', 'sample_rows', 'pieces'):
      if vars(self)[name] is not None and vars(self)[name] < 1:
        raise UserError(f'machine.{name} is {vars(self)[name]} and must be at least 1')
    for name in ('dtype', 'param_dtype'):
      if vars(self)[name] not in ('float32', 'bfloat16', 'float16'):
        raise UserError(f'machine.{name} is {vars(self)[name]!r}: choose float32 or bfloat16')


DEFAULTS = {
    'cpu':
        dict(attention='einsum', query_chunk=512, unroll=True, micro_rows=8, sample_rows=512,
             pieces=4, remat=False, logp_chunk=0),
    'gpu':
        dict(attention='einsum', query_chunk=512, unroll=False, micro_rows=8, sample_rows=512,
             pieces=4, remat=True, logp_chunk=1024),
    'tpu':
        dict(attention='splash', query_chunk=512, unroll=False, micro_rows=8, sample_rows=512,
             pieces=4, remat=True, logp_chunk=1024),
}


def start(machine: Machine) -> tuple[Machine, jax.sharding.Mesh]:
  """Readies the process: virtual CPU devices, allocator, mesh. Call before any other use of jax.

  Returns the machine with every None filled in, and the mesh. Raises UserError where the mesh
  does not fit the devices.
  """
  cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
  asked = int(os.environ.get('JAX_NUM_CPU_DEVICES', 0))  # a launcher's word for all stages
  machine = dataclasses.replace(machine, cpu_devices=asked or machine.cpu_devices or max(1, cores))
  try:
    jax.config.update('jax_num_cpu_devices', machine.cpu_devices)
  except RuntimeError:  # devices exist already (tests, notebooks): use those
    pass
  if not os.environ.get('XLA_PYTHON_CLIENT_MEM_FRACTION'):  # its old name
    os.environ.setdefault('XLA_CLIENT_MEM_FRACTION', str(GPU_SHARE))
  processes.start()
  platform = jax.devices()[0].platform
  if platform == 'cpu':
    keep_freed_memory()
  machine = fill(machine, platform)
  check(machine, platform, jax.devices())
  return machine, make_mesh(machine)


def check(machine: Machine, platform: str, devices: list):
  """Raises UserError for what a filled machine cannot do on these devices of cpu, gpu or tpu."""
  if not 0 <= machine.sample_devices < len(devices):
    raise UserError(f'sample_devices is {machine.sample_devices} of {len(devices)} devices: leave '
                    'at least one to train')
  if machine.sample_devices and len({device.process_index for device in devices}) > 1:
    raise UserError('sample_devices are for one process: with several, parameters would have to '
                    'travel between processes; leave it at 0, and all devices train and sample')
  cut = (machine.fsdp, machine.expert, machine.context, machine.tensor, machine.sample_tensor or
         1, machine.sample_expert or 1)
  if platform == 'cpu' and machine.dtype != 'float32' and max(cut) > 1:
    raise UserError(f'the machine\'s dtype is {machine.dtype}, in which XLA fails on CPUs wherever '
                    'devices add up: choose float32, or leave the mesh to `data` alone')
  needs = dict(splash='tpu', cudnn='gpu').get(machine.attention, platform)
  if needs != platform:
    raise UserError(f'attention {machine.attention} is for a {needs.upper()}, and this is a '
                    f'{platform.upper()}: choose einsum, or none for the platform\'s own')


def fill(machine: Machine, platform: str) -> Machine:
  """The machine with every None replaced by the platform's default: cpu, gpu or tpu."""
  defaults = DEFAULTS[platform]
  return dataclasses.replace(machine,
                             **{k: v for k, v in defaults.items() if getattr(machine, k) is None})


def keep_freed_memory():
  """Tells glibc to keep freed memory instead of returning it to the system.

  XLA:CPU takes fresh memory for every large temporary; by default each such call maps new pages
  and faults them in again, which costs a third of a small model's train step. The same as starting
  with MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=... MALLOC_TOP_PAD_=...; elsewhere does nothing.
  """
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (OSError, AttributeError):
    return
  trim_threshold, top_pad, mmap_max = -1, -2, -4  # malloc.h
  mallopt(mmap_max, 0)
  mallopt(trim_threshold, 2**31 - 1)
  mallopt(top_pad, 2**26)


def make_mesh(machine: Machine, devices=None) -> jax.sharding.Mesh:
  """The mesh of training over `devices`, all by default, but for those that only sample.

  Raises UserError where the sizes do not fit them. In one process some may be left over.
  """
  devices = jax.devices() if devices is None else devices
  total = len(devices)
  devices = devices[:total - machine.sample_devices]
  sizes = [machine.data, machine.fsdp, machine.expert, machine.context, machine.tensor]
  n, copy = len(devices), math.prod(sizes[1:])
  data = n // max(1, copy) if machine.data == -1 else machine.data
  whole = data * copy == n or machine.data != -1 and jax.process_count() == 1
  if min(data, *sizes[1:]) < 1 or data * copy > n or not whole:
    said = ' x '.join(f'{axis}={size}' for axis, size in zip(AXES, sizes))
    raise UserError(f'the mesh {said} does not fit {n} devices: choose sizes whose product is {n}')
  sizes[0], devices = data, list(devices)[:data * copy]
  if len(devices) == total:  # neighbours in the mesh are neighbours in the machine
    devices = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
  return _mesh(devices, sizes)


def sampling_mesh(machine: Machine, mesh, devices=None) -> jax.sharding.Mesh:
  """The mesh of sampling: the training mesh's devices, or the last machine.sample_devices of all.

  Rows are spread over all but tensor and expert. Raises UserError where the sizes do not divide.
  """
  if machine.sample_devices:
    devices = (devices or jax.devices())[-machine.sample_devices:]
  else:
    devices = mesh.devices.flatten()
  expert = machine.expert if machine.sample_expert is None else machine.sample_expert
  tensor = machine.tensor if machine.sample_tensor is None else machine.sample_tensor
  if min(expert, tensor) < 1 or len(devices) % (expert * tensor):
    raise UserError(f'sampling with expert={expert} x tensor={tensor} does not divide its '
                    f'{len(devices)} devices: choose sample_expert and sample_tensor that do')
  return _mesh(devices, (len(devices) // (expert * tensor), 1, expert, 1, tensor))


def _mesh(devices, sizes):
  return jax.sharding.Mesh(np.reshape(devices, sizes), AXES, axis_types=(AxisType.Auto,) * 5)


def rows(mesh) -> int:
  """Into how many parts the rows of a batch are cut."""
  return math.prod(mesh.shape[axis] for axis in ROWS)


def spec(letters, shape, mesh) -> PartitionSpec:
  """PartitionSpec for axis letters; raises UserError where mesh axes do not divide a size."""
  out = []
  for letter, size, axes in zip(letters, shape, axes_of(letters, mesh), strict=True):
    cuts = math.prod(mesh.shape[axis] for axis in axes)
    if size % cuts:
      raise UserError(f'axis {letter} has size {size}, which the {cuts} devices of the mesh axis '
                      f'{" x ".join(axes)} do not divide: choose another size for it in the '
                      'machine (while sampling: sample_tensor, sample_expert)')
    out.append(axes or None)
  return PartitionSpec(*out)


def axes_of(letters, mesh, rules=RULES) -> list[tuple]:
  """The mesh axes that cut each letter of an array; each axis cuts one at most.

  Where fsdp and context are 1, as in sampling, weights are not shared over expert either.
  """
  unshared = mesh.shape.get('fsdp', 1) * mesh.shape.get('context', 1) == 1
  out = []
  for letter in letters:
    axes = () if unshared and rules.get(letter) == SHARED else rules.get(letter, ())
    out.append(tuple(axis for axis in axes if axis not in sum(out, ())))
  return out


def shardings(axes: Any, shapes: Any, mesh) -> Any:
  """A tree of NamedSharding, from a tree of axis letters and a tree of shapes."""
  return jax.tree.map(lambda x, letters: NamedSharding(mesh, spec(letters, x.shape, mesh)), shapes,
                      axes)


def replicated(mesh) -> NamedSharding:
  """The sharding of an array that every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def by_rows(mesh) -> NamedSharding:
  """The sharding of an array whose leading axis is rows."""
  return NamedSharding(mesh, PartitionSpec(ROWS))


def put_rows(tree: Any, mesh) -> Any:
  """Host arrays, the same in every process -> device arrays, their leading axis over ROWS."""
  return put(tree, by_rows(mesh))


def put(tree: Any, where) -> Any:
  """Host arrays, the same in every process -> device arrays that lie as `where` says."""
  if jax.process_count() == 1:
    return jax.device_put(tree, where)
  place = lambda x: jax.make_array_from_callback(x.shape, where, lambda index: x[index])
  return jax.tree.map(lambda x: place(np.asarray(x)), tree)


def fetch(tree: Any) -> Any:
  """Device arrays -> host arrays, whole in every process, which all must call this."""

  def get(x):
    if getattr(x, 'is_fully_addressable', True) or x.is_fully_replicated:
      return np.asarray(x)
    return multihost_utils.process_allgather(x, tiled=True)

  return jax.tree.map(get, tree)


# -- inside the loops over rows ----------------------------------------------------------------

WHOLE, BY_ROWS = PartitionSpec(), PartitionSpec(ROWS)  # in and out of over_rows


def over_rows(f, mesh, ins, outs):
  """shard_map over ROWS: f sees the rows, and the shares of weights, of one device or of the few
  that XLA cuts context and tensor over. `ins` and `outs`: WHOLE, BY_ROWS or shares(axes)."""
  return jax.shard_map(f, mesh=mesh, in_specs=ins, out_specs=outs, axis_names=set(ROWS),
                       check_vma=False)


def shares(axes: Any, mesh) -> Any:
  """How weights of these letters enter and leave `over_rows`: cut as RULES say."""
  cut = lambda axes: tuple(axis for axis in axes if axis in ROWS) or None
  return jax.tree.map(lambda letters: PartitionSpec(*map(cut, axes_of(letters, mesh))), axes)


def gathered(w, letters, part=False):
  """A weight that SHARED cuts, whole; its gradient goes back as shares, summed.

  With `part`, only what `vocabulary` says of its first axis.
  """
  i = next((i for i, letter in enumerate(letters) if RULES.get(letter) == SHARED), None)
  axes = () if i is None else cutting(letters)[i]
  if not axes:
    return w

  def gather(w):
    # One axis after the other, the innermost cut first: over several at once, XLA makes of it the
    # sum of whole arrays that are almost all zero.
    for axis in reversed(axes):
      if part and axis == 'expert':
        w = jax.lax.all_to_all(w, axis, 0, i, tiled=True)
      else:
        w = jax.lax.all_gather(w, axis, axis=i, tiled=True)
    return w

  stored, used = auto_spec(letters, w.shape, RULES), auto_spec(letters, w.shape, ACTIVATIONS)
  return by_hand(gather, (stored,), used)(w)


def vocabulary(V):
  """The tokens [n] whose logits fall to this device where `expert` cuts the head, otherwise None.

  n = V / expert, as so many from each part that tensor cuts V into. Where expert cuts no weights,
  or does not divide the parts, the head is whole.
  """
  experts, tensor = cuts('expert'), cuts('tensor')
  if experts == 1 or 'expert' not in cutting('VD')[1] or V % (experts * tensor):
    return None
  ids = jnp.arange(V).reshape(tensor, experts, -1)
  return ids[:, jax.lax.axis_index('expert')].reshape(-1)


def at_positions(f, x_BT):
  """f(x [B, T, ...]), a collective over ROWS that changes B alone, for each part of T by itself."""
  spec = auto_spec('BT' + ' ' * (x_BT.ndim - 2), x_BT.shape, {'T': ('context', 'tensor')})
  return by_hand(f, (spec,), spec)(x_BT)


def summed(grads: Any, axes: Any) -> Any:
  """Gradients of each device's rows -> of all rows. Along an axis that cuts a weight the sum has
  been made already, where its shares were brought together."""

  def add(letters, x):
    cut = sum(cutting(letters), ())
    over = tuple(axis for axis in ROWS if axis not in cut and cuts(axis) > 1)
    return jax.lax.psum(x.astype(jnp.float32), over).astype(x.dtype) if over else x

  return jax.tree.map(add, axes, grads)


def constrain(x, letters, **more):
  """Tells XLA how it cuts x over context and tensor: by ACTIVATIONS, or for a letter by `more`.

  A size that the mesh axes do not divide, such as the one position of decoding, is whole.
  """
  if not _auto():
    return x
  return jax.lax.with_sharding_constraint(x, auto_spec(letters, x.shape, {**ACTIVATIONS, **more}))


def _auto():
  """The mesh axes along which XLA cuts, here."""
  mesh = jax.sharding.get_abstract_mesh()
  return [axis for axis in AXES[3:] if cuts(axis) > 1 and axis not in mesh.manual_axes]


def auto_spec(letters, shape, rules) -> PartitionSpec:
  """How XLA is to cut an array here; a size that the mesh axes do not divide stays whole."""
  auto, mesh = _auto(), jax.sharding.get_abstract_mesh()

  def cut(axes, size):
    axes = tuple(axis for axis in axes if axis in auto)
    return axes if axes and size % math.prod(mesh.shape[axis] for axis in axes) == 0 else None

  return PartitionSpec(*map(cut, axes_of(letters, mesh, rules), shape))


def by_hand(f, ins, outs):
  """f with what XLA cuts cut by hand instead, as the PartitionSpecs say: for collectives and
  kernels, which XLA would give whole arrays."""
  auto = _auto()
  return jax.shard_map(f, in_specs=ins, out_specs=outs, axis_names=set(auto),
                       check_vma=False) if auto else f


def whole(x):
  """What XLA may have cut over context and tensor, whole on each device."""
  return constrain(x, ' ' * x.ndim)


def cutting(letters) -> list[tuple]:
  """The mesh axes of more than one device that cut each of a weight's letters, here."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return [()] * len(letters)
  return [tuple(axis for axis in axes if cuts(axis) > 1) for axes in axes_of(letters, mesh)]


def cuts(axis) -> int:
  """The size of a mesh axis here; 1 where there is no mesh."""
  return jax.sharding.get_abstract_mesh().shape.get(axis, 1)


def pad_rows(tree: Any, multiple: int) -> Any:
  """Host arrays with their leading axis padded with zeros to a multiple."""
  pad = lambda x: np.concatenate([x, np.zeros((-len(x) % multiple, *x.shape[1:]), x.dtype)])
  return jax.tree.map(lambda x: pad(np.asarray(x)), tree)
