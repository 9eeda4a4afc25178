"""How fast GRPO learns: two-digit additions from a Hugging Face checkpoint, against wall-clock.

  python benchmarks/additions.py --base FOLDER [--seeds 0 1 2] [--json]

FOLDER holds a small base model that answers "Q: 12+34=? " with
"<think>12+34=46</think><answer>46</answer>" and is mostly wrong when sampled. 8 prompts x 8
completions, learning rate 1e-4, beta 0.001; rewards: the last answer is right (weight 1), the form
is exact (weight 0.2). Prints the steps and seconds from the start of the first step until the mean
training accuracy over five steps reaches 0.9. The first step's seconds hold the compilation, or,
where the same programs were compiled before, reading them from r1jax's cache.
"""
import argparse
import json
import random
import re
import statistics
import time

from r1jax import checkpoint, grpo, metrics, optim, rollout, sample, seeds, sharding
from r1jax.evals import Evaluation
from r1jax.main import use_compilation_cache
from r1jax.stages import rl
from r1jax.types import Problem, Reward

FORM = re.compile(r'<think>[^<]*</think><answer>[^<]*</answer>')
ANSWER = re.compile(r'<answer>(\d+)</answer>')


def problems(split):
  """4,000 additions for training and 500 others for testing, in the order of seed 0."""
  pairs = [(a, b) for a in range(100) for b in range(100)]
  random.Random(0).shuffle(pairs)
  rows = pairs[:4000] if split == 'train' else pairs[4000:4500]
  return [Problem(f'Q: {a}+{b}=? ', str(a + b)) for a, b in rows]


def accuracy(problem, completion):
  """1 if the last answer block holds the sum, written plainly."""
  found = ANSWER.findall(completion.text)
  return float(bool(found) and found[-1] == problem.answer)


def well_formed(problem, completion):
  """1 if the completion is one think block and one answer block."""
  del problem
  return float(FORM.fullmatch(completion.text.strip()) is not None)


def learn(base, seed, target=0.9, window=5, most=300) -> dict:
  """One run: steps and seconds until the target, and the accuracy of every step."""
  cfg = rl.Config(init=base, problems=problems, evaluation=Evaluation(problems), batch=8, group=8,
                  minibatches=1, max_prompt_tokens=16, sampling=sample.Sampling(max_tokens=48),
                  seed=seed, rewards=(Reward('accuracy', accuracy),
                                      Reward('format', well_formed,
                                             0.2)), objective=grpo.Objective(beta=0.001),
                  optimizer=optim.Optimizer(lr=1e-4, b2=0.999))
  machine, mesh = sharding.start(cfg.machine)
  model, params, tokenizer = checkpoint.load_model(base, machine, mesh)
  stream = seeds.stream(problems('train'), seed)
  sampler = rollout.make_sampler(model, tokenizer, cfg.sampling, cfg.group, cfg.max_prompt_tokens,
                                 machine, mesh, cfg.batch)
  update, reference_logp, tx = rl.make_steps(cfg, model, machine, mesh)
  state, curve, times = optim.init(tx, params,
                                   optim.copy(params, model,
                                              machine.dtype)), [], [time.perf_counter()]
  while len(curve) < most and statistics.mean(curve[-window:] or
                                              [0]) < target or len(curve) < window:
    step = len(curve)
    numbers = rl.problem_numbers(cfg, step)
    calls = rollout.dispatch(sampler, state.params, seeds.key(seed, 'rollout', step), numbers,
                             [stream(n) for n in numbers])
    graded = rollout.collect(sampler, calls, cfg.rewards)
    curve.append(float(graded.scores['accuracy'].mean()))
    batch = rl.make_batch(cfg, graded, machine, mesh)
    batch = batch._replace(logp_ref_PGC=reference_logp(state.reference, batch))
    state, _ = update(state, batch)
    times.append(time.perf_counter())
  laps = [b - a for a, b in zip(times, times[1:])]
  return dict(seed=seed, steps=len(curve), seconds=times[-1] - times[0], first_step_s=laps[0],
              step_s=statistics.median(laps), reached=statistics.mean(curve[-window:]) >= target,
              start=statistics.mean(curve[:window]), curve=curve)


def main():
  """Runs the seeds and prints their numbers and medians."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--base', required=True, help='a Hugging Face folder')
  parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
  parser.add_argument('--json', action='store_true')
  args = parser.parse_args()
  use_compilation_cache()
  runs = [learn(args.base, seed) for seed in args.seeds]
  for run in runs:
    line = ('seed {seed}: accuracy {start:.2f} at first; 0.9 after {steps} steps, {seconds:.1f} s '
            '(first step {first_step_s:.1f} s, then {step_s:.2f} s)')
    print(
        json.dumps(run) if args.json else line.format(**run) +
        ('' if run['reached'] else ' NOT reached'))
  print(
      metrics.to_json({
          name: statistics.median(run[name] for run in runs)
          for name in ('steps', 'seconds', 'step_s')
      }), end='')


if __name__ == '__main__':
  main()
