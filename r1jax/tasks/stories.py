"""Stories that keep to what their beginning asks for and come to an end.

For models that write TinyStories (arXiv 2305.07759). A problem is the beginning of a story in which
somebody wants a thing; a completion is good if it mentions the thing again, repeats no sentence,
ends with a full sentence, and ends by itself within the budget of tokens.
"""
import itertools
import random
import re

from r1jax.types import Completion, Problem

GIRLS = 'Lily Mia Sue Anna Amy Lucy Sara Jane'.split()
BOYS = 'Tim Tom Ben Max Sam Jack Bob Leo'.split()
KINDS = 'little happy kind nice'.split()
THINGS = ('ball cake boat car book hat flower bird cat dog fish apple toy box tree doll kite bear '
          'cookie bike drum leaf frog shell').split()
TURNS = ('{who} wanted a {thing}.', 'One day, {name} went to look for a {thing}.',
         '{name} had a {thing}.', '{who} liked the big {thing} very much.')
LEAST_WORDS = 25  # of a completion, so that ending at once is no story


def load(split: str) -> list[Problem]:
  """All beginnings of 'train' or 'test' in a fixed random order; every eighth is for 'test'."""
  people = [(name, 'girl', 'She') for name in GIRLS] + [(name, 'boy', 'He') for name in BOYS]
  every = list(itertools.product(people, KINDS, THINGS, TURNS))
  random.Random('stories').shuffle(every)
  problems = []
  for (name, child, who), kind, thing, turn in every:
    opening = f'Once upon a time, there was a {kind} {child} named {name}. '
    problems.append(Problem(opening + turn.format(who=who, name=name, thing=thing), thing))
  return [p for i, p in enumerate(problems) if (i % 8 == 0) == (split == 'test')]


def mentions(problem: Problem, completion: Completion) -> float:
  """1 if the thing, or several of it, is mentioned."""
  return float(bool(re.search(rf'\b{re.escape(problem.answer)}(s|es)?\b', completion.text)))


def ends(problem: Problem, completion: Completion) -> float:
  """1 if the story ends by itself with a full sentence."""
  del problem
  return float(completion.finished and completion.text.rstrip().endswith(('.', '!', '?', '"')))


def readable(problem: Problem, completion: Completion) -> float:
  """1 if the text is long enough for a story and no sentence stands twice."""
  del problem
  sentences = [s.strip() for s in re.split(r'[.!?]', completion.text) if s.strip()]
  enough = len(completion.text.split()) >= LEAST_WORDS
  return float(enough and len(set(sentences)) == len(sentences))


def good(problem: Problem, completion: Completion) -> float:
  """1 if the story mentions its thing, ends, and is readable."""
  return min(f(problem, completion) for f in (mentions, ends, readable))
