"""pass@1, cons@k and pass@k of a model on problems, over k samples each, with standard errors."""
import dataclasses
import math
from typing import Callable

import numpy as np

from r1jax import rollout, seeds
from r1jax.sample import Sampling
from r1jax.types import Problem


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """What is asked, how often, and how it is sampled."""
  problems: Callable[[str], list[Problem]]  # split -> problems
  split: str = 'test'  # never trained on
  num_problems: int = 512  # the first so many of the split
  k: int = 1  # samples a problem
  sampling: Sampling = Sampling()  # how they are drawn
  answer: Callable | None = None  # for cons@k: text of a completion -> its answer or None
  same: Callable = lambda a, b: a == b  # for cons@k: whether two answers mean the same
  more: Callable | None = None  # graded samples, right [P, k] -> further numbers of the task


def make_evaluate(cfg: Evaluation, rewards, model, tokenizer, max_prompt_tokens, seed, machine,
                  mesh) -> Callable:
  """params -> {name: number} and the graded samples; the first reward says what is right.

  pass_at_1 is the mean over problems of the mean over their k samples; its standard error is the
  problems' standard deviation over the square root of their number. The same draws every time.
  """
  problems = cfg.problems(cfg.split)[:cfg.num_problems]
  rollout.encode(tokenizer, problems, max_prompt_tokens)  # too long a prompt shows before the work
  sampler = rollout.make_sampler(model, tokenizer, cfg.sampling, cfg.k, max_prompt_tokens, machine,
                                 mesh, len(problems))
  key = seeds.key(seed, 'evaluation')

  def evaluate(params):
    calls = rollout.dispatch(sampler, params, key, range(len(problems)), problems)
    graded = rollout.collect(sampler, calls, rewards)
    return summarise(cfg, rewards, graded), graded

  return evaluate


def summarise(cfg: Evaluation, rewards, graded) -> dict:
  """The numbers of an evaluation, plain floats. A reward's numbers are over what it applies to."""
  right_PG = graded.scores[rewards[0].name]
  numbers = mean_and_error('pass_at_1', right_PG.mean(axis=1, dtype='float64'))
  if cfg.answer:
    answers = [[cfg.answer(c.text) for c in row] for row in graded.completions]
    voted_P = [vote(row, right_G, cfg.same) for row, right_G in zip(answers, right_PG)]
    numbers |= mean_and_error(f'cons_at_{cfg.k}', voted_P)
  if cfg.k > 1:
    numbers |= mean_and_error(f'pass_at_{cfg.k}', right_PG.max(axis=1))
  for name, scores_PG in graded.scores.items():
    applies_P = ~np.isnan(scores_PG).all(axis=1)
    if applies_P.any():
      numbers |= mean_and_error(name, scores_PG[applies_P].mean(axis=1, dtype='float64'))
  numbers |= {
      'length': graded.rollout.lengths_PG.mean(),
      'finished': graded.rollout.finished_PG.mean(),
      'errors': sum(map(len, graded.errors)),
      **(cfg.more(graded, right_PG) if cfg.more else {}),
  }
  return {f'eval/{name}': float(value) for name, value in numbers.items()}


def mean_and_error(name, values_P) -> dict:
  """The mean over problems and its standard error, std / sqrt(P) with P - 1 degrees of freedom."""
  values_P = np.asarray(values_P, np.float64)
  error = values_P.std(ddof=min(1, len(values_P) - 1)) / len(values_P)**0.5
  return {name: values_P.mean(), f'{name}_stderr': error}


def pass_at(k: int, right_PG) -> list[float]:
  """For each problem, the chance that one of k samples is right, estimated without bias from G >= k
  of them: 1 - C(G - c, k) / C(G, k) with c right (Chen et al., arXiv 2107.03374, eq. 1)."""
  G = right_PG.shape[1]
  return [1 - math.comb(G - c, k) / math.comb(G, k) for c in right_PG.sum(axis=1).tolist()]


def vote(answers, right_G, same) -> float:
  """How right the answer is that most samples of a problem agree on; 0 where none has an answer."""
  winner = majority(answers, same)
  return 0.0 if winner is None else float(right_G[winner])


def majority(answers, same) -> int | None:
  """Index of the first answer that the most others mean the same as; None where there is no answer.

  Samples without an answer (None) have no vote; of groups of one size, the one begun first wins.
  """
  groups = []  # indices of answers that mean the same
  for i, answer in enumerate(answers):
    if answer is None:
      continue
    group = next((g for g in groups if same(answers[g[0]], answer)), None)
    if group is None:
      groups.append([i])
    else:
      group.append(i)
  return max(groups, key=len)[0] if groups else None
