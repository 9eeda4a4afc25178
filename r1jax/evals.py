"""pass@1 of a model on problems, over k samples each, with its standard error."""
import dataclasses
from typing import Callable

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
  """The numbers of an evaluation, plain floats."""
  right_PG = graded.scores[rewards[0].name]
  right_P = right_PG.mean(axis=1, dtype='float64')
  numbers = {
      'pass_at_1': right_P.mean(),
      'pass_at_1_stderr': right_P.std(ddof=min(1,
                                               len(right_P) - 1)) / len(right_P)**0.5,
      **{name: scores.mean(dtype='float64') for name, scores in graded.scores.items()},
      'length': graded.rollout.lengths_PG.mean(),
      'finished': graded.rollout.finished_PG.mean(),
      'errors': sum(map(len, graded.errors)),
      **(cfg.more(graded, right_PG) if cfg.more else {}),
  }
  return {f'eval/{name}': float(value) for name, value in numbers.items()}
