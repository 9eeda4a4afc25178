"""Countdown: make a number from others by + - * and /.

  [4, 6, 25, 3], 97      25 * 4 - 6 / 2 is wrong, 2 is none of them; 25 * 4 - 3 is right

Drawn by a seed; every problem can be solved. A checksum of its numbers decides which split it is
in, so that train and test are disjoint.
"""
from fractions import Fraction
from functools import partial
import json
import operator
import random
import re
import zlib

from r1jax import prompts
from r1jax.grading import math as math_grader
from r1jax.types import Benchmark, Completion, Problem, Reward

QUESTION = ('Make {target} from the numbers {numbers}. Use each of them at most once, with +, -, * '
            'and / and brackets.')
ASK = ('{question}\nPlease reason step by step, and put the expression alone within \\boxed{{}}, '
       'as in \\boxed{{(1 + 2) * 3}}.')
LARGEST_TARGET = 999
MAX_LENGTH, MAX_DEPTH = 200, 20  # characters and brackets of an expression
STEPS = {'+': operator.add, '-': operator.sub, '*': operator.mul, '/': operator.truediv}
_SIGNS = {'×': '*', '·': '*', '÷': '/', '−': '-', '–': '-', 'x': '*', '\\times': '*',
          '\\cdot': '*', '\\ast': '*', '\\div': '/', '\\left': '', '\\right': '', '$': '',
          '\\,': ' ', '\\(': '', '\\)': '', '\\[': '', '\\]': '', '[': '(', ']': ')', '{': '(',
          '}': ')', '\\dfrac': '\\', '\\tfrac': '\\', '\\frac': '\\'}  # yapf: disable


def load(split: str, template: str = prompts.R1, count: int | None = None,
         sizes: tuple[int, ...] = (3, 4), largest: int = 99, seed: int = 0) -> list[Problem]:
  """`count` problems (16,384 for 'train', 1,024 for 'test' unless given), no two alike, of so many
  numbers between 1 and `largest` each. The first ones stay the same if there are to be more."""
  rng = random.Random(f'countdown {split} {sizes} {largest} {seed}')
  out, seen = [], set()
  while len(out) < (count or (1024 if split == 'test' else 16384)):
    numbers = [rng.randint(1, largest) for _ in range(rng.choice(sizes))]
    target, key = _reach(rng, numbers), json.dumps(sorted(numbers))
    if target is None or (zlib.crc32(key.encode()) % 8 == 0) != (split == 'test'):
      continue
    if (key, target) in seen:
      continue
    seen.add((key, target))
    question = QUESTION.format(target=target, numbers=', '.join(map(str, numbers)))
    answer = json.dumps(dict(numbers=numbers, target=target))
    prompt = template.format(question=ASK.format(question=question))
    out.append(Problem(prompt, answer, 'reasoning', 'en', question,
                       f'countdown/{split}/{len(out)}'))
  return out


def _reach(rng, numbers):
  """What the numbers make with random steps, all of them used; None where it is no target."""
  values = list(map(Fraction, numbers))
  while len(values) > 1:
    a, b = (values.pop(rng.randrange(len(values))) for _ in range(2))
    sign = rng.choice('+-*/' if b else '+-*')
    values.append(STEPS[sign](a, b))
  value, = values
  fits = value.denominator == 1 and 1 <= value <= LARGEST_TARGET and value not in numbers
  return int(value) if fits else None


def makes_target(problem: Problem, completion: Completion) -> float:
  """1 if the expression in the box, or in the answer block, uses the numbers, each at most once,
  and its value is the target, else 0. It stands before the first '=', or after it where the target
  stands before; what else is equal to it is not read."""
  goal = json.loads(problem.answer)
  sides = (math_grader.extract(completion.text) or '').split('=', 2)
  try:
    value, used = evaluate(sides[0])
    if (value, used) == (goal['target'], [goal['target']]) and sides[1:]:
      value, used = evaluate(sides[1])
  except (ValueError, ZeroDivisionError):
    return 0.0
  left = list(goal['numbers'])
  for number in used:
    if number not in left:
      return 0.0
    left.remove(number)
  return float(value == goal['target'])


def evaluate(text: str) -> tuple[Fraction, list[int]]:
  """The value of an expression of whole numbers, exactly, and the numbers in it, in order. It may
  be in LaTeX; a fraction is a backslash before two atoms from here on.

  Raises ValueError where it is none, or is longer or deeper than an honest one.
  """
  if len(text) > MAX_LENGTH:
    raise ValueError('no honest expression')
  for sign, plain in _SIGNS.items():
    text = text.replace(sign, plain)
  if re.search(r'[^0-9+\-*/()\\\s]|[0-9]\s+[0-9]', text):
    raise ValueError('no expression')
  tokens = re.findall(r'[0-9]+|[-+*/()\\]', text)
  value, rest = _sum(tokens, 0)
  if rest:
    raise ValueError(f'{rest[0]} is too much')
  return value, [int(token) for token in tokens if token.isdecimal()]


def _sum(tokens, depth):
  """sum = [-] product {(+|-) product}: its value, and the tokens after it."""
  tokens = ['0', *tokens] if tokens[:1] == ['-'] else tokens
  return _chain(tokens, '+-', partial(_chain, signs='*/', part=_atom), depth)


def _chain(tokens, signs, part, depth):
  value, rest = part(tokens, depth=depth)
  while rest and rest[0] in signs:
    other, after = part(rest[1:], depth=depth)
    value, rest = STEPS[rest[0]](value, other), after
  return value, rest


def _atom(tokens, depth):
  """atom = number | ( sum ) | \\ atom atom"""
  if not tokens or depth > MAX_DEPTH:
    raise ValueError('it ends early, or is too deep')
  head, rest = tokens[0], tokens[1:]
  if head == '(':
    value, rest = _sum(rest, depth + 1)
    if not rest or rest[0] != ')':
      raise ValueError('a bracket is open')
    return value, rest[1:]
  if head == '\\':
    above, rest = _atom(rest, depth + 1)
    below, rest = _atom(rest, depth + 1)
    return above / below, rest
  if not head.isdecimal():
    raise ValueError(f'{head} is no number')
  return Fraction(int(head)), rest


REWARD = Reward('accuracy', makes_target)
BENCHMARKS = {'countdown': Benchmark(load, REWARD)}  # not in the paper
