"""The math grader: what counts as the answer, what as equal, and what a hostile one costs."""
from functools import partial
import gzip
import json
import os
from pathlib import Path
import random
import re
import subprocess
import sys
import time

import answers
import pytest

from r1jax import rewards
from r1jax.grading import equal, math
from r1jax.types import Completion, Problem, Reward

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get('R1JAX_DATA') or ROOT.parent / 'shared/data')
needs_data = pytest.mark.skipif(not (DATA / 'math').exists(),
                                reason=f'needs data sets in {DATA}, or where R1JAX_DATA says')


@pytest.fixture(scope='module')
def many():
  judged = math.load(None, None, None)
  yield lambda golds, texts: judged([Problem('', gold) for gold in golds],
                                    [Completion(text, 1, True) for text in texts])
  judged.args[0].close()


# -- extraction ------------------------------------------------------------------------------------


@pytest.mark.parametrize('text, answer', [
    (r'so \boxed{\frac{1}{2}}.', r'\frac{1}{2}'), (r'\boxed{1}, no, \boxed{ 2 }', '2'),
    (r'<think>\boxed{1}</think> It is 2.', '2'), (r'<think>\boxed{1} is the answer', None),
    (r'\boxed{1}</think>It is \boxed{3}', '3'), ('<think>5</think> <answer> 17 </answer>', '17'),
    ('<think>a</think><answer>The answer is 8 apples.</answer>', '8 apples'),
    (r'<answer>\boxed{4}</answer>', '4'), ('9 * 2 = 18\n#### 18', '18'),
    ('#### Step 1\nThe answer is 4.\n#### Note\nDone.', '4'),
    ('The answer is: $x=5$.', 'x=5'), (r'The answer is \(\frac{3}{4}\) of it.', r'\frac{3}{4}'),
    ('Answer: (2, 3)', '(2, 3)'), ('The answer is 4. Wait, the answer is 5.', '5'),
    ('答案是12。', '12'), ('答案：$\\frac{1}{2}$', r'\frac{1}{2}'),
    ('**Final Answer:** The volume of the whole prism is 120.', '120'),
    ('We get 7, then 1,250.50.', '1,250.50'), ('So we find that $x + 1 = 3$', 'x + 1 = 3'),
    ('It costs $5, or $10,200 + $255 = $10,455.', '10,455'),
    (r'$x = \boxed{2}$ or $x = \boxed{-3}$', '2,-3'),
    (r'\boxed{1} and \boxed{2}, and \boxed{3}', '1,2,3'),
    (r'\[\boxed{-2} \quad \text{and} \quad \boxed{1}\]', '-2,1'),
    (r'\boxed{1} is not \boxed{2}', '2'), ('no answer here', None), ('', None),
    ('A4 paper, x2', None), (r'first \boxed{3}, then \boxed{4', None),
    (r'\boxed{' + '1' * 5000 + '}', None), (r'\boxed{}', None), ('The answer is', None),
    (r'\boxed{\left\{ 1, 2 \right.}', r'\left\{ 1, 2 \right.'), (r'\boxed{5\\}', r'5\\'),
    ('The answer is **18**.', '18'), ('The answer is **18** dollars.', '18 dollars'),
    (r'The answer is: **\$18**.', r'\$18'), ('The answer is:\n\n**18**.', '18'),
    ('#### **18**', '18'), ('#### Answer: 18', '18'), ('<answer>**18**</answer>', '18'),
    ('The answer is `18`.', '18'), ('The answer is _18_.', '18'), ('The answer is 2**3.', '2**3'),
    ('The answer is x_1 ** 2.', 'x_1 ** 2'), ('The answer is 18!', '18'), ('Answer: $5!$', '5!'),
    ('The answer is 18.\nThis answer is correct.', '18'), ('The answer is 18, not 20.', '18'),
    ('The answer is yes. This answer is right.', 'right'), ('答：小明有3个苹果。', '3'),
    ('答案是小明一共有3个苹果。', '3'),
])  # yapf: disable
def test_the_answer_of_a_completion(text, answer):
  assert math.extract(text) == answer


@pytest.mark.parametrize('text, letters', [
    ('B', 'B'), ('(B)', 'B'), (r'\boxed{B}', 'B'), (r'\boxed{\text{(B)}}', 'B'),
    (r'\boxed{\textbf{B}}', 'B'), (r'\boxed{B) 45}', 'B'),
    ('A car is fast. The answer is (B).', 'B'), ('The correct option is **B**.', 'B'),
    ('<think>(A)</think> <answer>B. 45</answer>', 'B'), ('故选：B.', 'B'), ('答案为B', 'B'),
    ('(A) is wrong, so (B)', 'B'), (r'\boxed{A, C, D}', 'ACD'), (r'\boxed{ACD}', 'ACD'),
    (r'\boxed{CAD}', 'ACD'), (r'\boxed{\text{A and C}}', 'AC'), ('A car is fast.', None),
    (r'\boxed{45}', None), ('', None), ('<think>B', None), (r'\boxed{Best}', None),
    ('Answer: B\n\nA is wrong.', 'B'), ('The answer is B I think', 'B'),
    ('The answer is C, and B is wrong.', 'C'), (r'\boxed{\textrm{B}}', 'B'),
    (r'\boxed{\mathsf{B}}', 'B'), (r'\boxed{\bf B}', 'B'), ('The correct choice is:\n\n**B**', 'B'),
    ('Thus, B is the correct answer.', 'B'), ('B) 42 meters long', 'B'), ('B. It is 42.', 'B'),
    (r'\boxed{(A), (C)}', 'AC'), (r'\boxed{A or B}', None), (r'\boxed{A \text{ or } B}', None),
    (r'\boxed{A/B/C/D}', None), ('The answer is (A) or (C).', None), ('Answer: A, B or C', None),
])  # yapf: disable
def test_choices(text, letters):
  assert math.chosen(text) == letters
  for gold in ('A', 'B', 'C', 'AC', 'ACD'):
    assert math.choice(Problem('', gold), Completion(text, 1, True)) == float(gold == letters)


# -- equality --------------------------------------------------------------------------------------

PLAIN = [(name, *row) for name, rows in answers.PLAIN.items() for row in rows]
ALGEBRA = [(name, *row) for name, rows in answers.ALGEBRA.items() for row in rows]


def test_the_table_has_enough_of_both_verdicts():
  for table in (PLAIN, ALGEBRA):
    right = sum(row[-1] for row in table)
    assert len(set(table)) == len(table) and 0.4 < right / len(table) < 0.8
  assert len(PLAIN) + len(ALGEBRA) >= 300


def test_plain_verdicts():
  wrong = [row for row in PLAIN if equal.verdict(*row[1:3]) is not bool(row[3])]
  assert not wrong


def test_verdicts_of_algebra(many):
  _, golds, found, verdicts = zip(*ALGEBRA)
  scores = many(golds, [rf'\boxed{{{text}}}' for text in found])
  assert not [(row, score) for row, score in zip(ALGEBRA, scores) if score != row[-1]]
  assert not [(a, b) for a, b in zip(golds, found) if math.same(a, b)]  # the pool was needed
  assert many(golds, [rf'\boxed{{{text}}}' for text in found]) == list(map(float, verdicts))


@pytest.mark.parametrize('gold, block, score', [
    ('18', 'She makes 18 dollars.', 1), ('18', 'So 9*2=18 dollars are made.', 1),
    ('72', 'Natalia sold 48 + 24 = 72 clips in April.', 1), ('3', '小明有3个苹果。', 1),
    (r'2\sqrt{3}', r'The height is $\sqrt{12}$ cm.', 1), ('18', 'Janet makes **$18** a day.', 1),
    ('20', 'She makes 18 or 20 dollars.', 0), ('5', 'Any number from 1 to 5.', 0),
    ('5', 'She does not make 5 dollars.', 0), ('2', 'There are 3 apples and 2 pears.', 0),
    ('3', 'Ann makes 2 + 1 = 4 dollars.', 0),
])  # yapf: disable
def test_an_answer_block_may_be_a_sentence(gold, block, score, many):
  assert many([gold], [f'<think>9</think> <answer>{block}</answer>']) == [score]


def test_accuracy_is_the_same_without_algebra():
  problem, right = Problem('', '0.5'), Completion(r'\boxed{\frac{1}{2}}', 1, True)
  assert math.accuracy(problem, right) == 1.0 and math.same('1/2', '0.5')
  assert math.accuracy(problem, right._replace(text='<think>0.5')) == 0.0
  assert math.accuracy(Problem('', r'\sqrt8'), right._replace(text=r'\boxed{2\sqrt2}')) == 0.0


def test_what_cannot_be_judged_is_an_error_and_not_a_wrong_answer():
  gold, hard = 'x=2', r'\boxed{x^5\sin(x)+e^x=\log(x+3)}'  # equations that sympy tries to solve
  reward = Reward('accuracy', load=partial(math.load, workers=1, seconds=1.0))
  loaded, = rewards.load([reward], None, None, None)
  scores, errors = rewards.grade([loaded], [Problem('', gold)],
                                 [[Completion(t, 1, True) for t in (hard, rf'\boxed{{{gold}}}')]])
  assert scores['accuracy'].tolist() == [[0, 1]] and len(errors[0]) == 1
  assert 'TimeoutError' in errors[0][0]
  loaded.many.args[0].close()


# -- real answers ----------------------------------------------------------------------------------

SETS = '''gsm8k/test.jsonl.gz math/train.jsonl.gz math/test.jsonl.gz aime24/test.jsonl
aime25/test.jsonl aime_1983_2023/train.jsonl.gz olympiadbench/test.jsonl.gz amc23/test.jsonl
gaokao_math_cloze/test.jsonl cmath/test.jsonl'''.split()


def golds(name, number):
  """So many different answers of a set, drawn with seed 0."""
  path = DATA / name
  with (gzip.open if path.suffix == '.gz' else open)(path, 'rt', encoding='utf-8',
                                                     newline='\n') as f:
    found = sorted({json.loads(line)['answer'] for line in f})
  return random.Random(0).sample(found, min(number, len(found)))


def forms(gold):
  """Ways in which a model writes it."""
  yield rf'\boxed{{{gold}}}'
  yield rf'So we get $\boxed{{{gold}}}$ as the result.'
  yield rf'<think>\boxed{{0}}</think> <answer>{gold}</answer>'
  yield rf'\boxed{{{gold.replace(chr(92) + "frac", chr(92) + "dfrac")}}}'
  if not re.search(r'[a-zA-Z]{2}|\\[,;!]|[0-9] [0-9]', gold.replace('\\', '')):
    yield r'\boxed{' + re.sub('([-+=,()])', r' \1 ', gold) + '}'
  if re.fullmatch(r'-?[0-9]+|-?\\frac\{[0-9]+\}\{[0-9]+\}', gold):
    yield from (rf'The answer is $x = {gold}$.', rf'\boxed{{{gold}\text{{ cm}}}}', f'It is {gold}')
  if re.fullmatch('-?[0-9]{4,}', gold):
    yield from (rf'\boxed{{{int(gold):,}}}', rf'#### {int(gold):,}', rf'\boxed{{{gold}.0}}')


@needs_data
@pytest.mark.parametrize('name', SETS)
def test_real_answers_are_themselves_and_no_others(name, many):
  drawn = golds(name, 60)
  pairs = [(gold, form) for gold in drawn for form in forms(gold)]
  scores = many(*zip(*pairs))
  assert not [(pair, x) for pair, x in zip(pairs, scores) if x != 1.0]
  others = [(a, b) for a, b in zip(drawn, drawn[1:]) if equal.verdict(a, b) is not True]
  scores = many([a for a, _ in others], [rf'\boxed{{{b}}}' for _, b in others])
  assert not [(pair, x) for pair, x in zip(others, scores) if x != 0.0]


# -- hostile completions ---------------------------------------------------------------------------


@pytest.mark.parametrize('text', [
    'x' * 10**6, '9' * 10**6, ' ' * 10**6, '-' * 10**5, '(' * 10**5, r'\boxed{' + '(' * 10**5,
    r'\boxed{' * 10**5, r'\boxed{1},' * 10**5, r'\boxed{' + '{' * 10**6, 'answer is ' * 10**5,
    'the answer is $' * 10**5, '$' * 10**5, '####' * 10**5, '<think>' * 10**5, '<answer>' * 10**5,
    '1,' * 10**5, r'\(' * 10**5, 'answer' + ' ' * 10**6,
    '<answer>' + '**`_a ' * 10**5 + '</answer>',
    'answer: A' + ', ' * 10**5, 'answer is **' * 10**5,
], ids=lambda text: f'{text[:12]!r}')  # yapf: disable
def test_extraction_takes_linear_time(text):
  start = time.monotonic()
  math.extract(text)
  math.choice(Problem('', 'A'), Completion(text, 1, True))
  assert time.monotonic() - start < 5  # some 0.1 s; quadratic, minutes


@pytest.mark.parametrize('text', [
    '(' * 2000 + ')' * 2000, r'\frac{' * 800, r'\sqrt(' * 680, '1 ' * 2000, '1' + ' 000' * 1000,
    '1:' * 2000, 'a b ' * 1000, r'\text{' * 680, r'\text{ percent ' * 250, r'1{,}' * 1000,
    '1' + ' ' * 4000 + 'x', r'\pm' * 1300, r'\{' * 2000, '-' * 4000, r'\begin{pmatrix}' * 260,
    '1,' * 2000, r'^{\circ' * 500, 'x=' * 2000, '%' * 4000, r'\!' * 2000, '_1' * 2000,
], ids=lambda text: f'{text[:12]!r}')  # yapf: disable
def test_comparison_takes_little_time(text):
  start = time.monotonic()
  for gold in ('5', 'x^2+1', '(1,2)', r'\frac{1}{2}'):
    equal.verdict(gold, text)
    math._reasonable(equal.clean(gold), equal.clean(text))
  assert time.monotonic() - start < 5  # at most some 0.05 s each


@pytest.mark.parametrize('text', [
    'inf', 'nan', '-inf', '1e401', '1e99999999999', '٣', '5\0', '1/0', '\ud800', '५', '0x5', '5_0',
    '9' * 401
])
def test_what_is_no_number_is_none(text):
  assert equal.number(text) is None
  assert equal.verdict('5', text) is not True


def test_a_soak_in_small():
  done = subprocess.run([sys.executable, ROOT / 'benchmarks/graders.py', '--soak', '150'],
                        text=True, capture_output=True, check=False,
                        env={**os.environ, 'PYTHONPATH': str(ROOT)})
  assert done.returncode == 0 and not done.stderr, done.stderr
  found = json.loads(done.stdout)
  assert found['right'] + found['wrong'] + found['timeouts'] + found['errors'] == 150
  assert found['pool_alive'] and not found['leaked'] and found['timeouts'] <= 3
  assert found['worker_mb'] < 2100 and found['wrong'] > 100
