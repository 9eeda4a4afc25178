"""config.json of the families, both ways: what is read, what it means, and what is refused."""
import dataclasses
import json
from pathlib import Path

import jax
import pytest

from r1jax.model import Config, hf, make, presets, rope
from r1jax.model.transformer import head_norm, whole_norm
from r1jax.types import UserError

FIXTURES = Path(__file__).parent / 'fixtures'
NAMES = sorted(path.parent.name for path in FIXTURES.glob('*/ref.npz'))


def config_of(name, **change):
  return {**json.loads((FIXTURES / name / 'config.json').read_text()), **change}


def read(config, folder):
  (folder / 'config.json').write_text(json.dumps(config))
  return hf.read_config(folder)


@pytest.mark.parametrize('name', NAMES)
def test_what_is_written_means_the_same(name, tmp_path):
  cfg = hf.read_config(FIXTURES / name)
  hf.write_config(cfg, tmp_path, {3}, dtype='bfloat16')
  assert hf.read_config(tmp_path) == cfg
  written = json.loads((tmp_path / 'config.json').read_text())
  theirs = config_of(name)
  assert written['architectures'] == theirs['architectures']
  assert (written['eos_token_id'], written['torch_dtype']) == (3, 'bfloat16')


YARN = rope.Yarn(1e4, 4.0, 64, 16.0, 2.0, mscale=0.7, mscale_all_dim=0.7, truncate=False)
CONFIGS = [
    Config(V=77, H=4, K=4, W=8, norm_eps=1e-5, init_std=0.1, qkv_bias=True),
    Config(V=77, tied=False, rope=YARN),
    Config(V=77, window=5, windowed=(2, 3), qk_norm=head_norm),
    Config(V=77, qk_norm=whole_norm, pre_norm=False, post_norm=True, rope=rope.Linear(1e4, 2.0)),
]


@pytest.mark.parametrize('cfg', CONFIGS)
def test_other_choices_are_written_too(cfg, tmp_path):
  hf.write_config(cfg, tmp_path, {1, 2})
  assert hf.read_config(tmp_path) == cfg


UNWRITTEN = [  # a config that no family has, what the error must name
    (dict(qkv_bias=True, qk_norm=head_norm), 'qk_norm'),
    (dict(window=5, windowed=(1,), pre_norm=False), 'pre_norm'),
    (dict(logit_cap=3.0), 'logit_cap'),
    (dict(unrotated=(1,), qkv_bias=True), 'unrotated'),
]


@pytest.mark.parametrize('fields, named', UNWRITTEN)
def test_what_no_family_has_is_not_written(fields, named, tmp_path):
  with pytest.raises(UserError, match=f'comes nearest.*{named}'):
    hf.write_config(Config(V=77, **fields), tmp_path, {1})
  assert not list(tmp_path.iterdir())


# Keys that folders of the hub have beside those that matter.
BESIDE = dict(attention_dropout=0.1, bos_token_id=1, eos_token_id=[1, 2], initializer_range=0.02,
              torch_dtype='bfloat16', transformers_version='4.40.0', use_cache=True,
              _name_or_path='somewhere', rope_scaling=None, pretraining_tp=2,
              auto_map={'AutoConfig': 'configuration_x.X'}, tie_word_embeddings=False,
              hidden_act='silu', rms_norm_eps=1e-6, rope_theta=10000.0)  # yapf: disable
SIZES = dict(
    vocab_size=100, hidden_size=64, num_attention_heads=4, num_key_value_heads=2,
    num_hidden_layers=8, intermediate_size=96, max_position_embeddings=512)  # yapf: disable
HUB = [  # as in the hub, before transformers 5; what it means
    (dict(model_type='llama', **SIZES), dict(W=16, rope=rope.Default(10000.0))),
    (dict(model_type='mistral', **SIZES, sliding_window=4096),
     dict(window=4096, windowed=tuple(range(8)))),
    (dict(model_type='mistral', **SIZES, sliding_window=None), dict(window=0, windowed=())),
    (dict(model_type='qwen2', **SIZES, use_sliding_window=False, sliding_window=64,
          max_window_layers=6, use_mrope=False), dict(qkv_bias=True, window=0, windowed=())),
    (dict(model_type='qwen2', **SIZES, use_sliding_window=True, sliding_window=64,
          max_window_layers=6), dict(window=64, windowed=(6, 7))),
    (dict(model_type='qwen2', **SIZES, use_sliding_window=True, sliding_window=64,
          max_window_layers=8), dict(window=0, windowed=())),
    (dict(model_type='smollm3', **SIZES, no_rope_layer_interval=4, max_window_layers=8,
          sliding_window=None, use_sliding_window=False), dict(unrotated=(3, 7), windowed=())),
    (dict(model_type='gemma2', **SIZES, head_dim=32, hidden_act='gelu_pytorch_tanh',
          hidden_activation='gelu_pytorch_tanh', query_pre_attn_scalar=16, sliding_window=64,
          cache_implementation='hybrid', attn_logit_softcapping=50.0,
          final_logit_softcapping=30.0),
     dict(W=32, embed_scale=8.0, attn_scale=0.25, attn_cap=50.0, logit_cap=30.0, norm_offset=1.0,
          windowed=(0, 2, 4, 6), rope_windowed=None)),
    (dict(model_type='gemma3_text', **SIZES, head_dim=32, hidden_act=None, sliding_window_pattern=6,
          hidden_activation='gelu_pytorch_tanh', query_pre_attn_scalar=16, sliding_window=64,
          rope_theta=1e6, rope_local_base_freq=1e4, rope_scaling={'rope_type': 'linear',
                                                                  'factor': 8.0}),
     dict(windowed=(0, 1, 2, 3, 4, 6, 7), rope=rope.Linear(1e6, 8.0),
          rope_windowed=rope.Default(1e4), attn_cap=0.0, logit_cap=0.0)),
    (dict(model_type='olmo3', **SIZES, sliding_window=64, rope_theta=5e5),
     dict(windowed=(0, 1, 2, 4, 5, 6), rope=rope.Default(5e5), rope_windowed=None)),
]  # yapf: disable


@pytest.mark.parametrize('config, meant', HUB)
def test_older_files_mean_what_they_did(config, meant, tmp_path):
  cfg = read({**BESIDE, **config}, tmp_path)
  for field, value in meant.items():
    assert getattr(cfg, field) == value, field


LLAMA3 = dict(rope_type='llama3', factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=8192)  # yapf: disable
DEEPSEEK = dict(
    BESIDE, model_type='deepseek_v3', hidden_size=7168, intermediate_size=18432,
    num_hidden_layers=61, num_attention_heads=128, num_key_value_heads=128, vocab_size=129280,
    max_position_embeddings=163840, moe_intermediate_size=2048, n_routed_experts=256,
    n_shared_experts=1, num_experts_per_tok=8, n_group=8, topk_group=4, first_k_dense_replace=3,
    moe_layer_freq=1, routed_scaling_factor=2.5, norm_topk_prob=True, scoring_func='sigmoid',
    topk_method='noaux_tc', q_lora_rank=1536, kv_lora_rank=512, qk_nope_head_dim=128,
    qk_rope_head_dim=64, v_head_dim=128, num_nextn_predict_layers=1, aux_loss_alpha=0.001,
    seq_aux=True, ep_size=1, rope_theta=10000, attention_bias=False,
    rope_scaling=dict(type='yarn', factor=40, original_max_position_embeddings=4096, beta_fast=32,
                      beta_slow=1, mscale=1.0, mscale_all_dim=1.0),
    quantization_config=dict(activation_scheme='dynamic', fmt='e4m3', quant_method='fp8',
                             weight_block_size=[128, 128]))  # yapf: disable
PRESETS = [  # a published config.json
    (presets.DEEPSEEK_V3, DEEPSEEK),
    (presets.LLAMA_3_2_1B, dict(
        BESIDE, model_type='llama', hidden_size=2048, intermediate_size=8192, num_hidden_layers=16,
        num_attention_heads=32, num_key_value_heads=8, head_dim=64, vocab_size=128256,
        max_position_embeddings=131072, rms_norm_eps=1e-5, rope_theta=500000.0, mlp_bias=False,
        tie_word_embeddings=True, rope_scaling=LLAMA3)),
    (presets.QWEN_3_0_6B, dict(
        BESIDE, model_type='qwen3', hidden_size=1024, intermediate_size=3072, num_hidden_layers=28,
        num_attention_heads=16, num_key_value_heads=8, head_dim=128, vocab_size=151936,
        max_position_embeddings=40960, max_window_layers=28, rope_theta=1000000,
        sliding_window=None, use_sliding_window=False, tie_word_embeddings=True)),
]  # yapf: disable
SIZE = {  # parameters, as published or summed over the published weights
    'DEEPSEEK_V3': 671_026_419_200, 'DEEPSEEK_V2_LITE': 15_706_484_224,
    'QWEN_2_5_0_5B': 494_032_768, 'QWEN_2_5_1_5B': 1_543_714_304, 'QWEN_2_5_7B': 7_615_616_512,
    'QWEN_2_5_MATH_1_5B': 1_543_714_304,
    'QWEN_2_5_MATH_7B': 7_615_616_512, 'QWEN_2_5_14B': 14_770_033_664,
    'QWEN_2_5_32B': 32_763_876_352, 'QWEN_3_0_6B': 596_049_920, 'LLAMA_3_1_8B': 8_030_261_248,
    'LLAMA_3_3_70B': 70_553_706_496, 'LLAMA_3_2_1B': 1_235_814_400,
}  # yapf: disable


@pytest.mark.parametrize('cfg, config', PRESETS)
def test_presets_are_the_published_files(cfg, config, tmp_path):
  assert read(config, tmp_path) == cfg


def test_presets_have_their_published_size_and_are_written(tmp_path):
  made = {name: cfg for name, cfg in vars(presets).items() if isinstance(cfg, Config)}
  assert made.keys() == SIZE.keys()
  for name, cfg in made.items():
    shapes = jax.eval_shape(make(cfg).init, jax.random.key(0))
    ahead = sum(x.size for x in jax.tree.leaves(shapes.pop('mtp', ())))
    assert round(ahead / 1e9, 1) == (11.6 if cfg.mtp else 0)
    assert sum(x.size for x in jax.tree.leaves(shapes)) == SIZE[name], name
    hf.write_config(cfg, tmp_path, {1})
    assert hf.read_config(tmp_path) == cfg


def test_both_generations_of_rope_mean_the_same(tmp_path):
  base = config_of('llama3')
  new = base.pop('rope_parameters')
  theta, rope_type = new.pop('rope_theta'), new.pop('rope_type')
  for key in ('type', 'rope_type'):
    old = {**base, 'rope_theta': theta, 'rope_scaling': {**new, key: rope_type}}
    assert read(old, tmp_path) == hf.read_config(FIXTURES / 'llama3')
  assert read({**base, 'rope_scaling': None}, tmp_path).rope == rope.Default(10000.0)


def test_two_entries_for_a_rope_have_to_agree(tmp_path):
  base = config_of('llama3')
  new = base['rope_parameters']
  want = hf.read_config(FIXTURES / 'llama3')
  theta = new['rope_theta']
  for more in ({'rope_scaling': new}, {'rope_theta': theta}, {'rope_scaling': {}}):
    assert read({**base, **more}, tmp_path) == want
  apart = {key: value for key, value in new.items() if key != 'rope_theta'}
  assert read({**base, 'rope_parameters': apart, 'rope_scaling': new}, tmp_path) == want
  assert read({**base, 'rope_parameters': apart, 'rope_theta': theta}, tmp_path) == want


@pytest.mark.parametrize('name', ['gemma3', 'deepseek_v3', 'qwen3_moe'])
def test_what_a_missing_key_means_is_what_transformers_writes(name, tmp_path):
  """Their files have every key: without those that have the class's default, they mean the same."""
  config, cfg = config_of(name), hf.read_config(FIXTURES / name)
  optional = ['attention_bias', 'rms_norm_eps', 'initializer_range', 'hidden_act', 'use_cache',
              'hidden_activation', 'final_logit_softcapping', 'decoder_sparse_step',
              'mlp_only_layers', 'use_sliding_window', 'rope_interleave', 'scoring_func',
              'transformers_version', 'num_nextn_predict_layers']  # yapf: disable
  for key in optional:
    config.pop(key, None)
  assert read(config, tmp_path) == cfg


ROPE = {'rope_type': 'yarn', 'rope_theta': 1e4, 'factor': 4.0}
FP8 = DEEPSEEK['quantization_config']
REFUSED = [  # model, what is changed in its config.json, what the error must name
    ('llama3', {'model_type': 'mamba'}, "'mamba' is not one of llama"),
    ('gemma3', {'model_type': 'gemma3'}, "'gemma3' is not one of"),
    ('llama3', {'hidden_act': 'gelu'}, 'hidden_act'),
    ('gemma2', {'hidden_activation': 'gelu'}, 'hidden_activation'),
    ('gemma3', {'hidden_act': 'silu'}, 'hidden_act'),
    ('llama3', {'attention_bias': True}, 'attention_bias'),
    ('qwen3', {'attention_bias': True}, 'attention_bias'),
    ('deepseek_v3', {'attention_bias': True}, 'attention_bias'),
    ('llama3', {'mlp_bias': True}, 'mlp_bias'),
    ('llama3', {'partial_rotary_factor': 0.5}, 'partial_rotary_factor'),
    ('llama3', {'original_max_position_embeddings': 32}, 'original_max_position_embeddings'),
    ('llama3', {'is_causal': False}, 'is_causal'),
    ('llama3', {'residual_multiplier': 0.2}, 'residual_multiplier'),  # of another family
    ('llama3', {'sliding_window': 8}, 'sliding_window'),
    ('llama3', {'hidden_size': None}, 'hidden_size is not there'),
    ('llama3', {'num_key_value_heads': 3}, 'num_key_value_heads'),
    ('llama3', {'quantization_config': {'bits': 4}}, 'bits'),
    ('deepseek_r1', {'quantization_config': {**FP8, 'weight_block_size': [64, 64]}}, '64'),
    ('deepseek_r1', {'quantization_config': {**FP8, 'fmt': 'e5m2'}}, 'fmt'),
    ('deepseek_r1', {'quantization_config': {'quant_method': 'fp8'}}, 'weight_block_size'),
    ('qwen2', {'use_mrope': True}, 'use_mrope'),
    ('qwen2', {'layer_types': ['full_attention', 'chunked_attention']}, 'chunked_attention'),
    ('qwen2', {'layer_types': ['full_attention', 'sliding_attention']}, 'sliding_attention'),
    ('qwen2', {'layer_types': ['full_attention']}, '1 entries for 2 layers'),
    ('mistral', {'layer_types': ['full_attention'] * 2}, 'layer_types'),
    ('gemma2', {'use_bidirectional_attention': True}, 'use_bidirectional_attention'),
    ('gemma3', {'attn_logit_softcapping': 50.0}, 'attn_logit_softcapping'),
    ('gemma3', {'rope_parameters': ROPE}, "'factor' of rope_parameters"),
    ('qwen3_moe', {'use_sliding_window': True}, 'use_sliding_window'),
    ('qwen3_moe', {'decoder_sparse_step': 2}, 'decoder_sparse_step'),
    ('qwen3_moe', {'mlp_only_layers': [1]}, 'mlp_only_layers'),
    ('qwen3_moe', {'moe_intermediate_size': None}, 'moe_intermediate_size is not there'),
    ('deepseek_v2', {'topk_method': 'noaux_tc'}, 'noaux_tc'),
    ('deepseek_v2', {'norm_topk_prob': True}, 'norm_topk_prob'),
    ('deepseek_v2', {'scoring_func': 'sigmoid'}, 'scoring_func'),
    ('deepseek_v3', {'topk_method': 'greedy'}, 'topk_method'),
    ('deepseek_v3', {'moe_layer_freq': 2}, 'moe_layer_freq'),
    ('deepseek_v3', {'rope_interleave': False}, 'rope_interleave'),
    ('deepseek_v3', {'rms_norm_eps': 1e-5}, 'rms_norm_eps'),
    ('deepseek_v3', {'num_key_value_heads': 2}, 'num_key_value_heads'),
    ('llama3', {'rope_parameters': {**ROPE, 'rope_type': 'longrope'}}, 'longrope'),
    ('llama3', {'rope_parameters': {**ROPE, 'mrope_section': [1, 2]}}, 'mrope_section'),
    ('llama3', {'rope_parameters': {**ROPE, 'partial_rotary_factor': 0.5}}, 'partial_rotary'),
    ('llama3', {'rope_parameters': {**ROPE, 'factor': None}}, 'factor'),
    ('llama3', {'rope_parameters': {**ROPE, 'rope_type': 'default'}}, 'factor'),
    ('llama3', {'rope_parameters': {**ROPE, 'factor': '4'}}, "factor of the yarn rope is '4'"),
    ('llama3', {'rope_parameters': {'rope_type': ['yarn']}}, 'another kind'),
    ('llama3', {'rope_scaling': {'type': 'linear', 'factor': 2.0}},
     'rope_parameters says Llama3.* and rope_scaling says Linear'),
    ('llama3', {'rope_theta': 123.0}, 'rope_theta says 123.0 and rope_parameters.rope_theta says'),
    ('gemma3', {'rope_theta': 123.0}, 'rope_parameters.full_attention.rope_theta'),
    ('gemma3', {'rope_local_base_freq': 123.0}, 'rope_parameters.sliding_attention.rope_theta'),
    ('gemma3', {'rope_scaling': {'type': 'linear', 'factor': 3.0}},
     'rope_parameters.full_attention says .* and rope_scaling says Linear'),
    ('gemma2', {'query_pre_attn_scalar': None}, 'query_pre_attn_scalar is not there'),
    ('gemma3', {'sliding_window_pattern': None}, 'sliding_window_pattern is not there'),
    ('qwen2', {'max_window_layers': None}, 'max_window_layers is not there'),
    ('smollm3', {'no_rope_layer_interval': None}, 'no_rope_layer_interval is not there'),
    ('deepseek_v2_groups', {'topk_group': None}, 'topk_group is not there'),
    ('llama3', {'hidden_size': '32'}, "hidden_size is '32', and must be of type int"),
    ('llama3', {'num_hidden_layers': True}, 'num_hidden_layers is True'),
    ('llama3', {'rms_norm_eps': '1e-6'}, "rms_norm_eps is '1e-6', and .* int or float"),
    ('llama3', {'tie_word_embeddings': 'no'}, 'tie_word_embeddings'),
    ('llama3', {'rope_scaling': 'yarn'}, "rope_scaling is 'yarn', and must be of type dict"),
    ('qwen2', {'layer_types': 'full_attention'}, 'layer_types is .* type list'),
    ('qwen2', {'layer_types': [[], []]}, 'another kind'),
    ('llama3', {'model_type': ['llama']}, 'another kind'),
]  # yapf: disable


@pytest.mark.parametrize('name, change, named', REFUSED)
def test_configs_that_are_refused(name, change, named, tmp_path):
  with pytest.raises(UserError, match=named) as e:
    read(config_of(name, **change), tmp_path)
  assert str(e.value).startswith(str(tmp_path / 'config.json'))


@pytest.mark.parametrize('name', NAMES)
def test_a_key_that_nobody_knows_is_refused_unless_it_is_null(name, tmp_path):
  with pytest.raises(UserError, match='some_new_scale is 2.0'):
    read(config_of(name, some_new_scale=2.0), tmp_path)
  cfg = read(config_of(name, some_new_scale=None), tmp_path)
  assert dataclasses.replace(cfg, mtp=0) == dataclasses.replace(hf.read_config(FIXTURES / name),
                                                                mtp=0)
