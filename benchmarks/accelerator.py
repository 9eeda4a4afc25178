"""What a GPU or TPU makes of r1jax: its own ceilings, attention's paths, a GRPO update, decoding.

  python benchmarks/accelerator.py --model tiny
  python benchmarks/accelerator.py --model qwen_2_5_0_5b [--attention cudnn] [--json FILE]
  python benchmarks/accelerator.py --model qwen_2_5_1_5b [--attention splash] [--json FILE]

Random weights of the shape of the tiny world's model, or of a preset of model/presets.py, on all
devices that jax finds. In bfloat16 over float32 parameters, on CPUs in float32. It prints

  copying    bytes read and written a second, of x + 1 in place
  products   FLOP/s of a square matrix product in the dtype
  attention  for each path that the platform has, rows of 2,048 positions in three segments and
             padding, with the model's heads: how far values and gradients are from einsum's in
             exact float32, as a share of the largest of these, and seconds as a share of einsum's.
             The line of einsum itself says what the dtype's rounding and its chunks cost
  the calls  of rl, as r1jax plan has them: seconds to compile and, in the median, to run, what a
             device holds meanwhile, FLOPs (plan/flops.py; with remat, what it does again counts)
             as a share of products. Tokens are those of completions, of prefill those of prompts

Decoding is sampling less prefill, which is a call that ends after one token. Each device reads, for
one token of every row of its own,

  bytes = parameters + cache of the prompts + sum_i (end_i - end_i-1) end_i / C^2 cache of C tokens

where the cache of completions grows to end_i in pieces (steps.Step.token_bytes); these, of all
devices, over the seconds are held against copying.

Compiled for one H100 that is not there, the default sizes of the 1.5B model hold 38.6 GiB in the
update and 7.8 in sampling. So far this has been run on CPUs only: there are no numbers of an
accelerator, here or elsewhere.
"""
import argparse
import dataclasses
import json
import pathlib
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from step import fastest, matrix_ceiling

from r1jax import grpo, losses, main as command, metrics, model as model_lib, optim, sample
from r1jax import sharding
from r1jax.evals import Evaluation
from r1jax.model import attention
from r1jax.plan import steps
from r1jax.stages import rl
from r1jax.types import KV, UserError

BASE = pathlib.Path(__file__).parents[1] / 'experiments/tiny/base.py'
PATHS = dict(cpu=['einsum'], gpu=['einsum', 'cudnn'], tpu=['einsum', 'splash'])
LENGTHS = (700, 900, 400, 48)  # of three segments and padding
GIB = 2**30


def parse():
  """The command line."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--model', default='qwen_2_5_0_5b', help='tiny, or one of model/presets.py')
  parser.add_argument('--attention', choices=attention.PATHS, help='of the calls')
  parser.add_argument('--dtype', help='of the maths: bfloat16, on CPUs float32')
  parser.add_argument('--sizes', type=int, nargs=4, metavar=tuple('PGTC'),
                      help='problems, completions of each, tokens of prompts and of completions: '
                      '8 16 512 1024, of tiny 8 8 32 128')  # yapf: disable
  parser.add_argument('--micro-rows', type=int, help='completions that a device trains on at once')
  parser.add_argument('--repeats', type=int, default=3, help='of each call, after a first')
  parser.add_argument('--json', help='a file for all numbers')
  args = parser.parse_args()
  args.sizes = args.sizes or ([8, 8, 32, 128] if args.model == 'tiny' else [8, 16, 512, 1024])
  return args


def architecture(name) -> model_lib.Config:
  """The tiny world's, or a preset's."""
  stage = command.load_experiment(BASE)[0]
  return steps.architecture(stage, {}, '' if name == 'tiny' else name)


def copying(mesh, megabytes, turns) -> float:
  """Bytes a second, read and written, of x + 1 in place, on all devices together."""
  zeros = lambda: jnp.zeros((mesh.size, megabytes * 2**20 // 4))
  x = jax.jit(zeros, out_shardings=sharding.by_rows(mesh))()
  add = jax.jit(lambda x: x + 1, donate_argnums=0)

  def turn():
    nonlocal x
    x = add(x)
    return x

  return 2 * x.nbytes / fastest(turn, turns)


# -- attention -------------------------------------------------------------------------------------


def attend(cfg, machine, path, places):
  """The jitted functions of q, k, v and a gradient: a path's values, and also what goes back."""
  see = attention.choose(cfg, dataclasses.replace(machine, attention=path))

  def forward(q, k, v, g):
    del g
    return see(q, KV(k, v), places, (), cfg.scale, cfg.attn_cap)

  def both(q, k, v, g):
    out, back = jax.vjp(lambda *qkv: forward(*qkv, g), q, k, v)
    return out, back(g)

  return jax.jit(forward), jax.jit(both)


def compare_paths(cfg, machine, paths, rows, turns):
  """A dict a path: `values` and `gradients`, its largest difference as a share of the largest
  number; seconds of `forward`, and of `both` passes; or why it is `refused`."""
  T, (K, R, W) = sum(LENGTHS), (cfg.K, cfg.R, cfg.W)
  shapes = (rows, T, K, R, W), (rows, K, W, T), (rows, K, T, W), (rows, T, K, R, W)
  keys = jax.random.split(jax.random.key(0), len(shapes))
  args = [jax.random.normal(key, shape, machine.dtype) for key, shape in zip(keys, shapes)]
  segments_1T = jnp.repeat(jnp.asarray([1, 2, 3, 0]), np.asarray(LENGTHS))[None]
  places = attention.Places(
      jnp.arange(T)[None], losses.positions_in_segments(segments_1T),
      jnp.repeat(segments_1T, rows, axis=0))
  exact = dataclasses.replace(machine, dtype='float32', query_chunk=0)
  with jax.default_matmul_precision('highest'):
    as_float32 = [x.astype(jnp.float32) for x in args]
    want = jax.device_get(attend(cfg, exact, 'einsum', places)[1](*as_float32))
  difference = lambda x, y: float(abs(x.astype(np.float32) - y).max() / abs(y).max())
  for path in paths:
    try:
      forward, both = attend(cfg, machine, path, places)
    except UserError as error:
      yield dict(path=path, refused=str(error))
      continue
    out, grads = jax.device_get(both(*args))
    yield dict(path=path, values=difference(out, want[0]),
               gradients=max(map(difference, grads, want[1])),
               forward=fastest(lambda: forward(*args), turns),
               both=fastest(lambda: both(*args), turns))  # yapf: disable


# -- what rl calls ---------------------------------------------------------------------------------


def calls(args, model, machine, mesh, ceilings):
  """A dict of numbers for each call of rl, and for decoding."""
  P, G, T, C = args.sizes
  there = sharding.sampling_mesh(machine, mesh)

  def functions(tokens):
    sampling = sample.Sampling(max_tokens=tokens)
    cfg = rl.Config(init='', problems=list, evaluation=Evaluation(list, sampling=sampling), batch=P,
                    group=G, minibatches=1, max_prompt_tokens=T, sampling=sampling,
                    objective=grpo.Objective(beta=0.001))
    return cfg, {step.name: step for step in steps.of_rl(cfg, model, machine, mesh, there)}

  cfg, by_name = functions(C)
  prefill = functions(1)[1]['sampling']._replace(name='prefill')
  yield from measure_sampling(prefill, by_name['sampling'], model, machine, mesh, args.repeats,
                              ceilings)
  yield from measure_update(by_name['log-probs'], by_name['update'], cfg, model, machine, mesh,
                            args.repeats, ceilings['products'])


def prepare(step):
  """(the compiled function of a steps.Step, seconds that took, bytes a device holds for it)."""
  began = time.perf_counter()
  made = step.function.lower(*step.args).compile()
  took, memory = time.perf_counter() - began, made.memory_analysis()
  held = (memory.argument_size_in_bytes + memory.temp_size_in_bytes
          + memory.output_size_in_bytes - memory.alias_size_in_bytes)  # yapf: disable
  return made, dict(call=step.name, compile_s=took, held=held)


def repeat(f, repeats):
  """(what f() gave last, the median of its seconds) after a first call."""
  times = []
  for _ in range(1 + repeats):
    began = time.perf_counter()
    out = jax.block_until_ready(f())
    times.append(time.perf_counter() - began)
  return out, statistics.median(times[1:])


def random_params(model, mesh):
  """Parameters as training has them."""
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  where = sharding.shardings(model.axes(), shapes, mesh)
  return jax.jit(model.init, out_shardings=where)(jax.random.key(0))


def measure_sampling(short, long, model, machine, mesh, repeats, ceilings):
  """Prefill, sampling and decoding, from the Steps of calls of one token and of all."""
  copy, there = sample.make_copy(model, machine, mesh)
  params = copy(random_params(model, mesh))
  key = jax.device_put(jax.random.key(0), sharding.replicated(there))
  times = {}
  for step in (short, long):
    run, numbers = prepare(step)
    P, T = step.args[3].shape
    prompts_PT = np.random.default_rng(0).integers(model.config.V, size=(P, T), dtype=np.int32)
    prompts = np.arange(P, dtype=np.int32), prompts_PT, np.full(P, T, np.int32)
    args = params, key, *sharding.put_rows(prompts, there)
    out, took = repeat(lambda run=run, args=args: run(*args), repeats)
    assert int(out[1].max()) == step.tokens + 1  # the loop went all the way
    tokens = prompts_PT.size if step is short else out[0].size
    numbers |= dict(seconds=took, tokens_per_s=tokens / took)
    if step is short:
      numbers['of_products'] = step.flops / took / ceilings['products']
    times[numbers['call']] = took
    yield numbers
  token_s = (times[long.name] - times[short.name]) / long.tokens
  yield dict(call='decoding', seconds=token_s * long.tokens, token_s=token_s,
             tokens_per_s=out[1].size / token_s,
             of_copying=there.size * long.token_bytes / token_s / ceilings['copying'])


def measure_update(logp, update, cfg, model, machine, mesh, repeats, ceiling):
  """Log-probs and the update, from their Steps."""
  params = random_params(model, mesh)
  batch = a_batch(logp.args[1], cfg, model.config.V)

  def numbers_of(step, numbers, took):
    return numbers | dict(seconds=took, tokens_per_s=batch.tokens_PGC.size / took,
                          of_products=step.flops / took / ceiling)

  run, numbers = prepare(logp)
  logp_BC, took = repeat(lambda: run(params, batch), repeats)
  yield numbers_of(logp, numbers, took)

  run, numbers = prepare(update)
  logp_PGC = jax.device_put(logp_BC.reshape(batch.tokens_PGC.shape), batch.tokens_PGC.sharding)
  batch = batch._replace(logp_old_PGC=logp_PGC, logp_ref_PGC=logp_PGC)
  state = optim.init(optim.chain(cfg.optimizer, cfg.steps), params,
                     optim.copy(params, model, machine.dtype))

  def once():
    nonlocal state
    state, out = run(state, batch)
    return out

  out, took = repeat(once, repeats)
  optim.check_finite(int(state.step), jax.device_get(out), str)
  yield numbers_of(update, numbers, took)


def a_batch(like, cfg, V):
  """A batch of the shapes and places of an abstract one: random tokens and advantages, full
  budgets, and old log-probs that are still missing."""
  rng, (P, G, C) = np.random.default_rng(0), like.tokens_PGC.shape
  signs_PG1 = rng.choice(np.asarray([-1, 1], np.float32), (P, G, 1))
  full = like._replace(
      prompts_PT=rng.integers(V, size=like.prompts_PT.shape, dtype=np.int32),
      prompt_lengths_P=np.full(P, cfg.max_prompt_tokens, np.int32),
      tokens_PGC=rng.integers(V, size=(P, G, C), dtype=np.int32),
      lengths_PG=np.full((P, G), C, np.int32), logp_old_PGC=np.zeros((P, G, C), np.float32),
      advantages_PGC=np.broadcast_to(signs_PG1, (P, G, C)),
      weights_PGC=np.full((P, G, C), 1 / (P * G * C), np.float32))  # yapf: disable
  return jax.tree.map(lambda x, y: sharding.put(x, y.sharding), full, like)


# -- the command -----------------------------------------------------------------------------------


def main():
  """Measures and prints."""
  args = parse()
  config, (P, G, T, C) = architecture(args.model), args.sizes
  machine, mesh = sharding.start(
      sharding.Machine(attention=args.attention, micro_rows=args.micro_rows, sample_rows=P * G))
  platform = jax.default_backend()
  cpu, kind = platform == 'cpu', jax.devices()[0].device_kind
  machine = dataclasses.replace(machine, dtype=args.dtype or ('float32' if cpu else 'bfloat16'))
  model, turns = model_lib.make(config, machine), 1 if cpu else 8
  print(f'{mesh.size} x {kind}, jax {jax.__version__}; {args.model} in {machine.dtype}, attention '
        f'{machine.attention}; {P} x {G} completions of {C} tokens, prompts of {T}')
  ceilings = dict(copying=copying(mesh, 128 if cpu else 1024, turns),
                  products=matrix_ceiling(mesh, 2048 if cpu else 8192, machine.dtype, turns))
  print(
      f'copying    {ceilings["copying"] / 1e9:.1f} GB/s\n'
      f'products   {ceilings["products"] / 1e12:.2f} TFLOP/s', flush=True)
  paths, rows = [], []
  for path in compare_paths(config, machine, PATHS[platform], 1 if cpu else 4, turns):
    paths.append(path)
    print('attention ', describe_path(path, paths[0]), flush=True)
  for row in calls(args, model, machine, mesh, ceilings):
    rows.append(row | dict(peak=peak()))
    print(describe(rows[-1]), flush=True)
  if args.json:
    out = dict(vars(args), device=kind, devices=mesh.size, jax=jax.__version__,
               machine=dataclasses.asdict(machine), ceilings=ceilings, paths=paths, calls=rows)
    metrics.write_aside(args.json, json.dumps(out, indent=1))


def peak() -> int | None:
  """Bytes that the first device has held at most so far, where it says."""
  return (jax.local_devices()[0].memory_stats() or {}).get('peak_bytes_in_use')


def describe_path(row, einsum) -> str:
  """What compare_paths says of one path, as a line."""
  if 'refused' in row:
    return f'{row["path"]:7} {row["refused"]}'
  part = lambda name: f'{1e3 * row[name]:.2f} ms ({row[name] / einsum[name]:.2f} of einsum)'
  return (f'{row["path"]:7} off by {row["values"]:.1e} in values, {row["gradients"]:.1e} in '
          f'gradients; forward {part("forward")}, and backward {part("both")}')


def describe(row) -> str:
  """One call's numbers as a line."""
  parts = [f'{row["call"]:10} {row["seconds"]:.3f} s', f'{row["tokens_per_s"]:.0f} tokens/s']
  if 'token_s' in row:
    parts.append(f'{1e3 * row["token_s"]:.2f} ms a token of every row')
  for ceiling in ('products', 'copying'):
    if f'of_{ceiling}' in row:
      parts.append(f'{row[f"of_{ceiling}"]:.1%} of {ceiling}')
  if 'held' in row:
    parts.append(f'compiled in {row["compile_s"]:.1f} s, holds {row["held"] / GIB:.2f} GiB')
  if row['peak']:
    parts.append(f'peak so far {row["peak"] / GIB:.2f} GiB')
  return ', '.join(parts)


if __name__ == '__main__':
  main()
