"""Tasks on real sets where they are there, and the graders that are theirs: rules and Countdown."""
from fractions import Fraction
import itertools
import json
import os
from pathlib import Path
import re
import time

import pytest

from r1jax import benchmark, datasets, library, prompts
from r1jax.grading import instructions as instruction_grader
from r1jax.tasks import aime, choices, countdown, exams, gsm8k, humaneval, ifeval, instructions
from r1jax.tasks import knights_knaves, math, mbpp, preferences, safety, thoughts
from r1jax.types import Completion, Problem

DATA = Path(os.environ.get('R1JAX_DATA') or Path(__file__).parents[2] / 'shared/data').absolute()
NO_DATA = f'there are no data sets in {DATA}: name their folder in R1JAX_DATA'
of = lambda text: Completion(text, 1, True)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  """The real sets, prepared in a folder of their own."""
  if not (DATA / 'gsm8k').is_dir():
    pytest.skip(NO_DATA)
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('R1JAX_DATA', str(DATA))
    patch.setenv('TFDS_DATA_DIR', str(tmp_path_factory.mktemp('tfds')))
    yield


# -- every set, every benchmark --------------------------------------------------------------------


def test_every_set_has_the_rows_that_its_source_says(data):
  missing = []
  for name, found in library.published().items():
    if not datasets.sources(found):
      missing.append(name)
      continue
    counts = datasets.counts(datasets.prepare(found))
    said = re.findall(r'^  (\w+)\.jsonl(?:\.gz)?  rows=(\d+)',
                      (DATA / name / 'SOURCE.txt').read_text(), re.M)  # yapf: disable
    by_file = {}
    for split, number in counts.items():
      by_file[found.splits[split]] = by_file.get(found.splits[split], 0) + number
    assert by_file == {file: int(number) for file, number in said}, name
  assert missing == ['gpqa'], 'only this one cannot be had freely'


def test_every_benchmark_asks_and_names_its_problems(data):
  known = benchmark.published()
  assert len(known) >= 28
  for name, found in known.items():
    if name in ('gpqa', 'math'):  # the first is not there, the second is asked as MATH-500
      continue
    problems = found.problems(found.split, template=prompts.R1_ZERO)
    head, tail = prompts.R1_ZERO.split('{question}')
    assert len({problem.id for problem in problems}) == len(problems) > 0, name
    for problem in problems:
      assert problem.prompt.startswith(head) and problem.prompt.endswith(tail), name
      assert problem.question in problem.prompt and problem.answer and problem.language, name
    assert all(
        x in problems[0].prompt
        for x in {'humaneval': ['```python'], 'mbpp': ['```python', 'assert'], 'ifeval': []}.get(
            name, ['\\boxed{}' if name not in ('knights_knaves',
                                               'countdown') else '\\boxed{'])), name


def test_the_paper_s_protocol():
  k = {name: found.k for name, found in benchmark.published().items()}
  assert (k['aime24'], k['gpqa'], k['math500']) == (64, 64, 16)  # v2, D.1
  assert {found.max_tokens for found in benchmark.published().values()} == {32768}


def test_ids_and_first_rows(data):
  assert [p.id for p in gsm8k.load('test')[:2]] == ['gsm8k/test/0', 'gsm8k/test/1']
  problem = gsm8k.load('train', '{question}')[0]
  assert problem.prompt == problem.question + (
      '\nPlease reason step by step, and put your final answer within \\boxed{}.')
  assert problem.question.startswith('Natalia sold clips') and problem.answer == '72'
  assert (problem.kind, problem.language) == ('reasoning', 'en')
  assert len(math.load('train')) == 7500 and math.load('math500')[0].id == 'math/test/4914'
  assert len(aime.load('train')) == 975 and aime.load('test', year=2025)[0].id == 'aime25/I-1'
  chinese = exams.load('test', data=exams.CHINESE[0])[0]
  assert chinese.language == 'zh' and '请逐步推理' in chinese.prompt
  assert len(mbpp.load('train')) == 374 and mbpp.load('prompt')[0].id == 'mbpp/1'


# -- references are right answers ------------------------------------------------------------------


def test_the_right_letter_is_right_and_another_is_not(data):
  for found in choices.SETS[1:]:
    for problem in choices.load('test', data=found):
      assert choices.REWARD.function(problem, of(f'So \\boxed{{{problem.answer}}}.')) == 1
      other = 'B' if problem.answer == 'A' else 'A'
      assert choices.REWARD.function(problem, of(f'So \\boxed{{{other}}}.')) == 0


def test_reference_numbers_are_right(data):
  for load in (gsm8k.load, aime.load):
    many, problems = gsm8k.REWARD.load(None, None, None), load('test')
    assert set(many(problems, [of(f'\\boxed{{{p.answer}}}') for p in problems])) == {1.0}
    assert set(many(problems, [of(f'\\boxed{{{p.answer}7}}') for p in problems])) == {0.0}


def test_references_of_programs_and_instructions_can_be_read(data):
  for problem in mbpp.load('test') + humaneval.load('test'):
    assert json.loads(problem.answer).keys() == {'before', 'after'}
  for problem in ifeval.load('test'):
    wanted = json.loads(problem.answer)['instruction_id_list']
    assert len(instruction_grader.checks(problem.answer, 'A text.')) == len(wanted) > 0


# -- sets without a reference ----------------------------------------------------------------------


def test_documents_pairs_and_requests(data):
  alpaca = instructions.load('zh', '{question}|')
  assert len(alpaca) == 1000 and alpaca[0].prompt.startswith('识别并') and alpaca[0].response
  assert len(instructions.load('train', data=instructions.CODE_ALPACA)) == 2017 - 2  # empty ones
  with_input = instructions.load('train', '{question}', data=instructions.SHORT_TASKS)[0]
  assert with_input.prompt.endswith('spelling given.\n\nfreind --> friend')
  assert all(prompts.in_format(x.response) for x in thoughts.load(data=thoughts.REFUSALS))
  requests = instructions.requests('mt_bench', data=instructions.MT_BENCH)
  assert len(requests) == 80 and (requests[0].kind, requests[0].answer) == ('helpful', '')
  assert len(preferences.load('train')) == 6718
  pandalm = preferences.load('pairs', data=preferences.PANDALM)
  assert 780 < len(pandalm) < 999 - 105  # ties
  first = pandalm[0]
  assert first.responses == ('If you have any questions, please let me know.',
                             'If you have any questions about my rate, please let me know.')
  dialogue = preferences.load('pairs', '<{question}>', data=preferences.HARMLESS)[0].prompt
  assert dialogue.startswith('<User: what are some pranks') and '\n\nAssistant: Are' in dialogue
  unsafe = safety.load('catqa')
  assert {(x.kind, x.language, x.answer) for x in unsafe} == {('safety', 'en', 'unsafe'),
                                                              ('safety', 'zh', 'unsafe')}
  assert [x.answer for x in safety.load('test', data=safety.XSTEST)].count('safe') == 250


# -- knights and knaves ----------------------------------------------------------------------------

PUZZLE = Problem('', 'Ann is a knight, Bob is a knave, and Cleo is a knight.')


@pytest.mark.parametrize('text, right', [
    ('\\boxed{Ann is a knight, Bob is a knave, Cleo is a knight}', 1),
    ('<think>Ann is a knave.</think> \\boxed{\\text{cleo and ANN are knights; Bob: knave}}', 1),
    ('<answer>(1) Ann - knight\n(2) Bob - Knave\n(3) Cleo - knight</answer>', 1),
    ('\\boxed{Ann is a knight, Bob is not a knight, Cleo is not a knave.}', 1),
    ('\\boxed{Bob isn\'t a knight. Ann and Cleo are knights, so Ann is a knight}', 1),
    ('\\boxed{\\text{Knights: Ann, Cleo; Knaves: Bob}}', 1),
    ('\\boxed{The knave is Bob, the knights are Cleo and Ann}', 1),
    ('- If Ann lies\n\n**Roles:**\n- Ann: knight\n- **Bob**: knave\n\n- Cleo: knight\nDone.', 1),
    ('So:\n1. Ann is a knight\n2. Bob is a knave\n3. Cleo is a knight', 1),
    ('- Ann: knight\n- Bob: knave\n- Cleo: knight\n\nNo:\n- Ann: knave', 0),
    ('<think>- Ann: knight\n- Bob: knave\n- Cleo: knight', 0),
    ('\\boxed{Knights: Ann; Knaves: Bob, Cleo}', 0),
    ('\\boxed{Ann is a knight, Bob is a knave, Cleo is never a knight}', 0),
    ('\\boxed{Not knights: Ann, Cleo; knights: Bob}', 0),
    ('\\boxed{Knights, knaves: Ann, Bob, Cleo}', 0),
    ('\\boxed{Ann is a knight or a knave, Bob is a knave, Cleo is a knight}', 0),
    ('\\boxed{Ann is a knight knave, Bob is a knave, Cleo is a knight}', 0),
    ('\\boxed{If Ann is a knight, Bob is a knave, Cleo is a knight, then false}', 0),
    ('\\boxed{Ann is a knight, Bob is a knave}', 0),
    ('\\boxed{Ann is a knight, Bob is a knight, Cleo is a knight}', 0),
    ('\\boxed{Ann is a knight, Bob is a knave, Cleo is a knight, Cleo is a knave}', 0),
    ('\\boxed{Anna is a knight, Bob is a knave, Cleo is a knight}', 0),
    ('<think>\\boxed{Ann is a knight, Bob is a knave, Cleo is a knight}', 0),
    ('<think><answer>Ann is a knight, Bob is a knave, Cleo is a knight</answer></think> ?', 0),
    ('Ann is a knight, Bob is a knave, Cleo is a knight', 0),
    ('\\boxed{knight knave Ann Bob Cleo}', 0),
    ('', 0),
])  # yapf: disable
def test_roles(text, right):
  assert knights_knaves.roles(PUZZLE, of(text)) == right


def test_roles_of_every_real_puzzle(data):
  for problem in knights_knaves.load('test'):
    swapped = re.sub('kn(ight|ave)', lambda x: {'ight': 'knave', 'ave': 'knight'}[x[1]],
                     problem.answer, count=1)  # yapf: disable
    assert knights_knaves.roles(problem, of(f'\\boxed{{{problem.answer}}}')) == 1
    assert knights_knaves.roles(problem, of(f'\\boxed{{{swapped}}}')) == 0


# -- countdown -------------------------------------------------------------------------------------

GOAL = Problem('', json.dumps(dict(numbers=[25, 4, 3, 3], target=97)))


@pytest.mark.parametrize('expression, right', [
    ('25 * 4 - 3', 1), ('(25*4)-3', 1), ('25 × 4 − 3 = 97', 1), ('$25 \\times 4 - 3$', 1),
    ('4*(25-3/3)+3/3', 0), ('25*4-3-3+3', 0), ('25*4-9/3', 0), ('97', 0), ('254-3', 0),
    ('-3+25*4', 1), ('(-3)+25*4', 1), ('25 4 * 3 -', 0), ('25*4-3)', 0), ('(25*4-3', 0),
    ('25*4-', 0), ('25*--4', 0), ('25*4//3', 0),
    ('97 = 25*4-3', 1), ('$97 = 25 \\cdot 4 - 3$', 1), ('25x4-3', 1), ('[25*4]-3', 1),
    ('25 \\, \\ast \\, 4 - 3', 1), ('25*4-\\frac{3}{3}*3', 0), ('25*4-\\frac{3*3}{3}', 0),
    ('\\dfrac{25}{\\frac{3}{3}} \\times 4-3', 0), ('\\frac{25*4}{1}-3', 0), ('97 = 97', 0),
    ('\\frac{3 \\times 25 \\times 4}{3} - 3', 0), ('25*4-3' + ' ' * 200 + '-1', 0),
    ('97 = 25*4-4', 0), ('98 = 25*4-3', 0), ('97 = 98 = 25*4-3', 0), ('\\frac{25*4-3}', 0),
    ('25**4', 0), ('3/(4-4)', 0), ('25*4-3 if 1 else 0', 0), ('__import__("os")', 0), ('', 0),
    ('25*4-٣', 0), ('25\x00*4-3', 0), ('25' + ' ' * 300 + '*4-3', 0),
])  # yapf: disable
def test_expressions(expression, right):
  assert countdown.makes_target(GOAL, of(f'<think>25*4-3</think> \\boxed{{{expression}}}')) == right
  assert countdown.makes_target(GOAL, of(f'<answer>{expression}</answer>')) == right


def test_values_are_exact():
  assert countdown.evaluate('\\frac{8}{3} ÷ \\dfrac{4-2}{\\frac{1}{2}}')[0] == Fraction(2, 3)
  assert countdown.evaluate('\\left[8 \\div 2\\right] × 3')[0] == 12
  assert countdown.evaluate('1/3+1/3+1/3') == (1, [1, 3, 1, 3, 1, 3])
  assert countdown.evaluate('8-4-2*3/(1+2)')[0] == 2
  assert countdown.evaluate('100/7/(2-9)')[0] == Fraction(-100, 49)


@pytest.mark.parametrize('text', [
    '(' * 100_000, '1' * 1_000_000, '9**' * 300_000 + '9', '(1+' * 60 + '1' + ')' * 60,
    '\ud800' * 9, '1/' * 99 + '1', '(' * 90 + '1' + ')' * 90, '-' * 199])  # yapf: disable
def test_hostile_expressions_cost_nothing(text):
  began = time.monotonic()
  assert countdown.makes_target(GOAL, of(f'\\boxed{{{text}}}')) == 0
  assert knights_knaves.roles(PUZZLE, of(f'\\boxed{{{text}}}')) == 0
  assert time.monotonic() - began < 1


def reachable(numbers):
  """Every value that some of the numbers make, by trying all."""
  if len(numbers) == 1:
    return set(numbers)
  found = set(numbers)
  for a, b in itertools.permutations(range(len(numbers)), 2):
    rest = [x for i, x in enumerate(numbers) if i not in (a, b)]
    x, y = numbers[a], numbers[b]
    for value in {x + y, x - y, x * y, x / y if y else x}:
      found |= reachable([value] + rest)
  return found


def test_countdown_can_be_solved():
  for problem in countdown.load('train', count=25):
    goal = json.loads(problem.answer)
    assert goal['target'] in reachable(list(map(Fraction, goal['numbers'])))
    assert str(goal['target']) in problem.question and '\\boxed' in problem.prompt


def test_countdown_is_drawn_by_its_seed():
  key = lambda p: (sorted(json.loads(p.answer)['numbers']), json.loads(p.answer)['target'])
  train, tests = countdown.load('train', count=3000), countdown.load('test', count=400)
  assert countdown.load('train', count=50) == train[:50]
  assert countdown.load('train', count=50, seed=1) != train[:50]
  numbers = lambda problems: {str(key(p)[0]) for p in problems}
  assert not numbers(train) & numbers(tests)
  assert len({str(key(p)) for p in train}) == 3000 == len({p.id for p in train})
  assert {len(key(p)[0]) for p in train} == {3, 4} and max(key(p)[1] for p in train) > 200
