"""What a compiled program says: its collectives with their bytes, and what its loops copy."""
import collections
import math
import re
from typing import NamedTuple

import numpy as np

KINDS = ('all-gather', 'reduce-scatter', 'all-reduce', 'all-to-all', 'ragged-all-to-all',
         'collective-permute', 'collective-broadcast')  # yapf: disable
BITS = {'pred': 8, 'token': 0}  # of types whose name has another number


class Instruction(NamedTuple):
  """One line of a computation."""
  name: str
  shape: str  # as 'bf16[8,128]{1,0}', or a tuple of such in brackets
  op: str
  rest: str  # operands and attributes


class Collective(NamedTuple):
  """Collectives of one kind over the same mesh axes. In a loop whose length the program does not
  know, as sampling's, `count` and `bytes` are those of one turn."""
  kind: str
  axes: tuple[str, ...]  # of the mesh
  per_turn: bool
  count: int
  bytes: float  # that a device sends, in a ring


def parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
  """{computation: its instructions} of a program's text, and the name of the entry."""
  out, here, entry = {}, None, ''
  for line in text.splitlines():
    head = re.match(r'(ENTRY )?%?([\w.\-]+) \(.*\{$', line)
    if head:
      here = out.setdefault(head[2], [])
      entry = head[2] if head[1] else entry
    elif here is not None and (found := re.match(r' +(?:ROOT )?%?([\w.\-]+) = (.*)', line)):
      shape, rest = _shape_and_rest(found[2])
      op, _, rest = rest.partition('(')
      here.append(Instruction(found[1], shape, op, rest))
  return out, entry


def _shape_and_rest(text):
  if not text.startswith('('):
    shape, _, rest = text.partition(' ')
    return shape, rest
  depth = 0
  for i, c in enumerate(text):
    depth += (c == '(') - (c == ')')
    if not depth:
      return text[:i + 1], text[i + 2:]
  raise ValueError(f'no end of a tuple: {text[:100]}')


def sizes(shape: str) -> list[int]:
  """Bytes of each array of a shape."""
  found = re.findall(r'\b([a-z]+\d*\w*)\[([\d,]*)\]', shape)
  return [math.prod(map(int, dims.split(','))) * _bits(dtype) // 8 if dims else _bits(dtype) // 8
          for dtype, dims in found]  # yapf: disable


def _bits(dtype):
  return BITS[dtype] if dtype in BITS else int(re.search(r'\d+', dtype)[0])


def collectives(text: str, mesh) -> list[Collective]:
  """The collectives of a compiled program, those in loops as often as the loops turn."""
  program, entry = parse(text)
  totals = collections.Counter(), collections.Counter()
  for instruction, times, per_turn, scattered in _walk(program, entry):
    kind = instruction.op.removesuffix('-start')
    if kind not in KINDS:
      continue
    groups = _groups(instruction.rest, mesh.size)
    key = 'reduce-scatter' if scattered else kind, mesh_axes(groups, mesh), per_turn
    totals[0][key] += times
    totals[1][key] += times * _sent(kind, instruction, len(groups[0]), scattered)
  return [Collective(*key, count, totals[1][key]) for key, count in sorted(totals[0].items())]


def _walk(program, name, times=1, per_turn=False, scattered=False):
  """Each instruction that runs, how often, and whether in a loop of unknown length."""
  for x in program[name]:
    yield x, times, per_turn, scattered
    if x.op == 'while':
      turns, body = _turns(program, x), re.search(r'body=%?([\w.\-]+)', x.rest)[1]
      yield from _walk(program, body, times * (turns or 1), per_turn or turns is None)
    else:
      for called in _called(x.rest):
        # A TPU's reduce-scatter is a fusion of an all-reduce and a slice of it.
        fused = called.startswith('all-reduce-scatter')
        yield from _walk(program, called, times, per_turn, fused)


def _turns(program, loop):
  """How often a loop turns: as XLA says it, or the bound of a counter which, as in jax's scan,
  starts at 0 and is all that the condition looks at; else None."""
  if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest):
    return int(known[1])
  condition = program[re.search(r'condition=%?([\w.\-]+)', loop.rest)[1]]
  if {x.op for x in condition} != {'parameter', 'constant', 'get-tuple-element', 'compare'}:
    return None
  compared, = (x for x in condition if x.op == 'compare')
  bounds = [int(x.rest.partition(')')[0]) for x in condition if x.op == 'constant']
  return bounds[0] if len(bounds) == 1 and 'direction=LT' in compared.rest else None


def _called(rest):
  found = re.findall(r'(?:calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)', rest)
  branches = re.search(r'branch_computations=\{([^}]*)\}', rest)
  return found + [x.strip().lstrip('%') for x in branches[1].split(',')] if branches else found


def _sent(kind, x, n, scattered):
  """Bytes that a device of n sends, all of them arranged in a ring."""
  arrays = sizes(x.shape)
  if x.op.endswith('-start') and kind != 'all-reduce':  # (operands, results, counters)
    arrays = [size for size in arrays if size > 4]
    arrays = arrays[len(arrays) // 2:]
  size = sum(arrays)
  if kind == 'collective-permute':
    return size
  if kind == 'reduce-scatter':
    return size * (n - 1)
  return size * (n - 1) / n * (2 if kind == 'all-reduce' and not scattered else 1)


# -- who takes part --------------------------------------------------------------------------------


def _groups(rest, n):
  """The groups of devices of a collective, each a list of places in the mesh."""
  if pairs := re.search(r'source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}', rest):
    return [[int(a), int(b)] for a, b in re.findall(r'\{(\d+),(\d+)\}', pairs[1])]
  named = re.search(r'replica_groups=mesh\[([^\]]*)\](.*?)\{([^}]*)\}', rest)
  if named:
    return _named_groups(*named.groups())
  if iota := re.search(r'replica_groups=\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)', rest):
    return _iota(iota[2]).reshape(_ints(iota[1])).tolist()
  listed = re.search(r'replica_groups=\{((?:\{[\d,]*\},?)*)\}', rest)
  return [_ints(group) for group in re.findall(r'\{([\d,]+)\}', listed[1])] or [list(range(n))]


def _ints(text):
  return [int(x) for x in text.split(',')]


def _iota(text):
  """0, 1, 2, ... as [16,4] or [4,16]T(1,0) says: of that shape, and transposed."""
  dims, order = re.fullmatch(r'\[([\d,]+)\](?:T\(([\d,]+)\))?', text).groups()
  found = np.arange(math.prod(_ints(dims))).reshape(_ints(dims))
  return found.transpose(_ints(order)) if order else found


def _named_groups(mesh, places, axes):
  """Groups written with names: mesh['a'=2,'b'=4] {'b'}, or {'b':(2)2} for a part of an axis: of
  its places read as (2, 2, 1), the middle ones. Between the two, which devices the mesh has where
  they are not in order, as device_ids=([4,2]T(1,0))."""
  sizes_ = {name: int(n) for name, n in re.findall(r"'(\w+)'=(\d+)", mesh)}
  parts = {}
  for name, before, size in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", axes):
    parts[name] = int(before or 1), int(size or sizes_[name])
  dims, chosen = [], []
  for name, n in sizes_.items():
    before, size = parts.get(name, (1, 1))
    chosen.append(len(dims) + 1)
    dims += [before, size, n // before // size]
  ordered = re.search(r'device_ids=\((.*)\)', places)
  found = (_iota(ordered[1]) if ordered else np.arange(math.prod(dims))).reshape(dims)
  kept = [i for i in range(len(dims)) if i not in chosen]
  return found.transpose(kept + chosen).reshape(-1, math.prod(dims[i] for i in chosen)).tolist()


def mesh_axes(groups, mesh) -> tuple[str, ...]:
  """The mesh axes along which the devices of the groups differ."""
  shape = tuple(mesh.shape.values())
  found = set()
  for group in groups:
    places = np.array(np.unravel_index(group, shape)).T
    found |= set(np.flatnonzero((places != places[0]).any(axis=0)).tolist())
  return tuple(name for i, name in enumerate(mesh.shape) if i in found)


# -- loops -----------------------------------------------------------------------------------------


def copies(text: str, smallest: int) -> list[str]:
  """Copies of at least so many bytes that the turns of loops of unknown length make."""
  program, entry = parse(text)
  return [
      f'{x.name} {x.shape}' for x, _, per_turn, _ in _walk(program, entry)
      if per_turn and x.op in ('copy', 'copy-start') and sizes(x.shape)[0] >= smallest
  ]
