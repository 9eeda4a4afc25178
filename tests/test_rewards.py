"""Rewards: the format and the answer, and errors that are never silent."""
from functools import partial
import time

import numpy as np
import pytest

from r1jax import language, prompts, rewards
from r1jax.types import Completion, Problem, Reward, UserError

GOOD = '<think>3 + 4 = 7</think> <answer>7</answer>'
FORMATS = [
    (GOOD, 1), (f' \n{GOOD}\n ', 1),
    ('<think>first\n\nthen\r\nlast</think>\n<answer>\n7\n</answer>', 1),
    ('<think></think><answer></answer>', 1),
    (f'Sure. {GOOD}', 0), (f'{GOOD} That is it.', 0), (GOOD + GOOD, 0), ('', 0), ('7', 0),
    ('<think>a</think> so <answer>7</answer>', 0),
    ('<think>a<think>b</think><answer>7</answer>', 0),
    ('<think>a</think><think>b</think><answer>7</answer>', 0),
    ('<think>a</think><answer>6</answer><answer>7</answer>', 0),
    ('<answer>7</answer><think>a</think>', 0),
    ('<think>a<answer>7</answer></think>', 0),
    ('<think>a</think><answer>7', 0), ('<think>a<answer>7</answer>', 0),
    ('<THINK>a</THINK><answer>7</answer>', 0),
]  # yapf: disable
ANSWERS = [
    (GOOD, 1), ('<answer> 7\n</answer>', 1), ('<answer>7</answer> or so', 1),
    ('<answer>6</answer><answer>7</answer>', 1), ('<answer>7</answer><answer>6</answer>', 0),
    ('<answer>7', 0), ('7', 0), ('<answer>07</answer>', 0), ('<answer>7.</answer>', 0),
    ('<answer></answer>', 0), ('<answer>7</answer><answer>', 0),
]  # yapf: disable


def completion(text):
  return Completion(text, len(text), True)


@pytest.mark.parametrize('text, score', FORMATS)
def test_format(text, score):
  assert rewards.format(Problem('', '7'), completion(text)) == score


@pytest.mark.parametrize('text', [
    '<think>' + '</think><answer></answer>' * 20_000 + 'x', '<think>' * 100_000, ' ' * 500_000,
    '<think></think>' + ' ' * 500_000, '<think></think><answer></answer>' + '\n' * 500_000 + 'x',
])  # yapf: disable
def test_a_hostile_format_takes_no_time(text):
  began = time.monotonic()
  assert prompts.split(text) is None and not prompts.in_format(text)
  assert time.monotonic() - began < 5


@pytest.mark.parametrize('text, score', ANSWERS)
def test_accuracy(text, score):
  assert rewards.accuracy(Problem('', ' 7 '), completion(text)) == score


R1_TEXTS = [  # text, thinking, summary, in R1's format
    (' <think>3 + 4 = 7</think> It is \\boxed{7}.', '3 + 4 = 7', 'It is \\boxed{7}.', True),
    (GOOD, '3 + 4 = 7', '7', True), ('Hello!', 'Hello!', 'Hello!', False),
    ('<think>hm', 'hm', None, False), ('3</think> 4', '3', '4', False),
    ('<think></think> 4', '', '4', False), ('<think>3</think> ', '3', '', False),
    ('<think>a</think><think>b</think> c', 'a', 'c', False),
    ('so <think>a</think> c', 'so a', 'c', False),
]  # yapf: disable


@pytest.mark.parametrize('text, thinking, summary, good', R1_TEXTS)
def test_views(text, thinking, summary, good):
  assert prompts.thinking(text) == thinking
  assert prompts.summary(text) == summary
  assert prompts.in_format(text) == good
  assert rewards.think_format(Problem('', ''), completion(text)) == good
  assert rewards.think_format(Problem('', ''), completion(text)._replace(finished=False)) == 0
  assert rewards.free_format(Problem('', ''), completion(text)) == (good or text == 'Hello!')


@pytest.mark.parametrize('text, box', [(r'\boxed{1} or \boxed{\frac{1}{2}}.', r'\frac{1}{2}'),
                                       (r'\boxed{ 7 }', '7'), (r'\boxed{1', None), ('7', None)])
def test_boxed(text, box):
  assert prompts.boxed(text) == box
  assert rewards.boxed(Problem('', '7'), completion(f'<think>3</think> {text}')) == (box == '7')


WORDS = [
    ('First b=7+8=15, so c is done', 'en', 1.0), ('首先 b=7+8=15，好了', 'zh', 1.0),
    ('首先 then 好', 'zh', 3 / 4), ('首先 then 好', 'en', 1 / 4),
    ("don't `首先` $x 首$ \\(好\\) stop", 'en', 1.0), ('```\n好好好\n``` well', 'en', 1.0),
    ('\\frac{好}{a} x y 1', 'en', 0.0), ('', 'zh', 0.0), ('да well', 'en', 0.5),
]  # yapf: disable


@pytest.mark.parametrize('text, target, share', WORDS)
def test_language_consistency(text, target, share):
  assert language.consistency(text, target) == share
  problem = Problem('', '', language=target)
  assert rewards.consistency(problem, completion(f'<think>{text}</think> 好 ok')) == share


def test_language_consistency_needs_a_language():
  with pytest.raises(ValueError, match="the language ''"):
    language.consistency('word', '')


def test_gates_of_readability():
  gates = {gate.name: gate.function for gate in rewards.READABLE}
  gates |= dict(language=rewards.one_language, mixed=rewards.unmixed)
  problem = Problem('', '', language='en')
  good = completion('<think>one two</think> three')
  bad = dict(ended=good._replace(finished=False), format=completion('one two'),
             repetition=completion('<think>' + 'a b c d e f g h i ' * 3 + '</think> x'),
             paragraphs=completion('<think>' + 'word ' * 301 + '</think> x'),
             code=completion('<think>so ```x```</think> y'),
             language=completion('<think>一 二</think> three'),
             mixed=completion('<think>one 二</think> three'))  # yapf: disable
  assert list(bad) == list(gates)
  assert all(gate(problem, good) == 1 for gate in gates.values())
  assert all(gates[name](problem, text) == 0 for name, text in bad.items())
  assert gates['mixed'](problem, bad['language']) == 1  # in one language, if not the question's


@pytest.mark.parametrize('tokens, want', [(80, 0), (85, -0.25), (90, -0.5), (100, -1), (101, -1)])
def test_overlong(tokens, want):
  got = rewards.overlong(None, Completion('', tokens, True), max_tokens=100, cache=20)
  assert got == want


def test_routing():
  """Reasoning gets rules, a helpful prompt its model on the summary, a harmful one its own on
  everything, language is for all, and preference counts from update 8 on."""
  seen = {}

  def score(name, machine, mesh, tokenizer):
    assert (machine, mesh, tokenizer) == ('machine', 'mesh', 'tokenizer')

    def many(problems, completions):
      seen[name] = [(p.kind, c.text) for p, c in zip(problems, completions)]
      return [0.5 for _ in problems]

    return many

  terms = (
      Reward('accuracy', rewards.accuracy, kinds=('reasoning',)),
      Reward('helpful', kinds=('helpful',), view=prompts.summary, start=8,
             load=partial(score, 'helpful')),
      Reward('safety', kinds=('safety',), weight=2.0, start=8, load=partial(score, 'safety')),
      Reward('language', rewards.consistency, stop=16),
  )  # yapf: disable
  rewards.check(terms)
  loaded = rewards.load(terms, 'machine', 'mesh', 'tokenizer')
  names = lambda step: [r.name for r in rewards.active(loaded, step)]
  assert names(0) == ['accuracy', 'language'] and names(16) == ['accuracy', 'helpful', 'safety']
  counting = rewards.active(loaded, 8)
  problems = [Problem('', '7', kind, 'en') for kind in ('reasoning', 'helpful', 'safety')]
  texts = ['<think>so</think> <answer>7</answer>', '<think>wicked 好</think> fine', '<think>open']
  completions = [[completion(text)] for text in texts]
  scores, errors = rewards.grade(counting, problems, completions)
  assert not any(errors)
  assert seen == {'helpful': [('helpful', 'fine')], 'safety': [('safety', '<think>open')]}
  nan = np.nan
  np.testing.assert_array_equal(scores['accuracy'][:, 0], [1, nan, nan])
  np.testing.assert_array_equal(scores['helpful'][:, 0], [nan, 0.5, nan])
  np.testing.assert_array_equal(scores['safety'][:, 0], [nan, nan, 0.5])
  np.testing.assert_array_equal(scores['language'][:, 0], [1, 0.5, 1])
  np.testing.assert_array_equal(rewards.total(counting, scores, (3, 1))[:, 0], [2, 1, 2])
  # A helpful completion whose thinking never closes has no summary to be scored by: 0, no error.
  scores, errors = rewards.grade(counting, problems[1:2], [[completion('<think>open')]])
  assert scores['helpful'] == 0 and not errors[0]


def test_split_and_template():
  assert prompts.split(GOOD) == ('3 + 4 = 7', '7')
  text = prompts.R1_ZERO.format(question='3+4?')
  assert text.startswith('A conversation between User and Assistant. The user asks')
  assert text.endswith('<answer> answer here </answer>. User: 3+4?. Assistant:')


def test_grading_adds_weighted_terms():
  terms = (Reward('accuracy', rewards.accuracy), Reward('format', rewards.format, 0.5))
  problems = [Problem('', '7'), Problem('', '8')]
  texts = [[GOOD, '<answer>7</answer>', 'no'], [GOOD, '<answer>8</answer>', GOOD]]
  scores, errors = rewards.grade(terms, problems, [[completion(t) for t in row] for row in texts])
  np.testing.assert_array_equal(scores['accuracy'], [[1, 1, 0], [0, 1, 0]])
  np.testing.assert_array_equal(scores['format'], [[1, 0, 0], [1, 0, 1]])
  total = rewards.total(terms, scores, (2, 3))
  np.testing.assert_array_equal(total, [[1.5, 1, 0], [0.5, 1, 0.5]])
  assert not any(errors) and total.dtype == np.float32


def bad(problem, completion):
  """Fails in every way, by text."""
  del problem
  if completion.text == 'raise':
    raise KeyError('lost')
  return {'nan': float('nan'), 'inf': float('inf'), 'none': None, 'good': 1.0}[completion.text]


def test_a_failing_reward_is_counted_and_scores_zero():
  texts = ['good', 'raise', 'nan', 'inf', 'none', 'good']
  scores, errors = rewards.grade([Reward('bad', bad)], [Problem('', '')],
                                 [[completion(t) for t in texts]])
  np.testing.assert_array_equal(scores['bad'], [[1, 0, 0, 0, 0, 1]])
  errors, = errors
  assert len(errors) == 4
  for error, text, cause in zip(errors, texts[1:], ['KeyError', 'nan', 'inf', 'TypeError']):
    assert error.startswith(f"failed: reward bad on '{text}'") and cause in error


def late(problem, completion):
  """Comes too late."""
  raise TimeoutError('after 4 s')


def test_too_many_errors_stop_the_run():
  error, late_one = (rewards.grade([Reward('r', f)], [Problem('', '')],
                                   [[completion('raise')]])[1][0] for f in (bad, late))
  assert not rewards.timed_out(error[0]) and rewards.timed_out(late_one[0])
  check = lambda errors, samples: rewards.check_errors(errors, samples, allowed=0.01, timeouts=0.02)
  check([error, late_one, late_one], 100)
  with pytest.raises(UserError, match='2 rewards failed on 100 samples.*0.01; the first: failed'):
    check([error, error], 100)
  with pytest.raises(UserError, match='3 rewards did not come in time on 100 samples.*0.02'):
    check([late_one * 3], 100)


def test_rewards_are_told_apart_by_name():
  rewards.check(rewards.R1_ZERO)
  for names in ([], ['a', 'a'], ['accuracy', 'length']):
    with pytest.raises(UserError, match='rewards are named'):
      rewards.check([Reward(name, rewards.accuracy) for name in names])
  for wrong in (Reward('a'), Reward('a', rewards.accuracy, load=print)):
    with pytest.raises(UserError, match='reward a needs one of'):
      rewards.check([wrong])
