"""Weights of a Hugging Face folder (safetensors), to and from our parameters.

TENSORS says which tensors of the file hold which of our weights. Loading and saving both follow it.
config.json is hf_config's, the files are hf_files'.
"""
import math
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.model import Config, hf_files, make
from r1jax.model.hf_config import read_config, write_config
from r1jax.model.transformer import size
from r1jax.types import UserError

__all__ = ['load_params', 'read_config', 'save_params', 'write_config']

# Our weight -> axes of the file's tensor, and its names. Letters that stand together are one axis
# there; * stands for the letters that are not named. With several names, they follow one another
# along N or U, each but the first filling one slot; with {e}, each expert has its own.
TENSORS = {
    'embed': ('V D', 'model.embed_tokens.weight'),
    'final_norm': ('*', 'model.norm.weight'),
    'head': ('V D', 'lm_head.weight'),
    'attn_norm': ('*', 'input_layernorm.weight'),
    'qkv': ('KNW D', 'self_attn.q_proj.weight', 'self_attn.k_proj.weight',
            'self_attn.v_proj.weight'),
    'qkv_bias': ('*', 'self_attn.q_proj.bias', 'self_attn.k_proj.bias', 'self_attn.v_proj.bias'),
    'q_norm': ('*', 'self_attn.q_norm.weight'),
    'k_norm': ('*', 'self_attn.k_norm.weight'),
    'o': ('D *', 'self_attn.o_proj.weight'),
    'attn_post_norm': ('*', 'post_attention_layernorm.weight'),
    'ffn_norm': ('*', 'post_attention_layernorm.weight'),
    'gate_up': ('FU D', 'mlp.gate_proj.weight', 'mlp.up_proj.weight'),
    'down': ('D F', 'mlp.down_proj.weight'),
    'ffn_post_norm': ('*', 'post_feedforward_layernorm.weight'),
    'q': ('HW D', 'self_attn.q_proj.weight'),
    'q_down': ('Q D', 'self_attn.q_a_proj.weight'),
    'q_down_norm': ('*', 'self_attn.q_a_layernorm.weight'),
    'q_up': ('HW Q', 'self_attn.q_b_proj.weight'),
    'kv_down': ('X D', 'self_attn.kv_a_proj_with_mqa.weight'),
    'kv_down_norm': ('*', 'self_attn.kv_a_layernorm.weight'),
    'kv_up': ('HY Z', 'self_attn.kv_b_proj.weight'),
    'router': ('e D', 'mlp.gate.weight'),
    'router_bias': ('*', 'mlp.gate.e_score_correction_bias'),
    'experts_gate': ('I D', 'mlp.experts.{e}.gate_proj.weight'),
    'experts_up': ('I D', 'mlp.experts.{e}.up_proj.weight'),
    'experts_down': ('D I', 'mlp.experts.{e}.down_proj.weight'),
    'shared_gate_up': ('MU D', 'mlp.shared_experts.gate_proj.weight',
                       'mlp.shared_experts.up_proj.weight'),
    'shared_down': ('D M', 'mlp.shared_experts.down_proj.weight'),
    'embed_norm': ('*', 'enorm.weight'),  # from here on of the layers for further tokens
    'hidden_norm': ('*', 'hnorm.weight'),
    'project': ('d UD', 'eh_proj.weight'),
    'head_norm': ('*', 'shared_head.norm.weight'),
}  # yapf: disable
BOTH_NORMS = {'ffn_norm': ('*', 'pre_feedforward_layernorm.weight')}  # before and after (Gemma)
COPIES = {'embed_tokens.weight': 'embed', 'shared_head.head.weight': 'head'}  # theirs, not ours
JOINED = 'NU'
FLOAT32 = ('router_bias',)  # whatever the dtype of the others: it moves by 0.001 an update
FP8_BLOCK = 128


def load_params(folder, cfg: Config, shardings=None, dtype='float32'):
  """The parameters of `cfg` from folder/model.safetensors or the files of its index.

  `shardings` is a tree like the parameters (None: all on the default device). Each device reads
  its own piece of each weight, so the host never holds the whole model. Float8 weights are
  multiplied by the scales of their blocks. Raises UserError naming the first tensor that is
  missing, unexpected, of another shape or of a dtype that is not read, or no copy of what it
  should be one of: a tied head, DeepSeek's layers for further tokens have copies.
  """
  axes = make(cfg).axes()
  if shardings is None:
    shardings = jax.tree.map(lambda _: jnp.zeros(()).sharding, axes)
  stored = hf_files.open_tensors(folder)
  ours = _tensors(cfg, axes)
  _check(folder, cfg, ours, stored)

  def load(path, letters, sharding):
    names = tuple(key.key for key in path)
    tensors, layers = ours[names], len({tensor.layer for tensor in ours[names]})
    kept = kept_as(names[-1], dtype)
    shape = [layers if x == 'L' else size(cfg, x) for x in letters]

    def piece(index):
      box = {x: range(n)[cut] for x, n, cut in zip(letters, shape, index)}
      out = np.empty([len(r) for r in box.values()], kept)
      for tensor in tensors:
        _read(tensor, stored, box, out)
      return out

    return jax.make_array_from_callback(tuple(shape), sharding, piece)

  return jax.tree.map_with_path(load, axes, shardings)


def kept_as(name, dtype):
  """The dtype of a weight in parameters of `dtype`."""
  return jnp.dtype('float32' if name in FLOAT32 else dtype)


def shapes(model, dtype='float32'):
  """The model's parameters as abstract arrays, in the dtype that `load_params` gives them."""
  made = jax.eval_shape(model.init, jax.random.key(0))
  return jax.tree.map_with_path(
      lambda path, x: jax.ShapeDtypeStruct(x.shape, kept_as(path[-1].key, dtype)), made)


def save_params(folder, cfg: Config, params, max_shard_bytes: float = 5e9, dtype='float32'):
  """Writes the parameters as transformers reads them: the exact inverse of load_params.

  One file, or several and their index where the tensors exceed `max_shard_bytes`. `dtype` is that
  of the files, float32 or bfloat16. Every weight must be addressable by this process.
  """
  folder, dtype = Path(folder), jnp.dtype(dtype)
  folder.mkdir(parents=True, exist_ok=True)
  tensors = {tensor.name: (names, tensor)
             for names, all_of in _tensors(cfg, make(cfg).axes()).items()
             for tensor in all_of}  # yapf: disable
  for layer in range(cfg.L, cfg.L + cfg.mtp):
    for name, source in COPIES.items():
      source = source if source in params else 'embed'  # which is also the head, where it is tied
      copied, = _of_weight(cfg, source, 'VD', '', None)
      tensors[f'model.layers.{layer}.{name}'] = (source,), copied

  def value(name):
    names, tensor = tensors[name]
    weight = params
    for key in names:
      weight = weight[key]
    return _value(tensor, weight).astype(kept_as(names[-1], dtype))

  shards, filled = [[]], 0
  for name, (_, tensor) in tensors.items():
    nbytes = dtype.itemsize * math.prod(tensor.shape)
    if shards[-1] and filled + nbytes > max_shard_bytes:
      shards, filled = [*shards, []], 0
    shards[-1].append(name)
    filled += nbytes
  hf_files.save_tensors(folder, shards, value)


class _Tensor(NamedTuple):
  """A tensor of the file, and which part of one of our weights it is."""
  name: str
  layer: int | None  # along the weight's axis L
  groups: list[str]  # axes of the tensor: the letters of each
  box: dict[str, range]  # of each letter of our weight but L, in its order: what the tensor fills

  @property
  def shape(self):
    return tuple(math.prod(len(self.box[x]) for x in letters) for letters in self.groups)


def _tensors(cfg, axes):
  """(keys of one of our weights) -> the tensors that make it up."""
  stacks = {'dense': range(cfg.dense), 'layers': range(cfg.dense, cfg.L),
            'mtp': range(cfg.L, cfg.L + cfg.mtp)}  # yapf: disable
  out = {(name,): _of_weight(cfg, name, letters, '', None)
         for name, letters in axes.items() if name not in stacks}  # yapf: disable
  for stack in (name for name in stacks if name in axes):
    for name, letters in axes[stack].items():
      out[stack, name] = [tensor for i, layer in enumerate(stacks[stack])
                          for tensor in _of_weight(cfg, name, letters[1:],
                                                   f'model.layers.{layer}.', i)]  # yapf: disable
  return out


def _of_weight(cfg, ours, letters, prefix, layer):
  """The tensors that make up one of our weights, of one layer."""
  table = {**TENSORS, **BOTH_NORMS} if cfg.pre_norm and cfg.post_norm else TENSORS
  groups, *names = table[ours]
  groups = groups.replace('*', ''.join(x for x in letters if x not in groups))
  joined = next((x for x in letters if x in JOINED), None)
  whole, out = {x: range(size(cfg, x)) for x in letters}, []
  for e in whole['E'] if '{e}' in names[0] else [None]:
    start = 0
    for i, name in enumerate(names):
      box = whole if e is None else {**whole, 'E': range(e, e + 1)}
      if joined:
        stop = start + (1 if i else size(cfg, joined) - len(names) + 1)
        box, start = {**box, joined: range(start, stop)}, stop
      out.append(_Tensor(prefix + name.format(e=e), layer, groups.split(), box))
  return out


def _read(tensor, stored, wanted, out):
  """Fills `out`, the part of our weight in the box `wanted`, with what the tensor has of it."""
  here = {x: range(max(r.start, wanted[x].start), min(r.stop, wanted[x].stop))
          for x, r in tensor.box.items()}  # yapf: disable
  if not all(here.values()) or tensor.layer not in wanted.get('L', (None,)):
    return
  cuts, shape, rest = [], [], []
  for first, *inner in tensor.groups:
    sizes = [len(tensor.box[x]) for x in inner]
    cut = _within(here[first], tensor.box[first])
    # Only the first letter of an axis is cut while reading: no mesh cuts the others.
    cuts.append(slice(cut.start * math.prod(sizes), cut.stop * math.prod(sizes)))
    shape += [len(here[first]), *sizes]
    rest += [slice(None), *(_within(here[x], tensor.box[x]) for x in inner)]
  there = ''.join(tensor.groups)
  block = _numbers(stored, tensor.name, tuple(cuts)).reshape(shape)[tuple(rest)]
  block = block.transpose([there.index(x) for x in tensor.box if x in there])
  if 'L' in wanted:
    out = out[tensor.layer - wanted['L'].start]
  where = tuple(_within(r, wanted[x]) for x, r in here.items())
  out[where] = block.reshape([len(r) for r in here.values()])  # E is 1 of a tensor without it


def _within(part, whole):
  return slice(part.start - whole.start, part.stop - whole.start)


def _numbers(stored, name, cuts):
  """A part of a tensor; of float8, each number times the scale of its block (DeepSeek-V3)."""
  numbers = stored[name][cuts]
  if numbers.dtype != jnp.float8_e4m3fn:
    return numbers
  scales, numbers = stored[f'{name}_scale_inv'], numbers.astype(np.float32)
  for axis, cut in enumerate(cuts):
    blocks = np.arange(cut.start, cut.stop) // FP8_BLOCK
    scales = scales.take(blocks, axis)
  return numbers * scales


def _value(tensor, weight):
  """The tensor's numbers on the host, in the file's layout."""
  if tensor.layer is not None:
    weight = weight[tensor.layer]
  box = tensor.box
  if 'E' in box and 'E' not in ''.join(tensor.groups):
    weight, box = weight[box['E'].start], {x: r for x, r in box.items() if x != 'E'}
  block = np.asarray(weight)[tuple(slice(r.start, r.stop) for r in box.values())]
  letters = ''.join(box)
  return block.transpose([letters.index(x) for x in ''.join(tensor.groups)]).reshape(tensor.shape)


def _check(folder, cfg, ours, stored):
  """That the folder has every tensor and no other."""
  again = 'correct config.json or fetch the weights again'
  left = dict(stored)
  for tensor in (tensor for tensors in ours.values() for tensor in tensors):
    found, shape = left.pop(tensor.name, None), list(tensor.shape)
    if found is None:
      raise UserError(f'{folder} has no tensor {tensor.name}, which its config asks for with shape '
                      f'{shape}: {again}')
    if not isinstance(found, np.ndarray):
      raise UserError(f'{folder}: tensor {tensor.name} is stored as {found}, and only '
                      f'{", ".join(hf_files.DTYPES)} are read: choose other weights')
    if list(found.shape) != shape:
      raise UserError(f'{folder}: tensor {tensor.name} has shape {list(found.shape)} where the '
                      f'config asks for {shape}: {again}')
    if found.dtype == jnp.float8_e4m3fn:
      scale = left.pop(f'{tensor.name}_scale_inv', None)
      blocks = [-(-n // FP8_BLOCK) for n in shape]
      if list(getattr(scale, 'shape', ())) != blocks:
        raise UserError(
            f'{folder}: tensor {tensor.name} is float8 without a {tensor.name}_scale_inv '
            f'of shape {blocks}: fetch the weights again')
  copies = {f'model.layers.{cfg.L + i}.{name}': source
            for i in range(cfg.mtp) for name, source in COPIES.items()}  # yapf: disable
  copies['lm_head.weight'] = 'embed'  # some write the tied head all the same
  for name in sorted(left):
    if name in copies:
      source, = ours.get((copies[name],)) or ours[('embed',)]
      if not _same(stored[name], stored[source.name]):
        raise UserError(f'{folder}: tensor {name} is not the same as {source.name}, of which its '
                        f'config makes it a copy: {again}')
    elif not name.endswith('rotary_emb.inv_freq'):  # a buffer that follows from the config
      raise UserError(f'{folder} has a tensor {name}, which its config does not know: correct '
                      'config.json or choose a model without it')


def _same(x, y, rows=1024):
  """Whether two matrices of the file hold the same numbers; so many rows at a time are read."""
  if isinstance(x, str) or x.shape != y.shape:
    return False
  part = lambda x, i: x[i:i + rows].astype(np.float32)
  return all(np.array_equal(part(x, i), part(y, i)) for i in range(0, len(x), rows))
