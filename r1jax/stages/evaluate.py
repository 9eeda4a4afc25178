"""The stage table: several models, asked the same, side by side.

OUT/rows/NAME.json  one model's numbers, written as it is done, so that a killed run goes on
OUT/table.json      all of them; table.md is the same for people
OUT/samples.jsonl   how each model answers the first problems of each task
OUT/NAME.svg        learning curves of several runs in one picture, where `curves` asks for them
"""
import dataclasses
import json
import pathlib
from typing import Callable, NamedTuple

from r1jax import checkpoint, evals, metrics, processes, rewards, sharding, svg
from r1jax.types import Reward, Stopped, UserError


class Column(NamedTuple):
  """One number of the table."""
  name: str  # as it is in the result
  label: str  # as a person reads it


class Curves(NamedTuple):
  """One number of several runs' metrics over their updates, as a picture."""
  name: str  # of the file
  metric: str  # in metrics.jsonl
  label: str
  runs: dict[str, str]  # line -> folder


class Task(NamedTuple):
  """One evaluation that every model takes, and its rewards; the first says what is right."""
  name: str
  evaluation: evals.Evaluation
  rewards: tuple[Reward, ...]
  columns: dict[str, Column]  # number of the evaluation -> column, in the table's order


@dataclasses.dataclass(frozen=True)
class Config:
  """Which models and which tasks."""
  models: dict[str, str]  # row -> folder, in the table's order
  tasks: tuple[Task, ...]
  shown: int = 6  # problems of a task whose answers are kept for reading
  max_prompt_tokens: int = 64
  curves: tuple[Curves, ...] = ()
  notes: Callable[[dict], list[str]] | None = None  # rows -> sentences on what the table says
  seed: int = 0  # of sampling
  machine: sharding.Machine = sharding.Machine()  # what the hardware wants


def run(cfg: Config, out: str) -> dict:
  """Evaluates every model, leaves the table in the folder `out`, returns its rows."""
  machine, mesh = sharding.start(cfg.machine)
  mesh = sharding.sampling_mesh(machine, mesh)
  folder = pathlib.Path(out) / 'rows'
  folder.mkdir(exist_ok=True)
  files = {row: folder / f'{row.replace("/", "-")}.json' for row in cfg.models}
  left = processes.agree(lambda: [row for row in files if not files[row].exists()])
  for row in left:
    numbers, samples = assess(cfg, row, cfg.models[row], machine, mesh)
    metrics.write_aside(files[row], json.dumps(dict(numbers=numbers, samples=samples)))
    print(f'{pathlib.Path(out).name}  {row}: '
          + ', '.join(f'{k} {v:.3f}' for k, v in numbers.items() if not k.endswith('_stderr')),
          flush=True)  # yapf: disable
    if processes.stop_requested():
      raise Stopped(out, len(files) - len(left) + left.index(row) + 1)
  return processes.agree(lambda: finish(cfg, out, files))


def finish(cfg, out, files) -> dict:
  """All rows together: the table, which it returns, the samples and the pictures."""
  done = {row: json.loads(file.read_text()) for row, file in files.items()}
  table = {row: found['numbers'] for row, found in done.items()}
  columns = [column for task in cfg.tasks for column in task.columns.values()]
  samples = [sample for found in done.values() for sample in found['samples']]
  metrics.write_aside(pathlib.Path(out) / 'samples.jsonl', ''.join(map(metrics.to_json, samples)))
  notes = cfg.notes(table) if cfg.notes else []
  metrics.write_aside(pathlib.Path(out) / 'table.md', markdown(columns, table, notes))
  metrics.write_aside(
      pathlib.Path(out) / 'table.json',
      json.dumps(dict(columns=[c._asdict() for c in columns], rows=table, notes=notes), indent=1))
  print(markdown(columns, table, notes), flush=True)
  for curves in cfg.curves:
    picture = svg.lines({line: curve(run, curves.metric) for line, run in curves.runs.items()},
                        'updates', curves.label, curves.name)
    metrics.write_aside(pathlib.Path(out) / f'{curves.name}.svg', picture)
  return table


def curve(run, metric):
  """[(updates, value)] of a run's metrics."""
  rows = metrics.read(pathlib.Path(run) / 'metrics.jsonl')
  return [(row['step'], row[metric]) for row in rows if metric in row]


def assess(cfg, row, init, machine, mesh):
  """One model's numbers by column, and its answers to the first problems of each task."""
  if not (pathlib.Path(init) / 'config.json').exists():
    raise UserError(f'the row {row} of the table is the model in {init}, and there is none: run '
                    'the stage that makes it')
  model, params, tokenizer = checkpoint.load_model(init, machine, mesh)
  numbers, samples = {}, []
  for task in cfg.tasks:
    terms = rewards.load(task.rewards, machine, mesh, tokenizer)
    evaluate = evals.make_evaluate(task.evaluation, terms, model, tokenizer, cfg.max_prompt_tokens,
                                   cfg.seed, machine, mesh)
    found, graded = evaluate(params)
    for name, column in task.columns.items():
      for suffix in ('', '_stderr'):
        if f'eval/{name}{suffix}' in found:
          numbers[column.name + suffix] = found[f'eval/{name}{suffix}']
    for p, problem in enumerate(graded.problems[:cfg.shown]):
      scores = {name: float(x[p, 0]) for name, x in graded.scores.items() if x[p, 0] == x[p, 0]}
      first = graded.completions[p][0]
      samples.append(
          dict(step=0, row=row, task=task.name, prompt=problem.prompt, completion=first.text,
               answer=problem.answer, scores=scores, reward=float(graded.rewards_PG[p, 0]),
               length=first.num_tokens, finished=first.finished))
  return numbers, samples


def markdown(columns, table, notes) -> str:
  """The table as GitHub's Markdown, with standard errors, and the notes below it."""
  lines = ['| | ' + ' | '.join(c.label for c in columns) + ' |', '|---' * (len(columns) + 1) + '|']
  for row, numbers in table.items():
    cells = [_cell(numbers, column.name) for column in columns]
    lines.append(f'| {row} | ' + ' | '.join(cells) + ' |')
  return '\n'.join(lines + [''] + [f'* {note}' for note in notes]) + '\n'


def _cell(numbers, name):
  if name not in numbers:
    return '–'
  x, error = numbers[name], numbers.get(f'{name}_stderr')
  if isinstance(x, int):
    return f'{x:,}'
  digits = 3 if abs(x) < 10 else 1
  return f'{x:.{digits}f}' + (f' ± {error:.{digits}f}' if error is not None else '')
