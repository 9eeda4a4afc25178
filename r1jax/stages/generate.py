"""Data made by a model: cold-start texts, rejection sampling, pairs and labels for reward models.

OUT/data/shard-N.jsonl  every completion, and why it was dropped: a shard is written once, at once,
                        so that a run that was killed goes on with the next
OUT/data/result.jsonl   what the next stage learns from
OUT/data/report.json    counts by kind of problem and by reason
"""
import collections
import dataclasses
import json
import pathlib
from typing import Callable

from r1jax import checkpoint, metrics, processes, rollout, sample, seeds, sharding
from r1jax.types import Document, Judged, Problem, Stopped, UserError


@dataclasses.dataclass(frozen=True)
class Config:
  """The settings of one run over a set of problems."""
  init: str  # the model that is sampled: a folder of a finished stage or a Hugging Face model
  problems: Callable[[str], list[Problem]]  # split -> problems
  select: object  # what becomes of the completions: one of selection.py
  others: Callable[[], list[Document]] | None = None  # data from elsewhere that joins, if documents
  split: str = 'train'
  num_problems: int = 8192  # the first so many of the split
  samples: int = 4  # completions a problem and round
  rounds: int = 1  # a problem with nothing kept is sampled again, up to so many times in all
  shard: int = 512  # problems a shard
  max_prompt_tokens: int = 512  # a longer prompt is an error
  sampling: sample.Sampling = sample.Sampling()
  seed: int = 0  # of sampling
  machine: sharding.Machine = sharding.Machine()  # what the hardware wants


def run(cfg: Config, out: str) -> dict:
  """Samples and selects shard by shard, leaves the data in the folder `out`, returns its counts."""
  for name in ('num_problems', 'samples', 'rounds', 'shard'):
    if vars(cfg)[name] < 1:
      raise UserError(f'{name} is {vars(cfg)[name]} and must be at least 1')
  machine, mesh = sharding.start(cfg.machine)
  mesh = sharding.sampling_mesh(machine, mesh)
  model, params, tokenizer = checkpoint.load_model(cfg.init, machine, mesh)
  problems = cfg.problems(cfg.split)[:cfg.num_problems]
  rollout.encode(tokenizer, problems, cfg.max_prompt_tokens)  # too long shows before the work
  sampler = rollout.make_sampler(model, tokenizer, cfg.sampling, cfg.samples, cfg.max_prompt_tokens,
                                 machine, mesh, min(cfg.shard, len(problems)))
  choose = cfg.select.load(machine, mesh, tokenizer)
  data = pathlib.Path(out) / 'data'
  data.mkdir(exist_ok=True)

  shard = lambda start: data / f'shard-{start // cfg.shard:05d}.jsonl'
  starts = range(0, len(problems), cfg.shard)
  for start in processes.agree(lambda: [n for n in starts if not shard(n).exists()]):
    end = min(start + cfg.shard, len(problems))
    left, rows = list(range(start, end)), []
    for turn in range(cfg.rounds):
      key, asked = seeds.key(cfg.seed, 'generate', turn), [problems[n] for n in left]
      calls = rollout.dispatch(sampler, params, key, left, asked)
      completions = rollout.collect(sampler, calls, ()).completions
      chosen = choose(asked, completions)
      rows += [row for n, problem, group, one in zip(left, asked, completions, chosen)
               for row in records(n, turn, problem, group, *one)]  # yapf: disable
      left = [n for n, (kept, _) in zip(left, chosen) if not kept]
      if not left:
        break
    metrics.write_aside(shard(start), ''.join(map(metrics.to_json, rows)))
    kept = sum(len(row['kept']) for row in rows)
    print(
        f'{pathlib.Path(out).name}  problem {end}: {len(rows)} completions, kept '
        f'{kept}, {len(left)} problems without any', flush=True)
    if processes.stop_requested():
      raise Stopped(out, end)
  return processes.agree(lambda: finish(cfg, data))


def records(number, turn, problem, completions, kept, reasons):
  """A shard's rows for one problem: each completion with why it was dropped ('': it was not); the
  first of them holds what was kept."""
  for g, (completion, reason) in enumerate(zip(completions, reasons)):
    yield dict(number=number, turn=turn, kind=problem.kind, prompt=problem.prompt,
               answer=problem.answer, completion=completion.text, length=completion.num_tokens,
               reason=reason, kept=[] if g else kept)


def finish(cfg, data) -> dict:
  """All shards together: the result, the report, and the report's sums."""
  rows, kinds = [], collections.defaultdict(_counts)
  for shard in sorted(data.glob('shard-*.jsonl')):
    kept_of = collections.Counter()
    for row in metrics.read(shard):
      counts = kinds[row['kind']]
      counts['samples'] += 1
      counts['kept'] += len(row['kept'])
      counts['dropped'][row['reason']] += bool(row['reason'])
      kept_of[row['number'], row['kind']] += len(row['kept'])
      rows += row['kept']
    for (_, kind), kept in kept_of.items():
      kinds[kind]['problems'] += 1
      kinds[kind]['none'] += not kept
  kept, removed = cfg.select.finish(rows)
  if not kept:
    reasons = sum((counts['dropped'] for counts in kinds.values()), collections.Counter(removed))
    raise UserError(f'nothing was kept of {sum(c["samples"] for c in kinds.values())} completions: '
                    f'{dict(+reasons)}; they are in {data}: look at some, then change '
                    'the gates, sample more, or train the parent longer')
  if cfg.others:
    others = [document._asdict() for document in cfg.others()]
    for row in others:
      kinds[row['kind']]['written'] += 1
    kept, removed = cfg.select.finish(rows + others)
  kinds = {kind: {**counts, 'dropped': dict(+counts['dropped'])} for kind, counts in kinds.items()}
  metrics.write_aside(data / 'report.json', json.dumps(dict(kinds=kinds, removed=removed),
                                                       indent=1))
  metrics.write_aside(data / 'result.jsonl', ''.join(map(metrics.to_json, kept)))
  total = lambda name: sum(counts[name] for counts in kinds.values())
  return dict(rows=len(kept), **{name: total(name) for name in _counts() if name != 'dropped'},
              removed=sum(removed.values()))


def _counts():
  return dict(problems=0, samples=0, kept=0, none=0, written=0, dropped=collections.Counter())


def documents(folder: str) -> list[Document]:
  """What a stage of this kind left to learn from."""
  return [Document(row['prompt'], row['response'], row['kind']) for row in _read(folder)]


def judged(folder: str) -> list[Judged]:
  """What a stage of this kind left for a reward model."""
  return [Judged(row['prompt'], tuple(row['responses']), row['label']) for row in _read(folder)]


def _read(folder):
  file = pathlib.Path(folder) / 'data' / 'result.jsonl'
  if not file.exists():
    raise UserError(f'there is no data in {folder} (no {file}): run the stage that makes it first')
  return metrics.read(file)
