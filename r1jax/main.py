"""The command line: r1jax run, plan, eval, sample, report, export and others."""
import argparse
import dataclasses
import functools
import hashlib
import importlib.metadata
import itertools
import json
import os
import pathlib
import runpy
import subprocess
import sys
import time
import traceback
from typing import Annotated

import jax
import tyro

from r1jax import benchmark, checkpoint, evals, library, metrics, processes, report as report_page
from r1jax import rewards, rollout, sample, seeds, sharding
from r1jax.plan import plan as plan_lib
from r1jax.types import Problem, Stage, Stopped, UserError

# -- experiments -----------------------------------------------------------------------------------


def load_experiment(file) -> tuple[Stage, ...]:
  """The stages of an experiment file: what its function `experiment()` returns."""
  file = pathlib.Path(file)
  if not file.is_file():
    raise UserError(f'there is no experiment file {file}')
  top = next((p.parent for p in file.absolute().parents if p.name == 'experiments'), file.parent)
  sys.path.insert(0, str(top))  # experiments import one another
  try:
    # Its functions get the names that they have where another experiment imports this one.
    name = '.'.join(file.absolute().relative_to(top.absolute()).with_suffix('').parts)
    experiment = runpy.run_path(str(file), run_name=name).get('experiment')
    if not experiment:
      raise UserError(f'{file} has no function experiment() that returns a Stage')
    found = experiment()
  except UserError:
    raise
  except Exception as error:
    frames = traceback.extract_tb(error.__traceback__)
    line = next((f.lineno for f in reversed(frames) if f.filename == str(file)), None)
    raise UserError(f'{file} raised {type(error).__name__}: {error} (line {line})') from error
  stages = found if isinstance(found, tuple) else (found,)
  if not stages or not all(isinstance(stage, Stage) for stage in stages):
    raise UserError(f'{file}: experiment() must return a Stage or a tuple of Stages, not {found!r}')
  return stages


def override(file, stages, argv) -> tuple[Stage, ...]:
  """The stages with the command line's fields in place: typed, unknown ones refused by name."""
  names = [pathlib.Path(stage.out).name for stage in stages]
  if len(set(names)) < len(names):
    raise UserError(f'{file}: the stages\' folders are named {names}; give each a name of its own')
  alone = len(stages) == 1  # a single stage's fields need no prefix
  prefix = lambda name: tyro.conf.arg(name='' if alone else name)
  where = tyro.conf.arg(help='folder of the results, instead of the one the experiment names')
  fields = [('out', Annotated[str, where], '')]
  if not alone:
    every = tyro.conf.arg(help='seed of every stage, instead of its own')
    fields.append(('seed', Annotated[int | None, every], None))
  fields += [(f'stage{i}', Annotated[type(stage.config), prefix(name)], stage.config)
             for i, (name, stage) in enumerate(zip(names, stages))]
  experiment = dataclasses.make_dataclass('Experiment', fields, frozen=True)
  args = tyro.cli(experiment, prog=f'r1jax run {file}', args=argv,
                  config=(tyro.conf.AvoidSubcommands,))
  moved = {stage.out: stage.out for stage in stages}
  if args.out:
    moved = {s.out: args.out if alone else f'{args.out}/{n}' for s, n in zip(stages, names)}
  out = []
  for i, stage in enumerate(stages):
    config = replace_strings(vars(args)[f'stage{i}'], moved)
    if not alone and args.seed is not None:
      config = dataclasses.replace(config, seed=args.seed)
    out.append(Stage(stage.run, config, moved[stage.out]))
  return tuple(out)


def replace_strings(value, new: dict):
  """A config with some strings replaced wherever they stand: stages name one another's folders."""
  again = lambda x: replace_strings(x, new)
  if isinstance(value, str):
    return new.get(value, value)
  if dataclasses.is_dataclass(value):
    fields = {f.name: again(vars(value)[f.name]) for f in dataclasses.fields(value)}
    return dataclasses.replace(value, **fields)
  if isinstance(value, functools.partial):
    return functools.partial(again(value.func), *map(again, value.args), **again(value.keywords))
  if isinstance(value, dict):
    return {k: again(v) for k, v in value.items()}
  if isinstance(value, tuple):
    items = map(again, value)
    return type(value)(*items) if hasattr(value, '_fields') else tuple(items)
  return value


def describe(value):
  """A config as JSON says it: functions by their names."""
  if dataclasses.is_dataclass(value):
    return {f.name: describe(vars(value)[f.name]) for f in dataclasses.fields(value)}
  if isinstance(value, pathlib.PurePath):
    return str(value)
  if isinstance(value, functools.partial):
    return [describe(value.func), *map(describe, value.args), describe(value.keywords)]
  if callable(value):
    return f'{value.__module__}.{value.__qualname__}'
  if isinstance(value, dict):
    return {k: describe(v) for k, v in value.items()}
  if isinstance(value, (tuple, list)):
    return [describe(v) for v in value]
  return value


def differences(old, new, name=''):
  """The names of fields whose values differ, with both values."""
  if isinstance(old, dict) and isinstance(new, dict):
    for key in sorted(old.keys() | new.keys()):
      yield from differences(old.get(key), new.get(key), f'{name}.{key}' if name else key)
  elif old != new:
    yield f'{name} was {json.dumps(old)} and is now {json.dumps(new)}'


# -- run -------------------------------------------------------------------------------------------


def run(argv):
  """Runs an experiment's stages in order, skips finished ones, continues an interrupted one."""
  if not argv or argv[0].startswith('-'):
    raise UserError('usage: r1jax run EXPERIMENT.py [--field value ...]; --help after the file '
                    'lists its fields')
  began, file = time.monotonic(), argv[0]
  stages = override(file, load_experiment(file), argv[1:])
  use_compilation_cache()
  processes.start()
  with processes.heeding_sigterm():
    for order, stage in enumerate(stages):
      result = run_stage(file, stage, order)
  result = {**result, 'seconds': round(time.monotonic() - began, 1)}
  print('result', json.dumps(result))


def run_stage(file, stage, order) -> dict:
  """One stage, the order-th of its experiment: its result, from its record if it is complete."""
  machine, _ = sharding.start(stage.config.machine)  # before anything else uses jax
  processes.silence()
  result = processes.agree(lambda: open_stage(file, stage, order, machine))
  if result is None:
    result = stage.run(stage.config, stage.out)
    processes.agree(lambda: close_stage(stage.out, result))
  return result


def open_stage(file, stage, order, machine) -> dict | None:
  """The result of a stage that is complete; else None, with its record written. UserError where the
  stage has been begun with other settings or from other parents."""
  out = pathlib.Path(stage.out)
  record, done = out / 'experiment.json', out / 'result.json'
  resolved, parents = json.loads(json.dumps(describe(stage.config))), parents_of(stage.config)
  if record.exists():
    old = json.loads(record.read_text())
    changed = list(differences(lasting(old['config']), lasting(resolved)))
    if changed:
      raise UserError(f'{out} was made with other settings: {changed[0]}'
                      f'{f" (and {len(changed) - 1} more)" if changed[1:] else ""}; keep them, or '
                      'give another folder with --out')
    remade = sorted(name for name in parents if old['parents'].get(name) != parents[name])
    if remade:
      raise UserError(f'{remade[0]} has changed since {out} was made from it: move {out} away to '
                      'make it again, or give another folder with --out')
  if done.exists():
    print(f'{out.name}: finished already, in {out}', flush=True)
    return json.loads(done.read_text())['result']
  out.mkdir(parents=True, exist_ok=True)
  row = dict(file=str(file), order=order, run=describe(stage.run), config=resolved, parents=parents,
             commit=commit(), machine=describe(machine), devices=list(map(str, jax.devices())),
             versions=versions('optax'))
  metrics.write_aside(record, json.dumps(row, indent=1, ensure_ascii=False))
  print(f'{out.name}: into {out}', flush=True)
  return None


def close_stage(out, result):
  """Marks a stage as complete."""
  finished = dict(result=result, fingerprint=checkpoint.fingerprint(out))
  metrics.write_aside(pathlib.Path(out) / 'result.json', json.dumps(finished, indent=1))


def lasting(described: dict) -> dict:
  """A described config without what may change while its stage is being run: of the machine, all
  but the kinds of numbers. On another mesh a stage goes on, though not to the same bits."""
  machine = described.get('machine', {})
  kept = {name: machine[name] for name in ('dtype', 'param_dtype') if name in machine}
  return {**described, 'machine': kept}


def parents_of(config) -> dict:
  """{folder: fingerprint} of the stages and models that a config names, wherever it does."""
  init = getattr(config, 'init', '')
  out = {init: checkpoint.fingerprint(init)} if init and not _finished(init) else {}
  return out | {name: json.loads((pathlib.Path(name) / 'result.json').read_text())['fingerprint']
                for name in strings(describe(config)) if _finished(name)}  # yapf: disable


def _finished(name):
  return 0 < len(name) < 1000 and '\0' not in name and (pathlib.Path(name) /
                                                        'result.json').is_file()


def strings(described):
  """Every string of a described config."""
  if isinstance(described, str):
    yield described
  elif isinstance(described, (dict, list)):
    for value in described.values() if isinstance(described, dict) else described:
      yield from strings(value)


def versions(*names) -> dict:
  """The versions of jax, flax and further packages."""
  return {name: importlib.metadata.version(name) for name in ('jax', 'flax', *names)}


def commit():
  """The git commit of the working directory, None outside a checkout."""
  found = subprocess.run(['git', 'rev-parse', 'HEAD'], capture_output=True, text=True, check=False)
  return found.stdout.strip() or None


def use_compilation_cache():
  """Keeps compiled programs in ~/.cache/r1jax, one folder a kind of processor: they are native.
  A cache that is set already, as by JAX_COMPILATION_CACHE_DIR, stays."""
  if jax.config.jax_compilation_cache_dir:
    return
  try:
    lines = set(pathlib.Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines())
  except OSError:
    lines = {}
  kinds = ('vendor_id', 'model name', 'flags', 'Features')
  cpu = '\n'.join(sorted(line for line in lines if line.startswith(kinds)))
  folder = pathlib.Path.home() / '.cache' / 'r1jax' / hashlib.sha256(cpu.encode()).hexdigest()[:16]
  jax.config.update('jax_compilation_cache_dir', str(folder))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)


# -- the other commands ----------------------------------------------------------------------------


def evaluate(argv):
  """Evaluates a model: on benchmarks, or as an experiment's last stage evaluates its own."""
  names = list(itertools.takewhile(lambda x: not x.startswith('-'), argv[:2]))
  if not names:
    raise UserError('usage: r1jax eval MODEL --tasks NAME,NAME [--field value ...], or r1jax eval '
                    'MODEL EXPERIMENT.py [--field value ...]; --help after these lists the fields')
  cli = functools.partial(tyro.cli, args=argv[len(names):], prog=f'r1jax eval {" ".join(names)}')
  if len(names) == 1:
    cfg = cli(benchmark.Config)
    if cfg.data:
      os.environ['R1JAX_DATA'] = cfg.data
    use_compilation_cache()
    benchmark.run(names[0], cfg, dict(commit=commit(), versions=versions('math-verify')))
    return
  configs = [stage.config for stage in load_experiment(names[1])]
  config = next((c for c in reversed(configs) if getattr(c, 'evaluation', None)), None)
  if not config:
    raise UserError(f'no stage of {names[1]} has an evaluation: add one to its config')
  cfg = cli(evals.Evaluation, default=config.evaluation)
  machine, mesh = sharding.start(config.machine)
  processes.silence()
  mesh = sharding.sampling_mesh(machine, mesh)
  model, params, tokenizer = checkpoint.load_model(names[0], machine, mesh)
  terms = rewards.load(config.rewards, machine, mesh, tokenizer)
  judge = evals.make_evaluate(cfg, terms, model, tokenizer, config.max_prompt_tokens, config.seed,
                              machine, mesh)
  print('result', json.dumps(judge(params)[0]))


def sample_text(argv):
  """Prints completions of a prompt."""
  parser = argparse.ArgumentParser(prog='r1jax sample')
  parser.add_argument('model', help='a run folder or a Hugging Face folder')
  parser.add_argument('--prompt', required=True)
  parser.add_argument('--number', type=int, default=1, help='completions')
  parser.add_argument('--max-tokens', type=int, default=256)
  parser.add_argument('--temperature', type=float, default=1.0, help='0 is greedy')
  parser.add_argument('--top-p', type=float, default=1.0)
  parser.add_argument('--top-k', type=int, default=0)
  parser.add_argument('--seed', type=int, default=0)
  args = parser.parse_args(argv)
  machine, mesh = sharding.start(sharding.Machine(cpu_devices=1))
  model, params, tokenizer = checkpoint.load_model(args.model, machine, mesh)
  cfg = sample.Sampling(args.max_tokens, args.temperature, args.top_p, args.top_k)
  length = len(tokenizer.encode(args.prompt))
  sampler = rollout.make_sampler(model, tokenizer, cfg, args.number, length, machine, mesh, 1)
  calls = rollout.dispatch(sampler, params, seeds.key(args.seed, 'sample'), [0],
                           [Problem(args.prompt, '')])
  for completion in rollout.collect(sampler, calls, ()).completions[0]:
    print(args.prompt + completion.text + ('' if completion.finished else ' [cut off]'))


def samples(argv):
  """Prints a run's recorded completions."""
  parser = argparse.ArgumentParser(prog='r1jax samples')
  parser.add_argument('run', help='the folder of a run')
  parser.add_argument('--last', type=int, default=8, help='the newest so many')
  args = parser.parse_args(argv)
  if not metrics.print_samples(args.run, last=args.last):
    raise UserError(f'there are no samples in {args.run}')


def fingerprint(argv):
  """Prints the sha256 of a model folder's parameters."""
  parser = argparse.ArgumentParser(prog='r1jax fingerprint')
  parser.add_argument('folder')
  print(checkpoint.fingerprint(parser.parse_args(argv).folder))


def export(argv):
  """Writes a run's model as a Hugging Face folder."""
  parser = argparse.ArgumentParser(prog='r1jax export')
  parser.add_argument('run', help='the folder of a finished stage')
  parser.add_argument('folder', help='the folder to write')
  parser.add_argument('--dtype', choices=('float32', 'bfloat16'), default='float32')
  args = parser.parse_args(argv)
  machine, mesh = sharding.start(sharding.Machine(cpu_devices=1))
  model, params, tokenizer = checkpoint.load_model(args.run, machine, mesh)
  checkpoint.export(args.folder, model, params, tokenizer, args.dtype)
  print(f'wrote {args.folder}')


def data(argv):
  """Lists, prepares, shows, filters and decontaminates data sets."""
  use_compilation_cache()
  library.main(argv)


def plan(argv):
  """Compiles what an experiment runs for devices that are not here: does it fit, how long?"""
  args, fields = plan_lib.parse(argv)
  stages = override(args.experiment, load_experiment(args.experiment), fields)
  modules = [vars(m) for name, m in sys.modules.items() if name.startswith('experiments.')]
  before = [m['experiment']() for m in modules if 'experiment' in m]  # it goes on from these
  before = [s for found in before for s in (found if isinstance(found, tuple) else (found,))]
  plan_lib.run(args, stages, {stage.out: stage for stage in (*before, *stages)})


def report(argv):
  """Writes a run's figures, tables and samples as one HTML page."""
  parser = argparse.ArgumentParser(prog='r1jax report')
  parser.add_argument('run', help='the folder of a pipeline, or of one stage')
  print(f'wrote {report_page.write(parser.parse_args(argv).run)}')


COMMANDS = dict(run=run, plan=plan, eval=evaluate, sample=sample_text, samples=samples,
                report=report, fingerprint=fingerprint, export=export, data=data)

CONTINUES = dict(run='; the same command continues from the last saved state',
                 eval='; with --tasks, the same command continues from the last graded problems')


def main(argv=None) -> int:
  """Runs a command. Returns 0, or 2 after one sentence on stderr where a person can mend it.

  The last line of a run on stdout is a word to the launcher: `result {...}` where all is done,
  `again {...}` where it was asked to stop, by SIGTERM say, and the same command goes on. Of several
  processes that have lost one, the others leave with status 1 and a sentence.
  """
  argv = sys.argv[1:] if argv is None else argv
  if not argv or argv[0] not in COMMANDS:
    print('usage: r1jax COMMAND ...\n')
    for name, command in COMMANDS.items():
      print(f'  {name:12} {command.__doc__}')
    return 0 if argv in ([], ['-h'], ['--help']) else 2
  try:
    COMMANDS[argv[0]](argv[1:])
    sys.stdout.flush()
    return 0
  except Stopped as stop:
    print('again', json.dumps(dict(stage=pathlib.Path(stop.out).name, step=stop.step)), flush=True)
    return 0
  except UserError as error:
    print(f'r1jax: {error}', file=sys.stderr)
    return 2
  except (jax.errors.JaxRuntimeError, TimeoutError) as error:  # of the devices, of a save
    if 'RESOURCE_EXHAUSTED' in str(error):
      print(f'r1jax: a device is out of memory ({str(error).splitlines()[0]}): give it fewer rows '
            'at once (machine.micro_rows, sample_rows) or cut more (machine.fsdp, tensor, context, '
            'expert); `r1jax plan` says what fits', file=sys.stderr)  # yapf: disable
      return 2 if processes.count() == 1 else processes.leave(2)
    if processes.count() == 1:
      raise
    where = f'process {processes.index()} of {processes.count()}'
    print(
        f'r1jax: {where} lost the others ({str(error).splitlines()[0]}): start the same command '
        'again in all of them; it continues from the last saved state', file=sys.stderr)
    processes.leave(1)  # the usual end would wait for the others
  except BrokenPipeError:  # as `r1jax data list | head` ends; nothing more can be said there
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141
  except KeyboardInterrupt:
    print(f'r1jax: interrupted{CONTINUES.get(argv[0], "")}', file=sys.stderr)
    return 130


if __name__ == '__main__':
  sys.exit(main())
