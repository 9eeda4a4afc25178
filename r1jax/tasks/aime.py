"""AIME: competition problems whose answers are integers from 0 to 999. Those up to 2023 are for
training, 2024 and 2025 for evaluation.

38 of the problems for training are in the test of MATH, too, 6 of them in MATH-500: take them out
before judging on those (`r1jax data clean`).
"""
from functools import partial

from r1jax import datasets, prompts
from r1jax.grading import math as math_grader
from r1jax.types import Benchmark, Problem, Reward

_aime = partial(datasets.Set, homepage='artofproblemsolving.com/wiki/index.php/AIME',
                licence='the problems are the MAA\'s')
OLD = _aime('aime_1983_2023', 'AIME 1983 to 2023, for training', year=2023,
            splits=dict(train='train'),
            columns=datasets.COLUMNS | dict(solution=str, year=int, difficulty=float))
NEW = {year: _aime(f'aime{year % 100}', f'AIME {year} I and II', year=year)
       for year in (2024, 2025)}  # yapf: disable
SETS = (OLD, *NEW.values())
REWARD = Reward('accuracy', load=math_grader.load)


def load(split: str, template: str = prompts.R1, year: int = 2024) -> list[Problem]:
  """'train': the 975 problems up to 2023; 'test': the 30 of a year, 2024 or 2025."""
  data = OLD if split == 'train' else NEW[year]
  return datasets.problems(data, split, template, datasets.BOXED)


BENCHMARKS = {
    data.name: Benchmark(partial(load, year=year), REWARD, answer=math_grader.extract,
                         same=math_grader.same, k=64)  # v2, D.1; cons@64, too
    for year, data in NEW.items()
}  # yapf: disable
