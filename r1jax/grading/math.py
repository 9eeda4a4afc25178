"""The answer of a completion to a mathematical question, and whether it is the reference.

Equality is decided by the first of these that can: the text; numbers, fractions and lists of them
(equal.py); math-verify in a pool of workers (symbolic.py). What a model wrote is never evaluated in
this process.
"""
from functools import partial
import re
from typing import Callable

from r1jax import prompts
from r1jax.grading import equal, pool
from r1jax.types import Completion, Problem

MAX_ANSWER = 4096  # characters of an answer
MAX_ASKED = 320  # characters that a worker is asked about, unless the reference is long
MAX_DEPTH = 12  # brackets within brackets
MAX_RUN = 400  # digits in a row

# -- extraction ------------------------------------------------------------------------------------

_BETWEEN = re.compile(r'(?:\\q?quad|\\text|\\[,; ()]|[\s$.{}])*(?:,|;|、|and|or|和|或)'
                      r'(?:\\q?quad|\\text|\\[,; ()]|[\s$.{}]|and|or|[a-z]\s*=)*')
_SAID = re.compile(r'(?i:\banswer\s*(?:is|are|:|=|：|(?=\$|\\\(|\\\[)))|答案\s*(?:是|为|：|:)')
_FORMULA = re.compile(r'\$\$?([^$]+)\$\$?|\\\((.+?)\\\)|\\\[(.+?)\\\]', re.DOTALL)
_NUMBER = re.compile(r'[-−]?\\[dt]?frac\{-?[0-9]+\}\{[0-9]+\}|'
                     r'(?<![\w.,])[-−]?[0-9][0-9,]*(?:\.[0-9]+)?(?:/[0-9]+)?%?(?![0-9])')
_WORD = re.compile(r'(?<![a-zA-Z\\{])[a-zA-Z]{2,}')


def extract(text: str) -> str | None:
  r"""The answer that a completion gives, or None. Thinking does not count: without a summary there
  is no answer.

  The first of these that the summary has: the last \boxed{...}, together with those that a comma or
  an "and" joins to it; the last answer block, read as what follows here, or else whole; a last
  line after `####`; what follows the last "answer is", up to the end of its formula or sentence;
  the last number, or the formula that it stands in. None, too, where the box never closes, or the
  answer is longer than MAX_ANSWER.
  """
  summary = prompts.summary(text)
  if summary is None:
    return None
  block = prompts.last_answer(text.rpartition('</think>')[2])
  found = _boxed(summary)
  if found is None and '\\boxed{' in summary:  # one that never closes
    return None
  if found is None:
    found = _said(summary if block is None else block)
  if found is None:
    found = block
  if found is None:
    found = _last(summary)
  return found if found and len(found) <= MAX_ANSWER else None


def _boxed(text):
  """What the last box holds, or the last ones, joined by commas; None where there is none."""
  text = text.replace('\\{', '\\lbrace ').replace('\\}', '\\rbrace ')  # which do not nest
  boxes, end = [], len(text)
  while len(boxes) < equal.MAX_PARTS:
    start = text.rfind('\\boxed{', 0, end)
    piece = text[start:min(end, start + MAX_ANSWER + 8)] if start >= 0 else ''
    inside = prompts.boxed(piece)
    if inside is None:
      break
    if boxes and not _BETWEEN.fullmatch(piece.partition(inside or '{')[2].strip()[1:]):
      break
    boxes, end = [inside, *boxes], start
  found = ','.join(boxes).replace('\\lbrace ', '\\{').replace('\\rbrace ', '\\}')
  return found if boxes else None


def _said(text):
  """What a last line marked with `####` holds, or what follows the last "answer is", or None."""
  _, marked, tail = text.rpartition('####')
  if marked and tail.strip() and '\n' not in tail.strip():
    return tail.strip()
  said = _final(_SAID, text)
  if said is None:
    return None
  tail = text[said.end():said.end() + MAX_ANSWER].strip(' *:：\n')
  formula = _FORMULA.match(tail)
  start = formula.end() if formula else 0
  rest = re.split(r'\.\s|。|\n', tail[start:])[0]
  if formula and not re.search(r'[$0-9]|\\\(', rest):  # what follows is no part of the answer
    return _inside(formula)
  sentence = tail[:start + len(rest)].rpartition(' is ')[2].strip(' *').rstrip('.')
  is_long = len(_WORD.findall(sentence)) > 3  # a sentence, and not the name of something
  return (_last(sentence) if is_long else None) or sentence or None


def _last(text):
  """The last number, with the formula that it stands in, if there is one."""
  text = text[-MAX_ANSWER:]
  number, formula = _final(_NUMBER, text), _final(_FORMULA, text)
  if formula and (not number or number.start() < formula.end()):
    return _inside(formula)
  return number[0].rstrip(',') if number else None


def _final(pattern, text):
  """The last match in the text, or None."""
  match = None
  for match in pattern.finditer(text):
    pass
  return match


def _inside(formula):
  return next(filter(None, formula.groups())).strip()


_LETTERS = r'[\s(（{]*([A-J](?:(?:[\s,、&和]|and)*[A-J])*)(?![A-Za-z])'
_HEAD = re.compile(r'[\s(（*$]*(?:\\(?:text|textbf|mathrm|mathbf)\s*)?' + _LETTERS)
_CHOSEN = re.compile(r'(?:(?i:answer|option|choice)|答案|选)[^A-Za-z\n]{0,10}(?:(?i:is|are)\b)?'
                     r'[^A-Za-z\n]{0,10}(?:\\(?:text|textbf|mathrm|mathbf)\s*)?' + _LETTERS)
_BRACKETED = re.compile(r'[(（]([A-J])[)）]')


def chosen(text: str) -> str | None:
  """The letters that a completion chooses, in order, as "B" or "ACD"; None where there are none.

  They are read at the head of a box, of an answer block or of a summary of a few characters, or
  else from what is last said to be the answer, or else from the last "(B)".
  """
  summary = prompts.summary(text) or ''
  block = prompts.last_answer(text.rpartition('</think>')[2])
  marked = next((x for x in (_boxed(summary), block, summary) if x is not None))[-MAX_ANSWER:]
  found = _HEAD.match(marked) if marked is not summary or len(summary) < 8 else None
  found = found or _final(_CHOSEN, marked) or _final(_BRACKETED, marked)
  return ''.join(sorted(set(re.findall('[A-J]', found[1])))) if found else None


def choice(problem: Problem, completion: Completion) -> float:
  """1 if the completion chooses just the letters of Problem.answer, as "B" or "ACD", else 0."""
  return float(chosen(completion.text) == ''.join(sorted(set(re.findall('[A-J]', problem.answer)))))


# -- equality --------------------------------------------------------------------------------------


def same(a: str, b: str) -> bool:
  """Whether two extracted answers are plainly the same: for majority votes, without workers."""
  return equal.verdict(a, b) is True


def accuracy(problem: Problem, completion: Completion) -> float:
  """1 if the completion's answer is plainly the reference, else 0: `load` without algebra."""
  found = extract(completion.text)
  return float(found is not None and same(problem.answer, found))


def load(machine, mesh, tokenizer, workers: int = 2, seconds: float = 4.0,
         extract: Callable[[str], str | None] = extract):
  """many(problems, completions) -> for each 1.0 if its answer is the reference, 0.0 if it is not or
  there is none, TimeoutError or pool.Failure if it could not be judged. For Reward.load, with the
  settings bound by functools.partial; `extract` may be a stricter rule for where an answer is."""
  del machine, mesh, tokenizer
  judges = pool.Pool('r1jax.grading.symbolic', 'check', workers, seconds)
  return partial(_many, judges, extract, {})


def _many(judges, extract, known, problems, completions):
  """The scores; `known` keeps the verdicts of algebra from call to call."""
  out = [_attempt(p.answer, extract, c.text, known)
         for p, c in zip(problems, completions, strict=True)]  # yapf: disable
  asked = [i for i, verdict in enumerate(out) if isinstance(verdict, tuple)]
  if len(known) > 100_000:
    known.clear()
  for i, verdict in zip(asked, judges.map([out[i] for i in asked])):
    if not isinstance(verdict, Exception):
      known[out[i]] = verdict = float(verdict)
    out[i] = verdict
  return out


def _attempt(gold, extract, text, known):
  """The score, the exception that kept us from one, or the pair of texts that algebra is to judge.
  """
  try:
    found = extract(text)
    if found is not None and len(found) > MAX_ANSWER:
      found = None
    verdict = equal.verdict(gold, found) if found else False
    if verdict is None:
      pair = (equal.clean(gold), equal.clean(found))
      verdict = known.get(pair, pair) if _reasonable(*pair) else False
    return verdict if isinstance(verdict, tuple) else float(verdict)
  except Exception as error:  # one answer's failure is not another's
    return error


_UNDONE = re.compile(r'\\(sum|prod|i?int|oint|lim|det|gcd|lcm|max|min|pmod|bmod|mod|[cl]?dots)'
                     r'(?![a-zA-Z])|\.\.\.')
_HUGE = re.compile(rf'[0-9]{{{MAX_RUN}}}|[!%]\s*!|\0')


def _reasonable(gold, found):
  """Whether algebra is asked about a cleaned answer. One that leaves undone what the reference has
  done, such as a sum, is wrong, and so is one too large to be read."""
  depth = deepest = 0
  for mark in re.findall(r'[()\[\]{}]', found):
    depth += 1 if mark in '([{' else -1
    deepest = max(depth, deepest)
  undone = {m[0] for m in _UNDONE.finditer(found)} - {m[0] for m in _UNDONE.finditer(gold)}
  return (len(found) <= max(MAX_ASKED, 2 * len(gold)) and deepest <= MAX_DEPTH and not undone and
          not _HUGE.search(found))
