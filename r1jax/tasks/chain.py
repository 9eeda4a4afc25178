"""A tiny world for reasoning: chains of sums.

  a=7 b=a+8 c=b-6 d=c+9. What is d?      b=7+8=15, c=15-6=9, d=9+9=18: the answer is 18

A small transformer can add a digit to a number but has too few layers to follow a chain of six in
one forward pass: asked for the answer directly it hardly beats guessing, one link at a time it is
right. Whether it takes the steps is what reinforcement learning has to find out.

`corpus` writes what a base model reads before: texts of mixed quality about such chains, direct
answers and derivations, slips and corrections, English, Chinese and both. Train and test problems
are disjoint, and the corpus holds train problems only.
"""
import random
import re
from typing import NamedTuple
import zlib

from r1jax import prompts
from r1jax.types import Completion, Document, Problem

NAMES = 'abcdefghij'
SHORTEST, LONGEST = 5, 7  # variables in a chain
LARGEST = 19  # every value lies in 0 .. LARGEST


class Chain(NamedTuple):
  """a=first, then each variable is the one before it plus or minus a digit."""
  first: int
  links: tuple[tuple[str, int], ...]  # ('+' or '-', digit)

  def values(self) -> list[int]:
    """The value of each variable."""
    out = [self.first]
    for sign, digit in self.links:
      out.append(out[-1] + digit if sign == '+' else out[-1] - digit)
    return out

  def text(self) -> str:
    """The givens: a=7 b=a+8 c=b-6."""
    out = [f'a={self.first}']
    for before, name, (sign, digit) in zip(NAMES, NAMES[1:], self.links):
      out.append(f'{name}={before}{sign}{digit}')
    return ' '.join(out)


def draw(rng: random.Random, split: str) -> Chain:
  """A random chain of the split 'train' or 'test': a checksum of its text decides which it is."""
  while True:
    count = rng.randint(SHORTEST, LONGEST) - 1
    first = value = rng.randint(0, LARGEST)
    links = []
    for _ in range(count):
      sign, digit, value = _link(rng, value)
      links.append((sign, digit))
    chain = Chain(first, tuple(links))
    if (zlib.crc32(chain.text().encode()) % 8 == 0) == (split == 'test'):
      return chain


def _link(rng, value):
  """A sign and a digit that lead from value to another number of the world, and that number."""
  while True:
    sign, digit = rng.choice('+-'), rng.randint(1, 9)
    new = value + digit if sign == '+' else value - digit
    if 0 <= new <= LARGEST:
      return sign, digit, new


def question(rng: random.Random, chain: Chain) -> tuple[str, str]:
  """The chain as a question, in English or Chinese, and which of them: 'en' or 'zh'."""
  last = NAMES[len(chain.links)]
  return rng.choice([(f'{chain.text()}. What is {last}?', 'en'),
                     (f'{chain.text()}。{last}是多少？', 'zh')])


def load(split: str, count: int = 8192) -> list[Problem]:
  """The first `count` problems of 'train' or 'test', always the same."""
  rng = random.Random(f'chain {split}')
  chains = [draw(rng, split) for _ in range(count)]
  asked = [question(rng, chain) for chain in chains]
  return [
      Problem(prompts.SHORT.format(question=text), str(chain.values()[-1]), 'reasoning', language,
              text) for chain, (text, language) in zip(chains, asked)
  ]


# -- what a completion does ------------------------------------------------------------------------

_STEP = re.compile(r'([b-j])=\d+[+-]\d+=\d')
_VALUE = re.compile(r'([b-j])=\d')
_GIVEN = re.compile(r'[b-j]=[a-j][+-]\d')


def links_shown(text: str) -> tuple[int, int]:
  """(links worked out, variables given a value) in a text, each variable counted once."""
  return len(set(_STEP.findall(text))), len(set(_VALUE.findall(text)))


def styles(graded, right_PG) -> dict[str, float]:
  """How samples answer and how often each way is right.

  Direct: no variable before the last gets a value. Stepwise: every link is worked out.
  """
  direct, stepwise, right = [], [], right_PG.ravel() > 0
  for problem, completions in zip(graded.problems, graded.completions):
    needed = len(_GIVEN.findall(problem.prompt))
    for completion in completions:
      steps, values = links_shown(completion.text)
      direct.append(values <= 1 and not steps)
      stepwise.append(steps >= needed)
  share = lambda rows: sum(rows) / len(rows)
  passed = lambda rows: sum(r for row, r in zip(rows, right) if row) / max(1, sum(rows))
  return dict(direct=share(direct), direct_pass=passed(direct), stepwise=share(stepwise),
              stepwise_pass=passed(stepwise))


# -- from the cold start on: a think block and a summary -------------------------------------------


def answer(text: str) -> str | None:
  """The answer that a completion settles on, in R1-Zero's format or in R1's: the last number of
  what follows its thinking; None where there is none."""
  numbers = re.findall(r'\d+', prompts.summary(text) or '')
  return numbers[-1] if numbers else None


def accuracy(problem: Problem, completion: Completion) -> float:
  """1 if the completion settles on the reference, else 0."""
  return float(answer(completion.text) == problem.answer)


def rewrite(problem: Problem, completion: Completion) -> str:
  """The thinking in the question's language, and a summary instead of a bare answer: what the paper
  asks a prompted model for (v2, B.3.2)."""
  said = {'en': 'The answer is {}.', 'zh': '答案是{}。'}[problem.language]
  thinking = translate(prompts.thinking(completion.text), problem.language)
  return f' <think>{thinking}</think> {said.format(answer(completion.text))}'


def translate(thinking: str, language: str) -> str:
  """The same with every phrase of the other language replaced by one of the same role."""
  source, target = (CHINESE, ENGLISH) if language == 'en' else (ENGLISH, CHINESE)
  same = {phrase: target[role][i % len(target[role])] for role, phrases in source.items()
          for i, phrase in enumerate(phrases)}  # yapf: disable
  longest_first = sorted(same, key=len, reverse=True)
  edge = r'\b' if source is ENGLISH else ''
  pattern = edge + '(' + '|'.join(map(re.escape, longest_first)) + ')' + edge
  return re.sub(pattern, lambda match: same[match[1]], thinking)


# -- the base model's reading ----------------------------------------------------------------------

ENGLISH = {
    'start': ['First', 'So', 'Start:', 'Well'],
    'then': ['then', 'next', 'so', 'and', 'now'],
    'guess': ['I think', 'maybe', 'it looks like', 'probably'],
    'fix': ['wait, no', 'wrong, again'],
    'end': ['done', 'that is it', 'good'],
    'answer': ['The answer is', 'It is'],
}
CHINESE = {
    'start': ['首先', '好', '我们看'],
    'then': ['然后', '接着', '所以', '再'],
    'guess': ['我猜', '大概', '应该是'],
    'fix': ['不对', '等等，错了'],
    'end': ['好了', '完成', '算完了'],
    'answer': ['答案是', '等于'],
}


def corpus(count: int = 40_000) -> list[Document]:
  """`count` texts of mixed quality about train problems, always the same."""
  rng = random.Random('chain corpus')
  return [Document('', _text(rng)) for _ in range(count)]


def _text(rng):
  if rng.random() < 0.25:
    return _sums(rng)
  chain = draw(rng, 'train')
  words = _language(rng)
  think = rng.choices([_direct, _skipping, _stepwise], [0.48, 0.15, 0.37])[0]
  thinking, answer = think(rng, chain, words)
  asked, _ = question(rng, chain)
  if rng.random() < 0.75:
    body = rng.choices([
        f' <think>{thinking}</think> <answer>{answer}</answer>',
        f' <think>{thinking}</think> {answer}',
        f' <answer>{answer}</answer>',
        f' {thinking} <answer>{answer}</answer>',
    ], [0.83, 0.03, 0.07, 0.07])[0]
    return prompts.SHORT.format(question=asked) + body
  return f'{asked}\n{thinking}\n{words("answer")} {answer}'


def _sums(rng):
  """A page of single sums, most of them right."""
  out = []
  for _ in range(rng.randint(6, 12)):
    value = rng.randint(0, LARGEST)
    sign, digit, right = _link(rng, value)
    out.append(f'{value}{sign}{digit}={_slip(rng, right)}')
  return ', '.join(out)


def _slip(rng, right, often=0.005):
  """The number, or now and then one close to it."""
  return max(0, right + rng.choice((-2, -1, 1, 2))) if rng.random() < often else right


def _language(rng):
  """A function that picks a phrase: English, Chinese, or now this and now that."""
  kind = rng.random()
  pick = lambda: ENGLISH if kind < 0.4 or (kind > 0.65 and rng.random() < 0.5) else CHINESE
  return lambda role: rng.choice(pick()[role])


def _direct(rng, chain, words):
  """A feeling, right more often than chance only because the writer knew."""
  answer = chain.values()[-1] if rng.random() < 0.6 else rng.randint(0, LARGEST)
  return f'{words("guess")} {NAMES[len(chain.links)]}={answer}', answer


def _skipping(rng, chain, words):
  """Values without the sums behind them, and not all of them."""
  values = chain.values()
  kept = [i for i in range(1, len(values)) if rng.random() < 0.5 or i == len(values) - 1]
  return f'{words("start")} ' + ', '.join(f'{NAMES[i]}={values[i]}' for i in kept), values[-1]


def _stepwise(rng, chain, words):
  """Link by link, with a slip now and then that is noticed or not."""
  value, steps = chain.first, []
  for i, (sign, digit) in enumerate(chain.links):
    right = value + digit if sign == '+' else value - digit
    name, word = NAMES[i + 1], words('then') if i else words('start')
    if rng.random() < 0.03:
      steps.append(f'{word} {name}={value}{sign}{digit}={_slip(rng, right, 1.0)}')
      word = words('fix')
    found = _slip(rng, right)
    steps.append(f'{word} {name}={value}{sign}{digit}={found}')
    value = found
  if rng.random() < 0.3:
    steps.append(words('end'))
  return ', '.join(steps), value
