"""Hugging Face folders: the same logits as transformers, and the same bytes back."""
import dataclasses
import functools
import os
from pathlib import Path
import runpy
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from r1jax import sharding, tokenizer
from r1jax.model import hf, hf_config, hf_files, make, moe, rope
from r1jax.sharding import Machine
from r1jax.types import UserError

ROOT = Path(__file__).parents[1]
FIXTURES = ROOT / 'tests/fixtures'
DATA = Path(os.environ.get('R1JAX_DATA') or ROOT.parent / 'shared/data').absolute() / 'models'
PARITY = runpy.run_path(str(ROOT / 'benchmarks/parity.py'))
NAMES = list(PARITY['FAMILIES'])
UNROLLED = ['gemma3']
bfloat16 = ml_dtypes.bfloat16


def tensors_of(folder):
  """Every tensor of a folder, by name."""
  return {name: np.array(x) for name, x in hf_files.open_tensors(folder).items()}


@functools.cache
def load(name):
  """A fixture's config and parameters."""
  cfg = hf.read_config(FIXTURES / name)
  return cfg, hf.load_params(FIXTURES / name, cfg)


@pytest.mark.parametrize('name, unroll', [*((name, False) for name in NAMES),
                                          *((name, True) for name in UNROLLED)])  # yapf: disable
def test_logits_and_greedy_text_are_those_of_transformers(name, unroll):
  got = PARITY['measure'](FIXTURES / name, FIXTURES / name / 'ref.npz', unroll)
  # Transformers in float32 differs as much from itself in float64.
  assert got.padded < 3e-5 and got.cached < 3e-5 and got.greedy


def test_every_family_has_a_fixture():
  families = {hf_files.read_json(FIXTURES / name / 'config.json')['model_type'] for name in NAMES}
  assert families == set(hf_config.FAMILIES)


SWITCHES = [  # fixture, a field of its config that is set to what another family has
    ('llama3', dict(rope=rope.Default(10000.0))),
    ('yarn', dict(rope=rope.Default(100.0))),
    ('mistral', dict(window=12)),
    ('smollm3', dict(unrotated=())),
    ('gemma2', dict(attn_cap=0.0)),
    ('gemma2', dict(logit_cap=0.0)),
    ('gemma3', dict(rope_windowed=None)),
    ('olmo3', dict(windowed=())),
    ('deepseek_v2', dict(attn_scale=None)),
    ('deepseek_v2_groups', dict(groups=1)),
    ('deepseek_v3', dict(bias=False)),
    ('deepseek_v3', dict(group_score=moe.best)),
]


@pytest.mark.parametrize('name, change', SWITCHES, ids=lambda x: x if isinstance(x, str) else [*x])
def test_the_references_depend_on_what_the_families_differ_in(name, change):
  cfg, params = load(name)
  ref = np.load(FIXTURES / name / 'ref.npz')
  if hasattr(cfg, *change):
    cfg = dataclasses.replace(cfg, **change)
  else:
    cfg = dataclasses.replace(cfg, moe=dataclasses.replace(cfg.moe, **change))
  model, ids = make(cfg, Machine(unroll=False, remat=False)), ref['ids'][:1]
  positions = jnp.arange(ids.shape[1])[None]
  got = jax.jit(lambda p: model.logits(p, model.apply(p, ids, positions)[0]))(params)
  assert np.abs(got - ref['logits'][:1]).max() > 0.1


@pytest.mark.parametrize('name', NAMES)
def test_saving_gives_back_the_tensors_of_the_file(name, tmp_path):
  cfg, params = load(name)
  want = tensors_of(FIXTURES / name)
  for shard_bytes in (5e9, 20e3):
    hf.save_params(tmp_path, cfg, params, shard_bytes)
    got = tensors_of(tmp_path)
    assert sorted(got) == [key for key in sorted(want) if not key.endswith('_scale_inv')]
    for key, x in got.items():
      numbers = want[key].astype(np.float32)
      if f'{key}_scale_inv' in want:
        scales = want[f'{key}_scale_inv'].repeat(128, 0).repeat(128, 1)
        numbers *= scales[:x.shape[0], :x.shape[1]]
      np.testing.assert_array_equal(x, numbers, strict=True)
  assert not list(tmp_path.glob('*.part'))
  assert len(list(tmp_path.glob('*.safetensors'))) > 1


def test_scales_of_float8_belong_to_blocks_of_128():
  rng = np.random.default_rng(0)
  f8 = rng.uniform(-400, 400, (300, 260)).astype(ml_dtypes.float8_e4m3fn)
  scales = rng.uniform(1, 2, (3, 3)).astype(np.float32)
  stored = {'w': f8, 'w_scale_inv': scales}
  for rows, columns in [(slice(0, 300), slice(0, 260)), (slice(120, 290), slice(255, 257))]:
    got = hf._numbers(stored, 'w', (rows, columns))
    for i, row in enumerate(range(300)[rows]):
      for j, column in enumerate(range(260)[columns]):
        assert got[i, j] == np.float32(f8[row, column]) * scales[row // 128, column // 128]


def test_layers_for_further_tokens_are_kept_but_for_their_copies():
  _, params = load('deepseek_r1')
  want = tensors_of(FIXTURES / 'deepseek_r1')
  project = want['model.layers.3.eh_proj.weight'].astype(np.float32)
  np.testing.assert_array_equal(params['mtp']['project'][0, 0], project[:, :32].T)  # embedding
  np.testing.assert_array_equal(params['mtp']['project'][0, 1], project[:, 32:].T)  # hidden state
  assert params['mtp']['experts_down'].shape == (1, 8, 8, 32)


def test_a_folder_that_has_lost_those_layers_is_read_without_them():
  config = hf_files.read_json(FIXTURES / 'deepseek_v3/config.json')
  assert config['num_nextn_predict_layers'] == 1  # as transformers writes it
  assert hf.read_config(FIXTURES / 'deepseek_v3').mtp == 0


@pytest.mark.parametrize('name', ['qwen2', 'gemma2', 'deepseek_r1'])
def test_bfloat16_comes_back_as_the_same_bytes(name, tmp_path):
  cfg, params = load(name)
  hf.save_params(tmp_path / 'once', cfg, params, dtype='bfloat16')
  stored = tensors_of(tmp_path / 'once')
  halves = hf.load_params(tmp_path / 'once', cfg, dtype='bfloat16')
  hf.save_params(tmp_path / 'twice', cfg, halves, dtype='bfloat16')
  once, twice = (tmp_path / way / 'model.safetensors' for way in ('once', 'twice'))
  assert once.read_bytes() == twice.read_bytes()
  exact = {key for key in stored if key.endswith('e_score_correction_bias')}
  assert {key for key, x in stored.items() if x.dtype != bfloat16} == exact
  assert halves['layers']['o'].dtype == halves['embed'].dtype == bfloat16
  np.testing.assert_array_equal(halves['layers']['o'], params['layers']['o'].astype(bfloat16))
  if exact:
    assert halves['layers']['router_bias'].dtype == np.float32


def test_saving_again_leaves_nothing_of_the_model_before(tmp_path):
  cfg, params = load('yarn')
  hf.save_params(tmp_path, cfg, params, max_shard_bytes=20e3)
  hf.save_params(tmp_path, cfg, params)
  assert [path.name for path in tmp_path.iterdir()] == ['model.safetensors']


@pytest.mark.parametrize('name', ['qwen2', 'gemma2', 'olmo2', 'deepseek_v2', 'deepseek_r1'])
def test_the_tree_is_that_of_init(name):
  cfg, loaded = load(name)
  shapes = jax.eval_shape(make(cfg).init, jax.random.key(0))
  described = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
  assert described(loaded) == described(shapes)


@pytest.mark.parametrize('name', ['qwen2', 'llama3', 'olmo2', 'deepseek_v3'])
def test_each_piece_of_a_weight_is_read_alone(name):
  cfg, params = load(name)
  axes, asked = make(cfg).axes(), []

  class Slices:
    """A tensor of the file that notes how much of it is asked for."""

    def __init__(self, x):
      self.x = x

    def __getitem__(self, cuts):
      asked.append(self.x[cuts].size)
      return self.x[cuts]

  stored = {key: Slices(x) for key, x in tensors_of(FIXTURES / name).items()}
  tensors = hf._tensors(cfg, axes)

  def read(ours, shape, **cut):
    box = {x: range(n) for x, n in zip(axes['layers'][ours], shape)} | cut
    out = np.empty([len(r) for r in box.values()], np.float32)
    for tensor in tensors['layers', ours]:
      hf._read(tensor, stored, box, out)
    return out, tuple(slice(r.start, r.stop) for r in box.values())

  for ours, whole in params['layers'].items():
    for letter in [x for x in 'LDKFHEQVIM' if x in axes['layers'][ours]]:
      n = whole.shape[axes['layers'][ours].index(letter)]
      asked.clear()
      got, cuts = read(ours, whole.shape, **{letter: range(n // 2, n)})
      np.testing.assert_array_equal(got, whole[cuts])
      assert sum(asked) == got.size, (ours, letter)
    last = {x: range(n - 1, n) for x, n in zip(axes['layers'][ours], whole.shape)}
    assert read(ours, whole.shape, **last)[0].item() == whole.ravel()[-1]


@pytest.mark.parametrize('name', ['llama3', 'deepseek_r1'])
def test_loading_onto_a_mesh_gives_the_same_numbers(name):
  if jax.device_count() < 4:
    pytest.skip(f'a mesh of 2 x 2 needs four devices, and there are {jax.device_count()}')
  mesh = sharding.make_mesh(Machine(data=1, fsdp=2, tensor=2))
  cfg, whole = load(name)
  where = sharding.shardings(make(cfg).axes(), whole, mesh)
  got = hf.load_params(FIXTURES / name, cfg, where)
  jax.tree.map(lambda x, sharding: x.sharding == sharding or pytest.fail(str(x)), got, where)
  assert got['layers']['o'].addressable_shards[0].data.size == whole['layers']['o'].size // 4
  jax.tree.map(np.testing.assert_array_equal, got, whole)


def test_half_precision_and_what_some_files_carry_besides(tmp_path):
  tensors = tensors_of(FIXTURES / 'qwen2')
  dtypes = [bfloat16, np.float16]
  halves = {key: x.astype(dtypes[i % 2]) for i, (key, x) in enumerate(tensors.items())}
  head = halves['model.embed_tokens.weight'].astype(np.float32)  # the model is tied
  buffer = np.zeros([4], np.float32)
  extra = {'lm_head.weight': head, 'model.layers.0.self_attn.rotary_emb.inv_freq': buffer}
  (tmp_path / 'half').mkdir()
  save_file({**halves, **extra}, tmp_path / 'half' / 'model.safetensors')
  cfg = hf.read_config(FIXTURES / 'qwen2')
  hf.save_params(tmp_path / 'full', cfg, hf.load_params(tmp_path / 'half', cfg))
  for key, x in tensors_of(tmp_path / 'full').items():
    np.testing.assert_array_equal(x, halves[key].astype(np.float32), strict=True)


GATE = 'model.layers.1.mlp.gate_proj.weight'
F8 = np.zeros([40, 32], ml_dtypes.float8_e4m3fn)
BAD_WEIGHTS = [  # what is changed among the tensors, what the error must say
    ({GATE: np.zeros([40, 31], np.float32)}, [GATE, '[40, 31]', '[40, 32]']),
    ({GATE: np.zeros([40, 32], np.int8)}, [GATE, 'I8']),
    ({GATE: None}, [f'no tensor {GATE}', '[40, 32]']),
    ({GATE: F8}, [GATE, 'float8 without', '_scale_inv', '[1, 1]']),
    ({GATE: F8, f'{GATE}_scale_inv': np.zeros([2, 1], np.float32)}, ['_scale_inv', '[1, 1]']),
    ({'model.layers.2.mlp.gate_proj.weight': np.zeros([40, 32], np.float32)}, ['layers.2.mlp']),
    ({'model.layers.0.self_attn.o_proj.bias': np.zeros([32], np.float32)}, ['o_proj.bias']),
]


@pytest.mark.parametrize('change, named', BAD_WEIGHTS)
def test_weights_that_are_refused(change, named, tmp_path):
  tensors = {**tensors_of(FIXTURES / 'yarn'), **change}
  save_file({key: x for key, x in tensors.items() if x is not None},
            tmp_path / 'model.safetensors')  # yapf: disable
  with pytest.raises(UserError) as e:
    hf.load_params(tmp_path, hf.read_config(FIXTURES / 'yarn'))
  assert all(text in str(e.value) for text in named)


@pytest.mark.parametrize('name, copy, source', [
    ('qwen2', 'lm_head.weight', 'model.embed_tokens.weight'),
    ('deepseek_r1', 'model.layers.3.embed_tokens.weight', 'model.embed_tokens.weight'),
    ('deepseek_r1', 'model.layers.3.shared_head.head.weight', 'lm_head.weight'),
])
def test_copies_that_are_none_are_refused(name, copy, source, tmp_path):
  tensors, cfg = tensors_of(FIXTURES / name), hf.read_config(FIXTURES / name)
  same = tensors[source]
  other = same.copy()
  other[-1, -1] += 1
  for value, refused in ((same, False), (other, True), (same[1:], True)):
    save_file({**tensors, copy: value}, tmp_path / 'model.safetensors')
    if refused:
      with pytest.raises(UserError, match=f'{copy} is not the same as {source}'):
        hf.load_params(tmp_path, cfg)
    else:
      hf.load_params(tmp_path, cfg)


def test_matrices_are_compared_to_their_last_rows():
  x = np.zeros([7, 2], np.float32)
  assert hf._same(x, x.astype(np.float16), rows=3)
  for row in range(7):
    y = x.copy()
    y[row, 1] = 1
    assert not hf._same(x, y, rows=3)


def test_files_that_are_missing_or_cut_short(tmp_path):
  cfg = hf.read_config(FIXTURES / 'llama3')
  with pytest.raises(UserError, match='config.json does not exist'):
    hf.read_config(tmp_path)
  with pytest.raises(UserError, match='neither model.safetensors nor'):
    hf.load_params(tmp_path, cfg)
  for file in FIXTURES.glob('llama3/model*'):
    shutil.copy(file, tmp_path)
  victim = tmp_path / 'model-00003-of-00006.safetensors'
  whole = victim.read_bytes()
  for broken in (whole[:-1], whole[:1000], whole[:4], b'', b'\xff' * 64, b'[]'.rjust(10, b'\0')):
    victim.write_bytes(broken)
    with pytest.raises(UserError, match='00003-of-00006.* cannot be read'):
      hf.load_params(tmp_path, cfg)
  victim.unlink()
  with pytest.raises(UserError, match='00003-of-00006.* cannot be read'):
    hf.load_params(tmp_path, cfg)


@pytest.mark.parametrize('name', NAMES)
def test_transformers_reads_what_is_saved(name):
  pytest.importorskip('torch', reason='torch is not installed, which transformers needs')
  pytest.importorskip('transformers', reason='transformers is not installed')
  assert PARITY['after_export'](FIXTURES / name, FIXTURES / name / 'ref.npz') < 1e-5


def trained(name):
  """The folder of a small trained model."""
  folder = DATA / name / 'hf'
  if not (folder / 'model.safetensors').exists():
    pytest.skip(f'the {name} model is not in {folder}: R1JAX_DATA names the folder of models/')
  return folder


@pytest.mark.parametrize('name', PARITY['MODELS'])
def test_trained_models_have_the_logits_of_transformers(name, tmp_path):
  folder, reference = trained(name), FIXTURES / f'{name}.npz'
  got = PARITY['measure'](folder, reference)
  assert got.padded < 1e-4 and got.cached < 1e-4 and got.greedy
  cfg = hf.read_config(folder)
  hf.write_config(cfg, tmp_path, {1, 2}, bos_id=1)
  hf.save_params(tmp_path, cfg, hf.load_params(folder, cfg))
  assert hf.read_config(tmp_path) == cfg
  want = tensors_of(folder)
  jax.tree.map(np.testing.assert_array_equal, tensors_of(tmp_path), want)
  pytest.importorskip('torch', reason='torch is not installed, which transformers needs')
  pytest.importorskip('transformers', reason='transformers is not installed')
  assert PARITY['after_export'](folder, reference) < 1e-4


def test_stories260k_tells_its_story():
  folder = trained('stories260K')
  cfg, tok = hf.read_config(folder), tokenizer.load(folder)
  model = make(cfg, Machine(unroll=True, remat=False))
  params = model.split(hf.load_params(folder, cfg))
  told = ', there was a little girl named Lily. She loved to play outside in the park. One day, ' \
      'she saw a big, red ball.'
  ids = tok.encode('Once upon a time')
  start, T = len(ids), 64
  positions = jnp.arange(T)[None]
  step = jax.jit(lambda tokens: model.logits(params, model.apply(params, tokens, positions)[0]))
  while len(ids) < T and len(tok.decode(ids[start:])) < len(told):
    padded = np.pad(ids, (0, T - len(ids)))[None]
    ids.append(int(step(padded)[0, len(ids) - 1].argmax()))
  assert tok.decode(ids[start:]) == told
