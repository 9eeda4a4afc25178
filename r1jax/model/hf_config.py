"""config.json of a Hugging Face folder, to and from our Config.

FAMILIES, KEYS and the parts of hf_parts and hf_experts say how it is read and written, one way and
the other. What would change the maths and has no counterpart here, and any key that nobody knows,
is refused by name, never dropped.
"""
import dataclasses
from pathlib import Path
from typing import Mapping, NamedTuple

from r1jax.model import Config, hf_experts, hf_files, hf_parts
from r1jax.model.hf_files import read_json, write_json
from r1jax.model.hf_parts import Part
from r1jax.model.parts import gelu_tanh
from r1jax.model.transformer import head_norm, whole_norm
from r1jax.types import UserError

KEYS = {  # our field -> key of config.json
    'V': 'vocab_size', 'L': 'num_hidden_layers', 'D': 'hidden_size', 'H': 'num_attention_heads',
    'K': 'num_key_value_heads', 'W': 'head_dim', 'F': 'intermediate_size',
    'max_tokens': 'max_position_embeddings', 'norm_eps': 'rms_norm_eps',
    'tied': 'tie_word_embeddings', 'init_std': 'initializer_range',
}  # yapf: disable
ABSENT = {  # what a missing key means, unless the family says otherwise; null is H, and D / H
    'num_key_value_heads': None, 'head_dim': None, 'rms_norm_eps': 1e-6,
    'tie_word_embeddings': False, 'initializer_range': 0.02,
}  # yapf: disable
ONLY = {  # key -> the one value whose maths is written here, which is also what a missing key means
    'hidden_act': 'silu', 'attention_bias': False, 'mlp_bias': False, 'is_causal': True,
    'partial_rotary_factor': 1.0, 'use_mrope': False, 'is_encoder_decoder': False,
    'add_cross_attention': False, 'pruned_heads': {},
}  # yapf: disable
KINDS = {  # what keys have to hold, unless they are absent or null
    (int,): '''first_k_dense_replace head_dim hidden_size intermediate_size kv_lora_rank
    max_position_embeddings max_window_layers moe_intermediate_size n_group n_routed_experts
    n_shared_experts no_rope_layer_interval num_attention_heads num_experts num_experts_per_tok
    num_hidden_layers num_key_value_heads num_local_experts num_nextn_predict_layers q_lora_rank
    qk_nope_head_dim qk_rope_head_dim sliding_window sliding_window_pattern topk_group v_head_dim
    vocab_size''',
    (int, float): '''attn_logit_softcapping final_logit_softcapping initializer_range
    query_pre_attn_scalar rms_norm_eps rope_local_base_freq rope_theta routed_scaling_factor''',
    (bool,): 'norm_topk_prob tie_word_embeddings use_sliding_window',
    (list,): 'layer_types mlp_only_layers no_rope_layers',
    (dict,): 'quantization_config rope_parameters rope_scaling',
}  # yapf: disable
FP8 = dict(quant_method='fp8', fmt='e4m3', activation_scheme='dynamic',
           weight_block_size=[128, 128])  # yapf: disable
# Keys that change no number of a forward pass: names, dropout, generation, auxiliary losses, how
# sums are split. Beside them all with a leading underscore or one of HARMLESS_ENDS.
HARMLESS = set('''architectures attn_implementation auto_map aux_loss_alpha bad_words_ids
begin_suppress_tokens cache_implementation chunk_size_feed_forward cross_attention_hidden_size
diversity_penalty do_sample dtype early_stopping encoder_no_repeat_ngram_size ep_size
exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id id2label
is_decoder label2id length_penalty max_length min_length model_type name_or_path
neftune_noise_alpha no_repeat_ngram_size num_beam_groups num_beams num_labels num_return_sequences
output_attentions output_hidden_states output_router_logits output_scores prefix pretraining_tp
problem_type qk_head_dim remove_invalid_values repetition_penalty return_dict
return_dict_in_generate router_aux_loss_coef seq_aux suppress_tokens task_specific_params
temperature tf_legacy_loss tie_encoder_decoder tie_last_hidden_states tokenizer_class top_k top_p
torch_dtype torchscript transformers_version typical_p unsloth_fixed unsloth_version use_bfloat16
use_cache'''.split())
HARMLESS_ENDS = ('_dropout', '_token_id', '_token_ids')


class Family(NamedTuple):
  """A model_type: what it has beside KEYS."""
  architecture: str  # its class in transformers
  parts: tuple[Part, ...] = (hf_parts.one_rope(),)
  fixed: Mapping = {}  # fields of Config
  only: Mapping = {}  # as ONLY
  absent: Mapping = {}  # as ABSENT
  harmless: tuple[str, ...] = ()  # as HARMLESS


QWEN_WINDOWS = hf_parts.windows(hf_parts.from_max_window_layers, switch=True)
GEMMA = dict(activation=gelu_tanh, post_norm=True, norm_offset=1.0)
GEMMA_ONLY = {'hidden_act': 'gelu_pytorch_tanh', 'hidden_activation': 'gelu_pytorch_tanh',
              'use_bidirectional_attention': False}  # yapf: disable
GEMMA_ABSENT = {'num_key_value_heads': 4, 'head_dim': 256, 'tie_word_embeddings': True}
OLMO = dict(pre_norm=False, post_norm=True, qk_norm=whole_norm)
# The norms of the latents have this epsilon whatever the file says.
DEEPSEEK_ONLY = {'rms_norm_eps': 1e-6, 'moe_layer_freq': 1}
FAMILIES = {
    'llama': Family('LlamaForCausalLM'),
    'qwen2': Family(  # its biases are there whatever attention_bias says
        'Qwen2ForCausalLM', (hf_parts.one_rope(), QWEN_WINDOWS), dict(qkv_bias=True),
        absent={'num_key_value_heads': 32}, harmless=('attention_bias',)),
    'qwen3': Family(
        'Qwen3ForCausalLM', (hf_parts.one_rope(), QWEN_WINDOWS), dict(qk_norm=head_norm),
        absent={'num_key_value_heads': 32, 'head_dim': 128}),
    'qwen3_moe': Family(
        'Qwen3MoeForCausalLM', (hf_parts.one_rope(), hf_experts.QWEN_EXPERTS),
        dict(qk_norm=head_norm), {'decoder_sparse_step': 1, 'use_sliding_window': False},
        {'num_key_value_heads': 4}, ('sliding_window', 'max_window_layers')),
    'mistral': Family(
        'MistralForCausalLM', (hf_parts.one_rope(), hf_parts.WINDOW),
        absent={'num_key_value_heads': 8}),
    'smollm3': Family(
        'SmolLM3ForCausalLM',
        (hf_parts.one_rope(2e6), hf_parts.UNROTATED,
         hf_parts.windows(hf_parts.where_unrotated, None, switch=True)),
        absent={'num_key_value_heads': 4, 'tie_word_embeddings': True},
        harmless=('max_window_layers',)),
    'gemma2': Family(
        'Gemma2ForCausalLM',
        (hf_parts.one_rope(), hf_parts.windows(hf_parts.all_but_every(2)),
         hf_parts.gemma(50.0, 30.0)), GEMMA, GEMMA_ONLY, GEMMA_ABSENT),
    'gemma3_text': Family(
        'Gemma3ForCausalLM',
        (hf_parts.two_ropes(1e6, 1e4), hf_parts.windows(hf_parts.all_but_every(6)),
         hf_parts.gemma(None, None)), {**GEMMA, 'qk_norm': head_norm}, GEMMA_ONLY, GEMMA_ABSENT),
    'olmo2': Family('Olmo2ForCausalLM', fixed=OLMO, absent={'rms_norm_eps': 1e-5}),
    'olmo3': Family(
        'Olmo3ForCausalLM',
        (hf_parts.two_ropes(5e5), hf_parts.windows(hf_parts.all_but_every(4))), OLMO,
        absent={'rms_norm_eps': 1e-5}),
    'deepseek_v2': Family(
        'DeepseekV2ForCausalLM',
        (hf_parts.one_rope(), hf_experts.LATENT, hf_experts.V2_EXPERTS),
        only={**DEEPSEEK_ONLY, 'scoring_func': 'softmax', 'norm_topk_prob': False}),
    'deepseek_v3': Family(
        'DeepseekV3ForCausalLM',
        (hf_parts.one_rope(), hf_experts.LATENT, hf_experts.V3_EXPERTS, hf_experts.AHEAD),
        only={**DEEPSEEK_ONLY, 'scoring_func': 'sigmoid', 'topk_method': 'noaux_tc',
              'rope_interleave': True}),
}  # yapf: disable


def read_config(folder) -> Config:
  """The Config that folder/config.json describes. UserError where it is missing or not ours."""
  path = Path(folder) / 'config.json'
  config = read_json(path)
  try:
    cfg = _read(config)
  except UserError as e:
    raise UserError(f'{path}: {e}') from None
  except (AttributeError, KeyError, TypeError, ValueError) as e:  # what KINDS does not see
    raise UserError(f'{path} has a value of another kind than belongs there ({e}): fetch the file '
                    'again') from e
  if cfg.mtp and any(Path(folder).glob('*.safetensors')):
    # Transformers loses these layers, but not what its config says of them.
    ahead = f'model.layers.{cfg.L}.'
    if not any(name.startswith(ahead) for name in hf_files.open_tensors(folder)):
      return dataclasses.replace(cfg, mtp=0)
  return cfg


def _read(config):
  name = config.get('model_type')
  if name not in FAMILIES:
    raise UserError(f'model_type {name!r} is not one of {", ".join(FAMILIES)}: choose a model of '
                    'one of these')
  family, keys = FAMILIES[name], dict(config)
  for kinds, names in KINDS.items():
    for key in names.split():
      if keys.get(key) is not None and type(keys[key]) not in kinds:
        raise UserError(f'{key} is {keys[key]!r:.60}, and must be of type '
                        f'{" or ".join(kind.__name__ for kind in kinds)}: correct the file')
  _check_quantization(keys.pop('quantization_config', None))
  for key, value in {**ONLY, **family.only}.items():
    found = keys.get(key) if key in KEYS.values() else keys.pop(key, None)
    if found not in (None, value) and key not in family.harmless:
      raise UserError(f'{key} is {found!r:.60}, and only {value!r} is written here: choose a model '
                      'without it')
  fields = _read_sizes(keys, {**ABSENT, **family.absent})
  for part in family.parts:
    fields.update(part.read(keys, fields))
  harmless = HARMLESS.union(family.harmless)
  for key, value in sorted(keys.items()):
    known = key in harmless or key.startswith('_') or key.endswith(HARMLESS_ENDS)
    if value is not None and not known:
      raise UserError(f'{key} is {value!r:.60}, and that key of a {name} is not known here: choose '
                      'a model without it')
  return Config(**fields, **family.fixed)


def _read_sizes(keys, absent):
  fields = {ours: keys.pop(key, absent.get(key)) for ours, key in KEYS.items()}
  for ours, value in fields.items():
    if value is None and ours not in ('K', 'W'):
      raise UserError(f'{KEYS[ours]} is not there: fetch the file again')
  fields['K'] = fields['K'] or fields['H']
  fields['W'] = fields['W'] or fields['D'] // fields['H']
  if fields['H'] % fields['K']:
    raise UserError(f'num_attention_heads {fields["H"]} is not a multiple of num_key_value_heads '
                    f'{fields["K"]}: correct the file')
  return fields


def _check_quantization(found):
  if found is None:
    return
  known = {**FP8, 'modules_to_not_convert': found.get('modules_to_not_convert')}
  for key in sorted({*found, 'quant_method', 'weight_block_size'}):
    if key not in known or found.get(key) != known[key]:
      raise UserError(f'quantization_config has {key} {found.get(key)!r:.60}, and only {FP8} is '
                      'read: choose weights that are not quantized')


def write_config(cfg: Config, folder, eos_ids, bos_id: int | None = None, dtype='float32'):
  """Writes config.json, which read_config and transformers read, and generation_config.json.

  `dtype` is that of the weights beside it. Rope goes under its older keys, too, which every version
  of transformers understands. UserError where no model_type has the config's choices.
  """
  eos = sorted(int(i) for i in eos_ids)
  ends = {'eos_token_id': eos[0] if len(eos) == 1 else eos, 'bos_token_id': bos_id}
  config = {**_write(cfg), 'torch_dtype': dtype, 'pad_token_id': None, **ends}
  folder = Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  write_json(folder / 'generation_config.json', ends)
  write_json(folder / 'config.json', config)


def _write(cfg):
  """What the first family writes that, read back, means the same config."""
  lacking = {}
  for name, family in FAMILIES.items():
    if not _shaped(cfg, family):
      continue
    config = {
        'model_type': name, 'architectures': [family.architecture], 'hidden_act': 'silu',
        **family.only, **{key: getattr(cfg, ours) for ours, key in KEYS.items()}
    }
    for part in family.parts:
      config.update(part.write(cfg))
    try:
      back = _read(config)
    except UserError as e:
      lacking[name] = [str(e)]
      continue
    if back == cfg:
      return config
    lacking[name] = [f'{field.name} is {getattr(cfg, field.name)!r:.60}'
                     for field in dataclasses.fields(cfg)
                     if getattr(back, field.name) != getattr(cfg, field.name)]  # yapf: disable
  name = min(lacking, key=lambda name: len(lacking[name]))
  raise UserError('no Hugging Face model_type says all that this config does, so that it cannot be '
                  f'written: {name} comes nearest, but {", ".join(lacking[name])}')


def _shaped(cfg, family):
  """Whether the family has latent attention and experts just where the config has."""
  parts = hf_experts.QWEN_EXPERTS, hf_experts.V2_EXPERTS, hf_experts.V3_EXPERTS
  experts = any(part in family.parts for part in parts)
  return (hf_experts.LATENT in family.parts, experts) == (bool(cfg.mla), bool(cfg.moe))
