"""Rewards: pure functions (problem, completion) -> float, their routing and their weighted sum."""
import collections
import functools
import math
import re
from typing import Sequence

import numpy as np

from r1jax import language, prompts
from r1jax.types import Completion, Problem, Reward, Together, UserError

# -- rules -----------------------------------------------------------------------------------------


def accuracy(problem: Problem, completion: Completion) -> float:
  """1 if the last answer block holds the reference exactly, white space aside, else 0."""
  return float(prompts.last_answer(completion.text) == problem.answer.strip())


def boxed(problem: Problem, completion: Completion) -> float:
  """1 if the summary's last box holds the reference exactly, white space aside, else 0."""
  return float(prompts.boxed(prompts.summary(completion.text) or '') == problem.answer.strip())


def format(problem: Problem, completion: Completion) -> float:
  """1 if the whole completion is in R1-Zero's format, else 0 (the paper gives no numeric value)."""
  del problem
  return float(prompts.split(completion.text) is not None)


def think_format(problem: Problem, completion: Completion) -> float:
  """1 if the completion is a think block and a summary and came to its end, else 0."""
  del problem
  return float(completion.finished and prompts.in_format(completion.text))


def free_format(problem: Problem, completion: Completion) -> float:
  """The same for general prompts, where a plain answer without any tag will do as well."""
  plain = not any(tag in completion.text for tag in prompts.TAGS) and completion.text.strip()
  return float(completion.finished and bool(plain)) or think_format(problem, completion)


def consistency(problem: Problem, completion: Completion) -> float:
  """Share of the thinking's words that are in the question's language (v2, eq. 7), 0 to 1."""
  return language.consistency(prompts.thinking(completion.text), problem.language)


def overlong(problem: Problem, completion: Completion, *, max_tokens: int, cache: int) -> float:
  """DAPO's soft punishment (2503.14476, eq. 13), in tokens: 0 up to max_tokens - cache, from there
  down to -1 at max_tokens, -1 beyond."""
  del problem
  return -min(1.0, max(0.0, (completion.num_tokens - (max_tokens - cache)) / cache))


def ended(problem: Problem, completion: Completion) -> float:
  """1 if the completion came to its end within the budget."""
  del problem
  return float(completion.finished)


def one_language(problem: Problem, completion: Completion, least: float = 0.99) -> float:
  """1 if at least this share of the thinking is in the question's language."""
  return float(consistency(problem, completion) >= least)


def unmixed(problem: Problem, completion: Completion, least: float = 0.99) -> float:
  """1 if at least this share of the thinking is in one language, whichever it is."""
  del problem
  thinking = prompts.thinking(completion.text)
  return float(max(language.consistency(thinking, x) for x in language.LANGUAGES) >= least)


def no_repetition(problem: Problem, completion: Completion, run: int = 8, times: int = 2) -> float:
  """1 if no run of so many words and signs comes more than so many times."""
  del problem
  tokens = re.findall(r'\w+|[^\w\s]', completion.text)
  runs = collections.Counter(zip(*(tokens[i:] for i in range(run))))
  return float(max(runs.values(), default=0) <= times)


def short_paragraphs(problem: Problem, completion: Completion, words: int = 300) -> float:
  """1 if no paragraph of the thinking has more words than this; the paper gives no number."""
  del problem
  paragraphs = re.split(r'\n\s*\n', prompts.thinking(completion.text))
  return float(max(len(language.words(p)) for p in paragraphs) <= words)


def no_code(problem: Problem, completion: Completion) -> float:
  """1 if there is no code block in the thinking."""
  del problem
  return float('```' not in prompts.thinking(completion.text))


# Gates of readability (v2, B.3.2-3), to which `one_language` or `unmixed` is added.
READABLE = (Reward('ended', ended), Reward('format', think_format),
            Reward('repetition', no_repetition), Reward('paragraphs', short_paragraphs),
            Reward('code', no_code))  # yapf: disable

TIMED_OUT = 'timed out:'  # how the sentence begins about a verdict that did not come in time

R1_ZERO = (Reward('accuracy', accuracy), Reward('format', format))  # same weight, v2 eq. 4

# -- routing and sums ------------------------------------------------------------------------------


def check(rewards: Sequence[Reward]):
  """Raises UserError where the rewards' names do not tell them apart from all else on record, or
  where one does not say in one way how it is computed."""
  names, others = [r.name for r in rewards], {'errors', 'length', 'finished', 'pass_at_1'}
  if not names or len(set(names)) < len(names) or others & set(names):
    raise UserError(f'the rewards are named {names}: there must be at least one, no two alike, and '
                    f'none of {sorted(others)}')
  for reward in rewards:
    if sum(x is not None for x in (reward.function, reward.load, reward.many)) != 1:
      raise UserError(f'reward {reward.name} needs one of function, load and many')


def load(rewards: Sequence[Reward], machine, mesh, tokenizer) -> tuple[Reward, ...]:
  """The rewards with every model that they need in memory: `load` replaced by `many`."""
  return tuple(
      r._replace(load=None, many=r.load(machine, mesh, tokenizer)) if r.load else r
      for r in rewards)


def active(rewards: Sequence[Reward], step: int) -> tuple[Reward, ...]:
  """Those that count in the update after `step` updates."""
  return tuple(r for r in rewards if r.start <= step and (r.stop is None or step < r.stop))


def grade(rewards: Sequence[Reward], problems: Sequence[Problem],
          completions: Sequence[Sequence[Completion]]) -> tuple[dict, list]:
  """Scores of P problems' G completions, {name: float32 [P, G]}, and P lists of error sentences.

  NaN where a reward does not apply. What failed scores 0 and is an error, never silent.
  """
  columns = flatten(problems, completions)
  return tally(rewards, [score(reward, *columns) for reward in rewards], problems, completions)


def flatten(problems, completions) -> tuple[list, list]:
  """P problems with G completions each as two lists of P * G."""
  return [p for p, row in zip(problems, completions) for _ in row], sum(completions, [])


def tally(rewards, found, problems, completions) -> tuple[dict, list]:
  """What `grade` gives, from what `score` found of each reward."""
  G, flat = len(completions[0]), sum(completions, [])
  scores, errors = {}, [[] for _ in problems]
  for reward, of_reward in zip(rewards, found, strict=True):
    numbers = [0.0 if isinstance(x, Exception) else x for x in of_reward]
    scores[reward.name] = np.asarray(numbers, np.float32).reshape(len(problems), G)
    for i, (x, completion) in enumerate(zip(of_reward, flat)):
      if isinstance(x, Exception):
        how = TIMED_OUT if isinstance(x, TimeoutError) else 'failed:'
        errors[i // G].append(f'{how} reward {reward.name} on {completion.text[:200]!r}: {x!r}')
  return scores, errors


def scorer(reward: Reward):
  """`score` of the reward, Together where its model is."""
  return alike(functools.partial(score, reward), reward.many)


def alike(f, like):
  """f, marked as Together where `like` is."""
  return Together(f) if isinstance(like, Together) else f


def score(reward: Reward, problems: Sequence[Problem], completions: Sequence[Completion]) -> list:
  """A finite float for each completion, NaN where the reward does not apply to the problem's kind,
  0 where its view finds nothing to score, or the Exception that kept it from a number."""
  view = reward.view or (lambda text: text)
  out, asked = [math.nan] * len(problems), []
  for i, (problem, completion) in enumerate(zip(problems, completions)):
    if not reward.kinds or problem.kind in reward.kinds:
      out[i], text = 0.0, view(completion.text)
      if text is not None:
        asked.append((i, problem, completion._replace(text=text)))
  if asked:
    places, problems, completions = zip(*asked)
    found = (reward.many(problems, completions) if reward.many else
             [attempt(reward.function, *both) for both in zip(problems, completions)])
    for i, x in zip(places, found, strict=True):
      out[i] = _finite(x)
  return out


def attempt(function, *args):
  """What the function gives, or the exception that it raised: one item's failure is not another's.
  """
  try:
    return function(*args)
  except Exception as error:  # it is code of an experiment's, or reads what a model wrote
    return error


def _finite(x):
  try:
    if not isinstance(x, Exception) and not math.isfinite(x):
      raise ValueError(f'returned {x}')
    return x
  except (TypeError, ValueError) as error:
    return error


def total(rewards: Sequence[Reward], scores: dict, shape) -> np.ndarray:
  """Sum of weight * score over the rewards that apply, float32 [P, G]."""
  terms = (np.float32(r.weight) * np.nan_to_num(scores[r.name]) for r in rewards)
  return sum(terms, start=np.zeros(shape, np.float32))


def timed_out(error: str) -> bool:
  """Whether a sentence of `grade` is about a verdict that did not come in time."""
  return error.startswith(TIMED_OUT)


def check_errors(errors: Sequence[Sequence[str]], samples: int, allowed: float, timeouts: float):
  """Raises UserError where more than `allowed` of the samples' rewards failed, or more than
  `timeouts` of them did not come in time: the first is a fault of the grader's, the second may be
  the model's."""
  found = [error for of_problem in errors for error in of_problem]
  late = [error for error in found if timed_out(error)]
  failed = [error for error in found if not timed_out(error)]
  for some, what, most in ((failed, 'failed', allowed), (late, 'did not come in time', timeouts)):
    if len(some) > most * samples:
      raise UserError(f'{len(some)} rewards {what} on {samples} samples, more than the allowed '
                      f'share of {most:g}; the first: {some[0]}')
