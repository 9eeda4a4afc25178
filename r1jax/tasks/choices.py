"""Multiple choice: the problem ends with its lettered choices, the answer is a letter or, where
several choices are right, their letters.

The paper asks for a last line 'ANSWER: $LETTER' (v2, J), this for the letter in a box, as with
other maths. GPQA is given to who asks its authors: put it in place yourself, with the choices at
the end of each problem, as '(A) ...'.
"""
from functools import partial

from r1jax import datasets, prompts
from r1jax.grading import math as math_grader
from r1jax.types import Benchmark, Problem, Reward

ASK = ('{question}\nPlease reason step by step, and put the letter of the right choice within '
       '\\boxed{{}}.')
ASK_ZH = '{question}\n请逐步推理，并将正确选项的字母放在 \\boxed{{}} 中。'
GPQA = datasets.Set('gpqa', 'GPQA Diamond: graduate-level science', 'github.com/idavidrein/gpqa',
                    'CC BY 4.0', 2023)
MMLU = datasets.Set('mmlu_stem', 'MMLU: its STEM subjects', 'github.com/hendrycks/test', 'MIT',
                    2020, columns=datasets.COLUMNS | dict(subject=str))
AQUA = datasets.Set('aqua', 'AQuA-RAT: algebra with five choices',
                    'github.com/google-deepmind/AQuA', 'Apache-2.0', 2017)
SAT = datasets.Set('sat_math', 'SAT maths of May 2023', 'github.com/QwenLM/Qwen2.5-Math',
                   'the problems are the exam\'s', 2023)
GAOKAO = datasets.Set('gaokao_math_qa', 'AGIEval: Gaokao maths, in Chinese',
                      'github.com/ruixiangcui/AGIEval', 'MIT', 2023)
SETS = (GPQA, MMLU, AQUA, SAT, GAOKAO)
REWARD = Reward('accuracy', math_grader.choice)


def load(split: str, template: str = prompts.R1, data: datasets.Set = MMLU) -> list[Problem]:
  """The problems of a set, of which there is the split 'test' only."""
  ask, language = (ASK_ZH, 'zh') if data == GAOKAO else (ASK, 'en')
  return datasets.problems(data, split, template, ask, language=language)


# v2, D.1: 64 samples for GPQA. The others are asked once.
BENCHMARKS = {
    data.name: Benchmark(partial(load, data=data), REWARD, answer=math_grader.chosen,
                         k=64 if data == GPQA else 1)
    for data in SETS
}  # yapf: disable
