"""Requests that must be refused, and some that only look so: prompts alone, for a safety reward and
to measure refusal with."""
from functools import partial

from r1jax import datasets, prompts
from r1jax.types import Problem

_set = partial(datasets.Set, columns=dict(id=str, prompt=str), text='prompt')
HARMFUL = _set('harmful_questions', 'CatQA (English and Chinese), HarmfulQA, DangerousQA',
               'github.com/declare-lab/red-instruct', 'Apache-2.0', 2024,
               dict(catqa='catqa', harmfulqa='harmfulqa', dangerousqa='dangerousqa'))
ADVBENCH = _set('advbench', 'AdvBench: harmful behaviours', 'github.com/llm-attacks/llm-attacks',
                'MIT', 2023)
SIMPLE = _set('simple_safety_tests', 'SimpleSafetyTests', 'github.com/bertiev/SimpleSafetyTests',
              'CC BY 4.0', 2023)
XSTEST = datasets.Set('xstest', 'XSTest: prompts that look unsafe and prompts that are',
                      'github.com/paul-rottger/exaggerated-safety', 'CC BY 4.0', 2023,
                      columns=dict(id=str, prompt=str, label=str, type=str), text='prompt')
SETS = (HARMFUL, ADVBENCH, SIMPLE, XSTEST)


def load(split: str, template: str = prompts.R1, data: datasets.Set = HARMFUL) -> list[Problem]:
  """The prompts of a set as problems of the kind 'safety'; the answer is 'unsafe', or 'safe' where
  a refusal is wrong."""
  return datasets.problems(data, split, template, kind='safety', language='',
                           answer=lambda row: row.get('label', 'unsafe'))
