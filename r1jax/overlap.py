"""Overlap between training and evaluation texts, for decontamination (v2, D.1: 10-grams).

Only letters and digits count, in lower case; a run of them is a word, and so is a Han character.
A paraphrase is not seen, and neither is a translation.
"""
import re
import unicodedata
from typing import Sequence

_WORD = re.compile(r'[\u3400-\u9fff\uf900-\ufaff]|(?:(?![\u3400-\u9fff\uf900-\ufaff])[^\W_])+')


def words(text: str) -> list[str]:
  """The words of a text, in order, with full-width and other compatible forms made the same."""
  return _WORD.findall(unicodedata.normalize('NFKC', text).casefold())


def key(text: str) -> str:
  """The text's letters and digits: the same for texts that differ in spaces, signs and case."""
  return ''.join(words(text))


def grams(text: str, n: int) -> list[str]:
  """Its runs of n words, in order; none where the text is shorter."""
  found = words(text)
  return [' '.join(found[i:i + n]) for i in range(len(found) - n + 1)]


def equal(train: Sequence[str], evaluation: Sequence[str]) -> list[tuple[int, int]]:
  """All pairs (i, j) of a training and an evaluation text with the same letters and digits.

  A text without any equals none. Linear in the texts' lengths and the number of pairs.
  """
  places = {}
  for j, text in enumerate(evaluation):
    places.setdefault(key(text), []).append(j)
  places.pop('', None)
  return [(i, j) for i, text in enumerate(train) for j in places.get(key(text), ())]


def find(train: Sequence[str], evaluation: Sequence[str], n: int = 10) -> list[tuple]:
  """(i, j, what they share) of training texts i that share a run of n words with an evaluation
  text j or have the same letters and digits, which is how short texts are found.

  A run that several evaluation texts share stands for the first of them, so that the time and the
  result are linear in the texts' lengths: every i that overlaps with anything is there, with some
  of its j, each pair once.
  """
  if n < 1:
    raise ValueError(f'runs of {n} words share nothing')
  places = {}  # a run of words, or letters and digits -> the first evaluation text with it
  for j, text in enumerate(evaluation):
    for gram in (key(text), *grams(text, n)):
      places.setdefault(gram, j)
  places.pop('', None)
  out = []
  for i, text in enumerate(train):
    seen = set()
    for gram in (key(text), *grams(text, n)):
      j = places.get(gram)
      if j is not None and j not in seen:
        seen.add(j)
        out.append((i, j, gram))
  return out
