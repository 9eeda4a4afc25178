"""Rewards: the format and the answer, and errors that are never silent."""
import numpy as np
import pytest

from r1jax import prompts, rewards
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


@pytest.mark.parametrize('text, score', ANSWERS)
def test_accuracy(text, score):
  assert rewards.accuracy(Problem('', ' 7 '), completion(text)) == score


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
    assert error.startswith(f"reward bad failed on '{text}'") and cause in error


def test_too_many_errors_stop_the_run():
  rewards.check_errors([['one'], []], samples=100, allowed=0.01)
  with pytest.raises(UserError, match='2 rewards failed on 100 samples.*0.01; the first: one'):
    rewards.check_errors([['one'], ['two']], samples=100, allowed=0.01)
  with pytest.raises(UserError):
    rewards.check_errors([[], ['one']], samples=10**6, allowed=0.0)


def test_rewards_are_told_apart_by_name():
  rewards.check(rewards.R1_ZERO)
  for names in ([], ['a', 'a'], ['accuracy', 'length']):
    with pytest.raises(UserError, match='rewards are named'):
      rewards.check([Reward(name, rewards.accuracy) for name in names])
