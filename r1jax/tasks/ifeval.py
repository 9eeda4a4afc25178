"""IFEval: instructions whose following a program can check (arXiv 2311.07911)."""
import json

from r1jax import datasets, prompts
from r1jax.grading import instructions
from r1jax.types import Benchmark, Problem, Reward

IFEVAL = datasets.Set(
    'ifeval', 'verifiable instructions',
    'github.com/google-research/google-research/tree/master/instruction_following_eval',
    'Apache-2.0', 2023, columns=dict(id=str, prompt=str, instruction_id_list=list, kwargs=object),
    text='prompt')  # yapf: disable
SETS = (IFEVAL,)
REWARD = Reward('accuracy', instructions.check, view=prompts.summary)


def load(split: str, template: str = prompts.R1) -> list[Problem]:
  """The 541 prompts, as they are; there is the split 'test' only."""
  names = ('instruction_id_list', 'kwargs')
  answer = lambda row: json.dumps({name: row[name] for name in names}, ensure_ascii=False)
  return datasets.problems(IFEVAL, split, template, kind='instruction', answer=answer)


BENCHMARKS = {'ifeval': Benchmark(load, REWARD)}  # prompt-level strict, as in the paper (table 3)
