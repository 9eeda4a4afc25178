"""What a machine may ask of its devices: meshes that fit, and sentences for those that do not."""
from types import SimpleNamespace

import jax
import pytest

from r1jax import sharding
from r1jax.sharding import Machine
from r1jax.types import UserError


@pytest.mark.parametrize('platform, hosts, fields, said', [
    ('gpu', 1, dict(sample_devices=4), 'sample_devices is 4 of 4 devices: leave'),
    ('tpu', 2, dict(sample_devices=1), 'sample_devices are for one process'),
    ('cpu', 1, dict(dtype='bfloat16', tensor=2), 'in which XLA fails on CPUs'),
    ('cpu', 1, dict(attention='splash'), 'attention splash is for a TPU, and this is a CPU'),
    ('tpu', 1, dict(attention='cudnn'), 'attention cudnn is for a GPU, and this is a TPU'),
])  # yapf: disable
def test_what_these_devices_cannot_do_is_a_sentence(platform, hosts, fields, said):
  devices = [SimpleNamespace(process_index=i % hosts) for i in range(4)]
  with pytest.raises(UserError, match=said):
    sharding.check(Machine(**fields), platform, devices)
  sharding.check(sharding.fill(Machine(), platform), platform, devices)


def test_sizes_that_do_not_divide_are_named():
  with pytest.raises(UserError, match='data=-1 x fsdp=3 x .* does not fit 8 devices'):
    sharding.make_mesh(Machine(fsdp=3))
  mesh = sharding.make_mesh(Machine(fsdp=4, tensor=2))
  with pytest.raises(UserError, match='axis K has size 3, which the 2 devices of the mesh'):
    sharding.spec('DK', (8, 3), mesh)
  with pytest.raises(UserError, match='expert=1 x tensor=3 does not divide its 8 devices'):
    sharding.sampling_mesh(Machine(sample_tensor=3), mesh)


def test_devices_may_be_left_over_in_one_process():
  used = sharding.make_mesh(Machine(data=1, fsdp=3))
  assert list(used.devices.flat) == jax.devices()[:3]
  apart = Machine(fsdp=2, sample_devices=2)
  training = sharding.make_mesh(apart)
  assert list(training.devices.flat) == jax.devices()[:6] and training.shape['data'] == 3
  assert list(sharding.sampling_mesh(apart, training).devices.flat) == jax.devices()[6:]
