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
                     r'(?<![a-zA-Z0-9_.,])[-−]?[0-9][0-9,]*(?:\.[0-9]+)?(?:/[0-9]+)?%?(?![0-9])')
_WORD = re.compile(r'(?<![a-zA-Z\\{])[a-zA-Z]{2,}|[\u4e00-\u9fff]')
_EMPHASIS = re.compile(r'(?<![a-zA-Z0-9)\]}\\])(?:\*\*|__?)(?=[^\s{])|'
                       r'(?<=\S)(?:\*\*|__?)(?![a-zA-Z0-9({\\])|`([^`\n]+)`')
MAX_SAID = 8  # of "answer is", from the last one back


def extract(text: str) -> str | None:
  r"""The answer that a completion gives, or None. Thinking does not count: without a summary there
  is no answer.

  The first of these that the summary has: the last \boxed{...}, together with those that a comma or
  an "and" joins to it; the last answer block, read as what follows here, or else whole; a last
  line after `####`; what follows the last "answer is", up to the end of its formula or sentence;
  the last number, or the formula that it stands in. Of several "answer is", the last one before a
  number or a formula counts, if there is one. Markdown's emphasis is left out. None, too,
  where the box never closes, or the answer is longer than MAX_ANSWER.
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
    found = block and _EMPHASIS.sub(r'\1', block)
  if found is None:
    found = _last(summary)
  return found if found and len(found) <= MAX_ANSWER else None


_BRACES = {'\\{': '\\lbrace ', '\\}': '\\rbrace '}


def _boxed(text):
  """What the last box holds, or the last ones, joined by commas; None where there is none."""
  text = re.sub(r'\\[\\{}]', lambda m: _BRACES.get(m[0], m[0]), text)  # which do not nest
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
  found = re.sub(r'\\([lr])brace ?', lambda m: '\\' + '{}'[m[1] == 'r'], ','.join(boxes))
  return found if boxes else None


def _said(text):
  """What a last line marked with `####` holds, or what follows the last "answer is", or None."""
  _, marked, tail = text.rpartition('####')
  if marked and tail.strip() and '\n' not in tail.strip():
    text = tail
    if not _SAID.search(text):
      return _EMPHASIS.sub(r'\1', tail).strip()
  found = None
  for said in reversed(list(_SAID.finditer(text))[-MAX_SAID:]):
    found, before = _told(text[said.end():said.end() + MAX_ANSWER]), found
    if found and re.search(r'[0-9$\\]', found):
      return found
    found = before or found
  return found


def _told(tail):
  """The answer that a text begins with, up to the end of its formula or sentence, or None."""
  tail = _EMPHASIS.sub(r'\1', tail.strip(' *:：\n'))
  formula = _FORMULA.match(tail)
  start = formula.end() if formula else 0
  rest = re.split(r'\.\s|。|\n|(?<=[0-9a-zA-Z)*])!(?=\s|$)|, not ', tail[start:])[0]
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


_STYLE = (r'(?:\\(?:text|(?:text|math)(?:bf|rm|it|sf)|bf|rm|bm|boldsymbol|displaystyle)'
          r'(?![a-zA-Z])[\s{]*)?')
_JOINT = r'(?:[ \t)）]*(?:(?:[,、&和]|and\b)[ \t(（]*)+)?'
# Letters that are joined; but none where an "or" or a slash offers another one
_LETTERS = (rf'[\s(（{{]*((?>[A-J](?:{_JOINT}(?!I [a-z])[A-J](?![a-z]| is\b))*))'
            r'(?![A-Za-z]|[\s)）}$*]*,?\s*(?:/|(?:\\text\{\s*)?or\b|或))')
_OPEN = re.compile(r'[(（][A-J][)）][\s,]*(?:/|or\b|或)[\s]*[(（][A-J][)）]')
_HEAD = re.compile(r'[\s(（{*$]*' + _STYLE + _LETTERS)
_CHOSEN = re.compile(r'(?:(?i:answer|option|choice)|答案|选)[^A-Za-z\n.]{0,10}(?:(?i:is|are)\b)?'
                     r'[^A-Za-z\n.]{0,10}(?:(?<=[:：*])\s+[^A-Za-z\n.]{0,10})?' + _STYLE + _LETTERS)
_CORRECT = re.compile(r'\b([A-J])\b[)）*]{0,3} is (?:the )?(?:correct|right|best)\b')
_LED = re.compile(r'[\s*]*([A-J])(?:[)）:：]|\.\s)')
_BRACKETED = re.compile(r'[(（]([A-J])[)）]')


def chosen(text: str) -> str | None:
  """The letters that a completion chooses, in order, as "B" or "ACD"; None where there are none, or
  where an "or" leaves it open.

  They are read at the head of a box, of an answer block or of a summary of a few characters, or
  else from what is last said to be the answer or to be correct, or else at the head of the summary,
  before a mark such as "B)", or else from the last "(B)".
  """
  summary = prompts.summary(text) or ''
  block = prompts.last_answer(text.rpartition('</think>')[2])
  marked = next((x for x in (_boxed(summary), block, summary) if x is not None))[-MAX_ANSWER:]
  found = _HEAD.match(marked) if marked is not summary or len(summary) < 8 else None
  found = (found or _final(_CHOSEN, marked) or _final(_CORRECT, marked) or _LED.match(marked) or
           _final(_BRACKETED, _OPEN.sub('', marked)))
  return ''.join(sorted(set(re.findall('[A-J]', found[1])))) if found else None


def choice(problem: Problem, completion: Completion) -> float:
  """1 if the completion chooses just the letters of Problem.answer, as "B" or "ACD", else 0."""
  return float(chosen(completion.text) == ''.join(sorted(set(re.findall('[A-J]', problem.answer)))))


# -- equality --------------------------------------------------------------------------------------


def same(a: str, b: str) -> bool:
  """Whether two extracted answers are plainly the same: for majority votes, without workers."""
  return equal.verdict(a, b) is True or equal.verdict(_read(a), _read(b)) is True


_ASIDE = re.compile(r'\b(or|not|about|between|from|to)\b|或|不')


def _read(text):
  """What a sentence says, such as "She makes 9*2=18 dollars": its one number or formula, or the one
  that follows its last "="; a text that is no such sentence as it is."""
  if len(text) > MAX_ANSWER or len(_WORD.findall(text)) < 3 or _ASIDE.search(text):
    return text
  numbers = [*_NUMBER.finditer(_FORMULA.sub(' ', text)), *_FORMULA.finditer(text)]
  said = re.match(r'\s*(?:[A-Za-z]+\s|[\u4e00-\u9fff])', text)
  if said and (len(numbers) == 1 or re.search(r'=\s*\\?\$?[-0-9.,/]++[^-+*/=0-9$\\]*$', text)):
    return _last(text)
  return text


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
    if verdict is False and found and _read(gold) == gold:
      found = _read(found)
      verdict = equal.verdict(gold, found)
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
