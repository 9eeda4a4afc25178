"""Programs as answers: taken out of a completion, run against tests in a sandbox.

A problem's answer is JSON, one of

  {"before": text, "after": text}   The program is before + newline + the completion's code, so that
      the code may go on where `before` stops. `after` tests it and must run to its end without an
      exception. It is complete by itself: each name that it does not define is the program's.
      What the tests give to the program and get from it is plain data (numbers, strings, lists,
      dicts and so on, subclasses of them as what they extend); all else only has attributes, can be
      called, iterated and handed back, and is equal to nothing.
  {"cases": [{"input": text, "output": text}, ...]}   The code reads stdin and prints. Its output
      has to be the given one, white space aside.

MBPP's rows become such an answer by `from_asserts`, HumanEval's by `from_check`. A program has the
standard library and the limits of `sandbox`.
"""
import ast
import builtins
from concurrent import futures
import io
import json
import queue
import re
import sys
import textwrap
from typing import Callable, Sequence

from r1jax import prompts
from r1jax.grading import sandbox
from r1jax.types import Completion, Problem, UserError

LONGEST = 1 << 20  # characters of a completion; a longer one has no code
_FENCE = re.compile(r'([ \t]*)```[ \t]*(\w*)')
_DEFINED = re.compile(r'^(?:async +)?(?:def|class) +(\w+)', re.M)
_NAME = re.compile(r'[^\W\d]\w*')
_CODE = re.compile(r'^[ \t]*(?:(?:def|class|import|from|return|for|while|if|print)\b|\w+ *=)', re.M)
_SHADOW = '__builtins__.pop({!r})'  # what the tests do not define is the program's


def from_asserts(setup: str, tests: Sequence[str]) -> str:
  """The answer of a row of MBPP: test_setup_code, and test_list with challenge_test_list or
  without. The setup runs after the program, whose classes it may use. Where the tests name nothing
  but Python's own functions, it is the program's that they mean (`sum` of mbpp/126)."""
  after = '\n'.join([setup, *tests])
  nodes = list(ast.walk(ast.parse(after)))
  names = {x.id for x in nodes if isinstance(x, ast.Name)}
  called = {x.func.id for x in nodes if isinstance(x, ast.Call) and isinstance(x.func, ast.Name)}
  theirs = sorted(called) if names <= set(dir(builtins)) else []
  return json.dumps(dict(before='', after='\n'.join([*map(_SHADOW.format, theirs), after])))


def from_check(prompt: str, test: str, entry_point: str) -> str:
  """The answer of a row of HumanEval, whose prompt ends in a function's head and docstring and
  whose test defines check(candidate).

  The completion's code may be that function's body, indented, or the whole function anew. What the
  prompt defines before it, the tests have for themselves.
  """
  own = [x for x in ast.parse(prompt).body if getattr(x, 'name', '') != entry_point]
  theirs = [_SHADOW.format(entry_point)] if hasattr(builtins, entry_point) else []
  after = [*theirs, *map(ast.unparse, own), test, f'check({entry_point})']
  return json.dumps(dict(before=prompt, after='\n'.join(after)))


def extract(text: str) -> str:
  """The code of a completion; '' where there is none, or the completion is longer than LONGEST.

  It comes from the fenced blocks of the summary, only those that say python where one does; without
  any it is all of the summary if some line looks like code. Of several blocks it is the last one
  that defines a function or a class, after those before it that define what it uses: so examples
  that follow are not run, helpers and what tests are about are there, and a correction replaces
  what it corrects. Where no block defines anything it is the last.
  """
  summary = prompts.summary(text) or ''
  if len(text) > LONGEST:
    return ''
  found = blocks(summary)
  if found:
    return _joined([code for name, code in found if name.lower().startswith('py')] or
                   [code for _, code in found])
  whole = text if text.strip() == summary else summary
  return whole if _CODE.search(whole) else ''


def blocks(text: str) -> list[tuple[str, str]]:
  """(language, code) of each fenced block. One that never closes goes to the end. Indentation is
  kept, except a fence's own."""
  out, opening, inside = [], None, []
  for line in [*io.StringIO(text), '```']:  # split at line feeds only; the last one closes
    fence = _FENCE.match(line)
    if opening and fence:
      code = ''.join(inside)
      out.append((opening[2], textwrap.dedent(code) if opening[1] else code))
      opening = None
    elif opening:
      inside.append(line)
    elif fence and line.endswith('\n'):
      opening, inside = fence, []
  return out


def _joined(codes):
  """The last of them that defines something, after those before it that define what it uses."""
  names = [set(_DEFINED.findall(code)) for code in codes]
  last = max((i for i, found in enumerate(names) if found), default=len(codes) - 1)
  out, defined, used = [codes[last]], names[last], set(_NAME.findall(codes[last]))
  for i in reversed(range(last)):
    if (names[i] - defined) & used:
      out.append(codes[i])
      defined |= names[i]
      used.update(_NAME.findall(codes[i]))
  return '\n'.join(reversed(out))


def load(machine, mesh, tokenizer, workers: int = 2, seconds: float = 10.0,
         trust: bool = False) -> Callable:
  """many(problems, completions) -> for each 1.0 where the program passes every test, else 0.0; or
  the exception that kept it from a verdict.

  The exceptions: TimeoutError, sandbox.Failure, and ValueError where the answer is malformed or
  the tests are at fault. Equal programs with equal tests run once a call.

  Args:
    machine, mesh, tokenizer: not used; what every `Reward.load` gets.
    workers: programs that run side by side.
    seconds: of wall-clock for all that one completion is tested with, and of CPU time.
    trust: run what the model wrote without a sandbox, as this process's user, under limits alone.

  Raises:
    UserError: there is no working sandbox here.
  """
  del machine, mesh, tokenizer
  if trust:
    print(
        'r1jax: WARNING: code that a model wrote runs WITHOUT A SANDBOX, with all that this user '
        'may do (trust=True).', file=sys.stderr)
  else:
    wrong = sandbox.probe()
    if wrong:
      raise UserError(f'the code reward runs programs in a sandbox, and here {wrong}; or, where '
                      'the machine may be lost, pass trust=True')
  pool, users = futures.ThreadPoolExecutor(workers), queue.SimpleQueue()
  for worker in range(workers):
    users.put(worker)

  def verdict(job):
    worker = users.get()
    try:
      return grade(job, seconds, worker, trust)
    except Exception as error:  # of one program's, and a verdict as good as others
      return error
    finally:
      users.put(worker)

  def many(problems: Sequence[Problem], completions: Sequence[Completion]) -> list:
    jobs = [(x.answer, x.id, extract(y.text)) for x, y in zip(problems, completions, strict=True)]
    found = {job: pool.submit(verdict, job) for job in dict.fromkeys(jobs)}
    return [found[job].result() for job in jobs]

  return many


def grade(job: tuple[str, str, str], seconds: float, worker: int, trust: bool) -> float:
  """The verdict on (answer, problem's id, code), for `load`; raises what keeps it from one."""
  answer, name, code = job
  before, after, cases = parse(answer, name)
  if not code.strip():
    return 0.0
  if after is not None:
    lines = sandbox.run('judge', (f'{before}\n{code}', after), seconds, worker, trust)
  else:
    lines = sandbox.run('feed', (code, [x for x, _ in cases]), seconds, worker, trust)
  if lines[0].startswith('error'):
    raise ValueError(f'problem {name}: {lines[0]}')
  if lines[0] != 'passed' or after is not None:
    return float(lines[0] == 'passed')
  outputs = [bytes.fromhex(line).decode('utf-8', 'replace') for line in lines[1:]]
  return float([x.split() for x in outputs] == [y.split() for _, y in cases])


def parse(answer: str, name: str) -> tuple[str | None, str | None, list | None]:
  """(before, after, None) or (None, None, [(input, output)]) of a problem's answer; ValueError
  where it is neither."""
  try:
    match json.loads(answer):
      case {'before': str(before), 'after': str(after)}:
        return before, after, None
      case {'cases': [_, *_] as cases}:
        pairs = [(case['input'], case['output']) for case in cases]
        if all(isinstance(x, str) for pair in pairs for x in pair):
          return None, None, pairs
  except (ValueError, TypeError, KeyError):
    pass
  raise ValueError(f'problem {name}: its answer is neither {{"before": text, "after": text}} nor '
                   f'{{"cases": [{{"input": text, "output": text}}, ...]}}: {answer[:80]!r}')
