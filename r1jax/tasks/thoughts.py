"""Answers with the thinking before them, written by models: to start from, as the paper's cold
start does (v2, B.3.2)."""
from functools import partial

from r1jax import datasets, prompts
from r1jax.types import Document

_set = partial(datasets.Set, splits=dict(train='train'), text='prompt',
               columns=dict(id=str, prompt=str, think=str, answer=str))
MATH = _set('cot_math_samples', 'maths with long thinking, a little of it',
            'github.com/rasbt/reasoning-from-scratch', 'Apache-2.0', 2025)
MARCO = _set('cot_marco_o1', 'a demonstration of Marco-o1', 'github.com/AIDC-AI/Marco-o1',
             'Apache-2.0', 2024)
REFUSALS = _set('cot_star1', 'STAR-1: DeepSeek-R1 on requests to refuse',
                'github.com/UCSC-VLAA/STAR-1', 'Apache-2.0', 2025)
TRANSLATION = _set('cot_drt_translation', 'DRT: English thinking, Chinese translation',
                   'github.com/krystalan/DRT', 'CC BY-NC-SA 4.0', 2024)
SETS = (MATH, MARCO, REFUSALS, TRANSLATION)


def load(split: str = 'train', template: str = prompts.R1, data: datasets.Set = MATH,
         kind: str = 'reasoning') -> list[Document]:  # yapf: disable
  """The documents of a set, in the format that R1 has from the cold start on."""
  return [
      Document(template.format(question=row['prompt']),
               f'<think>\n{row["think"]}\n</think>\n\n{row["answer"]}', kind)
      for row in datasets.every(data, split)
  ]
