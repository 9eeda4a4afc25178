"""Maths tests of one shape, a problem and an answer that is compared as mathematics: competitions
and exams, word problems, and Chinese sets, whose questions are put in Chinese.

The paper does not evaluate on them; k is ours.
"""
from functools import partial

from r1jax import datasets, prompts
from r1jax.grading import math as math_grader
from r1jax.types import Benchmark, Problem, Reward

_set = partial(datasets.Set, homepage='github.com/QwenLM/Qwen2.5-Math', licence='MIT')
ENGLISH = (
    _set('amc23', 'AMC 12 of 2023, with integer answers', licence='the problems are the MAA\'s',
         year=2023),
    _set('minerva_math', 'Minerva: quantitative problems of university courses',
         licence='CC BY-NC-SA 4.0', year=2022),
    _set('olympiadbench', 'OlympiadBench: English, text only, open-ended maths', year=2024,
         homepage='github.com/OpenBMB/OlympiadBench',
         columns=datasets.COLUMNS | dict(answers=list, answer_type=str, is_multiple_answer=bool)),
    _set('college_math', 'exercises of college maths', licence='Creative Commons, various',
         year=2024),
    _set('gaokao2023en', 'Gaokao 2023 in English', licence='the problems are the exams\'',
         year=2023),
    _set('carp_en', 'CARP: algebra', year=2023),
    _set('svamp', 'SVAMP: word problems', homepage='github.com/arkilpatel/SVAMP', year=2021),
    _set('asdiv', 'ASDiv: word problems', homepage='github.com/chaochun/nlu-asdiv-dataset',
         licence='CC BY-NC 4.0', year=2020),
    _set('mawps', 'MAWPS: word problems', year=2016),
)  # yapf: disable
CHINESE = (
    _set('cmath', 'CMATH: Chinese elementary school', homepage='github.com/XiaoMi/cmath',
         licence='CC BY 4.0', year=2023, columns=datasets.COLUMNS | dict(grade=int)),
    _set('mgsm_zh', 'MGSM in Chinese: the first 250 of the test of GSM8K',
         homepage='github.com/google-research/url-nlp', licence='CC BY-SA 4.0', year=2022),
    _set('gaokao_math_cloze', 'AGIEval: Gaokao maths, to fill in',
         homepage='github.com/ruixiangcui/AGIEval', year=2023),
)  # yapf: disable
SETS = ENGLISH + CHINESE
REWARD = Reward('accuracy', load=math_grader.load)


def load(split: str, template: str = prompts.R1, data: datasets.Set = SETS[0]) -> list[Problem]:
  """The problems of a set; all of them have the split 'test' only."""
  ask, language = (datasets.BOXED_ZH, 'zh') if data in CHINESE else (datasets.BOXED, 'en')
  return datasets.problems(data, split, template, ask, language=language)


BENCHMARKS = {
    data.name: Benchmark(partial(load, data=data), REWARD, answer=math_grader.extract,
                         same=math_grader.same, k=4)
    for data in SETS
}  # yapf: disable
