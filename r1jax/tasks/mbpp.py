"""MBPP: short Python functions with asserts (arXiv 2108.07732). The question shows the asserts, as
they alone say what the function is called."""
from r1jax import datasets, prompts
from r1jax.grading import code as code_grader
from r1jax.types import Benchmark, Problem, Reward

ASK = '{question}\nPlease reason step by step, and put the whole program in a ```python block.'
MBPP = datasets.Set(
    'mbpp', 'short Python functions with asserts',
    'github.com/google-research/google-research/tree/master/mbpp', 'CC BY 4.0', 2021,
    dict.fromkeys(('train', 'validation', 'test', 'prompt'), 'all'),
    dict(id=str, split=str, text=str, code=str, test_setup_code=str, test_list=list,
         challenge_test_list=list), text='text', split_column='split')  # yapf: disable
SETS = (MBPP,)
REWARD = Reward('accuracy', load=code_grader.load)


def load(split: str, template: str = prompts.R1) -> list[Problem]:
  """The tasks of 'train' (374), 'validation' (90), 'test' (500) or 'prompt' (10, for examples)."""
  return datasets.problems(MBPP, split, template, ASK, question=_question, answer=_answer)


def _question(row):
  return '\n'.join([row['text'], 'The program must pass these tests:', *row['test_list']])


def _answer(row):
  return code_grader.from_asserts(row['test_setup_code'],
                                  row['test_list'] + row['challenge_test_list'])


# Not in the paper; k is that of LiveCodeBench, its other set of programs.
BENCHMARKS = {'mbpp': Benchmark(load, REWARD, k=8)}
