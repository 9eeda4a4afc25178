"""Eight virtual CPU devices, ranks that must agree, and compiled programs kept between runs.

What is set in the environment holds for the processes that tests start, too.
"""
import functools
import os
from pathlib import Path
import subprocess
import sys

ROOT = Path(__file__).parents[1]
EXPERIMENT = ROOT / 'tests/experiment.py'
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ['JAX_COMPILATION_CACHE_DIR'] = str(ROOT / '.jax_cache')
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
# What a test runs takes milliseconds, and compiling it takes seconds.
os.environ['XLA_FLAGS'] = os.environ.get('XLA_FLAGS', '') + ' --xla_backend_optimization_level=0'
os.environ['JAX_NUMPY_RANK_PROMOTION'] = 'raise'

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

from r1jax import model as model_lib  # noqa: E402
from r1jax.sharding import Machine  # noqa: E402

jax.config.update('jax_num_cpu_devices', 8)
jax.devices()  # from here on nothing can change their number


@pytest.fixture(scope='session')
def tiny():
  """unroll, remat, dtype, fields of model.Config -> (model, params): small, none 0 or 1."""

  @functools.cache
  def make(unroll=True, remat=False, dtype='float32', **fields):
    sizes = dict(V=38, L=2, D=32, H=4, K=2, W=8, F=24)
    model = model_lib.make(model_lib.Config(**{**sizes, **fields}),
                           Machine(unroll=unroll, remat=remat, dtype=dtype))
    rng = np.random.default_rng(0)  # drawn here, since compiling model.init takes seconds
    centre = lambda path: float(path[-1].key.endswith('norm'))
    draw = lambda path, x: np.float32(centre(path) + rng.normal(0, 0.3, x.shape))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return model, jax.tree.map(jnp.asarray, jax.tree.map_with_path(draw, shapes))

  return make


@pytest.fixture(scope='session')
def start():
  """Arguments -> a running `python -m r1jax`, with its output as text."""

  def popen(*args, cwd):
    env = {**os.environ, 'PYTHONPATH': str(ROOT)}
    return subprocess.Popen([sys.executable, '-m', 'r1jax', *map(str, args)], cwd=cwd, env=env,
                            text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

  return popen


@pytest.fixture(scope='session')
def finished(start, tmp_path_factory):
  """The folder in which `run tests/experiment.py --out out` has ended. To be read only."""
  folder = tmp_path_factory.mktemp('finished')
  process = start('run', EXPERIMENT, '--out', 'out', cwd=folder)
  out, err = process.communicate()
  assert process.returncode == 0 and 'Traceback' not in err, err
  assert out.splitlines()[-1].startswith('result {')
  return folder
