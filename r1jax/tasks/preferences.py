"""Preference pairs, which reward models learn from: the better response and the worse.

The prompts of pref_alpaca_eval are those of AlpacaEval: a model that has learnt from it must not be
judged there.
"""
from functools import partial

from r1jax import datasets, prompts
from r1jax.types import Judged

_set = partial(datasets.Set, splits=dict(pairs='pairs'))
_BOTH = dict(chosen=str, rejected=str)
HELPFUL = datasets.Set('pref_alpaca_eval', 'AlpacaEval 1: preferences of GPT-4',
                       'github.com/tatsu-lab/alpaca_eval', 'CC BY-NC 4.0', 2023,
                       dict(train='train', validation='validation'),
                       dict(id=str, prompt=str) | _BOTH, 'prompt')
HARMLESS = _set('pref_hh_harmless', 'HH-RLHF: harmless dialogues, the test',
                'github.com/anthropics/hh-rlhf', 'MIT', 2022,
                columns=dict(id=str, prompt=object) | _BOTH, text='prompt')
PANDALM = _set(
    'pref_pandalm', 'PandaLM: the test, by three people', 'github.com/WeOpenML/PandaLM',
    'Apache-2.0', 2023, text='instruction', columns=dict(id=str, instruction=str, input=str,
                                                         response_1=object, response_2=object,
                                                         label=str))
POLITE = _set('pref_polite_1100', 'polite and impolite answers',
              'github.com/rasbt/LLMs-from-scratch', 'Apache-2.0', 2024, text='instruction',
              columns=dict(id=str, instruction=str, input=str) | _BOTH)
SETS = (HELPFUL, HARMLESS, PANDALM, POLITE)


def load(split: str, template: str = prompts.R1, data: datasets.Set = HELPFUL) -> list[Judged]:
  """The pairs of a set; ties, and pairs that are alike or have a response that is no text, are left
  out. A dialogue of several turns is one question, each turn under its speaker's name."""
  out = []
  for row in datasets.every(data, split):
    better, worse = _responses(row)
    if all(type(x) is str and x.strip() for x in (better, worse)) and better != worse:
      out.append(Judged(template.format(question=_question(row)), (better, worse)))
  return out


def _question(row):
  if 'instruction' in row:
    return '\n\n'.join(filter(None, [row['instruction'], row['input']]))
  if type(row['prompt']) is str:
    return row['prompt']
  first, *more = row['prompt']
  turns = [f'{turn["role"].capitalize()}: {turn["content"]}' for turn in row['prompt']]
  return '\n\n'.join(turns) if more else first['content']


def _responses(row):
  if 'label' not in row:
    return row['chosen'], row['rejected']
  both = row['response_1'], row['response_2']
  return {'1': both, '2': both[::-1]}.get(row['label'], (None, None))
