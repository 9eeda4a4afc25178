"""Code as an answer: what is taken from a completion, verdicts on it, and hostile programs.

Real programs run in the real sandbox. Where there is none the tests are skipped, but not in CI.
"""
import ast
import gzip
import json
import os
from pathlib import Path
import signal
import subprocess
import sys
import time

import attacks
import pytest

from r1jax.grading import code, sandbox
from r1jax.types import Completion, Problem, UserError

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get('R1JAX_DATA', ROOT.parent / 'shared/data'))
TRIPLE = Problem('', json.dumps(dict(before='', after=attacks.TESTS)), id='triple')


@pytest.fixture(scope='module')
def many():
  """A grader with a worker; skips where no sandbox runs, unless this is CI."""
  wrong = sandbox.probe()
  if wrong and os.environ.get('CI') != 'true':
    pytest.skip(wrong)
  assert not wrong, wrong
  return code.load(None, None, None, workers=1, seconds=20.0)


def graded(many, answer, program):
  answer = answer if isinstance(answer, str) else json.dumps(answer)
  return many([Problem('', answer, id='x')], [attacks.completion(program)])[0]


# -- what is taken from a completion ---------------------------------------------------------------

SOLUTION = '```python\ndef f(x):\n  return g(x)\n```\n'


@pytest.mark.parametrize('text, expected', [
    ('```python\nx = 1\n```', 'x = 1\n'),
    ('```python\na\n```\n```python\nb\n```\n```\nc\n```', 'b\n'),
    ('```\na\n```\nand\n```text\nb\n```', 'b\n'),
    ('```Python3 title\nb\n```', 'b\n'),
    ('```py\n    return x\n```', '    return x\n'),
    ('1. So:\n   ```python\n   def f():\n     pass\n   ```', 'def f():\n  pass\n'),
    ('```python\nx = """```"""\n```', 'x = """```"""\n'),
    ('```python\ncut off', 'cut off'),
    ('<think>```python\na\n```</think>```python\nb\n```', 'b\n'),
    ('<think>```python\na\n```', ''),
    ('<think>x</think><answer>```python\nb\n```</answer>', 'b\n'),
    ('    return x + 1\n', '    return x + 1\n'),
    ('x = int(input())\nprint(x)', 'x = int(input())\nprint(x)'),
    (f'{SOLUTION}Example usage:\n```python\nprint(f(3))\n```', 'def f(x):\n  return g(x)\n'),
    (f'{SOLUTION}```python\n>>> f(3)\n4\n```', 'def f(x):\n  return g(x)\n'),
    (f'{SOLUTION}So:\n```python\ndef f(x):\n  return 2\n```', 'def f(x):\n  return 2\n'),
    (f'{SOLUTION}```python\ndef test_f():\n  assert f(3)\n```',
     'def f(x):\n  return g(x)\n\ndef test_f():\n  assert f(3)\n'),
    (f'```python\ndef g(x):\n  return x\n```\n{SOLUTION}',
     'def g(x):\n  return x\n\ndef f(x):\n  return g(x)\n'),
    ('```python\nx = input()\n```\n```python\nprint(input())\n```', 'print(input())\n'),
    ('```python\nx = 1\n```' + ' ' * code.LONGEST, ''),
    ('I do not know.', ''),
    ('', ''),
])
def test_extract(text, expected):
  assert code.extract(text) == expected


def test_extract_is_quick_on_long_texts():
  start = time.perf_counter()
  for text in ('`' * 2**20, '```\n' * 2**18, ' ' * 2**20, '```py' * 2**18, '\n```' * 2**18,
               '```python\n' + ' ' * 2**20, '<think>' * 2**17 + '</think>', 'x =\n' * 2**18,
               '```' + 'a' * 2**19, '``` ' * 2**17, 'a' * 2**20, 'async ' * 2**17,
               '```python\ndef f(): f()\n```\n' * 2**15, '\t' * 2**19 + '\n```'):
    code.extract(text)
  assert time.perf_counter() - start < 5


# -- verdicts --------------------------------------------------------------------------------------


def test_what_the_tests_and_the_program_give_each_other(many):
  program = '''
import collections, enum
from dataclasses import dataclass
Pair = collections.namedtuple('Pair', 'a b')
class Number(enum.IntEnum):
  TWO = 2
@dataclass
class Node:
  value: 'int'
  left: object = None
def same(x): return x
def values(): return [collections.Counter('aab'), Pair(1, 2), Number.TWO, {1: {2}}, True, 10**5000]
def count(n):
  yield from range(n)
def depth(node): return 1 + depth(node.left) if node else 0
def bad(): raise KeyError('no')
def add(*args, **kwargs): return sum(args) + sum(kwargs.values())
'''
  tests = '''
import math
assert values() == [{'a': 2, 'b': 1}, (1, 2), 2, {1: {2}}, True, 10**5000]
assert type(values()[0]) is dict and type(values()[1]) is tuple
assert list(count(3)) == [0, 1, 2] and sum(count(4)) == 6
for x in (None, 1.5, -0.0, 1j, 'é\\ud800', b'x', (1, [2]), frozenset({3}), range(4), float('inf')):
  assert same(x) == x and type(same(x)) is type(x)
assert math.isnan(same(math.nan))
root = Node(1)
root.left = Node(2)
assert depth(root) == 2 and root.left.value == 2
assert same(root) != root and not same(root) == 2
assert add(1, 2, c=3) == 6
try:
  bad()
except KeyError:
  pass
else:
  assert False
'''
  assert graded(many, dict(before='', after=tests), program) == 1.0


@pytest.mark.parametrize('program, expected', [
    ('def triple(x):\n  return x + x + x', 1.0),
    ('def triple(x):\n  return x + x', 0.0),
    ('triple = lambda x: print(x) or float(3 * x)', 1.0),
    ('if __name__ == "__main__":\n  raise ValueError\ntriple = (3).__mul__', 1.0),
    ('def triple(x):\n  return 3 * x\nassert triple(1) == 4', 0.0),
    ('def triple(x):\n  return str(3 * x)', 0.0),
    ('import numpy as np\ndef triple(x):\n  return 3 * x', 0.0),
])
def test_a_verdict(many, program, expected):
  assert many([TRIPLE], [attacks.completion(program)]) == [expected]


def test_a_program_cannot_end_a_loop_of_the_tests(many):
  answer = dict(before='', after='assert all(map(even, [2, 4]))')
  assert graded(many, answer, 'def even(x):\n  raise StopIteration') == 0.0
  assert graded(many, answer, 'def even(x):\n  return x % 2 == 0') == 1.0


def test_code_goes_on_where_before_stops(many):
  answer = dict(before='def f(x):\n  """Twice x."""', after='assert f(4) == 8')
  assert graded(many, answer, '  return 2 * x') == 1.0
  assert graded(many, answer, 'def f(x):\n  return 2 * x') == 1.0
  assert graded(many, answer, '  return x') == 0.0


def test_the_tests_have_the_prompts_helpers_for_themselves(many):
  prompt = 'def helper(x):\n  return x + 1\n\n\ndef f(x):\n  """x."""\n'
  answer = code.from_check(prompt, 'def check(g):\n  assert helper(g(1)) == 2\n', 'f')
  assert graded(many, answer, '  return helper(x) - 1') == 1.0
  assert graded(many, answer, 'def helper(x):\n  return 2\ndef f(x):\n  return 9') == 0.0


def test_a_function_named_as_one_of_pythons(many):
  answer = code.from_asserts('', ['assert sum(10, 15) == 6'])
  assert graded(many, answer, 'def sum(a, b):\n  return 6') == 1.0
  assert graded(many, answer, 'def total(a, b):\n  return 6') == 0.0
  answer = code.from_asserts('', ['assert sum(f(2)) == 4'])
  assert graded(many, answer, 'def f(x):\n  return [x, x]') == 1.0
  assert graded(many, answer, 'def f(x):\n  return [0]\ndef sum(x):\n  return 4') == 0.0
  answer = code.from_check('def max(x):\n  """x."""\n', 'def check(f):\n  assert f([1]) == 1',
                           'max')
  assert graded(many, answer, '  return 0') == 0.0


@pytest.mark.parametrize('program, expected', [
    ('print(int(input()) + int(input()))', 1.0),
    ('import sys\nprint(sum(map(int, sys.stdin)), end="  \\n\\n")', 1.0),
    ('def main():\n  print(sum(map(int, open(0))))\nif __name__ == "__main__":\n  main()', 1.0),
    ('print(int(input()) + int(input()))\nraise SystemExit(1)', 0.0),
    ('print(3)', 0.0),
    ('print(int(input()) + int(input()), "\\nand more")', 0.0),
])
def test_programs_that_read_and_print(many, program, expected):
  cases = [dict(input='1\n2\n', output='3\n'), dict(input='-1\n-4', output='-5')]
  assert graded(many, dict(cases=cases), program) == expected


def test_a_verdict_does_not_depend_on_the_hash_seed(many):
  cases = dict(cases=[dict(input='', output='x')])
  program = 'print("x" if list({"a", "b", "c", "d"}) == ["%s"] else "y")'
  order = subprocess.run([sys.executable, '-c', 'print(*{"a", "b", "c", "d"}, sep=\'", "\')'],
                         env={'PYTHONHASHSEED': '0'}, capture_output=True, text=True, check=True)
  assert graded(many, cases, program % order.stdout.strip()) == 1.0


def test_equal_programs_run_once_and_order_is_kept(many, monkeypatch):
  runs = []
  monkeypatch.setattr(sandbox, 'run', lambda *args: runs.append(args) or real(*args))
  texts = ['x = 1', attacks.RIGHT, 'x = 1', attacks.RIGHT, 'no code']
  completions = [*map(attacks.completion, texts[:4]), Completion('no code', 1, True)]
  assert many([TRIPLE] * 5, completions) == [0, 1, 0, 1, 0]
  assert len(runs) == 2


real = sandbox.run


@pytest.mark.parametrize('answer', [
    '', '7', '{"before": ""}', '{"before": 1, "after": ""}', '{"cases": []}', '{"cases": [{}]}',
    '{"cases": [{"input": 1, "output": ""}]}', '{"cases": 3}', '{"before": "", "after": "x ="}',
    '{"before": "", "after": "triple(lambda x: x)"}'
])  # yapf: disable
def test_a_malformed_answer_is_an_error_that_names_the_problem(many, answer):
  broken = Problem('', answer, id='set/7')
  found = many([broken, TRIPLE], [attacks.completion(attacks.RIGHT)] * 2)
  assert isinstance(found[0], ValueError) and 'problem set/7' in str(found[0])
  assert found[1] == 1.0


# -- real problems ---------------------------------------------------------------------------------


def rows(path):
  if not (DATA / path).exists():
    pytest.skip(f'{DATA / path} is not there: R1JAX_DATA names the folder of the data sets')
  with (gzip.open if path.endswith('.gz') else open)(DATA / path, 'rt', encoding='utf-8') as f:
    return [json.loads(line) for line in f]


def returns_none(program):
  """The program with every function returning None at once."""
  tree = ast.parse(program)
  for node in ast.walk(tree):
    if isinstance(node, ast.FunctionDef):
      node.body = [ast.Return(ast.Constant(None))]
  return ast.unparse(ast.fix_missing_locations(tree))


def check_rows(many, answers, programs):
  problems = [Problem('', answer, id=str(i)) for i, answer in enumerate(answers)]
  assert many(problems, [attacks.completion(x) for x in programs]) == [1.0] * len(problems)
  wrong = [attacks.completion(returns_none(x)) for x in programs]
  assert many(problems, wrong) == [0.0] * len(problems)


def test_mbpp(many):
  chosen = [row for row in rows('mbpp/all.jsonl.gz') if row['task_id'] in (1, 126, 367, 590, 927)]
  answers = [code.from_asserts(row['test_setup_code'], row['test_list']) for row in chosen]
  check_rows(many, answers, [row['code'] for row in chosen])


def test_humaneval(many):
  chosen = [
      row for row in rows('humaneval/test.jsonl') if row['id'][10:] in ('0', '32', '38', '50')
  ]
  answers = [code.from_check(row['prompt'], row['test'], row['entry_point']) for row in chosen]
  check_rows(many, answers, [row['prompt'] + row['canonical_solution'] for row in chosen])
  bodies = [attacks.completion(row['canonical_solution']) for row in chosen]
  assert many([Problem('', x) for x in answers], bodies) == [1.0] * len(chosen)


# -- attacks ---------------------------------------------------------------------------------------

ATTACKS = [
    (kind, name) for kind in ('ESCAPES', 'FLOODS', 'FORGERIES') for name in getattr(attacks, kind)
]


@pytest.fixture(scope='module')
def verdicts(many, tmp_path_factory):
  """{(kind, name): verdict} of every attack, and what was found to be wrong after each kind."""
  found, wrong = {}, {}
  with attacks.world(tmp_path_factory.mktemp('world')) as (facts, after):
    for kind in ('ESCAPES', 'FLOODS', 'FORGERIES'):
      programs = getattr(attacks, kind)
      seconds = 1.0 if kind == 'FLOODS' else 20.0
      grader = code.load(None, None, None, workers=8, seconds=seconds)
      asked = [attacks.attack(programs, name, facts) for name in programs]
      found |= {(kind, name): x for name, x in zip(programs, grader(*zip(*asked)), strict=True)}
      wrong[kind] = after()
  return found, wrong


@pytest.mark.parametrize('kind, name', ATTACKS)
def test_an_attack_is_contained(verdicts, kind, name):
  verdict = verdicts[0][kind, name]
  if kind == 'ESCAPES':
    assert verdict == 1.0  # it went through to its end, and nothing had given way
  else:
    assert verdict == 0.0 or isinstance(verdict, TimeoutError)


@pytest.mark.parametrize('kind', ['ESCAPES', 'FLOODS', 'FORGERIES'])
def test_nothing_was_reached_and_nothing_is_left(verdicts, kind):
  assert verdicts[1][kind] == []


def test_the_forgeries_would_count_if_they_were_right(many):
  assert many([TRIPLE], [attacks.completion(attacks.HEAD + attacks.RIGHT)]) == [1.0]


def test_hostile_completions_in_small(many, tmp_path):
  with attacks.world(tmp_path) as (facts, after):
    asked = list(attacks.hostile(40, seed=1, facts=facts))
    grader = code.load(None, None, None, workers=8, seconds=2.0)
    problems, completions, expected = zip(*asked)
    for x, right in zip(grader(problems, completions), expected, strict=True):
      assert x in right or type(x) in right
    assert after() == []
  assert many([TRIPLE], [attacks.completion(attacks.RIGHT)]) == [1.0]


@pytest.mark.parametrize('workers, apart', [(2, 1951), (16, 215)])
def test_processes_side_by_side_run_programs_as_other_users(monkeypatch, workers, apart):
  users = []
  for pid in range(70_000, 70_000 + apart):
    monkeypatch.setattr(os, 'getpid', lambda: pid)
    users.append({sandbox.user(worker) for worker in range(workers)})
  assert all(len(found) == workers and found <= set(sandbox.USERS) for found in users)
  assert not any(users[0] & found for found in users[1:])


def test_a_killed_grader_leaves_nothing(many):
  program = ('from r1jax.grading import sandbox\nimport os\nprint(sandbox.user(0), flush=True)\n'
             'sandbox.run("judge", ("import time\\ntime.sleep(60)", ""), 60.0)')
  env = {**os.environ, 'PYTHONPATH': str(ROOT)}
  process = subprocess.Popen([sys.executable, '-c', program], stdout=subprocess.PIPE, env=env)
  users = {int(process.stdout.readline())}
  deadline = time.monotonic() + 20
  while len(attacks.leaked(0.0, users)) < 3:
    assert time.monotonic() < deadline and process.poll() is None
    time.sleep(0.05)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  assert attacks.leaked(5.0, users) == []


# -- a machine without a sandbox -------------------------------------------------------------------


def test_it_refuses_to_start_without_bubblewrap(monkeypatch, tmp_path):
  monkeypatch.setenv('PATH', str(tmp_path))
  with pytest.raises(UserError, match='bwrap is not there: install bubblewrap'):
    code.load(None, None, None)


@pytest.mark.parametrize('options, hole', [
    (['--share-net'], 'can be reached'), (['--ro-bind', '/etc', '/etc'], '/etc/passwd can be read'),
    (['--no-such-option'], 'did not start.*no-such-option')])  # yapf: disable
def test_it_refuses_a_sandbox_with_a_hole(many, monkeypatch, options, hole):

  def leaky(*args):
    command = bubblewrap(*args)
    place = command.index('--unshare-all') + 1
    return command[:place] + options + command[place:]

  bubblewrap = sandbox.bubblewrap
  monkeypatch.setattr(sandbox, 'bubblewrap', leaky)
  with pytest.raises(UserError, match=hole):
    code.load(None, None, None)


def test_trust_is_loud_and_grades(capfd):
  many = code.load(None, None, None, seconds=20.0, trust=True)
  assert 'WITHOUT A SANDBOX' in capfd.readouterr().err
  right, wrong = map(attacks.completion, (attacks.RIGHT, 'def triple(x):\n  return x'))
  assert many([TRIPLE] * 2, [right, wrong]) == [1.0, 0.0]
