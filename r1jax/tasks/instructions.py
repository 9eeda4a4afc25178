"""General instructions: answered ones to learn from, and requests that a model judges.

`load` gives Documents, for supervised stages; `requests` gives Problems without a reference.
"""
from functools import partial

from r1jax import datasets, prompts
from r1jax.types import Document, Problem

_answered = partial(datasets.Set, columns=dict(id=str, instruction=str, input=str, output=str),
                    text='instruction')
ALPACA_GPT4 = _answered('alpaca_gpt4_sample', 'some of Alpaca-GPT4, in English and Chinese',
                        'github.com/Instruction-Tuning-with-GPT-4/GPT-4-LLM', 'CC BY-NC 4.0', 2023,
                        dict(en='en', zh='zh'))
GPTEACHER = _answered('gpteacher', 'GPTeacher: role play, and code',
                      'github.com/teknium1/GPTeacher', 'MIT', 2023,
                      dict(roleplay='roleplay', codegen='codegen'))
CODE_ALPACA = _answered('code_alpaca_2k', 'some of Code Alpaca',
                        'github.com/sahil280114/codealpaca', 'CC BY-NC 4.0', 2023,
                        dict(train='train'))
SHORT_TASKS = _answered('instruction_1100', 'short tasks, of a book',
                        'github.com/rasbt/LLMs-from-scratch', 'Apache-2.0', 2024,
                        dict(train='train'))
SELF_INSTRUCT = _answered('self_instruct_human', 'what people wrote of Self-Instruct',
                          'github.com/yizhongw/self-instruct', 'Apache-2.0', 2022,
                          dict(seed_tasks='seed_tasks', user_oriented='user_oriented'))

_asked = partial(datasets.Set, columns=dict(id=str, prompt=str), text='prompt')
ALPACA_EVAL = datasets.Set('alpaca_eval', 'AlpacaEval', 'github.com/tatsu-lab/alpaca_eval',
                           'CC BY-NC 4.0', 2023, columns=dict(id=str, instruction=str,
                                                              output=str), text='instruction')
ARENA_HARD = _asked('arena_hard', 'Arena-Hard v0.1', 'github.com/lm-sys/arena-hard-auto',
                    'Apache-2.0', 2024)
MT_BENCH = datasets.Set('mt_bench', 'MT-bench and Vicuna bench', 'github.com/lm-sys/FastChat',
                        'Apache-2.0', 2023, dict(mt_bench='mt_bench', vicuna_bench='vicuna_bench'),
                        dict(id=str, turns=list), 'turns')
WIZARDLM = _asked('wizardlm_test', 'the test of WizardLM', 'github.com/nlpxucan/WizardLM',
                  'CC BY-NC 4.0', 2023)
SETS = (ALPACA_GPT4, GPTEACHER, CODE_ALPACA, SHORT_TASKS, SELF_INSTRUCT, ALPACA_EVAL, ARENA_HARD,
        MT_BENCH, WIZARDLM)  # yapf: disable


def load(split: str, template: str = prompts.R1, data: datasets.Set = ALPACA_GPT4,
         kind: str = 'general') -> list[Document]:  # yapf: disable
  """The answered instructions of a set, without the few whose answer is empty."""
  ask = lambda row: '\n\n'.join(filter(None, [row['instruction'], row['input']]))
  return [
      Document(template.format(question=ask(row)), row['output'], kind)
      for row in datasets.every(data, split)
      if row['output'].strip()
  ]


def requests(split: str, template: str = prompts.R1, data: datasets.Set = ALPACA_EVAL,
             kind: str = 'helpful') -> list[Problem]:  # yapf: disable
  """The requests of a set, of a dialogue its first, as problems that have no reference answer."""
  question = lambda row: row['turns'][0] if data == MT_BENCH else row[data.text]
  return datasets.problems(data, split, template, kind=kind, language='', question=question,
                           answer=lambda row: '')
