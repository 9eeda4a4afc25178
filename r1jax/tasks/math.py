"""MATH: competition problems of five levels (arXiv 2103.03874), and the 500 of its test that the
paper evaluates on, MATH-500 (arXiv 2305.20050)."""
from r1jax import datasets, prompts
from r1jax.grading import math as math_grader
from r1jax.types import Benchmark, Problem, Reward

MATH = datasets.Set('math', 'competition problems, MATH-500 among them',
                    'github.com/hendrycks/math', 'MIT; the problems are their competitions\'', 2021,
                    dict(train='train', test='test', math500='math500'),
                    datasets.COLUMNS | dict(solution=str, level=str, subject=str))
SETS = (MATH,)
REWARD = Reward('accuracy', load=math_grader.load)


def load(split: str, template: str = prompts.R1) -> list[Problem]:
  """The problems of 'train' (7,500), 'test' (5,000) or 'math500' (500 of the test)."""
  return datasets.problems(MATH, split, template, datasets.BOXED)


_ANSWERS = dict(answer=math_grader.extract, same=math_grader.same)
BENCHMARKS = {
    'math500': Benchmark(load, REWARD, 'math500', k=16, **_ANSWERS),  # v2, D.1
    'math': Benchmark(load, REWARD, **_ANSWERS),  # not in the paper
}
