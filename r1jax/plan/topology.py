"""Devices that are not here: chips, their numbers, and compiling for many of them on a CPU.

libtpu (the extra `plan`) compiles for TPUs, jax's CUDA plugin for GPUs; neither needs the device.
"""
import importlib.util
import math
import os
import re
from typing import NamedTuple

import jax
from jax.experimental import topologies

from r1jax.sharding import GPU_SHARE
from r1jax.types import UserError

GIB = 2**30


class Chip(NamedTuple):
  """What one device (of jax's) has. FLOP/s are those of dense bfloat16 matrix products."""
  limit: int  # bytes of memory that a program may take
  flops: float  # a second
  bandwidth: float  # of the memory, bytes a second
  options: dict = {}  # of a TPU's topology


# TPUs: https://cloud.google.com/tpu/docs/v4 (and v5e, v5p, v6e, tpu7x); limits are those that
# libtpu's compiler enforces. A device of v4 is a chip (megacore), of tpu7x half a chip.
# GPUs: NVIDIA's data sheets of H100 SXM and H200, without sparsity; limits are the share that a run
# takes (sharding.GPU_SHARE) of what the driver shows, 81,559 and 143,771 MiB.
CHIPS = {
    'v4': Chip(int(30.75 * GIB), 275e12, 1228e9, {'chip_config_name': 'megacore'}),
    'v5e': Chip(int(15.75 * GIB), 197e12, 819e9),
    'v5p': Chip(int(95.74 * GIB), 459e12, 2765e9),
    'v6e': Chip(int(31.25 * GIB), 918e12, 1638e9),
    'tpu7x': Chip(int(94.75 * GIB), 2307e12 / 2, 7380e9 / 2),
    'h100': Chip(int(GPU_SHARE * 81_559 * 2**20), 989e12, 3350e9),
    'h200': Chip(int(GPU_SHARE * 143_771 * 2**20), 989e12, 4800e9),
}

# What XLA wants to know of a GPU of compute capability 9.0: the limits of CUDA's programming guide
# (table "Technical Specifications per Compute Capability") and of H100's data sheet.
HOPPER = '''
gpu_device_info {{
  cuda_compute_capability {{ major: 9 minor: 0 }}
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98 threads_per_warp: 32
  threads_per_block_limit: 1024 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472 registers_per_core_limit: 65536 registers_per_block_limit: 65536
  l2_cache_size: 52428800 memory_bandwidth: {bandwidth} device_memory_size: {size}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
'''


class Topology(NamedTuple):
  """Devices to compile for."""
  name: str
  chip: Chip
  devices: list
  platform: str  # 'tpu' or 'gpu'


def describe(name: str) -> Topology:
  """The devices of a name: CHIP:SHAPE of a TPU, as v5p:8x8x8, or CHIP:COUNT of a GPU, as h100:64
  (eight a host). UserError where there is no such thing, or what compiles for it is not installed.
  """
  kind, _, shape = name.partition(':')
  if kind not in CHIPS or not re.fullmatch(r'\d+(x\d+)*', shape):
    raise UserError(f'there is no topology {name!r}: write CHIP:SHAPE, as v5p:4x4x4 or h100:64, '
                    f'with a chip of {", ".join(CHIPS)}')
  chip = CHIPS[kind]
  if kind.startswith('h'):
    return Topology(name, chip, _gpus(name, chip, shape), 'gpu')
  if not importlib.util.find_spec('libtpu'):
    raise UserError('planning for TPUs needs libtpu: .venv/bin/pip install -e ".[plan]"')
  quiet_libtpu()
  try:
    options = dict(chip.options)
    if shape == '1x1':
      options['chips_per_host_bounds'] = (1, 1, 1)
    found = topologies.get_topology_desc(name, 'tpu', **options)
  except jax.errors.JaxRuntimeError as error:
    said = str(error).splitlines()[0]
    raise UserError(f'there is no topology {name}: {said}') from error
  return Topology(name, chip, list(found.devices), 'tpu')


def _gpus(name, chip, count):
  if not count.isdigit() or int(count) > 8 and int(count) % 8:
    raise UserError(f'{name}: write a number of GPUs, up to 8 or a multiple of 8')
  hosts, local = max(1, int(count) // 8), min(8, int(count))
  target = HOPPER.format(bandwidth=int(chip.bandwidth), size=int(chip.limit / GPU_SHARE))
  try:
    found = topologies.get_topology_desc(platform='cuda', target_config=target,
                                         topology=f'1x{hosts}x{local}')
  except NotImplementedError as error:
    raise UserError('planning for GPUs needs jax\'s CUDA plugin: pip install jax-cuda13-plugin '
                    'jax-cuda13-pjrt, of the version of jax') from error
  return list(found.devices)


def quiet_libtpu():
  """Tells libtpu, before it is loaded, that there is no TPU to look for, and that other processes
  may compile, too."""
  settings = dict(TPU_SKIP_MDS_QUERY='1', ALLOW_MULTIPLE_LIBTPU_LOAD='1',
                  TPU_WORKER_HOSTNAMES='localhost', TPU_ACCELERATOR_TYPE='v5litepod-16')
  for name, value in settings.items():
    os.environ.setdefault(name, value)


class OutOfMemory(Exception):
  """A program takes more memory than there is: `bytes`."""

  def __init__(self, said):
    super().__init__(said)
    self.bytes = used_bytes(said)


def compile_for(topology: Topology, function, args):
  """The compiled program of a jitted function for abstract arguments that have shardings.

  Raises OutOfMemory where the compiler does; a GPU's never does.
  """
  platform = dict(tpu='tpu', gpu='cuda')[topology.platform]
  lowered = function.trace(*args).lower(lowering_platforms=(platform,))
  least = jax.config.jax_persistent_cache_min_compile_time_secs
  try:
    # jax's cache on disk takes a program for devices that are not there, and cannot give it back.
    jax.config.update('jax_persistent_cache_min_compile_time_secs', math.inf)
    return lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error) or not used_bytes(str(error)):
      raise
    raise OutOfMemory(str(error)) from error
  finally:
    jax.config.update('jax_persistent_cache_min_compile_time_secs', least)


def used_bytes(said: str) -> int:
  """What a compiler's message about memory says that the program would take, in bytes; else 0."""
  units = dict(K=2**10, M=2**20, G=2**30, T=2**40)
  found = (re.search(r'\(([\d.]+)([KMGT])\) exceeds available', said) or
           re.search(r'[Uu]sed ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm', said))
  return int(float(found[1]) * units[found[2]]) if found else 0
