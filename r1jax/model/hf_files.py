"""The files of a Hugging Face folder: JSON, and safetensors as arrays that are read where touched.

A safetensors file is the length of its header (8 bytes), the header (JSON: name -> dtype, shape,
offsets) and the numbers. Mapped into memory, each tensor is a view of its file.
"""
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from r1jax.types import UserError

WEIGHTS, INDEX = 'model.safetensors', 'model.safetensors.index.json'
DTYPES = {'F32': np.float32, 'F16': np.float16, 'BF16': jnp.bfloat16, 'F8_E4M3': jnp.float8_e4m3fn}


def open_tensors(folder) -> dict[str, np.ndarray | str]:
  """Name -> tensor, for all of the folder's model.safetensors or of the files of its index.

  Nothing is read yet but headers. A tensor of a dtype that is not in DTYPES is that dtype's name.
  UserError where a file is missing or broken.
  """
  folder = Path(folder)
  files = [WEIGHTS]
  if not (folder / WEIGHTS).exists():
    if not (folder / INDEX).exists():
      raise UserError(f'{folder} has neither {WEIGHTS} nor {INDEX}: fetch or convert its weights')
    files = sorted(set(read_json(folder / INDEX).get('weight_map', {}).values()))
  stored = {}
  for file in files:
    try:
      stored.update(_open(folder / file))
    except (OSError, ValueError, KeyError, TypeError) as e:
      raise UserError(f'{folder / file} cannot be read ({e}): fetch it again') from e
  return stored


def _open(path):
  data = np.memmap(path, np.uint8, 'r')
  start = 8 + int.from_bytes(data[:8].tobytes(), 'little')
  header = json.loads(data[8:start].tobytes())
  header.pop('__metadata__', None)
  tensors = {}
  for name, about in header.items():
    begin, end = about['data_offsets']
    dtype = DTYPES.get(about['dtype'])
    if dtype is None:
      tensors[name] = about['dtype']
    else:
      tensors[name] = data[start + begin:start + end].view(dtype).reshape(about['shape'])
  return tensors


def save_tensors(folder, shards, make):
  """Writes make(name) of all names as transformers reads them, each list of `shards` as a file.

  A shard at a time is on the host. All files are written aside and renamed when complete, the index
  last, so that a folder never reads as a model that it is not.
  """
  n, total = len(shards), 0
  files = [f'model-{i + 1:05}-of-{n:05}.safetensors' for i in range(n)] if n > 1 else [WEIGHTS]
  for file, names in zip(files, shards):
    values = {name: np.ascontiguousarray(make(name)) for name in names}  # save_file needs them so
    total += sum(value.nbytes for value in values.values())
    save_file(values, folder / f'{file}.part', metadata={'format': 'pt'})
  for old in (folder / WEIGHTS, folder / INDEX, *folder.glob('model-*-of-*.safetensors')):
    old.unlink(missing_ok=True)
  for file in files:
    (folder / f'{file}.part').replace(folder / file)
  if n > 1:
    where = {name: file for file, names in zip(files, shards) for name in names}
    write_json(folder / INDEX, {'metadata': {'total_size': total}, 'weight_map': where})


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
