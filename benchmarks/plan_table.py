"""The table of docs/plan.md: the smallest topology of each chip that holds each model's functions.

  python benchmarks/plan_table.py [--models Qwen2.5-7B ...] [--functions grpo sft prefill decode]
      [--tokens 8192 16384 32768] [--chips v5e v5p v6e h100] [--given] [--cache runs/plan.json]
      [--page docs/plan.md]

Every number is a compiled program's, as `r1jax plan` has it: 64 rows of so many tokens (128 of
DeepSeek-V3), of which a device, or those that share a row, has one at a time. Topologies are tried
from the smallest whose share of the state could fit, each with the mesh that a rough count of bytes
likes best; the first that fits is the table's. Each is compiled in a process of its own, so that
its peak memory is known, and kept in the cache: what was stopped goes on. Prints the tables of all
that is in the cache, or puts them in the place of the page's.
"""
import argparse
import functools
import itertools
import json
import math
import pathlib
import subprocess
import sys

import jax

from r1jax import evals, grpo, model as model_lib, optim, sample, sharding
from r1jax.model import presets
from r1jax.plan import plan, topology
from r1jax.plan.topology import GIB
from r1jax.stages import generate, rl, sft
from r1jax.types import Stage

MODELS = ('Qwen2.5-1.5B', 'Qwen2.5-7B', 'Qwen2.5-32B', 'Llama-3.3-70B-Instruct', 'DeepSeek-V3-Base')
TOKENS = 8192, 16_384, 32_768
FUNCTIONS = dict(grpo='update', sft='update', prefill='sampling', decode='sampling')
SHAPES = {  # smallest first
    'v5e': ('2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16'),
    'v6e': ('2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16'),
    'v5p': ('2x2x1', '2x2x2', '2x2x4', '2x4x4', '4x4x4', '4x4x8', '4x8x8', '8x8x8', '8x8x16'),
    'h100': ('1', '2', '4', '8', '16', '32', '64', '128', '256', '512', '1024'),
}
GIVEN = [  # programs of a given mesh, whose numbers stand in a table of their own
    ('Qwen2.5-7B', 8192, 'v5p:4x4x4', dict(fsdp=16, tensor=4), 'float32'),
    ('Qwen2.5-32B', 8192, 'v5p:4x4x4', dict(fsdp=16, tensor=4), 'float32'),
    ('DeepSeek-V3-Base', 4096, 'v5p:8x8x8', dict(fsdp=4, expert=32, context=4), 'bfloat16'),
    ('DeepSeek-V3-Base', 4096, 'v5p:8x8x8', dict(fsdp=4, expert=32, context=4), 'float32'),
]
RULE = '|---|---|---|---|---|---|---|---|---|'
START = '<!-- made by benchmarks/plan_table.py -->\n'
PROMPT, GROUP = 1024, 16


def rows_of(cfg):
  """Rows of a batch."""
  return 128 if cfg.moe else 64


def stage(function, tokens, rows, machine, moments='float32', beta=0.001):
  """The stage whose function is planned."""
  rows_apart = machine['data'] * machine['fsdp'] * machine['expert']
  param_dtype = 'bfloat16' if FUNCTIONS[function] == 'sampling' else moments
  machine = sharding.Machine(**machine, micro_rows=1, sample_rows=rows, pieces=1, dtype='bfloat16',
                             param_dtype=param_dtype)  # yapf: disable
  if function == 'sft':
    config = sft.Config(documents=None, init='x', batch=rows, row_tokens=tokens, machine=machine)
    return Stage(sft.run, config, function)
  if function == 'grpo':
    config = rl.Config(init='x', problems=None, evaluation=evals.Evaluation(None), group=GROUP,
                       batch=rows // GROUP, max_prompt_tokens=PROMPT, machine=machine,
                       sampling=sample.Sampling(tokens - PROMPT),
                       optimizer=optim.Optimizer(moments=moments),
                       objective=grpo.Objective(beta=beta,
                                                importance=grpo.truncated))  # yapf: disable
    return Stage(rl.run, config, function)
  group = max(1, min(GROUP, rows // rows_apart))  # so that no device is without
  group, prompt = (1, tokens) if function == 'prefill' else (group, PROMPT)
  config = generate.Config(init='x', problems=None, select=None, samples=group, shard=rows // group,
                           max_prompt_tokens=prompt, machine=machine,
                           sampling=sample.Sampling(max(1, tokens - prompt)))  # yapf: disable
  return Stage(generate.run, config, function)


# -- which meshes are tried ------------------------------------------------------------------------


def meshes(cfg, function, n):
  """Sizes of the mesh axes for n devices that divide the model and leave no row device idle."""
  sampling = FUNCTIONS[function] == 'sampling'
  # An update's experts are made whole where they are used: the wider they are spread, the less.
  experts = (1,) if not cfg.moe else (8, 16, 32) if sampling else (32,)
  for tensor in (1, 2, 4, 8):
    for expert in experts:
      for context in (1,) if sampling else (1, 2, 4, 8, 16):
        shared = tensor * expert * context
        if n % shared or cfg.K % tensor or n // (tensor * context) > rows_of(cfg):
          continue
        fsdp = 1 if sampling else n // shared
        cut = [cfg.D] + ([cfg.mla.Q, cfg.mla.Z] if cfg.mla else [])  # by sharding.SHARED
        if all(size % (fsdp * expert * context) == 0 for size in cut):
          yield dict(data=n // shared // fsdp, fsdp=fsdp, expert=expert, context=context,
                     tensor=tensor)  # yapf: disable


def estimate(cfg, function, tokens, mesh):
  """(bytes of the state's share, a rough guess of all bytes) of one device: it only says where to
  begin."""
  t, c, e = mesh['tensor'], mesh['context'], mesh['expert']
  params, routed = count(cfg)
  cut = mesh['fsdp'] * c * t
  # Where fsdp and context are 1, expert cuts experts alone (sharding.axes_of).
  share = routed / (cut * e) + (params - routed) / (cut if cut == t else cut * e)
  rows = max(1, rows_of(cfg) // (mesh['data'] * mesh['fsdp'] * e))
  if FUNCTIONS[function] == 'sampling':
    kv = cfg.L * (cfg.mla.X if cfg.mla else 2 * cfg.K * cfg.W / t) * 2 * tokens
    work = (tokens * (2 * cfg.F + 4 * cfg.D) * 2 / t if function == 'prefill' else 0)
    return 2 * share, 2 * share + rows * (1.2 * kv + work)
  state = share * (18 if function == 'grpo' else 16)  # gradients, and a reference in bfloat16
  layer = (params - routed - 2 * cfg.V * cfg.D) / cfg.L + routed / cfg.L / e
  T, width = tokens / c, 3 * cfg.F + 4 * cfg.H * cfg.W
  if cfg.moe:
    width += 4 * cfg.moe.top * (cfg.D + cfg.moe.I)
  activations = cfg.L * T / t * cfg.D * 2 + T * (width / t + 6 * cfg.D) * 4
  return state, state + activations + 6 * layer / t + 8 * cfg.V * cfg.D / t


@functools.cache
def count(cfg):
  """(all parameters, those of routed experts)."""
  shapes = jax.eval_shape(model_lib.make(cfg).init, jax.random.key(0))
  sizes = {jax.tree_util.keystr(path): x.size for path, x in jax.tree.leaves_with_path(shapes)}
  return sum(sizes.values()), sum(n for name, n in sizes.items() if 'experts_' in name)


def candidates(cfg, function, tokens, chip):
  """(topology, mesh) from the smallest that could hold it; of those that could not by the rough
  count alone, the largest."""
  limit, last = topology.CHIPS[chip].limit, None
  for shape in SHAPES[chip]:
    n = math.prod(map(int, shape.split('x')))
    found = [(estimate(cfg, function, tokens, mesh), i, mesh)
             for i, mesh in enumerate(meshes(cfg, function, n))]  # yapf: disable
    found = [(rough, i, mesh) for (state, rough), i, mesh in found if state <= limit]
    if not found:
      continue
    last = f'{chip}:{shape}', min(found)[-1]
    if min(found)[0] <= 1.2 * limit:
      # Tensor parallelism costs most: as little of it as leaves a quarter of the memory free.
      easy = [(mesh['tensor'], i, mesh) for rough, i, mesh in found if rough <= 0.75 * limit]
      yield f'{chip}:{shape}', min(easy or found)[-1]
      last = None
  if last:
    yield last


# -- compiling -------------------------------------------------------------------------------------


def compile_one(name, function, tokens, where, mesh, *more):
  """Prints the numbers of one program."""
  cfg = presets.PUBLISHED[name]
  mesh = {axis: 1 for axis in sharding.AXES} | mesh
  made = stage(function, tokens, rows_of(cfg), mesh, *more)
  row = plan.measure(made, cfg, made.config.machine, topology.describe(where), FUNCTIONS[function])
  row = row._asdict()
  print(json.dumps(row))


def compiled(cache, key):
  """The numbers of one program: the cache's, or those of a process that compiles it. Where that
  fails it is said and counts as not fitting, but is tried again another time."""
  if key in cache:
    return cache[key]
  done = subprocess.run([sys.executable, __file__, '--one', key], capture_output=True, text=True,
                        check=False)  # yapf: disable
  if done.returncode:
    print(key, 'failed:', (done.stderr.splitlines() or ['killed'])[-1], flush=True)
    return dict(fits=False)
  row = cache[key] = json.loads(done.stdout.splitlines()[-1])
  print(key, 'fits' if row['fits'] else 'does not fit', f'{row["total"] / GIB:.2f} GiB',
        f'{row["compile_s"]:.0f} s', flush=True)  # yapf: disable
  return row


def smallest(get, name, function, tokens, chip):
  """The numbers of the smallest topology of a chip that holds a function; None where none does."""
  tried = candidates(presets.PUBLISHED[name], function, tokens, chip)
  rows = (get(json.dumps([name, function, tokens, *which])) for which in tried)
  return next((row for row in rows if row['fits']), None)


# -- the page --------------------------------------------------------------------------------------


def table(found, given) -> list[str]:
  """The rows of the page's tables, one of given meshes and one a function."""
  lines = ['### grpo on given meshes, without a reference', '', '| model | rows | topology | mesh '
           '| parameters, moments | GiB a device: arguments + temporaries | of | with jax\'s '
           '`temp_size_in_bytes` | compiled |', RULE]  # yapf: disable
  lines += [given_line(*key, row) for key, row in zip(GIVEN, given) if row] + ['']
  for function in FUNCTIONS:
    here = {key: row for key, row in found.items() if key[1] == function}
    if not here:
      continue
    lines += [f'### {function}', '', '| model | tokens | topology | mesh | GiB a device: arguments '
              '+ temporaries + output | of | s a call | ms a token | compiled |',
              RULE]  # yapf: disable
    lines += [line(key, row) for key, row in here.items()] + ['']
  return lines


def given_line(name, tokens, where, mesh, dtype, row):
  """One row of the first table."""
  sizes = ' x '.join(f'{axis} {n}' for axis, n in mesh.items())
  inside = dict(row['bytes'])
  temporaries = inside.pop('temporaries')
  arguments = sum(inside.values())
  as_summed = f'{(arguments + row["temp_size"]) / GIB:.2f}' if row['temp_size'] else 'too much'
  return (f'| {name} | {rows_of(presets.PUBLISHED[name])} x {tokens} | {where} | {sizes} | {dtype} '
          f'| {arguments / GIB:.2f} + {temporaries / GIB:.2f} = {row["total"] / GIB:.2f} '
          f'| {row["limit"] / GIB:.2f} | {as_summed} '
          f'| {row["compile_s"]:.0f} s, {row["peak_rss"] / GIB:.1f} GiB |')


def line(key, row):
  """One row of a table."""
  name, _, tokens, chip = key
  if row is None:
    return f'| {name} | {tokens} | none of {chip} up to {SHAPES[chip][-1]} | | | | | | |'
  inside = {kind: n for kind, n in row['bytes'].items() if not kind.endswith('beside')}
  temporaries = sum(inside.get(kind, 0) for kind in ('temporaries', 'cache'))
  output = inside.get('output', 0)
  arguments = sum(inside.values()) - temporaries - output
  mesh = ' x '.join(f'{axis} {n}' for axis, n in row['mesh'].items() if n > 1) or '1'
  token = f'{1e3 * row["token_s"]:.3g}' if row['token_s'] else ''
  parts = ' + '.join(f'{n / GIB:.2f}' for n in (arguments, temporaries, output))
  return (
      f'| {name} | {tokens} | {row["topology"]} | {mesh} | {parts} = {row["total"] / GIB:.2f} '
      f'| {row["limit"] / GIB:.2f} | {row["seconds"]:.3g} | {token} | {row["compile_s"]:.0f} s, '
      f'{row["peak_rss"] / GIB:.1f} GiB |')


def main():
  """Fills the cache and writes the page."""
  parser = argparse.ArgumentParser()
  parser.add_argument('--models', nargs='*', default=MODELS, choices=MODELS)
  parser.add_argument('--functions', nargs='*', default=list(FUNCTIONS), choices=list(FUNCTIONS))
  parser.add_argument('--tokens', nargs='*', type=int, default=TOKENS)
  parser.add_argument('--chips', nargs='*', default=list(SHAPES), choices=list(SHAPES))
  parser.add_argument('--given', action='store_true', help='those on given meshes too')
  parser.add_argument('--cache', default='runs/plan.json')
  parser.add_argument('--page', type=pathlib.Path, help='the page whose tables are replaced')
  parser.add_argument('--one', help='for the processes that this one starts')
  args = parser.parse_args()
  jax.config.update('jax_platforms', 'cpu')  # no plugin looks for its devices
  if args.one:
    compile_one(*json.loads(args.one))
    return
  file = pathlib.Path(args.cache)
  file.parent.mkdir(parents=True, exist_ok=True)
  cache = json.loads(file.read_text()) if file.exists() else {}

  def get(key):
    row = compiled(cache, key)
    file.write_text(json.dumps(cache, indent=0))
    return row

  given = [json.dumps([name, 'grpo', tokens, where, mesh, dtype, 0.0])
           for name, tokens, where, mesh, dtype in GIVEN]  # yapf: disable
  for key in given if args.given else ():
    get(key)
  for chip in args.chips:
    topology.describe(f'{chip}:{SHAPES[chip][0]}')  # what is not installed shows before the work
  asked = itertools.product(args.functions, args.models, args.tokens, args.chips)
  for function, name, tokens, chip in asked:
    smallest(get, name, function, tokens, chip)
  found = {}
  for function, name, tokens, chip in itertools.product(FUNCTIONS, MODELS, TOKENS, SHAPES):
    try:
      found[name, function, tokens, chip] = smallest(cache.__getitem__, name, function, tokens,
                                                     chip)
    except KeyError:
      pass  # not compiled yet
  lines = '\n'.join(table(found, map(cache.get, given)))
  if not args.page:
    print(lines)
    return
  head = args.page.read_text(encoding='utf-8').partition(START)[0]
  args.page.write_text(f'{head}{START}\n{lines}', encoding='utf-8')
  print(f'wrote {args.page}')


if __name__ == '__main__':
  main()
