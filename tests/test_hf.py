"""Hugging Face folders: the same logits as transformers, and the same bytes back."""
import dataclasses
import json
import os
from pathlib import Path
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from r1jax import sharding, tokenizer
from r1jax.model import Config, hf, make, rope
from r1jax.sharding import Machine
from r1jax.types import KV, Past, UserError

HERE = Path(__file__).parent
FIXTURES = HERE / 'fixtures'
NAMES = ['qwen2', 'qwen3', 'llama3', 'linear', 'yarn']
BUILDS = [*((name, True) for name in NAMES), ('qwen2', False), ('qwen3', False)]  # model, unroll
DATA = Path(os.environ.get('R1JAX_DATA', HERE.parent.parent / 'shared/data/models'))


def machine(unroll):
  return Machine(unroll=unroll, remat=False)


def load(name, unroll=True, rope=None):
  cfg = hf.read_config(FIXTURES / name)
  params = hf.load_params(FIXTURES / name, cfg)
  cfg = dataclasses.replace(cfg, rope=rope or cfg.rope)
  model = make(cfg, machine(unroll))
  return model, model.split(params), np.load(FIXTURES / name / 'ref.npz')


def logits_of(model, params, ids):
  positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
  return np.asarray(jax.jit(lambda p: model.logits(p, model.apply(p, ids, positions)[0]))(params))


def tensors_of(folder):
  """Every tensor of a folder, by name."""
  files = sorted(folder.glob('*.safetensors'))
  return {name: x for file in files for name, x in load_file(file).items()}


@pytest.mark.parametrize('name, unroll', BUILDS)
def test_logits_are_those_of_transformers(name, unroll):
  model, params, ref = load(name, unroll)
  got = logits_of(model, params, ref['ids'])
  for row, want, n in zip(got, ref['logits'], ref['lengths']):
    # Transformers in float32 differs as much from itself in float64.
    np.testing.assert_allclose(row[:n], want[:n], atol=3e-5, rtol=0)


@pytest.mark.parametrize('name', ['llama3', 'linear', 'yarn'])
def test_the_reference_depends_on_the_rope(name):
  cfg = hf.read_config(FIXTURES / name)
  model, params, ref = load(name, rope=rope.Default(cfg.rope.rope_theta))
  got = logits_of(model, params, ref['ids'])
  assert np.abs(got[0] - ref['logits'][0]).max() > 0.1


@pytest.mark.parametrize('name, unroll', [('qwen2', True), ('qwen2', False), ('llama3', True)])
def test_decoding_through_the_cache_is_that_of_transformers(name, unroll):
  model, params, ref = load(name, unroll)
  lengths, want = ref['lengths'], ref['greedy']
  B, C, T = *want.shape, ref['ids'].shape[1]

  @jax.jit
  def prefill(ids):
    hidden, kv = model.apply(params, ids, jnp.broadcast_to(jnp.arange(T), (B, T)))
    last = hidden[np.arange(B), lengths - 1][:, None]
    return model.logits(params, last).argmax(-1), Past(kv, np.arange(T) < lengths[:, None])

  @jax.jit
  def decode(tokens, c, prompt, cache):
    past = prompt, Past(cache, jnp.broadcast_to(jnp.arange(C) < c, (B, C)))
    hidden, fresh = model.apply(params, tokens, lengths[:, None] + c, None, past)
    put = lambda axis: lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new, c, axis)
    cache = KV(jax.tree.map(put(-1), cache.k, fresh.k), jax.tree.map(put(-2), cache.v, fresh.v))
    return model.logits(params, hidden).argmax(-1), cache

  tokens, prompt = prefill(ref['ids'])
  cache, got = model.init_cache(B, C), []
  for c in range(C):
    got.append(tokens)
    tokens, cache = decode(tokens, c, prompt, cache)
  np.testing.assert_array_equal(np.concatenate(got, axis=1), want)


@pytest.mark.parametrize('shard_bytes', [5e9, 20e3])
@pytest.mark.parametrize('name', NAMES)
def test_saving_gives_back_the_tensors_of_the_file(name, shard_bytes, tmp_path):
  cfg = hf.read_config(FIXTURES / name)
  params = hf.load_params(FIXTURES / name, cfg)
  hf.save_params(tmp_path, cfg, params, shard_bytes)
  got, want = tensors_of(tmp_path), tensors_of(FIXTURES / name)
  assert sorted(got) == sorted(want)
  for key in want:
    np.testing.assert_array_equal(got[key], want[key], strict=True)
  jax.tree.map(np.testing.assert_array_equal, params, hf.load_params(tmp_path, cfg))
  assert not list(tmp_path.glob('*.part'))


def test_saving_again_leaves_nothing_of_the_model_before(tmp_path):
  cfg = hf.read_config(FIXTURES / 'yarn')
  params = hf.load_params(FIXTURES / 'yarn', cfg)
  hf.save_params(tmp_path, cfg, params, max_shard_bytes=20e3)
  hf.save_params(tmp_path, cfg, params)
  assert [path.name for path in tmp_path.iterdir()] == ['model.safetensors']


def test_the_tree_is_that_of_init():
  cfg = hf.read_config(FIXTURES / 'qwen2')
  shapes = jax.eval_shape(make(cfg).init, jax.random.key(0))
  loaded = hf.load_params(FIXTURES / 'qwen2', cfg)
  described = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
  assert described(loaded) == described(shapes)


@pytest.mark.parametrize('name', ['qwen2', 'llama3'])
def test_each_piece_of_a_weight_is_read_alone(name):
  cfg = hf.read_config(FIXTURES / name)
  whole, asked = tensors_of(FIXTURES / name), []

  class Slices:
    """A tensor of the file that notes how much of it is asked for."""

    def __init__(self, x):
      self.x = x

    def __getitem__(self, cuts):
      asked.append(self.x[cuts].size)
      return self.x[cuts]

  stored = {key: Slices(x) for key, x in whole.items()}
  params = hf.load_params(FIXTURES / name, cfg)['layers']
  for ours, letters in make(cfg).axes()['layers'].items():
    tensors = hf._tensors(cfg, ours, letters[1:], 1)
    full = np.asarray(params[ours][1])
    for cut in [x for x in 'DKF' if x in letters]:
      n = getattr(cfg, cut)
      box = {x: range(getattr(cfg, x)) for x in letters[1:]} | {cut: range(n // 2, n)}
      asked.clear()
      got = hf._read(tensors, stored, box)
      np.testing.assert_array_equal(got, full[tuple(slice(r.start, r.stop) for r in box.values())])
      assert sum(asked) == got.size, (ours, cut)
    box = {x: range(getattr(cfg, x) - 1, getattr(cfg, x)) for x in letters[1:]}
    np.testing.assert_array_equal(hf._read(tensors, stored, box).ravel(), full.ravel()[-1:])


def test_loading_onto_a_mesh_gives_the_same_numbers():
  if jax.device_count() < 4:
    pytest.skip(f'a mesh of 2 x 2 needs four devices, and there are {jax.device_count()}')
  cfg = hf.read_config(FIXTURES / 'llama3')
  mesh = sharding.make_mesh(Machine(data=1, fsdp=2, tensor=2))
  model = make(cfg)
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  where = sharding.shardings(model.axes(), shapes, mesh)
  got = hf.load_params(FIXTURES / 'llama3', cfg, where)
  assert got['layers']['qkv'].sharding == where['layers']['qkv']
  assert got['layers']['qkv'].addressable_shards[0].data.shape[1] == cfg.D // 2
  jax.tree.map(np.testing.assert_array_equal, got, hf.load_params(FIXTURES / 'llama3', cfg))


def test_half_precision_and_what_some_files_carry_besides(tmp_path):
  tensors = tensors_of(FIXTURES / 'qwen2')
  dtypes = [ml_dtypes.bfloat16, np.float16]
  halves = {key: x.astype(dtypes[i % 2]) for i, (key, x) in enumerate(tensors.items())}
  names = ['lm_head.weight', 'model.layers.0.self_attn.rotary_emb.inv_freq']  # the model is tied
  extra = {name: np.zeros([4], np.float32) for name in names}
  (tmp_path / 'half').mkdir()
  save_file({**halves, **extra}, tmp_path / 'half' / 'model.safetensors')
  cfg = hf.read_config(FIXTURES / 'qwen2')
  hf.save_params(tmp_path / 'full', cfg, hf.load_params(tmp_path / 'half', cfg))
  for key, x in tensors_of(tmp_path / 'full').items():
    np.testing.assert_array_equal(x, halves[key].astype(np.float32), strict=True)


def test_config_round_trip(tmp_path):
  configs = [hf.read_config(FIXTURES / name) for name in NAMES]
  configs.append(Config(V=77, H=4, K=4, W=8, norm_eps=1e-5, init_std=0.1, qkv_bias=True))
  yarn = rope.Yarn(1e4, 4.0, 64, 16.0, 2.0, mscale=0.7, mscale_all_dim=0.7, truncate=False)
  configs.append(Config(V=77, tied=False, rope=yarn))
  for cfg in configs:
    hf.write_config(cfg, tmp_path, {3})
    assert hf.read_config(tmp_path) == cfg
  with pytest.raises(UserError, match='qk_norm'):
    hf.write_config(dataclasses.replace(configs[0], qk_norm=True), tmp_path, {3})


def test_both_generations_of_config_json_mean_the_same(tmp_path):
  base = json.loads((FIXTURES / 'llama3/config.json').read_text())
  new = base.pop('rope_parameters')
  theta, rope_type = new.pop('rope_theta'), new.pop('rope_type')
  for key in ('type', 'rope_type'):
    old = {**base, 'rope_theta': theta, 'rope_scaling': {**new, key: rope_type}}
    (tmp_path / 'config.json').write_text(json.dumps(old))
    assert hf.read_config(tmp_path) == hf.read_config(FIXTURES / 'llama3')
  (tmp_path / 'config.json').write_text(json.dumps({**base, 'rope_scaling': None}))
  assert hf.read_config(tmp_path).rope == rope.Default(10000.0)


ROPE = {'rope_type': 'yarn', 'rope_theta': 1e4, 'factor': 4.0}
REFUSED = [  # model, what is changed in its config.json, what the error must name
    ('llama3', {'model_type': 'mistral'}, 'mistral'),
    ('llama3', {'hidden_act': 'gelu'}, 'hidden_act'),
    ('llama3', {'attention_bias': True}, 'attention_bias'),
    ('qwen3', {'attention_bias': True}, 'attention_bias'),
    ('llama3', {'mlp_bias': True}, 'mlp_bias'),
    ('llama3', {'pretraining_tp': 2}, 'pretraining_tp'),
    ('llama3', {'quantization_config': {'bits': 4}}, 'quantization_config'),
    ('llama3', {'partial_rotary_factor': 0.5}, 'partial_rotary_factor'),
    ('llama3', {'is_causal': False}, 'is_causal'),
    ('llama3', {'hidden_size': None}, 'hidden_size'),
    ('llama3', {'num_key_value_heads': 3}, 'num_key_value_heads'),
    ('qwen2', {'use_sliding_window': True, 'sliding_window': 8, 'max_window_layers': 1,
               'layer_types': None}, 'use_sliding_window'),
    ('qwen2', {'layer_types': ['full_attention', 'sliding_attention']}, 'sliding_attention'),
    ('llama3', {'rope_parameters': {**ROPE, 'rope_type': 'longrope'}}, 'longrope'),
    ('llama3', {'rope_parameters': {**ROPE, 'mrope_section': [1, 2]}}, 'mrope_section'),
    ('llama3', {'rope_parameters': {**ROPE, 'factor': None}}, 'factor'),
    ('llama3', {'rope_parameters': {**ROPE, 'rope_type': 'default'}}, 'factor'),
]  # yapf: disable


@pytest.mark.parametrize('name, change, named', REFUSED)
def test_configs_that_are_refused(name, change, named, tmp_path):
  config = json.loads((FIXTURES / name / 'config.json').read_text())
  (tmp_path / 'config.json').write_text(json.dumps({**config, **change}))
  with pytest.raises(UserError, match=named):
    hf.read_config(tmp_path)


def test_windows_that_no_layer_has_are_not_refused(tmp_path):
  config = json.loads((FIXTURES / 'qwen2/config.json').read_text())
  change = {'use_sliding_window': True, 'max_window_layers': 2, 'layer_types': None}
  (tmp_path / 'config.json').write_text(json.dumps({**config, **change}))
  assert hf.read_config(tmp_path) == hf.read_config(FIXTURES / 'qwen2')


GATE = 'model.layers.1.mlp.gate_proj.weight'
BAD_WEIGHTS = [  # what is changed among the tensors, what the error must say
    ({GATE: np.zeros([40, 31], np.float32)}, [GATE, '[40, 31]', '[40, 32]']),
    ({GATE: np.zeros([40, 32], np.int8)}, [GATE, 'I8']),
    ({GATE: None}, [f'no tensor {GATE}', '[40, 32]']),
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


def test_files_that_are_missing_or_cut_short(tmp_path):
  cfg = hf.read_config(FIXTURES / 'llama3')
  with pytest.raises(UserError, match='config.json does not exist'):
    hf.read_config(tmp_path)
  with pytest.raises(UserError, match='neither model.safetensors nor'):
    hf.load_params(tmp_path, cfg)
  for file in FIXTURES.glob('llama3/model*'):
    shutil.copy(file, tmp_path)
  victim = tmp_path / 'model-00003-of-00006.safetensors'
  victim.write_bytes(victim.read_bytes()[:1000])
  with pytest.raises(UserError, match='00003-of-00006.* cannot be read'):
    hf.load_params(tmp_path, cfg)
  victim.unlink()
  with pytest.raises(UserError, match='00003-of-00006.* cannot be read'):
    hf.load_params(tmp_path, cfg)


@pytest.mark.parametrize('name', NAMES)
def test_transformers_reads_what_is_saved(name, tmp_path):
  torch = pytest.importorskip('torch', reason='torch is not installed, which transformers needs')
  transformers = pytest.importorskip('transformers', reason='transformers is not installed')
  cfg = hf.read_config(FIXTURES / name)
  hf.write_config(cfg, tmp_path, {5, 3}, bos_id=None)
  hf.save_params(tmp_path, cfg, hf.load_params(FIXTURES / name, cfg), max_shard_bytes=40e3)
  theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation='eager')
  assert theirs.generation_config.eos_token_id == [3, 5]
  ref = np.load(FIXTURES / name / 'ref.npz')
  with torch.no_grad():
    got = theirs(torch.tensor(ref['ids'][:1])).logits.numpy()
  np.testing.assert_allclose(got, ref['logits'][:1], atol=1e-5)


def test_stories260k_tells_its_story():
  folder = DATA / 'stories260K/hf'
  if not (folder / 'model.safetensors').exists():
    pytest.skip(f'the stories260K model is not in {folder}; R1JAX_DATA names the folder above it')
  cfg, tok = hf.read_config(folder), tokenizer.load(folder)
  model = make(cfg, machine(True))
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
