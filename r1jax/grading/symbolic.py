"""What a worker of the pool does: math-verify's verdict on two answers, within bounds.

math-verify reads LaTeX with a grammar, and compares with sympy. Only these are used: its reader of
plain expressions evaluates Python, and its search for answers in texts is not needed here.
"""
import functools
import math

from antlr4.atn.PredictionMode import PredictionMode
from latex2sympy2_extended import latex2sympy2, math_normalization
import math_verify
import sympy

from r1jax.grading import equal

MAX_DIGITS = 20_000  # of any number that an answer would have to be evaluated to
MAX_POWER = 200  # of a sum with variables
# Units are not left to it: of '3+2t' it would take the t for tonnes.
_NORMAL = math_normalization.NormalizationConfig(basic_latex=True, units=False, nits=True,
                                                 malformed_operators=True, boxed='none',
                                                 equations=False)


class TooLarge(ValueError):
  """Evaluating the answer would take numbers beyond the bounds."""


def check(pair: list[str]) -> bool:
  """Whether the second of two cleaned texts means the same as the first, the reference. An answer
  that cannot be read, or is beyond the bounds, does not."""
  reference, answer = map(_parse, pair)
  if reference is None or answer is None:
    return False
  try:
    _digits(answer)
  except TooLarge:
    return False
  reference, answer = (_union(_plain(x)) for x in (reference, answer))
  if isinstance(reference, sympy.Symbol) and isinstance(answer, sympy.Expr):
    answer = answer.doit()  # n + 0 is n, which math-verify compares as names
  if _differ(reference, answer) or _false(answer):
    return False
  if sympy.S.EmptySet in (reference, answer):  # an equation without solutions is another answer
    return reference == answer
  same = math_verify.verify(reference, answer, allow_set_relation_comp=True, timeout_seconds=None)
  return same and not _without_solution(reference, answer)


@functools.lru_cache(4096)
def _parse(text):
  """A sympy object, or None."""
  exact = equal.number(text)
  if exact and not exact.step and not exact.percent:
    return sympy.Rational(exact.value)  # the grammar takes milliseconds
  text = math_normalization.normalize_latex(text, _NORMAL)
  found = _read(text)
  if found is None and text.count('=') > 1 and ',' not in text:  # what a chain ends in
    found = _read(text.rpartition('=')[2])
  return found


def _read(text):
  # The fast prediction fails on some of what the grammar allows, and is right where it does not:
  # ANTLR's two stages.
  for mode in (PredictionMode.SLL, PredictionMode.LL):
    try:
      return _Reader(mode).parse(text)
    except MemoryError:
      raise
    except Exception:  # its own, sympy's, and those of a hostile text
      pass
  return None


class _Reader(latex2sympy2._Latex2Sympy):
  """math-verify's reader of LaTeX with real variables and another mode of prediction."""

  def __init__(self, mode):
    super().__init__(is_real=True)
    self.mode = mode

  def create_parser(self, latex_str):
    parser = super().create_parser(latex_str)
    parser._interp.predictionMode = self.mode
    return parser


def _plain(x):
  """With i the imaginary unit."""
  if isinstance(x, sympy.Eq) and isinstance(x.lhs, sympy.Expr) and isinstance(x.rhs, sympy.Expr):
    return sympy.Eq(_plain(x.lhs), _plain(x.rhs), evaluate=False)
  unit = sympy.Symbol('i', real=True)
  return x.xreplace({unit: sympy.I}) if isinstance(x, (sympy.Expr, sympy.MatrixBase)) else x


def _union(x):
  """Of inequalities that exclude one another, such as x < 1 or x > 2, the set that solves one."""
  if not isinstance(x, sympy.FiniteSet) or len(x) < 2 or len(x.free_symbols) != 1:
    return x
  if not all(isinstance(y, (sympy.core.relational.Relational, sympy.And)) for y in x):
    return x
  try:
    found = [y.as_set() for y in x]
  except (NotImplementedError, TypeError, ValueError, AttributeError):
    return x
  return x if sympy.Intersection(*found) else sympy.Union(*found)


def _digits(x) -> float:
  """About how many digits the value of an expression has, with 1 for a variable; TooLarge where one
  on the way to it has more than MAX_DIGITS."""
  if isinstance(x, sympy.Number):
    size = math.log10(abs(float(x)) + 1) if x.is_finite and abs(x) < 10**300 else 300.0
  elif isinstance(x, sympy.Pow):
    exponent = 10**min(_digits(x.exp), 6.0)
    size = _digits(x.base) * exponent
    if x.base.is_Add and x.free_symbols and exponent > MAX_POWER:
      raise TooLarge
  else:
    sizes = [_digits(y) for y in getattr(x, 'args', ())]
    size = sum(sizes) + 1
    if isinstance(x, (sympy.factorial, sympy.binomial)):
      size = 10**min(sizes[0], 6.0) * sizes[0]
  if size > MAX_DIGITS:
    raise TooLarge
  return size


def _differ(a, b) -> bool:
  """Whether two expressions, or two equations, plainly differ: in their variables, or at a point by
  more than one in a million. Saves the proof that they do, and math-verify's comparison at the
  sixth decimal place, which is blind to what is small."""
  kinds = (sympy.Eq, sympy.MatrixBase, sympy.Expr)
  kind = next((k for k in kinds if isinstance(a, k) and isinstance(b, k)), None)
  if kind is None or sympy.Symbol in (type(a),
                                      type(b)):  # words are symbols, or products of letters
    return False
  if a.free_symbols != b.free_symbols:
    return True
  if kind is not sympy.Expr:
    return False
  x, y = (_value(z, a.free_symbols) for z in (a, b))
  return x is not None and y is not None and abs(x - y) > abs(x) / 10**6


def _false(x) -> bool:
  """Whether it says of two different numbers that they are equal."""
  if not isinstance(x, sympy.Eq) or x.free_symbols:
    return False
  left, right = (_value(z, ()) for z in x.args)
  return left is not None and right is not None and abs(left - right) > abs(left) / 100


def _without_solution(a, b) -> bool:
  """Whether two equations are alike in having no solution only, which math-verify takes for equal.
  """
  if not (isinstance(a, sympy.Eq) and isinstance(b, sympy.Eq)):
    return False
  if not a.free_symbols:  # a true statement, such as 1 + 1 = 2, as many others
    return True
  ratios = [_value((a.lhs - a.rhs) / (b.lhs - b.rhs), a.free_symbols, i) for i in range(2)]
  if None not in ratios and abs(ratios[0] - ratios[1]) < abs(ratios[0]) / 10**6:
    return False
  return not sympy.solve(a, a.free_symbols)


def _value(x, names, place=0):
  """The real value of an expression at one of several points, or None where it has none."""
  point = {name: sympy.Float(f'1.{17 + 13 * i + 29 * place}')
           for i, name in enumerate(sorted(names, key=str))}  # yapf: disable
  try:
    value = sympy.N(x.subs(point), 20)
    return value if value.is_Float or value.is_Integer else None
  except (TypeError, ValueError, AttributeError, ArithmeticError):
    return None
