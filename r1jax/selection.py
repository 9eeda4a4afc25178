"""What becomes of sampled completions: documents to learn from, judged pairs, or labels.

Each class is a selection as a value: `load(machine, mesh, tokenizer)` gives

  choose(problems, completions) -> for each problem (rows to keep, a reason for each completion)

where a reason is '' for what was kept, and `finish(rows)` looks at all the rows together at the
end and gives those that stay and, for the rest, {reason: number}. A row is a dict of JSON.
"""
import dataclasses
import random
from typing import Callable

from r1jax import judges, processes, prompts, rewards as rewards_lib
from r1jax.types import Reward

# -- rejection sampling ----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Documents:
  """Keeps the completions that pass every gate: correctness first, then readability.

  A gate is a Reward with scores of 0 and 1; one that fails to judge (a timeout, a malformed
  verdict) never lets anything pass. There is no fallback: where none passes, none is kept.
  """
  gates: tuple[Reward, ...]
  keep: int = 4  # completions kept a problem, at most
  rewrite: Callable | None = None  # problem, completion -> the response to learn, None: drop it
  # Instead of a function, a prompted model: load(machine, mesh, tokenizer) gives
  # many(problems, completions) -> texts, or Exceptions instead.
  rewriter: Callable | None = None

  def load(self, machine, mesh, tokenizer):
    gates = [(gate.name, processes.divided(rewards_lib.scorer(gate)))
             for gate in rewards_lib.load(self.gates, machine, mesh, tokenizer)]  # yapf: disable
    one_by_one = lambda *both: [rewards_lib.attempt(self.rewrite, *one) for one in zip(*both)]
    rewrite = self.rewriter(machine, mesh, tokenizer) if self.rewriter else one_by_one
    rewrite = processes.divided(rewrite)

    def choose(problems, completions):
      flat = [(p, c) for p, row in zip(problems, completions) for c in row]
      reasons, responses = [''] * len(flat), [c.text for _, c in flat]
      for name, gate in gates:
        alive = [i for i, reason in enumerate(reasons) if not reason]
        for i, score in zip(alive, gate(*_columns(flat, alive))):
          reasons[i] = _failed(name, score) or ('' if not score < 1 else name)
      if self.rewrite or self.rewriter:
        alive = [i for i, reason in enumerate(reasons) if not reason]
        for i, text in zip(alive, rewrite(*_columns(flat, alive))):
          reasons[i] = _failed('rewrite', text) or ('' if text else 'rewrite')
          responses[i] = text
      out, start = [], 0
      for problem, row in zip(problems, completions):
        end = start + len(row)
        out.append(self._first(problem, responses[start:end], reasons[start:end]))
        start = end
      return out

    return choose

  def _first(self, problem, responses, reasons):
    """The first few that passed, each text once."""
    rows, seen = [], set()
    for i, response in enumerate(responses):
      if not reasons[i] and response in seen:
        reasons[i] = 'the same again'
      elif not reasons[i] and len(rows) == self.keep:
        reasons[i] = 'enough'
      elif not reasons[i]:
        seen.add(response)
        rows.append(dict(prompt=problem.prompt, response=response, kind=problem.kind))
    return rows, reasons

  def finish(self, rows):
    """Each document once, whichever problem it came from."""
    first = {}
    for row in rows:
      first.setdefault((row['prompt'], row['response']), row)
    return list(first.values()), {'duplicate': len(rows) - len(first)}


def _columns(flat, places):
  return [flat[i][0] for i in places], [flat[i][1] for i in places]


def _failed(name, x):
  """The reason for what could not be judged: 'name: TimeoutError'."""
  return f'{name}: {type(x).__name__}' if isinstance(x, Exception) else ''


# -- what reward models learn from -----------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Pairs:
  """Two responses to a prompt, the better one first, as a judge sees them (v2, section 3.1).

  Every pair is judged several times with A and B assigned at random, and kept where the mean
  difference is beyond the threshold. At the end the lengths are balanced, so that the better
  response is not simply the longer one.
  """
  judge: Callable  # machine, mesh, tokenizer -> many([(problem, a, b, draw)]) -> verdicts
  judgements: int = 4
  threshold: float = 1.0  # of the mean difference
  scale: tuple[float, ...] = (2.0, 1.0, 0.0, -1.0, -2.0)  # of judges.VERDICTS; the paper has none
  view: Callable = prompts.summary  # what the judge sees of a response

  def load(self, machine, mesh, tokenizer):
    many = processes.divided(self.judge(machine, mesh, tokenizer))
    value = dict(zip(judges.VERDICTS, self.scale, strict=True))

    def choose(problems, completions):
      out, asked = [], []
      for p, (problem, row) in enumerate(zip(problems, completions)):
        views = [self.view(c.text) for c in row]
        reasons = [''] * len(row)
        for g in range(0, len(row), 2):
          a, b, *_ = (*views[g:], None)
          if a is None or b is None:
            reasons[g:g + 2] = ['half a pair'] * len(row[g:g + 2])
          elif a == b:
            reasons[g:g + 2] = ['both the same'] * 2
          else:
            rng = random.Random(f'{problem.prompt}\n{a}\n{b}')  # counted: the same pair, the same
            for draw in range(self.judgements):
              asked.append((p, g, problem, a, b, draw, rng.random() < 0.5))
        out.append(([], reasons))
      verdicts = many([(q, b, a, n) if swap else (q, a, b, n) for _, _, q, a, b, n, swap in asked])
      for i in range(0, len(asked), self.judgements):
        p, g, problem, *_ = asked[i]
        part = list(zip(asked[i:i + self.judgements], verdicts[i:i + self.judgements]))
        errors = [_failed('judge', verdict) for _, verdict in part]
        pair, (rows, reasons) = completions[p][g:g + 2], out[p]
        if any(errors):
          reasons[g:g + 2] = [next(filter(None, errors))] * 2
          continue
        mean = sum(-value[v] if ask[-1] else value[v] for ask, v in part) / self.judgements
        if abs(mean) <= self.threshold:
          reasons[g:g + 2] = ['too close'] * 2
          continue
        better, worse = pair if mean > 0 else reversed(pair)
        rows.append(
            dict(prompt=problem.prompt, responses=[better.text, worse.text], label=1.0,
                 kind=problem.kind, lengths=[len(self.view(c.text)) for c in (better, worse)]))
      return out

    return choose

  def finish(self, rows):
    """Balanced lengths: while the better responses are longer by more than 2% on average, or
    shorter, a pair that adds to the difference goes, drawn at random. Lengths are in characters."""
    excess = [row['lengths'][0] - row['lengths'][1] for row in rows]
    difference, length = sum(excess), sum(sum(row['lengths']) / 2 for row in rows)
    order, gone = list(range(len(rows))), set()
    random.Random(0).shuffle(order)
    for i in order:
      if abs(difference) <= 0.02 * length:
        break
      if excess[i] * difference > 0:
        difference, length = difference - excess[i], length - sum(rows[i]['lengths']) / 2
        gone.add(i)
    names = ('prompt', 'responses', 'label', 'kind')
    kept = [{name: row[name] for name in names} for i, row in enumerate(rows) if i not in gone]
    return kept, {'unbalanced length': len(gone)}


@dataclasses.dataclass(frozen=True)
class Labels:
  """Every response with its label, 1 or 0, by a judge that sees as much as `judge.view` shows."""
  judge: Reward

  def load(self, machine, mesh, tokenizer):
    loaded, = rewards_lib.load([self.judge], machine, mesh, tokenizer)
    judge = processes.divided(rewards_lib.scorer(loaded))

    def choose(problems, completions):
      out = []
      found = iter(judge(*rewards_lib.flatten(problems, completions)))
      for problem, row in zip(problems, completions):
        labels = [next(found) for _ in row]
        reasons = [_failed('judge', x) or ('' if x in (0, 1) else 'no label') for x in labels]
        rows = [dict(prompt=problem.prompt, responses=[c.text], label=float(x), kind=problem.kind)
                for c, x, reason in zip(row, labels, reasons) if not reason]  # yapf: disable
        out.append((rows, reasons))
      return out

    return choose

  def finish(self, rows):
    """Each response once."""
    kept = {(row['prompt'], row['responses'][0]): row for row in rows}
    return list(kept.values()), {'duplicate': len(rows) - len(kept)}
