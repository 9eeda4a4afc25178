"""What a GRPO step costs: sampling, rewards, reference log-probabilities, update.

  python benchmarks/step.py --size S [--json] [--steps 10]

A Qwen2-like model with random float32 weights, 8 prompts x 8 completions, prompt 32, 128 new
tokens, EOS off, beta 0.001. The calls are those of r1jax.stages.rl, on the same machine defaults.
A share of the ceiling is analytic FLOPs a second over what a 2048^3 float32 matrix product reaches
here. Compiles everything anew: the first step's latency is that of a first run.
"""
import argparse
import json
import resource
import statistics
import time

import jax
import jax.numpy as jnp

from r1jax import grpo, model as model_lib, optim, rollout, sample, seeds, sharding
from r1jax.evals import Evaluation
from r1jax.stages import rl
from r1jax.tokenizer import Tokenizer
from r1jax.types import Problem, Reward

SIZES = {
    'S': dict(V=512, L=4, D=128, H=4, K=2, W=32, F=512),
    'M': dict(V=8192, L=8, D=512, H=8, K=2, W=64, F=2048),
}
P, G, T, C = 8, 8, 32, 128


def seconds_since_start() -> float:
  """Seconds since this process was started, imports included."""
  with open('/proc/self/stat', encoding='ascii') as f:
    ticks = int(f.read().rsplit(')', 1)[1].split()[19])
  with open('/proc/uptime', encoding='ascii') as f:
    return float(f.read().split()[0]) - ticks / 100


def flops_per_token(cfg, context) -> float:
  """Forward FLOPs of one token: two a weight it meets, and attention over `context` positions."""
  layer = cfg.D * cfg.K * cfg.N * cfg.W + cfg.H * cfg.W * cfg.D + 3 * cfg.D * cfg.F
  return 2 * (cfg.L * layer + cfg.V * cfg.D) + 4 * cfg.L * cfg.H * cfg.W * context


def matrix_ceiling(mesh, n=2048, dtype='float32', turns=1) -> float:
  """FLOP/s of an n^3 matrix product: the better of one device and rows over all."""
  w = jax.random.normal(jax.random.key(0), (n, n), dtype)  # of zeros or ones, GPUs do more
  times = []
  for x in (w, jax.device_put(w, sharding.by_rows(mesh))):
    y = jax.device_put(w, x.sharding if x is w else sharding.replicated(mesh))
    f = jax.jit(jnp.matmul)
    times.append(fastest(lambda: f(x, y), turns))
  return 2 * n**3 / min(times)


def fastest(f, turns=1) -> float:
  """Seconds that f() takes: the best of five means over so many calls sent one after the other."""

  def several():
    for _ in range(turns):
      out = f()
    jax.block_until_ready(out)

  several()  # compiles
  return min(timed(several) for _ in range(5)) / turns


def timed(f) -> float:
  """Seconds that f() takes, once."""
  start = time.perf_counter()
  f()
  return time.perf_counter() - start


def share_of_a(problem, completion) -> float:
  """A trivial rule: the share of the letter a."""
  del problem
  return completion.text.count('a') / max(1, len(completion.text))


def main():
  """Measures and prints."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--size', choices=SIZES, default='S')
  parser.add_argument('--steps', type=int, default=10, help='measured steps, after two others')
  parser.add_argument('--json', action='store_true')
  args = parser.parse_args()

  cfg = rl.Config(init='', problems=list, evaluation=Evaluation(list), batch=P, group=G,
                  minibatches=1, max_prompt_tokens=T, sampling=sample.Sampling(max_tokens=C),
                  rewards=(Reward('a', share_of_a),), objective=grpo.Objective(beta=0.001),
                  optimizer=optim.Optimizer(lr=1e-5))
  machine, mesh = sharding.start(cfg.machine)
  model = model_lib.make(model_lib.Config(qkv_bias=True, **SIZES[args.size]), machine)
  words = [chr(97 + i % 26) * (1 + i % 3) for i in range(model.config.V)]
  tokenizer = Tokenizer(lambda text: [ord(c) % model.config.V for c in text],
                        lambda ids: ''.join(words[i] for i in ids), frozenset(), model.config.V,
                        lambda folder: None)
  params = jax.jit(model.init, out_shardings=sharding.replicated(mesh))(jax.random.key(0))
  sampler = rollout.make_sampler(model, tokenizer, cfg.sampling, G, T, machine, mesh, P)
  update, reference_logp, tx = rl.make_steps(cfg, model, machine, mesh)
  state = optim.init(tx, params, optim.copy(params, model, machine.dtype))
  problems = [Problem(chr(97 + i) * T, '') for i in range(P)]
  times = {name: [] for name in ('sample', 'rewards', 'reference', 'update', 'step')}

  def step(n, state, wait):
    clock = [time.perf_counter()]

    def lap(name, x):
      if wait:  # so that each part is timed alone; the whole step is timed without
        jax.block_until_ready(x)
        clock.append(time.perf_counter())
        times[name].append(clock[-1] - clock[-2])
      return x

    key = seeds.key(0, 'benchmark', n)
    calls = lap('sample', rollout.dispatch(sampler, state.params, key, range(P), problems))
    graded = rollout.collect(sampler, calls, cfg.rewards)
    batch = lap('rewards', rl.make_batch(cfg, graded, machine, mesh))
    batch = batch._replace(logp_ref_PGC=lap('reference', reference_logp(state.reference, batch)))
    return lap('update', update(state, batch))[0], graded

  state, graded = step(0, state, wait=False)
  jax.block_until_ready(state)
  first = seconds_since_start()
  assert (graded.rollout.lengths_PG == C).all()
  for n in range(1, 2 + args.steps):
    state, _ = step(n, state, wait=n > 1)
    jax.block_until_ready(state)
  for n in range(args.steps):
    start = time.perf_counter()
    state, _ = step(100 + n, state, wait=False)
    jax.block_until_ready(state)
    times['step'].append(time.perf_counter() - start)

  seconds = {name: statistics.median(x) for name, x in times.items()}
  ceiling = matrix_ceiling(mesh)
  per_token = flops_per_token(model.config, T + C / 2)
  done, trained = P * G * C, P * G * (T + C)
  out = dict(
      size=args.size, parameters=sum(x.size for x in jax.tree.leaves(state.params)),
      sample_tokens_per_s=done / seconds['sample'], update_tokens_per_s=trained / seconds['update'],
      seconds=seconds, step_min_max=[min(times['step']), max(times['step'])], first_step_s=first,
      peak_memory_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
      ceiling_gflops=ceiling / 1e9, share_of_ceiling={
          'sample': per_token * done / seconds['sample'] / ceiling,
          'reference': per_token * trained / seconds['reference'] / ceiling,
          'update': 3 * per_token * trained / seconds['update'] / ceiling,
      }, devices=jax.device_count(), jax=jax.__version__)
  if args.json:
    print(json.dumps(out))
  else:
    print(f'size {args.size}: {out["parameters"] / 1e6:.1f}M parameters, {P} x {G} completions of '
          f'{C} tokens, prompts of {T}; jax {jax.__version__}, {jax.device_count()} devices')
    for name, s in seconds.items():
      share = out['share_of_ceiling'].get(name)
      print(f'  {name:10} {s:8.3f} s' + (f'  {100 * share:5.1f}% of the ceiling' if share else ''))
    print(f'  sampling {out["sample_tokens_per_s"]:.0f} tokens/s, update '
          f'{out["update_tokens_per_s"]:.0f} tokens/s, first step done {first:.1f} s after start, '
          f'peak memory {out["peak_memory_mb"]:.0f} MB, ceiling {ceiling / 1e9:.0f} GFLOP/s')


if __name__ == '__main__':
  main()
