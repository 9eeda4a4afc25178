"""What grading costs, and whether it holds against answers made to break it.

  python benchmarks/graders.py --math [--data FOLDER]    seconds of a check that needs algebra
  python benchmarks/graders.py --soak [N] [--seed S]     N hostile completions, 10,000 if not said

FOLDER holds math/train.jsonl.gz, as R1JAX_DATA does. Both print a line of JSON.
"""
import argparse
import collections
import gzip
import json
import os
from pathlib import Path
import random
import resource
import time

from r1jax.grading import equal
from r1jax.grading import math as grader
from r1jax.types import Completion, Problem

WORKERS = 2

# -- hostile completions ---------------------------------------------------------------------------

GOLDS = ('5', r'\frac{1}{2}', '2\\sqrt{3}', 'x^2+1', '(1,2)', '[0,1)', 'x=2', '10^{100}', r'50\%',
         r'\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}', '-1,1', r'\frac{\pi}{6}', 'Evelyn', 'B',
         r'\sum_{k=1}^{n} a_k', 'n!', r'(-\infty,1)\cup(3,\infty)', '2^{2009}-1', '3:5')
# Each is repeated, cut, mixed with others and put into a box.
SEEDS = (
    '9^{9^{9^{9}}}', '2^{10^9}', '10^{-10^{9}}', '(10^9)!', '((10^9)!)!', '170!!', 'x^{x^{x^{x}}}',
    r'\binom{10^9}{5\cdot 10^8}', r'\sum_{k=1}^{10^9} k^k', r'\prod_{k=1}^{\infty} k',
    '(x+1)^{300}', r'\int_0^{10^9} e^{x^x} dx', r'\lim_{n\to\infty} n^n', '(x+y+z+w+1)^{199}',
    r'\sqrt[10^9]{2}', r'\left(\begin{matrix} x & 1 \\ y & z \end{matrix}\right)^{50}',
    r'\sin(10^{10^{10}})', r'\frac{x^{99}-1}{(x-1)(x^2+3)^{40}}',
    r'\sqrt{2+\sqrt{3+\sqrt{5+\sqrt{x}}}}', r'\log_{2}(\log_{2}(2^{2^{9999}}))', '1e400', '-1e-400',
    'inf', '-inf', 'nan', r'\frac{1}{0}', '0/0', '٣', '५.५', '\u202e5', '½½', '\ud800', '\0',
    '\x07\x1b[2J', '\ufffe', '5' + '\u0301', '__import__("os").system("kill 1")', 'lambda: 0',
    '{{{', r'\{1,2,3', r'\frac{', r'\sqrt{', r'\left(', r'\text{', r'\begin{pmatrix}',
    r'\end{array}', r'\boxed{', '</think>', '<answer>', '</answer>', '####', 'answer is ', '答案是',
    '$', '$$', '\\', r'\\', r'\(', r'\[', '&', '%', '|', '||', '_', '^', '(', ')', '[', '{', '}',
    '-', '+', '*', '/', '=', '<', ':', ',', '.', '!', '1', '9', '0.3', '1,', '1+', 'x', 'x+', '(x',
    '-(', '3^', 'x_{', r'\pm ', r'\cup ', r'\in ', '5 cm ', r'\quad and ', ' ', '\n', '\t', 'e',
    r'\pi', 'i', '1 000 ', '1 1/2 ', '12:', '2_', r'\cdot ', '√', '²', '５',
)  # yapf: disable
FRAMES = (r'\boxed{%s}', r'<think>a</think> <answer>%s</answer>', 'The answer is $%s$.', '%s',
          'So\n#### %s', r'$\boxed{%s', r'\boxed{1}, %s \boxed{2}')


def hostile(rng: random.Random) -> str:
  """A completion out of SEEDS: mixed, repeated, cut and framed."""
  pieces = []
  for _ in range(rng.choice((1, 1, 2, 3, 5))):
    times = rng.choice((1, 1, 1, 2, 5, int(10**rng.uniform(0, 3)), int(10**rng.uniform(0, 5))))
    pieces.append(rng.choice(SEEDS) * times + rng.choice(('', '', '+', ',', ' ')))
  body = ''.join(pieces)
  for _ in range(rng.choice((0, 0, 1, 3))):
    at = rng.randrange(len(body) + 1)
    body = body[:at] + rng.choice(('', chr(rng.randrange(0x3000)), '1', '{', ')')) + body[at + 1:]
  if rng.random() < 0.2:  # something readable around it
    body = rng.choice(('x+%s', '%s=5', '(1,%s)', r'\frac{%s}{2}')).replace('%s', body)
  return rng.choice(FRAMES).replace('%s', body)


def soak(number: int, seed: int = 0) -> dict:
  """Grades so many hostile completions and counts what came of them."""
  rng = random.Random(seed)
  many = grader.load(None, None, None, workers=WORKERS)
  before, start = _workers(), time.monotonic()
  counts, slowest = collections.Counter(), 0.0
  for i in range(0, number, 100):
    group = range(min(100, number - i))
    problems = [Problem('', rng.choice(GOLDS)) for _ in group]
    texts = [hostile(rng) for _ in group]
    began = time.monotonic()
    for x in many(problems, [Completion(text, 1, True) for text in texts]):
      counts['timeouts' if isinstance(x, TimeoutError) else
             'errors' if isinstance(x, Exception) else 'right' if x else 'wrong'] += 1
    slowest = max(slowest, time.monotonic() - began)
  alive = many([Problem('', r'\sqrt{8}')], [Completion(r'\boxed{2\sqrt{2}}', 1, True)]) == [1.0]
  many.args[0].close()
  return dict(completions=number, right=counts['right'], wrong=counts['wrong'],
              timeouts=counts['timeouts'], errors=counts['errors'],
              seconds=round(time.monotonic() - start, 1), slowest_hundred=round(slowest, 1),
              worker_mb=resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10,
              own_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
              pool_alive=alive, leaked=len(_workers() - before))  # yapf: disable


def _workers():
  """Process ids of all grading workers that are this process's, or nobody's."""
  found = set()
  for path in Path('/proc').glob('[0-9]*'):
    try:
      parent = int(path.joinpath('stat').read_text().rpartition(')')[2].split()[1])
      if parent in (1, os.getpid()) and b'r1jax.grading' in path.joinpath('cmdline').read_bytes():
        found.add(path.name)
    except OSError:  # it has ended
      pass
  return found


# -- the cost of a check ---------------------------------------------------------------------------


def math(data: Path, number: int = 1000) -> dict:
  """What checks that need algebra cost: MATH's answers against another one of theirs, or against
  the same in another form. Wall time over all workers, and CPU time of them together, in the
  first half and in the second; the time of one check asked alone. The workers' start apart."""
  with gzip.open(data / 'math/train.jsonl.gz', 'rt', encoding='utf-8', newline='\n') as file:
    golds = sorted({json.loads(line)['answer'] for line in file})
  random.Random(0).shuffle(golds)
  forms = (golds[1:], [f'{gold}+0' for gold in golds],
           [rf'\frac{{2({gold})}}{{2}}' for gold in golds])
  pairs = [(gold, form[i]) for i, gold in enumerate(golds[:-1]) for form in forms]
  random.Random(1).shuffle(pairs)
  pairs = [pair for pair in pairs if equal.verdict(*pair) is None][:number]
  problems = [Problem('', gold) for gold, _ in pairs]
  completions = [Completion(rf'\boxed{{{found}}}', 1, True) for _, found in pairs]
  warm = [Problem('', f'x+{i}') for i in range(4 * WORKERS)]
  ask = [Completion(rf'\boxed{{{i}+x}}', 1, True) for i in range(4 * WORKERS)]

  half = number // 2
  seconds, cpu = [], []
  for end in (0, half, number):  # the start; then while the grammar's caches fill; then the rest
    many, start, before = grader.load(None, None, None, workers=WORKERS), time.monotonic(), _cpu()
    many(warm, ask)
    scores = many(problems[:half][:end], completions[:half][:end])
    scores += many(problems[half:end], completions[half:end])
    seconds.append(time.monotonic() - start)
    many.args[0].close()
    cpu.append(_cpu() - before)
  alone, many = [], grader.load(None, None, None, workers=1)
  many(warm, ask)
  for problem, completion in zip(problems, completions):
    start = time.monotonic()
    many([problem], [completion])
    alone.append(1000 * (time.monotonic() - start))
  alone.sort()
  each = lambda pair: [round(1000 * (b - a) / half, 2) for a, b in zip(pair, pair[1:])]
  return dict(checks=len(pairs), right=scores.count(1.0), wrong=scores.count(0.0),
              failed=len(scores) - scores.count(1.0) - scores.count(0.0), ms_a_check=each(seconds),
              cpu_ms_a_check=each(cpu), start_seconds=round(seconds[0], 2),
              **{f'alone_ms_p{p}': round(alone[len(alone) * p // 100], 2)
                 for p in (50, 90, 99)})  # yapf: disable


def _cpu():
  """CPU seconds of the workers that have ended."""
  used = resource.getrusage(resource.RUSAGE_CHILDREN)
  return used.ru_utime + used.ru_stime


def main():
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--math', action='store_true', help='the cost of a check')
  parser.add_argument('--data', type=Path, default=os.environ.get('R1JAX_DATA'))
  parser.add_argument('--soak', type=int, nargs='?', const=10_000, help='hostile completions')
  parser.add_argument('--seed', type=int, default=0)
  args = parser.parse_args()
  if args.math:
    if not args.data:
      parser.error('--math needs --data FOLDER, or R1JAX_DATA, with math/train.jsonl.gz')
    print(json.dumps(math(args.data)))
  if args.soak:
    print(json.dumps(soak(args.soak, args.seed)))


if __name__ == '__main__':
  main()
