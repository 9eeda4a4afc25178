"""Machines and meshes: what the hardware wants, and which axis letter lives on which mesh axis.

The mesh has three axes. `data` holds copies of the parameters, each working on its own rows; the
loops that use it are written with shard_map, so that a device talks to its copies once an update
and never once a token. `fsdp` and `tensor` cut the parameters and are left to XLA.
"""
import ctypes
import dataclasses
import os
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import numpy as np

from r1jax.types import UserError

RULES = {  # axis letter -> mesh axis; any other letter is replicated
    'D': 'fsdp', 'K': 'tensor', 'H': 'tensor', 'F': 'tensor', 'I': 'tensor', 'M': 'tensor',
    'V': 'tensor',
}  # yapf: disable


@dataclasses.dataclass(frozen=True)
class Machine:
  """What the hardware wants. The maths does not know it; None is the platform's default."""
  data: int = -1  # copies of the parameters, -1: as many as the devices allow
  fsdp: int = 1  # devices that share one copy, cut along the model axis
  tensor: int = 1  # devices that share one copy, cut along heads, ffn and vocabulary
  cpu_devices: int | None = None  # virtual CPU devices, one a core by default
  unroll: bool | None = None  # layers one by one (small models on CPU) or scanned
  micro_rows: int | None = None  # completions, or packed rows, a device trains on at once
  sample_rows: int | None = None  # completions a call samples, over all devices
  pieces: int | None = None  # the sampling loop's cache grows in so many pieces
  remat: bool | None = None  # recompute a layer's activations in the backward pass
  logp_chunk: int | None = None  # positions whose logits are held at once, 0: all
  dtype: str = 'float32'  # of activations and matrix products
  param_dtype: str = 'float32'  # of parameters in memory; bfloat16 for those that no update changes


DEFAULTS = {
    'cpu': dict(unroll=True, micro_rows=8, sample_rows=512, pieces=4, remat=False, logp_chunk=0),
    'gpu': dict(unroll=False, micro_rows=8, sample_rows=512, pieces=4, remat=True, logp_chunk=1024),
    'tpu': dict(unroll=False, micro_rows=8, sample_rows=512, pieces=4, remat=True, logp_chunk=1024),
}


def start(machine: Machine) -> tuple[Machine, jax.sharding.Mesh]:
  """Readies the process: virtual CPU devices, allocator, mesh. Call before any other use of jax.

  Returns the machine with every None filled in, and the mesh. Raises UserError where the mesh
  does not fit the devices.
  """
  cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
  cpu_devices = machine.cpu_devices or max(1, cores)
  try:
    jax.config.update('jax_num_cpu_devices', cpu_devices)
  except RuntimeError:  # devices exist already (tests, notebooks): use those
    pass
  platform = jax.devices()[0].platform
  if platform == 'cpu':
    keep_freed_memory()
  defaults = DEFAULTS[platform]
  machine = dataclasses.replace(
      machine, cpu_devices=cpu_devices,
      **{k: v for k, v in defaults.items() if getattr(machine, k) is None})
  return machine, make_mesh(machine)


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


def make_mesh(machine: Machine) -> jax.sharding.Mesh:
  """The mesh [data, fsdp, tensor] over all devices. Raises UserError where they do not divide."""
  n, copy = jax.device_count(), machine.fsdp * machine.tensor
  data = n // max(1, copy) if machine.data == -1 else machine.data
  whole = machine.data != -1 or data * copy == n
  if min(data, machine.fsdp, machine.tensor) < 1 or data * copy > n or not whole:
    raise UserError(f'the mesh data={machine.data} x fsdp={machine.fsdp} x tensor={machine.tensor} '
                    f'does not fit {n} devices: choose sizes whose product is {n}')
  return jax.make_mesh((data, machine.fsdp, machine.tensor), ('data', 'fsdp', 'tensor'),
                       axis_types=(AxisType.Auto,) * 3, devices=jax.devices()[:data * copy])


def spec(letters, shape, mesh) -> PartitionSpec:
  """PartitionSpec for axis letters; raises UserError where a mesh axis does not divide a size."""
  out = []
  for letter, size in zip(letters, shape, strict=True):
    axis = RULES.get(letter)
    if axis and size % mesh.shape[axis]:
      raise UserError(f'axis {letter} has size {size}, which the mesh axis {axis} of '
                      f'{mesh.shape[axis]} devices does not divide: choose another mesh')
    out.append(axis)
  return PartitionSpec(*out)


def shardings(axes: Any, shapes: Any, mesh) -> Any:
  """A tree of NamedSharding, from a tree of axis letters and a tree of shapes."""
  return jax.tree.map(lambda x, letters: NamedSharding(mesh, spec(letters, x.shape, mesh)), shapes,
                      axes)


def replicated(mesh) -> NamedSharding:
  """The sharding of an array that every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def put_rows(tree: Any, mesh) -> Any:
  """Host arrays -> device arrays whose leading axis is spread over `data`."""
  return jax.device_put(tree, NamedSharding(mesh, PartitionSpec('data')))


def over_data(f, mesh, in_rows, out_rows):
  """shard_map over `data` alone: True marks an argument or result whose leading axis is rows."""
  side = lambda rows: PartitionSpec('data') if rows else PartitionSpec()
  return jax.shard_map(f, mesh=mesh, in_specs=tuple(map(side, in_rows)),
                       out_specs=jax.tree.map(side, out_rows), axis_names={'data'}, check_vma=False)


def pad_rows(tree: Any, multiple: int) -> Any:
  """Host arrays with their leading axis padded with zeros to a multiple."""
  pad = lambda x: np.concatenate([x, np.zeros((-len(x) % multiple, *x.shape[1:]), x.dtype)])
  return jax.tree.map(lambda x: pad(np.asarray(x)), tree)


def whole(x):
  """What XLA may have cut along fsdp and tensor, whole on each device; elsewhere as it is."""
  mesh = jax.sharding.get_abstract_mesh()
  cut = [axis for axis, size in mesh.shape.items() if axis != 'data' and size > 1]
  return jax.lax.with_sharding_constraint(x, PartitionSpec()) if cut else x
