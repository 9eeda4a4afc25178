"""Overlap by hand, against the definition, and the known overlaps of real sets."""
import os
from pathlib import Path
import random
import time

import pytest

from r1jax import datasets, library, overlap

DATA = Path(os.environ.get('R1JAX_DATA') or Path(__file__).parents[2] / 'shared/data').absolute()


def test_words_are_letters_and_digits():
  assert overlap.words('Find $x^2$,  in\u2028Ｆｉｎｅ_form: 求解 3½!') == [
      'find', 'x', '2', 'in', 'fine', 'form', '求', '解', '31', '2']  # yapf: disable
  assert overlap.key('It is  $22.5^\\circ$!') == 'itis225circ' == overlap.key('IT IS 225CIRC')
  assert overlap.grams('a b c', 2) == ['a b', 'b c'] and overlap.grams('a', 2) == []


def test_equal_gives_every_pair():
  assert overlap.equal(['a b', '...', 'AB', 'c'], ['Ab!', '', 'c', 'a-b']) == [
      (0, 0), (0, 3), (2, 0), (2, 3), (3, 2)]  # yapf: disable


def test_find_by_hand():
  train = ['x one two three y', 'one two', 'One, two?', '小明有三个', 'nothing', 'one two three four']
  tests = ['one two three', 'ONE TWO', '小红有三个苹果', 'two three four']
  assert overlap.find(train, tests, 3) == [
      (0, 0, 'one two three'), (1, 1, 'onetwo'), (2, 1, 'onetwo'), (3, 2, '有 三 个'),
      (5, 0, 'one two three'), (5, 3, 'two three four')]  # yapf: disable
  assert overlap.find(['', '?!'], ['', '!?'], 1) == [] == overlap.find([], tests)
  with pytest.raises(ValueError):
    overlap.find(train, tests, 0)


def test_find_is_what_comparing_every_pair_finds():
  rng = random.Random(0)
  text = lambda: ' '.join(rng.choices('abcd', k=rng.randint(0, 9)))
  train, tests = [text() for _ in range(150)], [text() for _ in range(15)]
  share = lambda a, b: a and a.replace(' ', '') == b.replace(' ', '') or set(overlap.grams(
      a, 4)) & set(overlap.grams(b, 4))
  expected = {i for i, a in enumerate(train) if any(share(a, b) for b in tests)}
  found = overlap.find(train, tests, 4)
  assert {i for i, *_ in found} == expected and 20 < len(expected) < 130
  assert all(share(train[i], tests[j]) for i, j, _ in found)
  assert len({pair[:2] for pair in found}) == len(found)


def test_time_is_linear_where_everything_overlaps():
  texts = ['the same ten words are in each of these texts ' + str(i) for i in range(20_000)]
  began = time.monotonic()
  found = overlap.find(texts, texts[::-1], 10)
  assert len(found) == 2 * 20_000 - 1 and time.monotonic() - began < 5


# -- real sets -------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def texts():
  """NAME, split -> the texts that are compared, from the source."""
  if not (DATA / 'gsm8k').is_dir():
    pytest.skip(f'there are no data sets in {DATA}: name their folder in R1JAX_DATA')

  def read(name, split='test'):
    data = library.find(name)
    path = datasets.sources(data, DATA)[split]
    return [row[data.text] for row in datasets.lines(data, split, path)]

  return read


@pytest.mark.parametrize('train, other, same, long, shared', [
    (('math', 'train'), ('math', 'test'), 10, 8, 1500),
    (('math', 'train'), ('math', 'math500'), 1, 1, 371),
    (('aime_1983_2023', 'train'), ('math', 'test'), 40, 38, 331),
    (('aime_1983_2023', 'train'), ('math', 'math500'), 6, 6, 164),
    (('math', 'train'), ('olympiadbench',), 2, 2, 45),
    (('cot_star1', 'train'), ('simple_safety_tests',), 4, 2, 4),
])  # yapf: disable
def test_known_overlaps(texts, train, other, same, long, shared):
  """`same`: different texts, letters and digits only, that both sets have; `long`: of those, the
  ones of 40 letters and more, since 'tan 225' is not 'tan 22.5'. `shared`: training rows that have
  10 words in a row with the others."""
  train, other = texts(*train), texts(*other)
  keys = {overlap.key(train[i]) for i, _ in overlap.equal(train, other)}
  rows = {i for i, *_ in overlap.find(train, other, 10)}
  assert (len(keys), sum(len(key) >= 40 for key in keys), len(rows)) == (same, long, shared)


def test_all_prompts_of_alpaca_eval_are_among_the_preferences(texts):
  pairs = texts('pref_alpaca_eval', 'train') + texts('pref_alpaca_eval', 'validation')
  assert len({j for _, j in overlap.equal(pairs, texts('alpaca_eval'))}) == 805


def test_no_test_set_has_a_problem_of_gsm8k_train(texts):
  names = ('gsm8k svamp asdiv mawps gsm_hard aime24 aime25 amc23 minerva_math olympiadbench aqua '
           'mmlu_stem sat_math carp_en college_math gaokao2023en cmath mgsm_zh math').split()
  train, tests = texts('gsm8k', 'train'), sum(map(texts, names), [])
  assert not overlap.equal(train, tests)
  assert len({i for i, *_ in overlap.find(train, tests, 10)}) == 30
