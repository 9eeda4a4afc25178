"""What the code grader says of programs that are known to be right, wrong or hostile, and its cost.

  python benchmarks/code_grader.py --data FOLDER [--workers 2]
  python benchmarks/code_grader.py --soak 10000 [--seed 0] [--workers 2]

FOLDER holds mbpp/all.jsonl.gz and humaneval/test.jsonl. The first form grades every canonical
solution (HumanEval's as a body and as a whole function), then mutants of them: every function
returns None, an integer constant is one larger, an operator is another. A mutant that survives is
either the same function or one that the set's tests do not tell apart. Then the attacks of
tests/attacks.py run. The second form grades so many hostile completions, with a deadline of 1 s.
"""
import argparse
import ast
import collections
import gzip
import itertools
import json
import os
from pathlib import Path
import random
import sys
import tempfile
import time

from r1jax.grading import code
from r1jax.types import Problem

sys.path.append(str(Path(__file__).parents[1] / 'tests'))
import attacks  # noqa: E402

OTHER = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult, ast.Lt: ast.GtE, ast.LtE: ast.Gt, ast.Gt: ast.LtE, ast.GtE: ast.Lt,
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.And: ast.Or, ast.Or: ast.And,
}  # yapf: disable


def problems(folder: Path):
  """(problem, program of a whole function) of every row of MBPP and HumanEval."""
  with gzip.open(folder / 'mbpp/all.jsonl.gz', 'rt', encoding='utf-8') as f:
    for row in map(json.loads, f):
      tests = row['test_list'] + row['challenge_test_list']
      answer = code.from_asserts(row['test_setup_code'], tests)
      yield Problem('', answer, id=row['id']), row['code']
  with open(folder / 'humaneval/test.jsonl', encoding='utf-8') as f:
    for row in map(json.loads, f):
      answer = code.from_check(row['prompt'], row['test'], row['entry_point'])
      yield Problem('', answer, id=row['id']), row['prompt'] + row['canonical_solution']


def bodies(folder: Path):
  """(problem, body of the function alone) of every row of HumanEval."""
  with open(folder / 'humaneval/test.jsonl', encoding='utf-8') as f:
    for row in map(json.loads, f):
      answer = code.from_check(row['prompt'], row['test'], row['entry_point'])
      yield Problem('', answer, id=row['id']), row['canonical_solution']


def mutants(program: str, rng: random.Random):
  """(kind, mutant) of a program, one of each kind that it has a place for."""
  tree = ast.parse(program)
  for node in ast.walk(tree):
    if isinstance(node, ast.FunctionDef):
      node.body = [ast.Return(ast.Constant(None))]
  yield 'returns None', ast.unparse(ast.fix_missing_locations(tree))
  tree = ast.parse(program)
  places = [x for x in ast.walk(tree) if isinstance(x, ast.Constant) and type(x.value) is int]
  if places:
    rng.choice(places).value += 1
    yield 'constant + 1', ast.unparse(tree)
  tree = ast.parse(program)
  places = [x for x in ast.walk(tree) if type(getattr(x, 'op', None)) in OTHER]
  places += [x for x in ast.walk(tree) if isinstance(x, ast.Compare) and type(x.ops[0]) in OTHER]
  if places:
    place = rng.choice(places)
    if isinstance(place, ast.Compare):
      place.ops[0] = OTHER[type(place.ops[0])]()
    else:
      place.op = OTHER[type(place.op)]()
    yield 'other operator', ast.unparse(tree)


def kind_of(verdict) -> str:
  """1, 0, or the exception's name."""
  return type(verdict).__name__ if isinstance(verdict, Exception) else f'{verdict:g}'


def grade(name, many, pairs):
  """Prints the verdicts' counts and the cost, and returns the verdicts."""
  start = time.perf_counter()
  found = many([x for x, _ in pairs], [attacks.completion(y) for _, y in pairs])
  seconds = time.perf_counter() - start
  counts = dict(collections.Counter(map(kind_of, found)))
  print(f'{name:32} {len(pairs):5} programs {seconds / len(pairs) * 1e3:6.1f} ms each  {counts}',
        flush=True)
  return found


def main():
  """Measures and prints."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--data', type=Path, default=os.environ.get('R1JAX_DATA'))
  parser.add_argument('--workers', type=int, default=2)
  parser.add_argument('--soak', type=int, default=0, help='hostile completions, and nothing else')
  parser.add_argument('--seed', type=int, default=0)
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder, attacks.world(Path(folder)) as (facts, after):
    if args.soak:
      soak(args, facts)
    else:
      if not args.data:
        parser.error('--data FOLDER (or R1JAX_DATA) names the folder of the data sets')
      measure(args, facts)
    print('left or reached:', after() or 'nothing')


def measure(args, facts):
  """Canonical solutions, mutants, attacks."""
  many = code.load(None, None, None, workers=args.workers)
  right = list(problems(args.data))
  grade('canonical, whole functions', many, right)
  grade('canonical, bodies', many, list(bodies(args.data)))
  rng, wrong = random.Random(args.seed), collections.defaultdict(list)
  for problem, program in right:
    for kind, mutant in mutants(program, rng):
      wrong[kind].append((problem, mutant))
  quick = code.load(None, None, None, workers=args.workers, seconds=3.0)  # many now loop for ever
  for kind, pairs in wrong.items():
    found = grade(f'mutants: {kind}', quick, pairs)
    print('  survive:', *(p.id for (p, _), x in zip(pairs, found) if x == 1.0))
  for kind in ('ESCAPES', 'FLOODS', 'FORGERIES'):
    programs = getattr(attacks, kind)
    asked = [attacks.attack(programs, name, facts) for name in programs]
    found = (many if kind == 'ESCAPES' else quick)(*zip(*asked))
    print(f'{kind}: {len(asked)} attacks, {dict(collections.Counter(map(kind_of, found)))}')


def soak(args, facts):
  """Hostile completions: the verdicts, those that were not to be expected, and the time."""
  many = code.load(None, None, None, workers=args.workers, seconds=1.0)
  asked, counts, start = attacks.hostile(args.soak, args.seed, facts), collections.Counter(), 0
  begun = time.perf_counter()
  while start < args.soak:
    batch = list(itertools.islice(asked, 200))
    texts, completions, expected = zip(*batch)
    for text, x, right in zip(texts, many(texts, completions), expected):
      counts[kind_of(x)] += 1
      if x not in right and type(x) not in right:
        counts['unexpected'] += 1
        print(f'unexpected: {text.id}: {x!r}')
    start += len(batch)
    seconds = time.perf_counter() - begun
    print(f'{start} hostile completions, {seconds:.0f} s, {dict(counts)}', flush=True)


if __name__ == '__main__':
  main()
