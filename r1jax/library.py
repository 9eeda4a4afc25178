"""r1jax data: what data sets there are, and what becomes of them before training.

A set is named as in `r1jax data list`, a split of it as NAME:SPLIT. Where texts are compared, a
JSON-lines file will do as well.
"""
import argparse
import importlib
import itertools
import json
import pathlib
import pkgutil
from typing import NamedTuple

from r1jax import benchmark, datasets, metrics, overlap, tasks
from r1jax.types import UserError

ASKING = ('question', 'problem', 'prompt', 'instruction')  # fields of a file that may hold its text


def published() -> dict[str, datasets.Set]:
  """Every set that a file in tasks/ describes, by name."""
  names = [f'{tasks.__name__}.{module.name}' for module in pkgutil.iter_modules(tasks.__path__)]
  found = [getattr(importlib.import_module(name), 'SETS', ()) for name in names]
  return {data.name: data for each in found for data in each}


def find(name: str) -> datasets.Set:
  """The set of that name; UserError with the names that there are where it is none."""
  known = published()
  if name not in known:
    raise UserError(f'there is no data set {name!r}: there are {", ".join(sorted(known))}')
  return known[name]


# -- what there is ---------------------------------------------------------------------------------


def list_sets(args):
  """the sets, their rows, and where to put those that are not there"""
  del args
  for name, data in sorted(published().items()):
    rows = datasets.counts(datasets.prepared(data))
    if rows:
      state = ', '.join(f'{split} {number:,}' for split, number in rows.items())
    elif files := datasets.sources(data):
      state = f'not prepared yet, from {next(iter(files.values())).parent}'
    else:
      state = f'not there: put {datasets.places(data, *data.splits)}, from {data.homepage}'
    print(f'{name:20} {data.about}\n{"":20} {state}')


def prepare(args):
  """make sets from their JSON lines"""
  for data in [find(name) for name in args.names]:
    folder = datasets.prepare(data, args.source)
    rows = ', '.join(f'{split} {number:,}' for split, number in datasets.counts(folder).items())
    print(f'{data.name}: {rows}, in {folder}', flush=True)


def show(args):
  """print rows of a set"""
  data = find(args.name)
  found = datasets.rows(data, args.split or next(iter(data.splits)))
  for i in range(min(args.rows, len(found))):
    for name, value in found[i].items():
      text = value if type(value) is str else json.dumps(value, ensure_ascii=False)
      print(f'{name}: {text[:args.width]}{" ..." if len(text) > args.width else ""}')
    print()
  print(f'{min(args.rows, len(found))} of {len(found):,} rows')


# -- decontamination -------------------------------------------------------------------------------


class Texts(NamedTuple):
  """Rows, and the text of each that is compared."""
  name: str
  rows: list
  texts: list


def read(name: str, evaluation: bool = False) -> Texts:
  """The rows of a JSON-lines file, of NAME:SPLIT, or of NAME: of its split train or, of a set that
  is for evaluation, of all its others."""
  if name.endswith(('.jsonl', '.jsonl.gz')):
    both = list(datasets.objects(name, lambda row: (row, _asked(row, _field(row)))))
    return Texts(name, [row for row, _ in both], [text for _, text in both])
  name, _, split = name.partition(':')
  data = find(name)
  splits = [split] if split else [x for x in data.splits if (x != 'train') == evaluation]
  if not splits:
    raise UserError(f'{name} has the splits {", ".join(data.splits)}: name one, as in '
                    f'{name}:{next(iter(data.splits))}')
  rows = [row for x in splits for row in datasets.every(data, x)]
  return Texts(f'{name}:{"+".join(splits)}', rows, [_asked(row, data.text) for row in rows])


def _field(row):
  """The field of a file's row that asks; ValueError where it has none."""
  found = [field for field in ASKING if row.get(field) is not None]
  if not found:
    raise ValueError(f'it has none of the fields {", ".join(ASKING)}, of which one must hold the '
                     'text that is compared')
  return found[0]


def _asked(row, field):
  """What a row asks: its field and, of an instruction, the input that it is about."""
  parts = [row[field], row.get('input') if field == 'instruction' else None]
  texts = [x if type(x) is str else json.dumps(x, ensure_ascii=False) for x in parts if x]
  return '\n\n'.join(texts)


def clean(args):
  """take out of a training set what overlaps with evaluation sets"""
  train, removed = read(args.train), {}  # row -> why it goes
  for name in args.against.split(','):
    other = read(name, evaluation=True)
    found = overlap.find(train.texts, other.texts, args.n)
    same = overlap.equal(train.texts, other.texts)
    rows, others = ({pair[side] for pair in found} for side in (0, 1))
    print(f'{train.name} and {other.name}: {len(rows)} of {len(train.rows)} rows overlap with '
          f'{len(others)} of {len(other.rows)} by {args.n} words; {len(dict(same))} of them are '
          'the same, letters and digits only')
    for i, j, shared in found:
      ids = dict(id=train.rows[i].get('id', i), other=other.rows[j].get('id', j))
      removed.setdefault(i, dict(ids, against=other.name, shared=shared))
  for why in list(removed.values())[:args.examples]:
    print(f'  {why["id"]} and {why["other"]}: {why["shared"]:.100}')
  kept = [
      dict(row, question=text)
      for i, (row, text) in enumerate(zip(train.rows, train.texts))
      if i not in removed
  ]
  out = pathlib.Path(args.out)
  gone = out.with_suffix('.removed.jsonl')
  metrics.write_aside(gone, ''.join(map(metrics.to_json, removed.values())))
  metrics.write_aside(out, ''.join(map(metrics.to_json, kept)))
  print(f'wrote {len(kept)} rows to {out}, and to {gone} why {len(removed)} went')


# -- difficulty ------------------------------------------------------------------------------------


def filter_rows(args):
  """keep the problems that a model solves sometimes"""
  if not 0 <= args.low <= args.high <= 1:
    raise UserError(f'--low {args.low} and --high {args.high} are shares, the first no larger than '
                    'the second')
  out = pathlib.Path(args.out)
  graded = out.with_suffix('.graded')
  asked = benchmark.Config(args.name, str(graded), args.split, args.template, args.k,
                           args.max_tokens, args.temperature, args.top_p, args.limit,
                           skip_long=True, seed=args.seed)  # yapf: disable
  name, = benchmark.run(args.model, asked, {})
  samples = metrics.read(graded / name / 'completions.jsonl')
  problems = benchmark.find(args.name).problems(args.split, template='{question}')
  rows = [
      rated(problems[number], [row['score']
                               for row in group])
      for number, group in itertools.groupby(samples, lambda row: row['number'])
  ]
  kept = [row for row in rows if args.low <= row['pass_rate'] <= args.high]
  metrics.write_aside(out, ''.join(map(metrics.to_json, kept)))
  easy = sum(row['pass_rate'] > args.high for row in rows)
  print(f'wrote {out}: {len(kept)} of {len(rows)} problems, solved in {args.low} to {args.high} of '
        f'{args.k} samples; {easy} were too easy, {len(rows) - len(kept) - easy} too hard; '
        f'{sum(bool(row["error"]) for row in samples)} verdicts failed and counted as wrong')


def rated(problem, scores) -> dict:
  """A problem with its pass rate, as tasks/lines.py reads it. The question is bare: what the task
  asks beside it is to be in the template, as prompts.R1.replace('{question}', datasets.BOXED)."""
  language = dict(language=problem.language) if problem.language else {}
  return dict(id=problem.id, question=problem.question or problem.prompt, answer=problem.answer,
              kind=problem.kind, **language, pass_rate=sum(scores) / len(scores))


# -- the command -----------------------------------------------------------------------------------


def main(argv):
  """The command `r1jax data`."""
  parser = argparse.ArgumentParser(prog='r1jax data')
  commands = parser.add_subparsers(required=True, metavar='COMMAND')

  def command(name, function):
    sub = commands.add_parser(name, help=function.__doc__.partition('\n')[0])
    sub.set_defaults(function=function)
    return sub.add_argument

  command('list', list_sets)
  add = command('prepare', prepare)
  add('names', nargs='+', metavar='NAME')
  add('--source', help='the folder with NAME/SPLIT.jsonl; R1JAX_DATA, else data, unless given')
  add = command('show', show)
  add('name', metavar='NAME')
  add('--split', help='its first split unless given')
  add('--rows', type=int, default=3)
  add('--width', type=int, default=300, help='characters of a field')
  add = command('clean', clean)
  add('train', metavar='TRAIN', help='NAME, whose split train is meant, NAME:SPLIT, or a file')
  add(
      '--against', required=True, help='names, of which all other splits are meant, NAME:SPLIT, or '
      'files, with commas between')
  add('--n', type=int, default=10, help='words in a row that make an overlap')
  add('--examples', type=int, default=5, help='overlaps to print')
  add('--out', required=True, help='the file to write; what goes is in FILE.removed.jsonl')
  add = command('filter', filter_rows)
  add('name', metavar='NAME', help='a benchmark, as `r1jax eval --tasks` knows it')
  add('--model', required=True, help='a run folder or a Hugging Face folder')
  add('--out', required=True,
      help='the file to write; every completion is in the folder FILE.graded')
  add('--split', default='train')
  add('--k', type=int, default=8, help='samples a problem')
  add('--low', type=float, default=0.1, help='the least share of right samples that is kept')
  add('--high', type=float, default=0.9, help='the largest')
  add('--limit', type=int, help='the first so many problems')
  add('--template', default='auto', help='as of `r1jax eval`')
  add('--max-tokens', type=int, help='of a completion; the benchmark\'s unless given')
  add('--temperature', type=float, default=1.0)
  add('--top-p', type=float, default=1.0)
  add('--seed', type=int, default=0)
  args = parser.parse_args(argv)
  args.function(args)
