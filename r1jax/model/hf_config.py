"""config.json of a Hugging Face folder, to and from our config.

FAMILIES, KEYS and ROPES say how it is read and written, one way and the other. What would change
the maths and has no counterpart here is refused by name, never dropped.
"""
import dataclasses
import json
from pathlib import Path

from r1jax.model import Config, head_norm, rope
from r1jax.types import UserError

FAMILIES = {  # model_type -> what it chooses
    'llama': dict(qkv_bias=False, qk_norm=None),
    'qwen2': dict(qkv_bias=True, qk_norm=None),
    'qwen3': dict(qkv_bias=False, qk_norm=head_norm),
}
KEYS = {  # our field -> key of config.json
    'V': 'vocab_size', 'L': 'num_hidden_layers', 'D': 'hidden_size', 'H': 'num_attention_heads',
    'K': 'num_key_value_heads', 'W': 'head_dim', 'F': 'intermediate_size',
    'max_tokens': 'max_position_embeddings', 'norm_eps': 'rms_norm_eps',
    'tied': 'tie_word_embeddings', 'init_std': 'initializer_range',
}  # yapf: disable
ABSENT = {'norm_eps': 1e-6, 'tied': False, 'init_std': 0.02}  # what a missing key means
ONLY = {  # key -> the one value whose maths is written here, which is also what a missing key means
    'hidden_act': 'silu', 'mlp_bias': False, 'pretraining_tp': 1, 'is_causal': True,
    'partial_rotary_factor': 1.0, 'quantization_config': None,
    'original_max_position_embeddings': None,  # beside the rope's own entry
}  # yapf: disable
ROPES = {'default': rope.Default, 'linear': rope.Linear, 'llama3': rope.Llama3, 'yarn': rope.Yarn}


def read_config(folder) -> Config:
  """The Config that folder/config.json describes. UserError where it is missing or not ours."""
  path = Path(folder) / 'config.json'
  config = read_json(path)
  family = config.get('model_type')
  if family not in FAMILIES:
    raise UserError(f'{path}: model_type {family!r} is not one of {", ".join(FAMILIES)}: '
                    'choose a model of one of these')
  # Qwen2 has its biases whatever attention_bias says; elsewhere that key adds one after attention.
  only = ONLY if FAMILIES[family]['qkv_bias'] else {**ONLY, 'attention_bias': False}
  for key, value in only.items():
    if config.get(key) not in (None, value):
      raise UserError(f'{path}: {key} is {config[key]!r:.60}, and only {value!r} is written here: '
                      'choose a model without it')
  fields = {ours: config[key] for ours, key in KEYS.items() if config.get(key) is not None}
  for ours in ('V', 'L', 'D', 'H', 'F', 'max_tokens'):
    if ours not in fields:
      raise UserError(f'{path} lacks {KEYS[ours]}: fetch the file again')
  fields = {**ABSENT, 'K': fields['H'], 'W': fields['D'] // fields['H'], **fields}
  if fields['H'] % fields['K']:
    raise UserError(f'{path}: num_attention_heads {fields["H"]} is not a multiple of '
                    f'num_key_value_heads {fields["K"]}: correct the file')
  _refuse_windows(config, path)
  return Config(**fields, **FAMILIES[family], rope=_read_rope(config, path))


def _refuse_windows(config, path):
  first = config.get('max_window_layers', 28)
  window = config.get('use_sliding_window') and config.get('sliding_window', 4096)
  if window and first < config['num_hidden_layers'] and not config.get('layer_types'):
    raise UserError(f'{path}: use_sliding_window makes layers from {first} on look back only '
                    f'{window} tokens, which is not written here: choose a model without it')
  for kind in config.get('layer_types') or []:
    if kind != 'full_attention':
      raise UserError(f'{path}: layer_types has {kind!r}, and only full_attention is written here: '
                      'choose a model without it')


def _read_rope(config, path):
  """From rope_parameters (transformers 5) or rope_scaling and rope_theta (before)."""
  entry = {**(config.get('rope_scaling') or config.get('rope_parameters') or {})}
  entry = {key: value for key, value in entry.items() if value is not None}
  old_type = entry.pop('type', 'default')
  rope_type = entry.pop('rope_type', old_type)
  if rope_type not in ROPES:
    raise UserError(f'{path}: rope_type {rope_type!r} is not one of {", ".join(ROPES)}: '
                    'choose a model with one of these')
  fields = dataclasses.fields(ROPES[rope_type])
  known = {field.name for field in fields}
  absent = {'rope_theta': config.get('rope_theta') or 10000.0,
            'original_max_position_embeddings': config['max_position_embeddings']}  # yapf: disable
  entry = {**{key: value for key, value in absent.items() if key in known}, **entry}
  for key in sorted(set(entry) - known):
    raise UserError(f'{path}: {key!r} of the {rope_type} rope is not known here: '
                    'choose a model without it')
  for field in fields:
    if field.default is dataclasses.MISSING and field.name not in entry:
      raise UserError(f'{path}: the {rope_type} rope lacks {field.name}: add it to the file')
  return ROPES[rope_type](**entry)


def write_config(cfg: Config, folder, eos_ids, bos_id: int | None = None):
  """Writes config.json, which read_config and transformers read, and generation_config.json.

  Rope goes under its older keys, which every version of transformers understands. UserError where
  no model_type has the config's choices.
  """
  choices = dict(qkv_bias=cfg.qkv_bias, qk_norm=cfg.qk_norm)
  families = [family for family, theirs in FAMILIES.items() if theirs == choices]
  if not families:
    raise UserError('no Hugging Face model has both qkv_bias and qk_norm, so this one cannot be '
                    'written to config.json: switch one of them off')
  family, = families
  scaling = {key: value for key, value in dataclasses.asdict(cfg.rope).items() if value is not None}
  theta = scaling.pop('rope_theta')
  rope_type, = (name for name, made in ROPES.items() if made is type(cfg.rope))
  eos = sorted(int(i) for i in eos_ids)
  ends = {'eos_token_id': eos[0] if len(eos) == 1 else eos, 'bos_token_id': bos_id}
  config = {
      'architectures': [f'{family.capitalize()}ForCausalLM'], 'model_type': family,
      'dtype': 'float32', 'hidden_act': 'silu', **ends,
      **{key: getattr(cfg, ours) for ours, key in KEYS.items()},
      'rope_theta': theta,
      'rope_scaling': {'rope_type': rope_type, **scaling} if scaling else None,
  }  # yapf: disable
  folder = Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  write_json(folder / 'generation_config.json', ends)
  write_json(folder / 'config.json', config)


def read_json(path):
  """The file's value; UserError where it is absent or broken."""
  try:
    return json.loads(path.read_text(encoding='utf-8'))
  except FileNotFoundError:
    raise UserError(f'{path} does not exist: name the folder of a Hugging Face model') from None
  except ValueError as e:
    raise UserError(f'{path} is not JSON ({e}): fetch it again') from None


def write_json(path, value):
  """Writes the file aside and renames it."""
  part = path.with_name(f'{path.name}.part')
  part.write_text(json.dumps(value, indent=2, sort_keys=True) + '\n', encoding='utf-8')
  part.replace(path)
