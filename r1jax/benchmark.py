"""Benchmarks with the paper's protocol: r1jax eval MODEL --tasks math500,aime24.

OUT/TASK/settings.json      what completions and verdicts depend on: other settings are refused
OUT/TASK/shard-N.jsonl      the graded completions of some problems, N the first of them; written
                            once, at once, so that what was killed goes on with the next
OUT/TASK/completions.jsonl  all of them in order, the same bytes however they came about; the
                            shards are gone then
OUT/TASK/speed.jsonl        each shard's tokens and seconds
OUT/table.json, table.md    the numbers
"""
import dataclasses
import functools
import hashlib
import importlib
import itertools
import json
import os
import pathlib
import pkgutil
import runpy
import time
from typing import NamedTuple

import numpy as np

from r1jax import chat, checkpoint, datasets, evals, metrics, processes, prompts, rewards
from r1jax import rollout, sample, seeds, sharding, tasks
from r1jax.grading import math
from r1jax.stages.evaluate import Column, markdown
from r1jax.tasks import lines
from r1jax.types import Benchmark, Problem, Reward, Stopped, UserError

TEMPLATES = {'r1': prompts.R1, 'r1-think': prompts.R1_THINK, 'r1-zero': prompts.R1_ZERO,
             'short': prompts.SHORT, 'plain': '{question}'}  # yapf: disable
DATE = '26 Jul 2024'  # for chat templates that tell the date, so that prompts stay the same
COLUMNS = [Column(*x) for x in (
    ('problems', 'problems'), ('skipped', 'skipped'), ('k', 'k'), ('pass_at_1', 'pass@1'),
    ('cons_at_k', 'cons@k'), ('pass_at_k', 'pass@k'), ('length', 'length'),
    ('finished', 'finished'), ('errors', 'errors'), ('timeouts', 'timeouts'),
    ('seconds', 's'), ('tokens_per_s', 'tokens/s'))]  # yapf: disable


@dataclasses.dataclass(frozen=True)
class Config:
  """How a model is evaluated: as the benchmark says (k, max_tokens) and the paper does."""
  tasks: str  # names with commas between; also FILE.py:NAME, and folder:FOLDER with test.jsonl
  out: str = ''  # folder of the results; runs/eval/ and the model's name unless given
  split: str = ''  # of the problems, in place of the benchmark's own
  template: str = 'auto'  # or r1, r1-think, r1-zero, short, plain; auto: the model's own, or r1
  k: int | None = None  # samples a problem
  max_tokens: int | None = None  # of a completion
  temperature: float = 0.6  # v2, D.1, and so is top_p
  top_p: float = 0.95
  limit: int | None = None  # the first so many problems
  max_prompt_tokens: int | None = None  # half of the model's context unless given
  skip_long: bool = False  # leave out problems with longer prompts instead of refusing them
  max_errors: float = 0.01  # share of all verdicts that may fail before the work stops
  seed: int = 0  # of sampling
  data: str = ''  # folder of the data sets' sources, in place of R1JAX_DATA
  machine: sharding.Machine = sharding.Machine()  # what the hardware wants

  def __post_init__(self):
    for name in ('k', 'max_tokens', 'limit', 'max_prompt_tokens'):
      if getattr(self, name) is not None and getattr(self, name) < 1:
        raise UserError(f'{name} is {getattr(self, name)} and must be at least 1')


class Work(NamedTuple):
  """One benchmark, ready to be sampled."""
  name: str
  benchmark: Benchmark
  problems: dict[int, Problem]  # number in the split -> problem
  skipped: int  # problems whose prompts are too long
  k: int
  max_prompt_tokens: int
  sampling: sample.Sampling
  opening: str  # of a completion, where the template has written it already
  folder: pathlib.Path


def run(model_folder: str, cfg: Config, about: dict) -> dict:
  """Evaluates a model on every task, leaves the results in cfg.out, returns {task: numbers}.

  What is there already is kept; `about` is what else the table's JSON is to say. Raises UserError,
  before the work where it can be known by then, as `prepare` and `claim` do.
  """
  machine, mesh = sharding.start(cfg.machine)
  processes.silence()
  mesh = sharding.sampling_mesh(machine, mesh)
  model, params, tokenizer = checkpoint.load_model(model_folder, machine, mesh)
  template = find_template(cfg.template, model_folder)
  out = pathlib.Path(cfg.out or f'runs/eval/{pathlib.Path(model_folder).resolve().name}')
  works = prepare_all(cfg, template, out, model.config.max_tokens, tokenizer)
  common = dict(model=checkpoint.hash_tree(params), template=template, seed=cfg.seed,
                dtype=machine.dtype)
  settings = processes.agree(lambda: {work.name: claim(work, common, tokenizer) for work in works})
  terms = {term: rewards.load([term], machine, mesh, tokenizer)[0]
           for term in {work.benchmark.reward for work in works}}  # yapf: disable
  numbers = {}
  for work in works:
    complete(work, cfg, terms[work.benchmark.reward], model, params, tokenizer, machine, mesh)
    numbers[work.name] = processes.agree(lambda work=work: summarise(work))
  table = markdown(COLUMNS, {name: cells(found) for name, found in numbers.items()}, [])
  metrics.write_aside(out / 'table.md', table)
  metrics.write_aside(
      out / 'table.json',
      json.dumps(dict(model=model_folder, **about, settings=settings, tasks=numbers), indent=1))
  print(table.strip(), flush=True)
  return numbers


# -- what is asked ---------------------------------------------------------------------------------


def find(name: str) -> Benchmark:
  """The benchmark of that name in tasks/; of a file's own BENCHMARKS, as FILE.py:NAME; or maths
  problems in a folder of tasks/lines.py, as folder:FOLDER.

  Raises UserError where there is none, with the names that there are.
  """
  file, _, entry = name.rpartition(':')
  if file == 'folder':
    load = lambda split, template: lines.load(split, entry,
                                              template.replace('{question}', datasets.BOXED))
    return Benchmark(load, Reward('accuracy', load=math.load), answer=math.extract, same=math.same)
  known = of_file(file) if file else published()
  if entry not in known:
    raise UserError(f'there is no benchmark {name!r}: there are {", ".join(sorted(known))}')
  return known[entry]


def of_file(file: str) -> dict[str, Benchmark]:
  """The benchmarks of a file like those in tasks/; UserError where there are none."""
  try:
    return runpy.run_path(file)['BENCHMARKS']
  except Exception as error:  # it is anybody's code
    raise UserError(f'{file} has no benchmarks ({type(error).__name__}: {error}): give a file with '
                    'a dict BENCHMARKS, as those of r1jax/tasks') from error


def published() -> dict[str, Benchmark]:
  """Every benchmark of the files in tasks/, by name."""
  names = [f'{tasks.__name__}.{module.name}' for module in pkgutil.iter_modules(tasks.__path__)]
  found = [getattr(importlib.import_module(name), 'BENCHMARKS', {}) for name in names]
  return {name: benchmark for each in found for name, benchmark in each.items()}


def find_template(name: str, folder) -> str:
  """A text with {question}: one of TEMPLATES or, as 'auto', the chat template of the model in the
  folder, R1's where it has none, of which a line is printed."""
  if name not in (*TEMPLATES, 'auto'):
    raise UserError(f'there is no template {name!r}: there are auto, {", ".join(TEMPLATES)}')
  if name != 'auto':
    return TEMPLATES[name]
  if 'default' not in chat.sources(folder):
    print(f'{folder} has no chat template: r1 is used', flush=True)
    return prompts.R1
  return chat.template(folder, date_string=DATE)


def prepare_all(cfg: Config, template: str, out, context: int, tokenizer) -> list[Work]:
  """Every task of cfg.tasks. UserError with all that is wrong with any of them, and where two of
  them would share a folder."""
  works, wrong, names = [], [], cfg.tasks.split(',')
  for i, name in enumerate(names):
    try:
      if twin := next((x for x in names[:i] if place(x) == place(name)), None):
        raise UserError(f'{twin} and {name} would both be kept in {out / place(name)}: evaluate '
                        'one of them with another --out')
      works.append(prepare(name, cfg, template, out, context, tokenizer))
    except UserError as error:
      wrong.append(str(error))
  if wrong:
    raise UserError('; '.join(wrong))
  return works


def place(name: str) -> str:
  """The name of a task's folder in OUT."""
  return os.path.basename(os.path.abspath(name.rpartition(':')[2]))


def prepare(name: str, cfg: Config, template: str, out, context: int, tokenizer) -> Work:
  """The problems and budgets of a task. A completion is as long as the benchmark lets it be or, and
  then a line says so, as the model's context does beside the longest prompt.

  Raises UserError where there is no such task, where a prompt is too long and not to be skipped,
  and where no problem is left.
  """
  benchmark, most = find(name), cfg.max_prompt_tokens or context // 2
  problems = benchmark.problems(cfg.split or benchmark.split, template=template)
  problems = dict(enumerate(problems[:cfg.limit]))
  lengths = {n: len(tokenizer.encode(problem.prompt)) for n, problem in problems.items()}
  short = {n: problem for n, problem in problems.items() if lengths[n] <= most}
  longest, skipped = max(lengths[n] for n in short or lengths), len(problems) - len(short)
  if skipped and not (cfg.skip_long and short):
    raise UserError(f'{name}: {skipped} of {len(problems)} prompts have more than {most} tokens, '
                    f'up to {max(lengths.values())}: raise max_prompt_tokens or, if it is not all '
                    'of them, give --skip-long')
  if skipped:
    left = f'{skipped} of {len(problems)} problems left out'
    print(f'{name}: {left}, their prompts have more than {most} tokens', flush=True)
  k, asked = cfg.k or benchmark.k, cfg.max_tokens or benchmark.max_tokens
  budget = min(asked, context - longest)
  if budget < 1:
    raise UserError(f'{name}: a prompt has {longest} tokens, all of the model\'s context of '
                    f'{context}: lower max_prompt_tokens and give --skip-long')
  if budget < asked:
    beside = f'the model\'s context is {context} and a prompt has {longest}'
    print(f'{name}: completions of up to {budget} tokens, not {asked}: {beside}', flush=True)
  _, opened, rest = template.partition('{question}')[2].rpartition('<think>')
  opening = opened + rest if opened and '</think>' not in rest else ''
  sampling = sample.Sampling(budget, cfg.temperature, cfg.top_p)
  return Work(place(name), benchmark, short, skipped, k, longest, sampling, opening,
              out / place(name))


def claim(work: Work, common: dict, tokenizer) -> dict:
  """What a task's completions and verdicts depend on, put on record in its folder; UserError
  where the folder has been made with something else."""
  asked = [(n, tokenizer.encode(p.prompt), p.answer) for n, p in work.problems.items()]
  problems = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
  settings = dict(common, num_problems=len(asked), problems=problems, k=work.k,
                  **dataclasses.asdict(work.sampling), **graders(work.benchmark))
  record = work.folder / 'settings.json'
  old = json.loads(record.read_text()) if record.exists() else settings
  changed = [name for name in settings if old.get(name) != settings[name]]
  if changed:
    raise UserError(f'{work.folder} was made with other settings: {changed[0]} was '
                    f'{old.get(changed[0])!r:.80} and is now {settings[changed[0]]!r:.80}; keep '
                    'them, or give another folder with --out')
  work.folder.mkdir(parents=True, exist_ok=True)
  metrics.write_aside(record, json.dumps(settings, indent=1))
  return settings


def graders(benchmark: Benchmark) -> dict[str, str]:
  """What the verdicts depend on: the reward by its name and arguments, and a sha256 of the source
  of all graders, of prompts.py, and of the files of the benchmark's own functions."""
  reward = benchmark.reward.function or benchmark.reward.load
  functions = [getattr(x, 'func', x) for x in (reward, benchmark.problems, benchmark.answer)]
  own = {pathlib.Path(x.__code__.co_filename) for x in functions if hasattr(x, '__code__')}
  ours = {pathlib.Path(prompts.__file__), *pathlib.Path(math.__file__).parent.glob('*.py')}
  digests = sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in own | ours)
  return dict(reward=_named(reward), grader=hashlib.sha256(''.join(digests).encode()).hexdigest())


def _named(value) -> str:
  """A function by its name, a partial one with its arguments, anything else as it prints."""
  if isinstance(value, functools.partial):
    given = [*map(_named, value.args), *(f'{k}={_named(x)}' for k, x in value.keywords.items())]
    return f'{_named(value.func)}({", ".join(given)})'
  if not callable(value):
    return repr(value)
  named = value if hasattr(value, '__qualname__') else type(value)
  return f'{named.__module__}.{named.__qualname__}'


# -- the work --------------------------------------------------------------------------------------


def complete(work: Work, cfg: Config, term, model, params, tokenizer, machine, mesh):
  """Samples and grades what has not been yet, a device call's worth of problems at a time, and
  joins the shards. One is graded while the next is sampled."""
  final = work.folder / 'completions.jsonl'
  seen = lambda: [(r['number'], r['error']) for r in read_shards(work)]
  done = processes.agree(lambda: None if final.exists() else seen())
  if done is not None:
    sampler = rollout.make_sampler(model, tokenizer, work.sampling, work.k, work.max_prompt_tokens,
                                   machine, mesh, len(work.problems))
    key = seeds.key(cfg.seed, f'benchmark {work.name}')
    size = max(1, sampler.rows // len(sampler.firsts))
    errors = [error for _, error in done if error]
    left = sorted(work.problems.keys() - {number for number, _ in done})
    parts = [left[i:i + size] for i in range(0, len(left), size)]
    began = time.monotonic()
    sent = ((part, rollout.dispatch(sampler, params, key, part, [work.problems[n]
                                                                 for n in part]))
            for part in parts)
    for part, calls in one_ahead(sent):
      rows = grade(work, term, part, rollout.collect(sampler, calls, ()).completions)
      errors += [r['error'] for r in rows if r['error']]
      rewards.check_errors([errors], work.k * len(work.problems), cfg.max_errors, 1.0)
      began = log(work, part, rows, began)
      metrics.write_aside(work.folder / f'shard-{part[0]:06d}.jsonl',
                          ''.join(map(metrics.to_json, rows)))
      if processes.stop_requested():
        raise Stopped(work.folder, part[-1] + 1)
  processes.agree(lambda: join(work, final))


def join(work: Work, final):
  """All shards in one file, and them gone."""
  if not final.exists():
    metrics.write_aside(final, ''.join(map(metrics.to_json, read_shards(work))))
  for shard in work.folder.glob('shard-*.jsonl'):
    shard.unlink()


def one_ahead(items):
  """The items, each given out when the one after it has been made."""
  items = iter(items)
  last = list(itertools.islice(items, 1))
  for item in items:
    yield last.pop()
    last.append(item)
  yield from last


def grade(work: Work, term, numbers, groups) -> list[dict]:
  """A shard's rows. A verdict that failed is a score of 0 and an error, never silent."""
  problems = [work.problems[n] for n in numbers for _ in range(work.k)]
  completions = sum(groups, [])
  read = [c._replace(text=work.opening + c.text) for c in completions]
  answer = work.benchmark.answer or (lambda text: None)
  answers = lambda texts: [rewards.attempt(answer, text) for text in texts]
  scores, answers = processes.gather([
      processes.mine(rewards.scorer(term), problems, read),
      processes.mine(answers, [c.text for c in read])
  ])
  rows = []
  for i, (problem, c, score, found) in enumerate(zip(problems, completions, scores, answers)):
    failed = next((x for x in (score, found) if isinstance(x, Exception)), None)
    how = rewards.TIMED_OUT if isinstance(failed, TimeoutError) else 'failed:'
    rows.append(
        dict(id=problem.id or f'{work.name}/{numbers[i // work.k]}', number=numbers[i // work.k],
             sample=i % work.k, score=0.0 if failed else float(score),
             answer=None if failed else found, length=c.num_tokens, finished=c.finished,
             error=f'{how} {failed!r}'[:300] if failed else '', text=c.text))
  return rows


def log(work: Work, numbers, rows, began: float) -> float:
  """Puts a shard's tokens and seconds on record and says how far the work is. Returns the time."""
  now = time.monotonic()
  speed = dict(problem=numbers[0], tokens=sum(r['length'] for r in rows), seconds=now - began)
  if processes.first():
    with open(work.folder / 'speed.jsonl', 'a', encoding='utf-8') as f:
      f.write(metrics.to_json(speed))
  right = np.mean([r['score'] for r in rows])
  print(f'{work.name}  problem {numbers[-1] + 1}: right {right:.3f}, {speed["seconds"]:.1f} s',
        flush=True)
  return now


def read_shards(work) -> list[dict]:
  """The rows of all shards that there are, in the order of their problems."""
  return [r for shard in sorted(work.folder.glob('shard-*.jsonl')) for r in metrics.read(shard)]


# -- the numbers -----------------------------------------------------------------------------------


def summarise(work: Work) -> dict:
  """The numbers of a benchmark from its completions, plain: pass_at_1, pass_at_ of powers of two
  and of k, cons_at_k, with their standard errors over problems; lengths and counts over samples."""
  rows, k = metrics.read(work.folder / 'completions.jsonl'), work.k
  groups = [rows[i:i + k] for i in range(0, len(rows), k)]
  score_PG = np.asarray([[r['score'] for r in group] for group in groups])
  found = evals.mean_and_error('pass_at_1', score_PG.mean(axis=1))
  for n in sorted({2**i for i in range(1, k.bit_length())} | {k} - {1}):
    found |= evals.mean_and_error(f'pass_at_{n}', evals.pass_at(n, score_PG == 1))
  if work.benchmark.answer and k > 1:
    voted_P = [evals.vote([r['answer'] for r in group], right_G, work.benchmark.same)
               for group, right_G in zip(groups, score_PG)]  # yapf: disable
    found |= evals.mean_and_error(f'cons_at_{k}', voted_P)
  late = [rewards.timed_out(r['error']) for r in rows if r['error']]
  # A shard that was killed before it was written is there twice; the last is the one that counts.
  speed = {x['problem']: x for x in metrics.read(work.folder / 'speed.jsonl')}.values()
  tokens, seconds = (sum(x[name] for x in speed) for name in ('tokens', 'seconds'))
  mean = lambda name: sum(r[name] for r in rows) / len(rows)
  return dict(problems=len(groups), skipped=work.skipped, k=k,
              **{name: float(x) for name, x in found.items()}, length=mean('length'),
              finished=mean('finished'), errors=len(late) - sum(late), timeouts=sum(late),
              seconds=seconds, tokens_per_s=tokens / seconds)  # yapf: disable


def cells(numbers: dict) -> dict:
  """The numbers as COLUMNS names them, whatever k is."""
  common = {f'{kind}_at_{numbers["k"]}{error}': f'{kind}_at_k{error}'
            for kind in ('pass', 'cons') for error in ('', '_stderr')}  # yapf: disable
  return numbers | {common[name]: x for name, x in numbers.items() if name in common}
