"""Rewards: pure functions (problem, completion) -> float, and their weighted sum over a rollout."""
import math
from typing import Sequence

import numpy as np

from r1jax import prompts
from r1jax.types import Completion, Problem, Reward, UserError


def accuracy(problem: Problem, completion: Completion) -> float:
  """1 if the last answer block holds the reference exactly, white space aside, else 0."""
  return float(prompts.last_answer(completion.text) == problem.answer.strip())


def format(problem: Problem, completion: Completion) -> float:
  """1 if the whole completion is in R1-Zero's format, else 0 (the paper gives no numeric value)."""
  del problem
  return float(prompts.split(completion.text) is not None)


R1_ZERO = (Reward('accuracy', accuracy), Reward('format', format))  # same weight, v2 eq. 4


def check(rewards: Sequence[Reward]):
  """Raises UserError where the rewards' names do not tell them apart from all else on record."""
  names, others = [r.name for r in rewards], {'errors', 'length', 'finished', 'pass_at_1'}
  if not names or len(set(names)) < len(names) or others & set(names):
    raise UserError(f'the rewards are named {names}: there must be at least one, no two alike, and '
                    f'none of {sorted(others)}')


def grade(rewards: Sequence[Reward], problems: Sequence[Problem],
          completions: Sequence[Sequence[Completion]]) -> tuple[dict, list]:
  """Scores of P problems' G completions, {name: float32 [P, G]}, and P lists of error sentences.

  A function that raises or returns no finite number scores 0 there and is an error, never silent.
  """
  scores = {r.name: np.zeros((len(problems), len(completions[0])), np.float32) for r in rewards}
  errors = [[] for _ in problems]
  for reward in rewards:
    for p, problem in enumerate(problems):
      for g, completion in enumerate(completions[p]):
        try:
          score = float(reward.function(problem, completion))
          if not math.isfinite(score):
            raise ValueError(f'returned {score}')
          scores[reward.name][p, g] = score
        except Exception as error:  # a reward is code of the experiment's: anything may come
          errors[p].append(f'reward {reward.name} failed on {completion.text[:200]!r}: {error!r}')
  return scores, errors


def total(rewards: Sequence[Reward], scores: dict, shape) -> np.ndarray:
  """Sum of weight * score, float32 [P, G]."""
  terms = (np.float32(r.weight) * scores[r.name] for r in rewards)
  return sum(terms, start=np.zeros(shape, np.float32))


def check_errors(errors: Sequence[Sequence[str]], samples: int, allowed: float):
  """Raises UserError where more than `allowed` of the samples' rewards failed."""
  failed = [error for of_problem in errors for error in of_problem]
  if len(failed) > allowed * samples:
    raise UserError(f'{len(failed)} rewards failed on {samples} samples, more than the allowed '
                    f'share of {allowed:g}; the first: {failed[0]}')
