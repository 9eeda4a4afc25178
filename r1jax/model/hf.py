"""Weights of a Hugging Face folder (safetensors), to and from our parameters.

ENDS and LAYER say which tensor of the file holds which of our weights. Loading and saving both
follow them. config.json is hf_config's.
"""
import contextlib
import math
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from safetensors.numpy import save_file

from r1jax.model import Config, make
from r1jax.model.hf_config import read_config, read_json, write_config, write_json
from r1jax.types import UserError

__all__ = ['load_params', 'read_config', 'save_params', 'write_config']

WEIGHTS, INDEX = 'model.safetensors', 'model.safetensors.index.json'

# Our weight -> axes of the file's tensor, and its name. Letters that stand together are one axis
# there. Several tensors follow one another along N or U; each but the first fills one slot of it.
JOINED = 'NU'
ENDS = {
    'embed': ('V D', 'model.embed_tokens.weight'),
    'final_norm': ('D', 'model.norm.weight'),
    'head': ('V D', 'lm_head.weight'),
}
LAYER = {
    'attn_norm': ('D', 'input_layernorm.weight'),
    'qkv':
        ('KNW D', 'self_attn.q_proj.weight', 'self_attn.k_proj.weight', 'self_attn.v_proj.weight'),
    'qkv_bias': ('KNW', 'self_attn.q_proj.bias', 'self_attn.k_proj.bias', 'self_attn.v_proj.bias'),
    'q_norm': ('W', 'self_attn.q_norm.weight'),
    'k_norm': ('W', 'self_attn.k_norm.weight'),
    'o': ('D KRW', 'self_attn.o_proj.weight'),
    'ffn_norm': ('D', 'post_attention_layernorm.weight'),
    'gate_up': ('FU D', 'mlp.gate_proj.weight', 'mlp.up_proj.weight'),
    'down': ('D F', 'mlp.down_proj.weight'),
}


def load_params(folder, cfg: Config, shardings=None):
  """The parameters of `cfg`, float32, from folder/model.safetensors or the files of its index.

  `shardings` is a tree like the parameters (None: all on the default device). Each device reads
  its own piece of each weight, so the host never holds the whole model. Raises UserError naming
  the first tensor that is missing, unexpected, of another shape or not of floating point.
  """
  axes = make(cfg).axes()
  if shardings is None:
    shardings = jax.tree.map(lambda _: jnp.zeros(()).sharding, axes)
  with contextlib.ExitStack() as stack:
    stored = _open(Path(folder), stack)
    _check(Path(folder), cfg, axes, stored)

    def load(path, letters, sharding):
      name = path[-1].key
      shape = tuple(getattr(cfg, letter) for letter in letters)

      def piece(index):
        box = {x: range(size)[cut] for x, size, cut in zip(letters, shape, index)}
        out = np.empty([len(r) for r in box.values()], np.float32)
        for layer, block in zip(box['L'], out) if 'L' in box else [(None, out)]:
          tensors = _tensors(cfg, name, letters.replace('L', ''), layer)
          block[...] = _read(tensors, stored, box)
        return out

      return jax.make_array_from_callback(shape, sharding, piece)

    return jax.tree.map_with_path(load, axes, shardings)


def save_params(folder, cfg: Config, params, max_shard_bytes: float = 5e9):
  """Writes the parameters as transformers reads them: the exact inverse of load_params.

  One file, or several and their index where the tensors exceed `max_shard_bytes`; a shard at a time
  is on the host. All are written aside and renamed when complete, the index last, so that a folder
  never reads as a model that it is not. Every weight must be addressable by this process.
  """
  folder = Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  shards, filled = [[]], 0
  for tensor in _all_tensors(cfg, make(cfg).axes()):
    size = 4 * math.prod(tensor.shape)
    if shards[-1] and filled + size > max_shard_bytes:
      shards, filled = [*shards, []], 0
    shards[-1].append(tensor)
    filled += size
  n = len(shards)
  files = [f'model-{i + 1:05}-of-{n:05}.safetensors' for i in range(n)] if n > 1 else [WEIGHTS]
  for file, shard in zip(files, shards):
    values = {tensor.name: _value(tensor, params) for tensor in shard}
    save_file(values, folder / f'{file}.part', metadata={'format': 'pt'})
  for old in (folder / WEIGHTS, folder / INDEX, *folder.glob('model-*-of-*.safetensors')):
    old.unlink(missing_ok=True)
  for file in files:
    (folder / f'{file}.part').replace(folder / file)
  if n > 1:
    total = sum(4 * math.prod(tensor.shape) for shard in shards for tensor in shard)
    where = {tensor.name: file for file, shard in zip(files, shards) for tensor in shard}
    write_json(folder / INDEX, {'metadata': {'total_size': total}, 'weight_map': where})


class _Tensor(NamedTuple):
  """A tensor of the file, and which part of one of our weights it is."""
  name: str
  ours: str
  layer: int | None
  letters: str  # axes of our weight in one layer
  groups: list[str]  # axes of the tensor: the letters of each
  sizes: dict[str, int]  # of each letter; of N and U, the slots that this tensor fills
  start: int  # its first slot

  @property
  def shape(self):
    return tuple(math.prod(self.sizes[x] for x in letters) for letters in self.groups)


def _tensors(cfg, ours, letters, layer):
  """The tensors that make up one of our weights, in their order along N or U."""
  groups, *names = ENDS[ours] if layer is None else LAYER[ours]
  prefix = '' if layer is None else f'model.layers.{layer}.'
  joined = _joined(letters)
  first = getattr(cfg, joined) - len(names) + 1 if joined else 1
  out, start = [], 0
  for i, name in enumerate(names):
    slots = 1 if i else first
    sizes = {x: slots if x in JOINED else getattr(cfg, x) for x in letters}
    out.append(_Tensor(prefix + name, ours, layer, letters, groups.split(), sizes, start))
    start += slots
  return out


def _all_tensors(cfg, axes):
  ends = [(name, axes[name], None) for name in axes if name != 'layers']
  layers = [(name, letters[1:], layer)
            for layer in range(cfg.L)
            for name, letters in axes['layers'].items()]
  return [tensor for weight in ends + layers for tensor in _tensors(cfg, *weight)]


def _read(tensors, stored, box):
  """The part of one of our weights (of one layer) that lies in `box`, a range for each letter."""
  letters, blocks = tensors[0].letters, []
  leading = {group[0] for group in tensors[0].groups}
  for tensor in tensors:
    cuts, shape = [], []
    for first, *inner in tensor.groups:
      sizes = [tensor.sizes[x] for x in inner]
      cuts.append(slice(box[first].start * math.prod(sizes), box[first].stop * math.prod(sizes)))
      shape += [len(box[first]), *sizes]
    there = ''.join(tensor.groups)
    block = np.asarray(stored[tensor.name][tuple(cuts)], np.float32).reshape(shape)
    blocks.append(block.transpose([there.index(x) for x in letters]))
  block = np.concatenate(blocks, letters.find(_joined(letters))) if len(blocks) > 1 else blocks[0]
  # The leading letter of each axis was cut while reading; the others (N, U, R, W) no mesh cuts, so
  # that cutting them here costs no reading in vain.
  rest = lambda x: slice(None) if x in leading else slice(box[x].start, box[x].stop)
  return block[tuple(rest(x) for x in letters)]


def _value(tensor, params):
  """The tensor's numbers on the host, in the file's layout."""
  if tensor.layer is None:
    block = np.asarray(params[tensor.ours])
  else:
    block = np.asarray(params['layers'][tensor.ours][tensor.layer])
  filled = slice(tensor.start, tensor.start + tensor.sizes.get(_joined(tensor.letters), 0))
  block = block[tuple(filled if x in JOINED else slice(None) for x in tensor.letters)]
  block = block.transpose([tensor.letters.index(x) for x in ''.join(tensor.groups)])
  return np.ascontiguousarray(block.reshape(tensor.shape))  # save_file writes others wrongly


def _joined(letters):
  return next((x for x in letters if x in JOINED), '')


def _open(folder, stack):
  """Tensor name -> its slice in the file, for every tensor of the folder."""
  files = [WEIGHTS]
  if not (folder / WEIGHTS).exists():
    if not (folder / INDEX).exists():
      raise UserError(f'{folder} has neither {WEIGHTS} nor {INDEX}: fetch or convert its weights')
    files = sorted(set(read_json(folder / INDEX).get('weight_map', {}).values()))
  stored = {}
  for file in files:
    try:
      opened = stack.enter_context(safetensors.safe_open(folder / file, 'numpy'))
    except (OSError, safetensors.SafetensorError) as e:
      raise UserError(f'{folder / file} cannot be read ({e}): fetch it again') from e
    stored.update({name: opened.get_slice(name) for name in opened.keys()})
  return stored


def _check(folder, cfg, axes, stored):
  ignored = {'lm_head.weight'} if cfg.tied else set()  # some write the tied head all the same
  expected = {tensor.name: tensor.shape for tensor in _all_tensors(cfg, axes)}
  for name, shape in expected.items():
    if name not in stored:
      raise UserError(f'{folder} has no tensor {name}, which its config asks for with shape '
                      f'{list(shape)}: correct config.json or fetch the weights again')
    if tuple(stored[name].get_shape()) != shape:
      raise UserError(f'{folder}: tensor {name} has shape {stored[name].get_shape()} where the '
                      f'config asks for {list(shape)}: correct config.json or fetch the weights '
                      'again')
    if stored[name].get_dtype() not in ('F32', 'BF16', 'F16'):
      raise UserError(f'{folder}: tensor {name} is stored as {stored[name].get_dtype()}, and only '
                      'F32, BF16 and F16 are read: choose weights that are not quantized')
  for name in sorted(set(stored) - set(expected) - ignored):
    if not name.endswith('rotary_emb.inv_freq'):  # a buffer that follows from the config
      raise UserError(f'{folder} has a tensor {name} of shape {stored[name].get_shape()} that its '
                      'config does not know: correct config.json or choose a model without it')
