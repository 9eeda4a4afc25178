"""One self-contained HTML page about a pipeline, or about a single stage, from the files of a run.

What models wrote is untrusted: it reaches the page through `page.text` only. Files are read up to a
limit and every section has a size that it does not pass, so the page stays small and is made in
seconds whatever the run was.
"""
import collections
import json
import pathlib
import re
from typing import NamedTuple

from r1jax import metrics, page, svg
from r1jax.page import finite, fit, fold, measure, number, plural, prose, span, text
from r1jax.types import UserError

KINDS = {  # the module of a stage's loop: what the page calls it, its colour
    'rl': ('reinforcement learning', 0), 'sft': ('supervised learning', 2),
    'generate': ('sampling', 4), 'reward_model': ('reward model', 3), 'evaluate': ('evaluation', 7),
}  # yapf: disable
SHARES = dict(finished='finished answers', degenerate='groups of equal rewards',
              clipped='clipped tokens')
COUNTS = ('reward/errors', 'reward/timeouts')  # no parts of the reward
ROWS = dict(wide=62, narrow=100)  # pixels of a stage in the picture of the pipeline

PIPELINE = '''Each stage in order, with what it was made from: a full line where a model was handed
on, a dashed one where data was. A hollow circle is a stage that has not finished.'''
TABLE = '''Every model on the same problems, ± one standard error. Marked in a column: the best
model, and those that are less than two standard errors of the difference behind it. The lines below
the numbers show shares.'''
LEARNING = '''A number of an update is the mean over its samples. Of a run with more than 200
updates, a line shows means of equal spans of updates, and the band around it the middle 80% of each
span. Points are evaluations, with bars of one standard error where it is known.'''
DATA = '''What was sampled to learn from, and what became of it; a dropped sample counts for the
first reason to drop it. Underlined rows open: they show dropped samples beside what was kept of the
same problem, if anything was.'''


class Stage(NamedTuple):
  """What the page needs of a stage."""
  folder: pathlib.Path
  name: str
  kind: str  # of KINDS, or ''
  record: dict  # experiment.json
  config: dict
  parents: list[str]  # names of folders
  result: dict | None  # None: not finished
  rows: list[dict]  # metrics.jsonl
  seconds: float


def write(run_dir) -> pathlib.Path:
  """Writes run_dir/report.html, returns its path; UserError where there is nothing to report."""
  run_dir = pathlib.Path(run_dir)
  if not run_dir.is_dir():
    raise UserError(f'there is no folder {run_dir}; give the folder of a run')
  stages = load(run_dir)
  if not stages:
    raise UserError(f'{run_dir} holds no stage of a run: neither it nor a folder in it has an '
                    'experiment.json that can be read')
  sections = [
      ('pipeline', 'Pipeline', fit(pipeline(stages), 300_000, PIPELINE)),
      ('models', 'Models', fit(tables(stages), 200_000, TABLE)),
      ('learning', 'Learning', fit(learning(stages), 800_000, LEARNING)),
      ('losses', 'Losses', fit(losses(stages), 150_000)),
      ('data', 'Data kept and dropped', fit(data(stages), 500_000, DATA)),
      ('answers', 'What the models write', fit(answers(stages), 500_000)),
      ('settings', 'Settings', fit(settings(stages), 300_000)),
  ]
  path = run_dir / 'report.html'
  metrics.write_aside(path, page.document(run_dir.resolve().name, facts(stages), sections))
  return path


# -- reading ---------------------------------------------------------------------------------------


def parse(line) -> dict:
  """The JSON object of a text, {} where it holds none."""
  try:
    row = json.loads(line)
  except (ValueError, RecursionError):
    return {}
  return row if isinstance(row, dict) else {}


def rows(path, most=64 << 20, longest=8 << 20):
  """The JSON objects in the lines of a file, up to `most` bytes; too long a line is left out."""
  try:
    file = open(path, 'rb')
  except OSError:
    return
  with file:
    while most > 0 and (line := file.readline(longest)):
      most -= len(line)
      row = parse(line)
      if row:
        yield row


def whole(path) -> dict | None:
  """The object of a JSON file, {} where it holds none, None where there is no such file."""
  try:
    with open(path, 'rb') as file:
      return parse(file.read(8 << 20))
  except OSError:
    return None


def sub(tree, *keys) -> dict:
  """tree[key][key]..., {} where that is missing or no dict."""
  for name in keys:
    tree = tree.get(name) if isinstance(tree, dict) else None
  return tree if isinstance(tree, dict) else {}


def load(run_dir) -> list[Stage]:
  """The stages of a run in their order: the one recorded, else parents first."""
  folders = [run_dir]
  if not whole(run_dir / 'experiment.json'):
    folders = sorted(p for p in run_dir.iterdir() if p.is_dir())[:200]
  records = [(folder, whole(folder / 'experiment.json')) for folder in folders]
  stages = [load_stage(folder, record) for folder, record in records if record]
  depth = {stage.name: 0 for stage in stages}
  for _ in stages:  # as often as the longest chain could need
    for s in stages:
      depth[s.name] = 1 + max((depth[p] for p in s.parents if p in depth), default=0)
  order = lambda s: finite(s.record.get('order'))
  return sorted(stages, key=lambda s: (order(s) is None, order(s) or 0, depth[s.name]))[:40]


def load_stage(folder, record) -> Stage:
  """A stage from its folder and its experiment.json."""
  config, done = sub(record, 'config'), whole(folder / 'result.json')
  steps = [row for row in rows(folder / 'metrics.jsonl') if finite(row.get('step')) is not None]
  seconds = sum(finite(row.get('seconds')) or 0 for row in rows(folder / 'speed.jsonl'))
  return Stage(folder=folder, name=folder.resolve().name, kind=kind_of(folder, record),
               record=record, config=config, parents=parents_of(record),
               result=None if done is None else sub(done, 'result'), rows=steps, seconds=seconds)


def kind_of(folder, record) -> str:
  """Which loop ran: as recorded, or, in an older record, by what it left."""
  known = [part for part in str(record.get('run')).split('.') if part in KINDS]
  if known or (folder / 'table.json').exists():
    return known[0] if known else 'evaluate'
  if (folder / 'data').is_dir():
    return 'generate'
  config = sub(record, 'config')
  return 'sft' if 'documents' in config else 'rl' if 'group' in config else ''


def parents_of(record) -> list[str]:
  """The names of the folders that a stage was made from: {folder: fingerprint}, or as older records
  have it, dicts with a folder."""
  found = record.get('parents') or [record.get('parent')]
  if isinstance(found, list):
    found = [sub(parent).get('folder') for parent in found]
  return list(dict.fromkeys(pathlib.PurePath(str(folder)).name for folder in found if folder))


def column(stage, *keys) -> list[tuple]:
  """(step, value of each key) of the rows that have the first key as a number."""
  found = (row for row in stage.rows if finite(row.get(keys[0])) is not None)
  return [(row['step'], *map(row.get, keys)) for row in found]


def counts(stage) -> dict:
  """kind of problem -> counts of what a generate stage sampled, kept and dropped."""
  kinds = sub(whole(stage.folder / 'data' / 'report.json'), 'kinds')
  return {kind: found for kind, found in kinds.items() if isinstance(found, dict)}


def count(found, name) -> float:
  """A count, 0 where it is missing."""
  return finite(found.get(name)) or 0.0


# -- what ran --------------------------------------------------------------------------------------


def facts(stages) -> str:
  """One line: from which code, on what, how much, how long. HTML."""
  some = lambda values: ', '.join(list(dict.fromkeys(filter(None, values)))[:3])
  records = [stage.record for stage in stages]
  lists = [r['devices'] for r in records if isinstance(r.get('devices'), list)]
  devices = [collections.Counter(re.split('[:_(]', str(d))[0] for d in each) for each in lists]
  undone = sum(stage.result is None for stage in stages)
  found = [
      some(text(r.get('file') or '', 80) for r in records),
      some(f'commit {text(str(r["commit"])[:9])}' for r in records if r.get('commit')),
      some(', '.join(plural(n, f'{text(k, 20)} device') for k, n in d.items()) for d in devices),
      some(f'jax {text(v, 20)}' for r in records if (v := sub(r, 'versions').get('jax'))),
      plural(len(stages), 'stage') + (f', {undone} not finished' if undone else ''),
      f'{span(seconds)} of updates' if (seconds := sum(s.seconds for s in stages)) else '',
  ]
  return ' <i>·</i> '.join(filter(None, found))


def pipeline(stages):
  """The picture: a row a stage, with lines from those that it was made from."""
  place = {stage.name: i for i, stage in enumerate(stages)}
  nodes, boxes = [], ''
  for i, s in enumerate(stages):
    label, colour = KINDS.get(s.kind, ('stage', 7))
    above = [place[p] for p in s.parents if place.get(p, i) < i]
    nodes.append((above, f'var(--c{colour})', s.result is not None, s.kind == 'generate'))
    boxes += f'<li><a class="box" href="#settings-{i}"><b>{text(s.name, 40)}</b>' \
             f'<span class="kind" style="color:var(--c{colour})">{label}</span>' \
             f'<span class="fact">{outcome(s)}</span>' \
             f'<span class="from">from {text(", ".join(s.parents[:20]) or "nothing")}</span>' \
             f'<span class="time">{span(s.seconds) if s.seconds else ""}</span></a></li>'
  pictures = ''.join(
      f'<div class="{name}">{svg.flow(nodes, height)[0]}</div>' for name, height in ROWS.items())
  yield f'<div class="flow" style="--lanes:{svg.flow(nodes, 1)[1]}px">{pictures}<ol>{boxes}</ol>' \
        '</div>'


def outcome(stage) -> str:
  """The few numbers that say what came out of a stage, HTML."""
  out = ['<em>not finished</em>'] if stage.result is None else []
  steps, wanted = max((row['step'] for row in stage.rows), default=0), stage.config.get('steps')
  known = stage.result is None and finite(wanted) and not stage.config.get('epochs')
  if steps:
    out.append(
        f'{number(steps)} of {plural(wanted, "update")}' if known else plural(steps, 'update'))
  rates = [measure(*row[1:]) for row in column(stage, 'eval/pass_at_1', 'eval/pass_at_1_stderr')]
  loss = [number(y) for _, y in column(stage, 'loss')]
  if rates:
    out.append('pass@1 ' + ' → '.join(rates[:1] + rates[1:][-1:]))
  elif loss and stage.kind == 'sft':
    out.append(f'loss {loss[0]} → {loss[-1]}')
  if counts(stage):
    total = lambda name: sum(count(found, name) for found in counts(stage).values())
    kept, samples = total('kept'), total('samples')
    out.append(f'{plural(kept, "row")} of {plural(samples, "sample")}')
  models = sub(whole(stage.folder / 'table.json'), 'rows')
  out += [plural(len(models), 'model')] if models else []
  right, by_length = (finite(sub(stage.result).get(k)) for k in ('accuracy', 'length_only'))
  if stage.kind == 'reward_model' and right is not None:
    out.append(f'accuracy {measure(right, stage.result.get("accuracy_stderr"))}')
    out += [] if by_length is None else [f'by length alone {measure(by_length)}']
  return ' <i>·</i> '.join(f'<span>{fact}</span>' for fact in out)


# -- the models ------------------------------------------------------------------------------------


def tables(stages):
  """The table of each evaluate stage."""
  for stage in stages:
    table = whole(stage.folder / 'table.json') or {}
    columns = table.get('columns') if isinstance(table.get('columns'), list) else []
    columns = [c if isinstance(c, dict) else dict(name=c) for c in columns[:24]]
    models = {k: v for k, v in list(sub(table, 'rows').items())[:60] if isinstance(v, dict)}
    if models and columns:
      yield table_of(models, [(str(c.get('name')), c.get('label')) for c in columns])
    notes = table.get('notes') if isinstance(table.get('notes'), list) else []
    if notes:
      yield f'<ul>{"".join(f"<li>{text(note, 300)}</li>" for note in notes[:40])}</ul>'


def table_of(models, columns) -> str:
  """A row a model, a column a number."""
  strong = {name: best(models, name) for name, _ in columns}
  head = ''.join(f'<th scope="col">{text(label or name, 40)}</th>' for name, label in columns)
  body = ''
  for model, row in models.items():
    cells = (page.cell(row.get(name), row.get(f'{name}_stderr'), model in strong[name])
             for name, _ in columns)
    body += f'<tr><th scope="row">{text(model, 60)}</th>{"".join(cells)}</tr>'
  return f'<div class="scroll" tabindex="0"><table><thead><tr><th></th>{head}</tr></thead>' \
         f'<tbody>{body}</tbody></table></div>'


def best(models, name) -> set:
  """The models that none beats by two standard errors of the difference; none without errors."""
  pair = lambda row: (finite(row.get(name)), finite(row.get(f'{name}_stderr')))
  found = {model: pair(row) for model, row in models.items() if None not in pair(row)}
  top, error = max(found.values(), default=(0, 0))
  return {model for model, (x, e) in found.items() if top - x <= 2 * (error**2 + e**2)**0.5}


# -- curves ----------------------------------------------------------------------------------------


def learning(stages):
  """The curves of each RL stage."""
  for stage in (stage for stage in stages if stage.kind == 'rl'):
    curves, health = map(grid, panels(stage))
    if curves or health:
      batch, group = (finite(stage.config.get(name)) for name in ('batch', 'group'))
      size = f'{number(batch)} problems × {number(group)} samples an update' \
          if batch and group else ''
      failed, late = (sum(y for _, y in column(stage, name)) for name in COUNTS)
      late = f' ({number(late)} for lack of time)' if late else ''
      note = f'<p class="note">{plural(failed, "reward")} could not be computed{late} and ' \
             'counted as 0.</p>' if failed else ''
      more = fold('Optimisation and sampling', health) if health else ''
      yield f'<h3>{text(stage.name, 40)} <small>{size}</small></h3>{note}{curves}{more}'


def panels(stage) -> tuple[list, list]:
  """The small figures of an RL stage: what it learns, and how the optimisation goes."""
  names = dict.fromkeys(k for row in stage.rows for k in row if k.startswith('reward/'))
  parts = [name for name in names if name not in COUNTS][:8]
  rates = column(stage, 'eval/pass_at_1', 'eval/pass_at_1_stderr')
  one = lambda title, name: svg.chart(title, {title: column(stage, name)})
  both = lambda title, name, other, ylim=None: svg.chart(title, {
      'training samples': column(stage, name)
  }, {'evaluation': column(stage, other, f'{other}_stderr')}, ylim=ylim)
  learnt = [
      one('Reward', 'reward'),
      svg.chart('Reward by component',
                {name.removeprefix('reward/'): column(stage, name) for name in parts}),
      svg.chart('pass@1 on held-out problems', {'pass@1': [row[:2] for row in rates]},
                {'pass@1': rates}, ylim=(0, 1)),
      both('Length, tokens', 'length', 'eval/length'),
      both('Language consistency', 'reward/language', 'eval/language', (0, 1)),
      one('KL from the reference, per token', 'kl'),
  ]
  health = [
      svg.chart('Shares', {SHARES[name]: column(stage, name) for name in SHARES}, ylim=(0, 1)),
      one('Norm of the gradient', 'grad_norm'),
      one('Sampler and trainer, log-probability gap', 'gap'),
  ]
  return learnt, health


def losses(stages):
  """The loss of each stage that learns from texts, small."""
  some = (stage for stage in stages if stage.kind in ('sft', 'reward_model'))
  charts = [svg.chart(s.name, {'loss': column(s, 'loss')}, size=(320, 150)) for s in some]
  if any(charts):
    yield grid(charts)


def grid(charts) -> str:
  """Charts beside each other, '' for none."""
  return f'<div class="grid">{"".join(charts)}</div>' if any(charts) else ''


# -- texts -----------------------------------------------------------------------------------------


def data(stages):
  """Of each generate stage and kind of problem, what was kept and dropped, with samples."""
  for stage in stages:
    title, kinds = f'<h3>{text(stage.name, 40)}</h3>', list(counts(stage).items())[:8]
    kept, dropped = read_data(stage) if kinds else ({}, {})
    for kind, found in kinds:
      reasons = {k: finite(n) or 0 for k, n in list(sub(found, 'dropped').items())[:16]}
      reasons = sorted(reasons.items(), key=lambda item: -item[1])
      reasons += [('duplicate', count(found, 'duplicates'))]
      lost = sum(n for _, n in reasons)
      total = max(count(found, 'samples'), lost)  # 0 where all of a kind was written elsewhere
      parts = [('kept', '', total - lost), *((f'dropped: {k}', k, n) for k, n in reasons)]
      yield f'{title}<h4>{text(kind, 40)} <small>{sums(found)}</small></h4>'
      title = ''
      yield from (page.bar(label, n / total, n, examples(kind, reason, kept, dropped))
                  for label, reason, n in parts
                  if n)
    removed = sub(whole(stage.folder / 'data' / 'report.json'), 'removed').items()
    removed = [f'{text(k, 40)} {number(n)}' for k, n in list(removed)[:16] if finite(n)]
    if kinds and removed:
      yield f'<p class="note">Of what was kept, these went at the end: {", ".join(removed)}.</p>'


def sums(found) -> str:
  """The counts of a kind of problem in a line."""
  said = {
      'problems': 'of {} problems', 'kept': '{} rows kept', 'none': '{} problems with nothing kept',
      'written': '{} written elsewhere'
  }
  out = [plural(count(found, 'samples'), 'sample')]
  out += [form.format(number(count(found, k))) for k, form in said.items() if count(found, k)]
  return ', '.join(out).replace(', of', ' of')


def read_data(stage) -> tuple[dict, dict]:
  """(kind, problem) -> cards of what was kept, (kind, reason) -> {problem: a dropped sample}."""
  kept, dropped, documents = {}, {}, []
  shards = sorted((stage.folder / 'data').glob('shard-*.jsonl'))
  for shard in shards[::-(-len(shards) // 8) or 1]:  # every kind of problem, though not all of it
    for row in rows(shard, 8 << 20):
      kind, problem, reason = (str(row.get(k) or '') for k in ('kind', 'number', 'reason'))
      documents = row.get('kept') or documents  # a problem's first row has it for all its rows
      if not reason and (kind, problem) not in kept:
        first = documents[0] if documents and isinstance(documents, list) else {}
        kept[kind, problem] = kept_cards(row, sub(row, 'document') or sub(first))
      elif reason and len(group := dropped.setdefault((kind, reason), {})) < 200:
        group.setdefault(problem, row)
  return kept, dropped


def kept_cards(row, document) -> list:
  """What was kept of a problem, for reading: a text, one with a label, a better and a worse one."""
  responses = document.get('responses')
  if isinstance(responses, list) and len(responses) == 2:
    return [(name, dict(prompt=row.get('prompt'), completion=response))
            for name, response in zip(('kept, the better', 'kept, the worse'), responses)]
  label = finite(document.get('label'))
  heading = 'kept' if label is None else f'kept, label {number(label)}'
  return [(heading, {**row, 'document': document})]


def examples(kind, reason, kept, dropped) -> str:
  """Up to three samples that were dropped for a reason ('': kept), beside what was kept."""
  if not reason:
    found = [cards for (other, _), cards in kept.items() if other == kind]
  else:
    group = dropped.get((kind, reason), {})
    problems = sorted(group, key=lambda problem: (kind, problem) not in kept)
    found = [[(f'dropped: {reason}', group[problem]), *kept.get((kind, problem), [])]
             for problem in problems]
  return ''.join(map(beside, found[:3]))


def answers(stages):
  """The same problems answered by each model, and by one model before and after a stage."""
  opened = True
  for stage in sorted(stages, key=lambda s: s.kind != 'evaluate'):
    found, shown = read_answers(stage), collections.Counter()
    title = f'<h3>{text(stage.name, 40)}</h3>'
    for (task, prompt), group in found.items():
      shown[task] += 1
      if shown[task] <= (6 if stage.kind == 'evaluate' else 4):
        summary = f'<b>{text(task, 40)}</b> ' if task else ''
        summary += text(' '.join(prompt[:300].split()), 90)
        yield title + fold(summary, beside(group), opened)
        title, opened = '', False


def read_answers(stage) -> dict:
  """(task, prompt) -> [(model or update, its first sample)], of prompts that were answered twice
  if there are any: by all models, or first and last."""
  groups = {}
  for row in rows(stage.folder / 'samples.jsonl', 32 << 20):
    who = str(row.get('row')) if stage.kind == 'evaluate' else finite(row.get('step'))
    if who is not None and len(groups) < 2000:
      place = (str(row.get('task') or ''), str(row.get('prompt')))
      groups.setdefault(place, {}).setdefault(who, row)
  several = {place: found for place, found in groups.items() if len(found) > 1}
  groups = several or dict(list(groups.items())[-4:])
  if stage.kind == 'evaluate':
    return {place: list(found.items())[:12] for place, found in groups.items()}
  ends = lambda found: [(f'update {number(n)}', found[n]) for n in sorted({min(found), max(found)})]
  return {place: ends(found) for place, found in groups.items()}


def beside(cards) -> str:
  """(heading, sample) side by side, under the prompt that they share."""
  answer = cards[0][1].get('answer')
  known = f'<p class="marks">reference {text(answer)}</p>' if answer not in (None, '') else ''
  return f'<div class="prompt">{prose(cards[0][1].get("prompt", ""))}{known}</div>' \
         f'<div class="cards">{"".join(card(heading, row) for heading, row in cards)}</div>'


def card(heading, row) -> str:
  """A sample: its rewards, its text, and what is learnt from it where that differs."""
  scores = {'reward': row.get('reward'), **dict(list(sub(row, 'scores').items())[:12])}
  marks = [f'{text(k, 30)} {number(v)}' for k, v in scores.items() if finite(v) is not None]
  length, learnt = finite(row.get('length')), sub(row, 'document').get('response')
  marks += [plural(length, 'token')] if length is not None else []
  marks += ['cut off'] if row.get('finished') is False else []
  more = learnt is not None and str(learnt).strip() != str(row.get('completion')).strip()
  more = f'<p class="marks">as it is learnt:</p>{prose(learnt)}' if more else ''
  return f'<article><h5>{text(heading, 60)}</h5><p class="marks">{" <i>·</i> ".join(marks)}</p>' \
         f'{prose(row.get("completion", ""))}{more}</article>'


# -- settings --------------------------------------------------------------------------------------


def settings(stages):
  """The record of every stage, as a tree."""
  for i, stage in enumerate(stages):
    label = KINDS.get(stage.kind, ('', 7))[0]
    yield f'<div id="settings-{i}">' + \
        fold(f'<b>{text(stage.name, 40)}</b> <i>{label}</i>', page.tree(stage.record)) + '</div>'
