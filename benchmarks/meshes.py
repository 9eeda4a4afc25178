"""R1-Zero in the tiny world on many meshes, and after kills: is it the same run?

  python benchmarks/meshes.py first [--updates 5] [--out runs/meshes]
  python benchmarks/meshes.py curves [--updates 60]
  python benchmarks/meshes.py kills [--updates 8] [--seed 0]

All run experiments/tiny/zero.py on virtual CPU devices, from one base that a single device makes
first, one run after the other, and print the tables of docs/meshes.md. What is finished in the
folder is not run again.

`first` compares the first updates on all LAYOUTS with those of one process of one device, with 8
problems an update. Where rounding differs by 1e-7, sooner or later a draw among 448 tokens falls on
the other side, and from then on the runs sample other texts and learn from them: the table says
until which update the samples are the same, and how far numbers differ until then. `curves` is the
whole experiment on those of CURVES.

`kills` runs two processes as an undisturbed twin and once more with a random one of the two killed
at a random moment, three times; what is left must be the same bytes. Copies of the first ruin go
on with other processes and meshes.
"""
import argparse
import json
import os
import pathlib
import random
import shutil
import socket
import statistics
import subprocess
import sys
import time

from r1jax import metrics

ROOT = pathlib.Path(__file__).parents[1]
SAMPLED = ('length', 'finished', 'reward', 'reward/accuracy', 'reward/format', 'degenerate')
COMPARED = ('loss', 'grad_norm', 'kl')
SMALL = {'zero.batch': 8, 'zero.evaluation.num-problems': 8, 'zero.evaluation.k': 16}
ALONE = (1, 1, {})  # processes, devices of each, the mesh but for its data axis
MESHES = {'fsdp': 8}, {'tensor': 2}, {'fsdp': 4, 'tensor': 2}
LAYOUTS = (ALONE, (1, 1, {'micro_rows': 4}),  # what rounding alone does: other sums, no mesh
           *((n, 8 // n, mesh) for n in (1, 2, 4) for mesh in MESHES))  # yapf: disable
CURVES = (ALONE, (1, 8, {'fsdp': 4, 'tensor': 2}), (2, 4, {'fsdp': 4, 'tensor': 2}),
          (4, 2, {'fsdp': 2, 'tensor': 2}))  # yapf: disable
PAIR = (2, 2, {'fsdp': 2, 'tensor': 2})  # of which one is killed
ELSEWHERE = (ALONE, (4, 1, {'fsdp': 4}))  # where a ruin goes on


def named(layout):
  """A layout as the tables have it."""
  processes, devices, mesh = layout
  sizes = {'data': processes * devices // mesh.get('fsdp', 1) // mesh.get('tensor', 1), **mesh}
  mesh = ' x '.join(f'{axis} {size}' for axis, size in sizes.items() if size > 1) or '1'
  return f'{processes} x {devices} | {mesh}'


def launch(layout, experiment, here, out='.', **fields):
  """Running processes of one experiment, which find one another, in the folder `here`: the paths in
  their records are relative, so that copies go on like the original."""
  processes, devices, mesh = layout
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{free.getsockname()[1]}'
  fields |= {f'zero.machine.{axis}': size for axis, size in mesh.items()}
  options = [f'--{name}={value}' for name, value in fields.items()]
  file = str(ROOT / 'experiments/tiny' / f'{experiment}.py')
  command = [sys.executable, '-m', 'r1jax', 'run', file, '--out', out, *options]
  env = {**os.environ, 'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu',
         'JAX_NUM_CPU_DEVICES': str(devices)}  # yapf: disable
  running = []
  for i in range(processes):
    if processes > 1:
      env |= dict(JAX_COORDINATOR_ADDRESS=address, JAX_NUM_PROCESSES=str(processes),
                  JAX_PROCESS_ID=str(i))  # yapf: disable
    running.append(subprocess.Popen(command, cwd=here, env=env, text=True, stdout=subprocess.PIPE,
                                    stderr=subprocess.STDOUT))  # yapf: disable
  return running


def end(running):
  """What each said, when all have ended; exits where one failed."""
  said = [process.communicate()[0] for process in running]
  if any(process.returncode for process in running):
    sys.exit('\n'.join(said))
  return said


def folder(out, name):
  """A folder of results whose base is finished, made on one device."""
  if not (out / 'base/result.json').exists():
    out.mkdir(parents=True, exist_ok=True)
    end(launch(ALONE, 'base', out, 'base'))
  if not (out / name / 'base').exists():
    shutil.copytree(out / 'base', out / name / 'base')
  return out / name


def short(layout):
  """A layout as the name of a folder."""
  return named(layout).replace(' | ', '-').replace(' ', '')


def updates(run):
  """{update: its numbers} of a run of zero."""
  return {row['step']: row for row in metrics.read(run / 'zero/metrics.jsonl') if 'loss' in row}


# -- layouts ---------------------------------------------------------------------------------------


def compare_first(out, number):
  """Runs a few updates on all layouts and prints their table."""
  print(f'| processes x devices | mesh | updates with the same samples, of {number} | largest '
        f'difference of {" | of ".join(COMPARED)} |')  # yapf: disable
  print('|---' * (3 + len(COMPARED)) + '|')
  there = None
  for layout in LAYOUTS:
    run = folder(out, f'first-{number}-{short(layout)}')
    end(launch(layout, 'zero', run, **SMALL, **{'zero.steps': number}))
    here = updates(run)
    there = there or here
    same = parted(here, there)
    differ = (f'{difference(here, there, name, same):.1e}' for name in COMPARED)
    print(f'| {named(layout)} | {same} | {" | ".join(differ)} |', flush=True)


def compare_curves(out, number):
  """Runs the experiment on some layouts and prints their accuracies: means of five updates."""
  marks = [number * i // 3 for i in (1, 2, 3)]
  print('| processes x devices | mesh | updates with the same samples | accuracy until '
        f'{", ".join(map(str, marks))} | test pass@1 | s an update |')
  print('|---' * 6 + '|')
  there = None
  for layout in CURVES:
    run = folder(out, f'curve-{number}-{short(layout)}')
    end(launch(layout, 'zero', run, **{'zero.steps': number}))
    here = updates(run)
    there = there or here
    means = (statistics.mean(here[i]['reward/accuracy'] for i in range(at - 4, at + 1))
             for at in marks)  # yapf: disable
    seconds = statistics.median(row['seconds'] for row in metrics.read(run / 'zero/speed.jsonl'))
    result = json.loads((run / 'zero/result.json').read_text())['result']
    print(f'| {named(layout)} | {parted(here, there)} | {", ".join(f"{x:.3f}" for x in means)} '
          f'| {result["pass_at_1"]:.3f} ± {result["pass_at_1_stderr"]:.3f} | {seconds:.1f} |',
          flush=True)  # yapf: disable


def parted(here, there, start=0):
  """The last update until which both runs had the same samples, as far as their means tell: one
  other token of 20,000 moves the mean surprise by 1e-5 or more, rounding by 1e-7."""
  for step in sorted(step for step in here if step > start):
    a, b = here[step], there[step]
    if any(a[name] != b[name] for name in SAMPLED) or abs(a['surprise'] - b['surprise']) > 1e-5:
      return step - 1
  return max(here)


def difference(here, there, name, last, first=1):
  """The largest difference of a number in some updates."""
  return max((abs(here[i][name] - there[i][name]) for i in range(first, last + 1)), default=0)


# -- kills -----------------------------------------------------------------------------------------


def compare_kills(out, number, seed):
  """Runs the twin, kills, starts again, and prints what is the same."""
  rng = random.Random(seed)
  fields = {'zero.steps': number, 'zero.save-every': 2, 'zero.samples-every': 2,
            'zero.refresh-every': 4, **SMALL}  # yapf: disable
  twin, run = folder(out, f'twin-{number}'), folder(out, f'killed-{number}-{seed}')
  end(launch(PAIR, 'zero', twin, **fields))
  shutil.rmtree(run / 'zero', ignore_errors=True)
  print(f'{named(PAIR)}, {number} updates, a state every 2')
  ruins = [out / f'{run.name}-{short(layout)}' for layout in ELSEWHERE]
  steps = sorted(rng.sample(range(1, number), 3))
  for step in steps:
    kill(launch(PAIR, 'zero', run, **fields), run, step, rng)
    for copy in ruins if step == steps[0] else ():
      shutil.rmtree(copy, ignore_errors=True)
      shutil.copytree(run, copy)
  end(launch(PAIR, 'zero', run, **fields))
  for file in ('metrics.jsonl', 'samples.jsonl', 'result.json'):  # with the parameters' fingerprint
    got, want = ((x / 'zero' / file).read_bytes() for x in (run, twin))
    print(f'{file}: {len(want)} bytes, {"the same" if got == want else "NOT THE SAME"}')
  there = updates(twin)
  for layout, copy in zip(ELSEWHERE, ruins):
    start = saved(copy)
    end(launch(layout, 'zero', copy, **fields))
    here = updates(copy)
    same = parted(here, there, start)
    print(
        f'on {named(layout)} from update {start}: the same samples until {same} of {number}, '
        f'loss within {difference(here, there, "loss", same, start + 1):.1e} until then, '
        f'{difference(here, there, "loss", number, start + 1):.1e} in all', flush=True)


def kill(running, run, step, rng):
  """Kills one of two processes at a random moment after update `step`, prints how the other ended.
  """
  began, file = time.time(), run / 'zero/metrics.jsonl'
  fresh = lambda: file.exists() and file.stat().st_mtime > began  # not what the last one left
  while not fresh() or max(updates(run), default=0) < step:
    if any(process.poll() is not None for process in running):
      end(running)
    time.sleep(0.05)
  pace = statistics.median(row['seconds'] for row in metrics.read(run / 'zero/speed.jsonl'))
  time.sleep(rng.random() * pace)
  lost = rng.randrange(2)
  running[lost].kill()
  began = time.monotonic()
  running[1 - lost].communicate()
  seconds, status = time.monotonic() - began, running[1 - lost].returncode
  print(
      f'process {lost} killed after update {max(updates(run))}, last state {saved(run)}; the '
      f'other ended {seconds:.0f} s later with status {status}', flush=True)
  running[lost].communicate()


def saved(run):
  """The update of the newest state."""
  return max((int(x.name) for x in run.glob('zero/state/*') if x.name.isdigit()), default=0)


def main():
  """Prints the tables."""
  parser = argparse.ArgumentParser()
  parser.add_argument('what', choices=('first', 'curves', 'kills'))
  parser.add_argument('--updates', type=int, help='5, 60 or 8')
  parser.add_argument('--seed', type=int, default=0, help='of the moments of the kills')
  parser.add_argument('--out', type=pathlib.Path, default='runs/meshes')
  args = parser.parse_args()
  out = args.out.absolute()
  if args.what == 'first':
    compare_first(out, args.updates or 5)
  elif args.what == 'curves':
    compare_curves(out, args.updates or 60)
  else:
    compare_kills(out, args.updates or 8, args.seed)


if __name__ == '__main__':
  main()
