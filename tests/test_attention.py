"""Attention: every path against float64, over a mesh, compiled for accelerators, and in memory."""
from functools import partial
import importlib.util
import os
from pathlib import Path
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax import model as model_lib
from r1jax import sharding
from r1jax.losses import cross_entropy
from r1jax.model import attention
from r1jax.model.attention import Places
from r1jax.model.mla import MLA
from r1jax.sharding import Machine
from r1jax.types import KV, Past, Rows, UserError

ROOT = Path(__file__).parents[1]
close = np.testing.assert_allclose
PATHS = {**attention.PATHS, 'splash': partial(attention.splash, interpret=True)}


def reference(q, k, v, seen, scale, cap, up):
  """float64 [B, T, K, R, O], and the gradients of its product with `up` in q, k and v.

  q [B, T, K, R, W], k [B, K, W, S], v [B, K, S, O], seen [B, T, S].
  """
  s = scale * np.einsum('BTKRW,BKWS->BKRTS', q, k)
  slope = scale
  if cap:
    s = cap * np.tanh(s / cap)
    slope = scale * (1 - (s / cap)**2)
  w = np.where(seen[:, None, None], np.exp(s - s.max(axis=-1, keepdims=True)), 0)
  w /= w.sum(axis=-1, keepdims=True)
  dw = np.einsum('BTKRO,BKSO->BKRTS', up, v)
  ds = slope * w * (dw - (w * dw).sum(axis=-1, keepdims=True))
  return (np.einsum('BKRTS,BKSO->BTKRO', w, v), np.einsum('BKRTS,BKWS->BTKRW', ds, k),
          np.einsum('BKRTS,BTKRW->BKWS', ds, q), np.einsum('BKRTS,BTKRO->BKSO', w, up))


def draw(B=2, T=150, K=2, R=2, W=8, O=8, S=0, rows=1, packed=False):  # noqa: E741
  """Queries, KV, Places and a past of S slots, and the [B, T, S + T] that no window limits."""
  rng = np.random.default_rng(0)
  normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  q, kv = normal(B, T, K, R, W), KV(normal(B, K, W, T), normal(B, K, T, O))
  index = np.arange(T)[None]
  seen = np.broadcast_to(np.tril(np.ones((T, T), bool)), (B, T, T))
  segments, past = None, []
  if packed:  # documents end in other places in each row, and padding follows
    segments = np.stack([
        np.searchsorted([40, 41, 140], index[0], 'right') + 1,
        np.searchsorted([100], index[0], 'right') + 1
    ]).astype(np.int32)
    segments[0, 145:] = 0
    seen = seen & (segments[:, :, None] == segments[:, None])
  if S:
    lengths = np.arange(S - rows + 1, S + 1)[:, None]  # the slots after them show nothing
    mask = np.arange(S)[None] < lengths
    past = [Past(KV(normal(rows, K, W, S), normal(rows, K, S, O)), mask, np.arange(S)[None])]
    index = np.repeat(lengths, B // rows, axis=0) + index
    shown = np.broadcast_to(np.repeat(mask, B // rows, axis=0)[:, None], (B, T, S))
    seen = np.concatenate([shown, seen], axis=-1)
  places = Places(np.arange(T)[None], index, segments)
  return q, kv, jax.tree.map(jnp.asarray, places), jax.tree.map(jnp.asarray, past), seen


CASES = {  # name: (sizes, cap, window)
    'packed': (dict(packed=True), 0.0, None),
    'packed, capped, window': (dict(packed=True), 1.5, 20),
    'prompts of two rows': (dict(B=4, S=140, rows=2), 0.0, None),
    'one prompt, window': (dict(S=21, rows=1), 0.0, 20),
    'latent': (dict(K=3, R=1, W=16), 0.0, None),
}


def expected(q, kv, places, past, seen, scale, cap, window, up):
  """The reference's value, and gradients in q, kv and each past's KV."""
  B, rows = len(q), [p.kv.k.shape[0] for p in past]
  many = lambda x: np.repeat(np.float64(x), B // len(x), axis=0)
  k = np.concatenate([*(many(p.kv.k) for p in past), np.float64(kv.k)], axis=-1)
  v = np.concatenate([*(many(p.kv.v) for p in past), np.float64(kv.v)], axis=-2)
  if window:
    at = np.broadcast_to(places.positions_BT, (B, q.shape[1]))
    of = [np.broadcast_to(p.positions_PS, (B, p.mask_PS.shape[1])) for p in past]
    seen = seen & (at[:, :, None] - np.concatenate([*of, at], axis=1)[:, None] < window)
  value, dq, dk, dv = reference(np.float64(q), k, v, seen, scale, cap, up)
  S = k.shape[-1] - q.shape[1]
  served = lambda x, P: x.reshape(P, B // P, *x.shape[1:]).sum(axis=1)
  return value, (dq, KV(dk[..., S:], dv[:, :, S:]),
                 [KV(served(dk[..., :S], P), served(dv[:, :, :S], P)) for P in rows])


def with_gradients(attend, q, kv, places, past, scale, cap, window, up):
  """(value, gradients) as `expected` has them."""

  def value(q, kv, past_kv):
    looked_at = [p._replace(kv=kv) for p, kv in zip(past, past_kv)]
    out = attend(q, kv, places, looked_at, scale, cap, (window,))
    return (out * up).sum(), out

  grads, out = jax.jit(jax.grad(value, (0, 1, 2), has_aux=True))(q, kv, [p.kv for p in past])
  return out, grads


def agree(got, want, atol=1e-5):
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    close(np.float64(a), b, atol=atol)


def up_for(q, kv):
  return np.random.default_rng(1).normal(size=(*q.shape[:4], kv.v.shape[-1]))


NAMES = [
    'einsum', 'splash',
    pytest.param(
        'cudnn', marks=pytest.mark.skipif(jax.default_backend() != 'gpu',
                                          reason='cuDNN is run on GPUs: JAX_PLATFORMS=cuda'))
]


@pytest.fixture
def small_tiles(monkeypatch):
  monkeypatch.setattr(attention, 'TILE', 128)


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('case', CASES)
def test_paths_are_attention(case, name, small_tiles):
  sizes, cap, window = CASES[case]
  q, kv, places, past, seen = draw(**sizes)
  how = 0.3, cap * (name != 'cudnn'), window, up_for(q, kv)
  want = expected(q, kv, places, past, seen, *how)
  if name == 'cudnn':  # which has no caps and no float32
    q, kv, past = jax.tree.map(lambda x: x.astype(jnp.bfloat16)
                               if x.dtype == jnp.float32 else x, (q, kv, past))
  got = with_gradients(partial(attention.attend, PATHS[name], 64), q, kv, places, past, *how)
  agree(got, want, atol=3e-2 if name == 'cudnn' else 1e-5)


@pytest.fixture(scope='session')
def mesh():
  if jax.device_count() < 8:
    pytest.skip('this mesh has 8 devices')
  return sharding.make_mesh(Machine(data=2, context=2, tensor=2), jax.devices()[:8])


@pytest.mark.parametrize('name', ['einsum', 'splash'])
@pytest.mark.parametrize('case', ['packed', 'prompts of two rows'])
def test_heads_and_queries_are_cut_over_a_mesh(case, name, mesh, monkeypatch):
  sizes, cap, window = CASES[case]
  q, kv, places, past, seen = draw(**sizes)
  up = jnp.asarray(up_for(q, kv), jnp.float32)
  shapes, einsum = set(), attention.einsum
  monkeypatch.setattr(attention, 'einsum', lambda q, *how: shapes.add(q.shape) or einsum(q, *how))

  def body(q, kv, places, past, up):
    attend = partial(attention.attend, PATHS[name], 64)
    return with_gradients(attend, q, kv, places, past, 0.3, cap, window, up)

  rows = lambda x: sharding.BY_ROWS if len(x) > 1 else sharding.WHOLE
  ins = jax.tree.map(rows, (q, kv, places, past, up))
  got = jax.jit(sharding.over_rows(body, mesh, ins, sharding.BY_ROWS))(q, kv, places, past, up)
  agree(got, expected(q, kv, places, past, seen, 0.3, cap, window, up))
  assert shapes == ({(len(q) // 2, 64, 1, 2, 8)} if name == 'einsum' else set())


@pytest.mark.parametrize('fields', [
    dict(window=20, windowed=(1,)),
    dict(K=4, W=12, mla=MLA(Q=None, Z=8, A=8, J=4, O=8)),
], ids=['windowed', 'latent'])
def test_a_model_over_a_mesh_is_the_model(fields, tiny, mesh, monkeypatch):
  monkeypatch.setitem(attention.PATHS, 'splash', PATHS['splash'])
  plain, params = tiny(**fields)
  there = model_lib.make(plain.config, Machine(unroll=False, remat=True, attention='splash'))
  rng = np.random.default_rng(2)
  segments = np.sort(rng.integers(1, 4, (2, 148)), axis=1).astype(np.int32)
  rows = Rows(rng.integers(0, 38, (2, 148)).astype(np.int32), segments,
              rng.random((2, 148), np.float32) / 100)  # yapf: disable

  def gradients(model, params, rows):
    loss = lambda params: cross_entropy(model, model.split(params), rows)[0].sum()
    return jax.grad(loss)(params)

  def by_device(params, rows):
    return sharding.summed(gradients(there, params, rows), there.axes())

  over_rows = sharding.over_rows(by_device, mesh, (sharding.WHOLE, sharding.BY_ROWS),
                                 sharding.WHOLE)
  want = jax.jit(partial(gradients, plain))(params, rows)
  agree(jax.jit(over_rows)(params, rows), want)


def test_chunks_hold_a_small_share_of_the_scores():
  q, kv, places, _, _ = draw(B=1, T=4096)
  loss = lambda chunk, q, kv: attention.attend(PATHS['einsum'], chunk, q, kv, places, [], 0.3).sum()
  need = lambda chunk: jax.jit(jax.grad(partial(loss, chunk), (0, 1))).lower(q, kv).compile(
  ).memory_analysis().temp_size_in_bytes
  assert need(0) > 4 * 4 * 4096**2  # float32 scores of four heads
  assert need(128) < need(0) / 16


def test_what_cannot_be_is_refused():
  choose = lambda name, dtype='bfloat16', cap=0.0: attention.choose(
      SimpleNamespace(attn_cap=cap), Machine(attention=name, dtype=dtype))
  with pytest.raises(UserError, match='no attention flash: choose one of einsum, splash, cudnn'):
    choose('flash')
  with pytest.raises(UserError, match='cannot do dtype float32: choose'):
    choose('cudnn', 'float32')
  with pytest.raises(UserError, match='cannot do a soft cap'):
    choose('cudnn', cap=50.0)
  q, kv, places, past, _ = draw(T=16)
  if jax.default_backend() == 'cpu':
    with pytest.raises(UserError, match='cannot be had here .*: choose .* einsum'):
      choose('cudnn')(q, kv, places, past, 0.3)


COMPILE = '''
import sys
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from r1jax.model import attention
from r1jax.plan.topology import describe
from r1jax.sharding import BY_ROWS, Machine, make_mesh, over_rows
from r1jax.types import KV, Past

path, topology, W, kernel = sys.argv[1:]
found = describe(topology)
mesh = make_mesh(Machine(context=2, tensor=2), found.devices)
B, T, K, R, W, O, S = 2, 1024, 2, 4, int(W), 128, 200

def step(q, kv, past_kv, mask):
  at = jnp.arange(T)[None]

  def loss(q, kv, past_kv):
    out = attention.attend(attention.PATHS[path], 512, q, kv, attention.Places(at, at),
                           [Past(past_kv, mask)], 0.1)
    return out.astype(jnp.float32).sum()

  return jax.grad(loss, (0, 1, 2))(q, kv, past_kv)

rows = NamedSharding(mesh, BY_ROWS)
array = lambda *shape, dtype=jnp.bfloat16: jax.ShapeDtypeStruct(shape, dtype, sharding=rows)
args = (array(B, T, K, R, W), KV(array(B, K, W, T), array(B, K, T, O)),
        KV(array(1, K, W, S), array(1, K, S, O)), array(1, S, dtype=bool))
traced = jax.jit(over_rows(step, mesh, BY_ROWS, BY_ROWS)).trace(*args)
platform = {'gpu': 'cuda'}.get(found.platform, found.platform)
print(traced.lower(lowering_platforms=(platform,)).compile().as_text().count(kernel))
'''


def needs(*packages):
  there = all(map(importlib.util.find_spec, packages))
  return pytest.mark.skipif(not there, reason=f'compiles with {", ".join(packages)}')


@pytest.mark.parametrize('path, topology, W, kernel, count', [
    pytest.param('splash', 'v5e:2x2', 192, 'tpu_custom_call', 3, marks=needs('libtpu')),
    pytest.param('cudnn', 'h100:4', 128, '__cudnn$fmhaScaleBiasSoftmax', 2,
                 marks=needs('jax_cuda13_plugin', 'nvidia', 'nvidia.cudnn')),
], ids=['splash', 'cudnn'])  # yapf: disable
def test_kernels_compile_for_what_they_are_for(path, topology, W, kernel, count):
  done = subprocess.run([sys.executable, '-c', COMPILE, path, topology,
                         str(W), kernel], text=True, env={**os.environ, 'PYTHONPATH': str(ROOT)},
                        capture_output=True, check=False)
  # Forward, and backward: splash has one of q, and one of k and v.
  assert done.stdout.strip() == str(count), done.stderr
