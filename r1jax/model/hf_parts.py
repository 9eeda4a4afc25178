"""Parts of config.json of a Hugging Face folder, to and from fields of our Config.

A part takes its keys out of the file's when it reads them, so that hf_config sees which keys nobody
has read. What a family is made of, and the fields that all have, stand there.
"""
import dataclasses
import itertools
from typing import Callable, NamedTuple

from r1jax.model import rope
from r1jax.types import UserError

ROPES = {'default': rope.Default, 'linear': rope.Linear, 'llama3': rope.Llama3, 'yarn': rope.Yarn}
FULL, SLIDING = 'full_attention', 'sliding_attention'


class Part(NamedTuple):
  """Some fields of Config and some keys of config.json that say the same."""
  read: Callable  # keys (a dict, from which it takes its own), fields so far -> more fields
  write: Callable  # Config -> keys


def need(keys, name, absent=None):
  """Takes a key that must not be null; `absent` is what its absence means, if it may be absent."""
  value = keys.pop(name, absent)
  if value is None:
    raise UserError(f'{name} is not there: fetch the file again')
  return value


def _agreed(said):
  """What all entries of a dict say that are not None; UserError naming two that differ."""
  said = {name: value for name, value in said.items() if value is not None}
  for (one, x), (other, y) in itertools.pairwise(said.items()):
    if x != y:
      raise UserError(f'{one} says {x!r:.80} and {other} says {y!r:.80}: correct one of them')
  return next(iter(said.values()), None)


def _read_rope(entries, theta, absent, max_tokens):
  """The rope that dicts of config.json, by name, agree on, with the theta that these, or `theta`,
  a dict from a name to it, have; `absent` is theta where none has it."""
  entries = {name: entry for name, entry in entries.items() if entry}
  inner = {f'{name}.rope_theta': entry.get('rope_theta') for name, entry in entries.items()}
  theta = _agreed({**theta, **inner}) or absent
  ropes = {name: _rope(entry, theta, max_tokens) for name, entry in entries.items()}
  return _agreed(ropes) or _rope({}, theta, max_tokens)


def _rope(entry, theta, max_tokens):
  entry = {key: value for key, value in entry.items() if value is not None}
  old_type = entry.pop('type', 'default')
  rope_type = entry.pop('rope_type', old_type)
  if rope_type not in ROPES:
    raise UserError(f'rope_type {rope_type!r} is not one of {", ".join(ROPES)}: choose a model '
                    'with one of these')
  if entry.get('partial_rotary_factor') == 1:
    del entry['partial_rotary_factor']
  fields = dataclasses.fields(ROPES[rope_type])
  known = {field.name for field in fields}
  absent = {'rope_theta': theta, 'original_max_position_embeddings': max_tokens}
  entry = {**{key: value for key, value in absent.items() if key in known}, **entry}
  for key in sorted(set(entry) - known):
    raise UserError(f'{key!r} of the {rope_type} rope is not known here: choose a model without it')
  for field in fields:
    if field.default is dataclasses.MISSING and field.name not in entry:
      raise UserError(f'the {rope_type} rope lacks {field.name}: add it to the file')
  for key, value in entry.items():
    if not isinstance(value, (int, float)):
      raise UserError(f'{key} of the {rope_type} rope is {value!r:.60}, and no number: correct it')
  return ROPES[rope_type](**entry)


def _rope_entry(made):
  """A rope_parameters entry."""
  name, = (name for name, kind in ROPES.items() if kind is type(made))
  values = {key: value for key, value in dataclasses.asdict(made).items() if value is not None}
  return {'rope_type': name, **values}


def _write_rope(cfg):
  """Under the older keys, which every version of transformers understands."""
  entry = _rope_entry(cfg.rope)
  theta = entry.pop('rope_theta')
  return {'rope_theta': theta, 'rope_scaling': entry if len(entry) > 1 else None}


def one_rope(theta=10000.0):
  """The rope of all layers, from rope_parameters (transformers 5), or rope_scaling and rope_theta
  (before); `theta` is what a file without one means."""

  def read(keys, fields):
    entries = {key: keys.pop(key, None) for key in ('rope_parameters', 'rope_scaling')}
    base = {'rope_theta': keys.pop('rope_theta', None)}
    return {'rope': _read_rope(entries, base, theta, fields['max_tokens'])}

  return Part(read, _write_rope)


def two_ropes(theta, local_theta=None):
  """One rope for full layers, and the default one for those with a window, where rope_parameters
  says nothing else. The latter's theta, if it has its own, was rope_local_base_freq before."""

  def read(keys, fields):
    new, old = keys.pop('rope_parameters', None) or {}, keys.pop('rope_scaling', None)
    for key in sorted(set(new) - {FULL, SLIDING}):
      raise UserError(f'{key!r} of rope_parameters is not known here: choose a model without it')
    entries = {f'rope_parameters.{FULL}': new.get(FULL), 'rope_scaling': old}
    base = {'rope_theta': keys.pop('rope_theta', None)}
    ours = _read_rope(entries, base, theta, fields['max_tokens'])
    entries, base = {f'rope_parameters.{SLIDING}': new.get(SLIDING)}, {}
    if local_theta:
      base = {'rope_local_base_freq': keys.pop('rope_local_base_freq', None)}
    theirs = _read_rope(entries, base, local_theta or ours.rope_theta, fields['max_tokens'])
    return {'rope': ours, 'rope_windowed': None if theirs == ours else theirs}

  def write(cfg):
    windowed = cfg.rope_windowed or cfg.rope
    nested = {FULL: _rope_entry(cfg.rope), SLIDING: _rope_entry(windowed)}
    local = {'rope_local_base_freq': windowed.rope_theta} if local_theta else {}
    return {**_write_rope(cfg), **local, 'rope_parameters': nested}

  return Part(read, write)


def windows(guess, size=4096, switch=False):
  """Layers that look back on sliding_window positions: those that layer_types names, or without it
  those that guess(keys, fields) gives. `size` is what a file without a sliding_window means; with a
  `switch`, there is no window unless use_sliding_window is true."""

  def read(keys, fields):
    window = keys.pop('sliding_window', size)
    if switch and not keys.pop('use_sliding_window', False):
      window = None
    guessed, kinds = tuple(guess(keys, fields)), keys.pop('layer_types', None)
    for kind in sorted(set(kinds or ()) - {FULL, SLIDING}):
      raise UserError(f'layer_types has {kind!r}, and only {FULL} and {SLIDING} are written here: '
                      'choose a model without it')
    if kinds and len(kinds) != fields['L']:
      raise UserError(f'layer_types has {len(kinds)} entries for {fields["L"]} layers: correct it')
    windowed = guessed if window else ()
    if kinds:
      windowed = tuple(i for i, kind in enumerate(kinds) if kind == SLIDING)
    if windowed and not window:
      raise UserError(f'layer_types has {SLIDING}, and sliding_window is off: correct one of them')
    return {'window': window if windowed else 0, 'windowed': windowed}

  def write(cfg):
    kinds = [SLIDING if i in cfg.windowed else FULL for i in range(cfg.L)]
    keys = {'sliding_window': cfg.window or None, 'layer_types': kinds}
    first = min(cfg.windowed, default=cfg.L)
    more = {'use_sliding_window': bool(cfg.windowed), 'max_window_layers': first}
    return {**keys, **more} if switch else keys

  return Part(read, write)


def from_max_window_layers(keys, fields):
  """Qwen: the layers from max_window_layers on."""
  return range(need(keys, 'max_window_layers', 28), fields['L'])


def where_unrotated(keys, fields):
  """SmolLM 3: the layers without rotation."""
  del keys
  return fields['unrotated']


def all_but_every(n, key='sliding_window_pattern'):
  """Gemma, OLMo 3: all layers but every n-th, or where the file has `key`, every so-many-th."""

  def guess(keys, fields):
    every = need(keys, key, n)
    return (i for i in range(fields['L']) if (i + 1) % every)

  return guess


def _read_window(keys, fields):
  window = keys.pop('sliding_window', 4096)
  return {'window': window or 0, 'windowed': tuple(range(fields['L'])) if window else ()}


WINDOW = Part(_read_window, lambda cfg: {'sliding_window': cfg.window or None})  # in all layers


def _read_unrotated(keys, fields):
  every = need(keys, 'no_rope_layer_interval', 4)
  rotated = keys.pop('no_rope_layers', None) or [(i + 1) % every for i in range(fields['L'])]
  if len(rotated) < fields['L']:
    raise UserError(
        f'no_rope_layers has {len(rotated)} entries for {fields["L"]} layers: correct it')
  return {'unrotated': tuple(i for i, yes in enumerate(rotated[:fields['L']]) if not yes)}


# SmolLM 3: no_rope_layers has 1 for the layers that do rotate.
UNROTATED = Part(
    _read_unrotated,
    lambda cfg: {'no_rope_layers': [int(i not in cfg.unrotated) for i in range(cfg.L)]})


def gemma(attn_cap, logit_cap):
  """Gemma's scales; the soft caps that a file without them means. Gemma 3 has none of scores."""

  def read(keys, fields):
    caps = {'logit_cap': keys.pop('final_logit_softcapping', logit_cap) or 0.0}
    if attn_cap:
      caps['attn_cap'] = keys.pop('attn_logit_softcapping', attn_cap) or 0.0
    scale = need(keys, 'query_pre_attn_scalar', 256)**-0.5
    return {'embed_scale': fields['D']**0.5, 'attn_scale': scale, **caps}

  def write(cfg):
    caps = {'attn_logit_softcapping': cfg.attn_cap or None} if attn_cap else {}
    return {'query_pre_attn_scalar': round(cfg.scale**-2), **caps,
            'final_logit_softcapping': cfg.logit_cap or None}  # yapf: disable

  return Part(read, write)
