"""Knights and knaves: who always tells the truth and who always lies (arXiv 2410.23123; of 3 to 7
people, as Logic-RL trains on, arXiv 2502.14768)."""
import re

from r1jax import datasets, prompts
from r1jax.grading import math as math_grader
from r1jax.types import Benchmark, Completion, Problem, Reward

ASK = (
    '{question}\nPlease reason step by step, and put everybody\'s role within \\boxed{{}}, as in '
    '\\boxed{{Ann is a knight, Bob is a knave}}.')
KNIGHTS_KNAVES = datasets.Set(
    'knights_knaves', 'puzzles of 3 to 7 people', 'github.com/Unakar/Logic-RL', 'Apache-2.0', 2024,
    dict(train='train', test='test'),
    datasets.COLUMNS | dict(names=list, n_people=int, reasoning=str))  # yapf: disable
SETS = (KNIGHTS_KNAVES,)
ROLES = {'knight': True, 'knights': True, 'knave': False, 'knaves': False}
_NOT = {'not', 'isn', 'aren', 'neither', 'nor', 'never'}
_UNSURE = {'if', 'or', 'either', 'unless', 'maybe', 'perhaps', 'suppose', 'assume'}
_ITEM = re.compile(r'\s*(?:[-*•]|[0-9]+[.)])\s')


def load(split: str, template: str = prompts.R1) -> list[Problem]:
  """The puzzles of 'train' (4,500) or 'test' (500), those of 3 people first."""
  return datasets.problems(KNIGHTS_KNAVES, split, template, ASK)


def roles(problem: Problem, completion: Completion) -> float:
  """1 if what `stated` finds gives everybody the right role and nobody two, else 0."""
  wanted = said(problem.answer, re.findall(r'\w+(?= is a kn)', problem.answer))
  return float(said(stated(completion.text), wanted) == wanted)


def stated(text: str) -> str:
  """The part of a completion that gives the roles: the box, or else the answer block, or else the
  last list of the summary."""
  block = prompts.last_answer(text.rpartition('</think>')[2])
  summary = prompts.summary(text) or ''
  if block is not None or '\\boxed{' in summary:
    return math_grader.extract(text) or ''
  items = []
  for line in reversed(summary.splitlines()):
    if _ITEM.match(line):
      items.append(line)
    elif items and line.strip():
      break
  return '\n'.join(reversed(items))


def said(text: str, names) -> dict[str, set[bool]]:
  """The roles that a text gives to those whom it names, true for a knight.

  A role goes to all who are named since the role before: 'Ann and Bob are knights, Cleo is not a
  knight' makes Cleo a knave. Where a role comes first it goes to those who follow: 'Knights: Ann,
  Cleo; knaves: Bob'. A role without a name, and a word such as 'if' or 'or', make it all void. Case
  and order mean nothing; text in LaTeX's \\text is read, too.
  """
  people = {name.casefold(): name for name in names}
  known = people.keys() | ROLES.keys() | _NOT | _UNSURE
  words = [word for word in re.findall(r'[^\W\d_]+', text.casefold()) if word in known]
  if words and words[0] in ROLES and not _NOT.intersection(words):
    words.reverse()  # so that each name stands before its role
  out, named, negated = {}, [], False
  for word in words:
    if word in people:
      named.append(people[word])
    elif word in _NOT:
      negated = True
    elif word in _UNSURE or not named:
      return {}
    else:
      for name in named:
        out.setdefault(name, set()).add(ROLES[word] != negated)
      named, negated = [], False
  return out


REWARD = Reward('accuracy', roles)
BENCHMARKS = {'knights_knaves': Benchmark(load, REWARD, k=4)}  # not in the paper
