"""HumanEval: Python functions from their signatures and docstrings (arXiv 2107.03374)."""
from r1jax import datasets, prompts
from r1jax.grading import code as code_grader
from r1jax.types import Benchmark, Problem, Reward

ASK = ('Complete this program. Please reason step by step, and put the whole function in a '
       '```python block.\n```python\n{question}\n```')
HUMANEVAL = datasets.Set(
    'humaneval', 'Python functions with unit tests', 'github.com/openai/human-eval', 'MIT', 2021,
    columns=dict(id=str, prompt=str, entry_point=str, canonical_solution=str, test=str),
    text='prompt')  # yapf: disable
SETS = (HUMANEVAL,)
REWARD = Reward('accuracy', load=code_grader.load)


def load(split: str, template: str = prompts.R1) -> list[Problem]:
  """The 164 functions; there is the split 'test' only."""
  answer = lambda row: code_grader.from_check(row['prompt'], row['test'], row['entry_point'])
  return datasets.problems(HUMANEVAL, split, template, ASK, answer=answer)


# Not in the paper; k is that of LiveCodeBench, its other set of programs.
BENCHMARKS = {'humaneval': Benchmark(load, REWARD, k=8)}
