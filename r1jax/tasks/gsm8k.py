"""GSM8K: grade-school word problems whose answers are numbers (arXiv 2110.14168), and GSM-Hard, its
test with large numbers put in by a program, some of whose answers are wrong."""
from functools import partial

from r1jax import datasets, prompts
from r1jax.grading import math as math_grader
from r1jax.types import Benchmark, Problem, Reward

GSM8K = datasets.Set('gsm8k', 'grade-school word problems',
                     'github.com/openai/grade-school-math', 'MIT', 2021,
                     dict(train='train', test='test'), datasets.COLUMNS | dict(solution=str))
HARD = datasets.Set('gsm_hard', 'the test of GSM8K with large numbers',
                    'huggingface.co/datasets/reasoning-machines/gsm-hard', 'MIT', 2022)
SETS = (GSM8K, HARD)
REWARD = Reward('accuracy', load=math_grader.load)


def load(split: str, template: str = prompts.R1, data: datasets.Set = GSM8K) -> list[Problem]:
  """The problems of 'train' (7,473) or 'test' (1,319), GSM8K's unless told otherwise."""
  return datasets.problems(data, split, template, datasets.BOXED)


# The paper does not evaluate on these; k is ours.
_benchmark = partial(Benchmark, reward=REWARD, answer=math_grader.extract, same=math_grader.same,
                     k=4)
BENCHMARKS = {'gsm8k': _benchmark(load), 'gsm_hard': _benchmark(partial(load, data=HARD))}
