r"""When two short mathematical answers are plainly equal or plainly not, by text and by fractions.

Works on what stands in a box, as LaTeX or plain text. A verdict is True, False, or None: that it
takes algebra (symbolic.py). Everything here is linear, or bounded by the caps below, and reads the
ten ASCII digits only; nothing is evaluated.

Two answers are equal here if, after `clean`, they are the same text (spaces, optional braces and
units aside), the same number, or lists of such. Units are dropped and not compared.
"""
from fractions import Fraction
import re
from typing import NamedTuple

MAX_DIGITS = 400  # of a number
MAX_EXPONENT = 400  # of ten
LEAST_DIGITS = 6  # that a rounded decimal needs to stand for the exact number

# -- clean -----------------------------------------------------------------------------------------

_FULL_WIDTH = {0xFF01 + i: chr(0x21 + i) for i in range(94)}
_SIGNS = {
    '−': '-', '–': '-', '×': r'\times ', '·': r'\cdot ', '÷': '/', 'π': r'\pi ', '∞': r'\infty ',
    '≤': r'\leq ', '≥': r'\geq ', '≠': r'\neq ', '∪': r'\cup ', '∩': r'\cap ', '∈': r'\in ',
    '±': r'\pm ', '√': r'\sqrt ', '°': r'^\circ', '²': '^2', '³': '^3', '½': r'\frac{1}{2}',
    '¼': r'\frac{1}{4}', '¾': r'\frac{3}{4}', '、': ',', '。': '.', '\xa0': ' ', '\u3000': ' ',
    '£': '', '€': '', '¥': '', '⁄': '/', '’': '\'',
}  # yapf: disable
_TABLE = str.maketrans({**_FULL_WIDTH, **{ord(a): b for a, b in _SIGNS.items()}})
_SCALES = dict(hundred=2, thousand=3, million=6, billion=9, trillion=12)
_FUNCTIONS = 'arcsin|arccos|arctan|sin|cos|tan|sec|csc|cot|log|ln|exp|sqrt|pi|infty'

# Applied in this order; each pattern takes linear time on what `clean` is given.
_REWRITES = tuple((re.compile(pattern), by) for pattern, by in (
    (r'\s+', ' '),  # first, or many patterns would take quadratic time
    (r'\\begin\{([bpvV]?matrix|array)\}\s*(\{[lcr| ]*\})?', r'\\begin{\1}\2'),
    (r'\\?\$|(?<!\\)\\[()\[\]]', ' '),
    (r'(?<!\\)\\!\s*|\\(displaystyle|textstyle|limits|nolimits|small|[lL]arge|huge)(?![a-zA-Z])',
     ''), (r'\{\s*:\s*\}', ':'),
    (r'(?<=[0-9])(\\,|\{,\}\s?)(?=[0-9]{3})', ','),
    (r'(?<!\\)\\[,;: ]|~|\\q?quad(?![a-zA-Z])', ' '),
    (r'\\(left|right)\s*\.', ''),
    (r'\\(left|right|[bB]igg?[lrm]?)(?![a-zA-Z])', ''),
    (r'\\[dtc]frac(?![a-zA-Z])', r'\\frac'),
    (r'\\(mbox|(text|math)(bf|rm|it|sf)|textnormal|bf|rm|operatorname|bm|boldsymbol|underline)'
     r'\s*\{', r'\\text{'),
    (r'(?<=[0-9])\s*\^\s*\{\s*(\\text\s*\{\s*)?(st|nd|rd|th)\s*\}(\s*\})?', ''),
    (r'^\s*(\\text\s*\{\s*)?(?i:no ?solutions?)[\s.}]*$', r'\\emptyset '),
    (r'\\(le|leqslant|leqq)(?![a-zA-Z])|<=', r'\\leq '),
    (r'\\(ge|geqslant|geqq)(?![a-zA-Z])|>=', r'\\geq '),
    (r'\\varnothing|\\\{\s*\\\}', r'\\emptyset '), (r'\\ne(?![a-zA-Z])|(?<![0-9)])!=', r'\\neq '),
    (r'!=', '! ='),
    (r'\\lt(?![a-zA-Z])', '<'), (r'\\gt(?![a-zA-Z])', '>'),
    (r'\\(lbrace|\{)', r'\\{'), (r'\\(rbrace|\})', r'\\}'),
    (r'\\langle(?![a-zA-Z])', '('), (r'\\rangle(?![a-zA-Z])', ')'),
    (r'\\(ast|times)(?![a-zA-Z])', r'\\cdot '), (r'\*\*', '^'), (r'\*', r'\\cdot '),
    (r'\\?%|(?i: *\\text *\{ *percent(age)? *\}| *\b(percent|per cent|percentage|pct)\b)', '%'),
    (r'(,\s*)?\\text\s*\{\s*(and|or)\s*\}|(,\s*)?(?<![a-zA-Z\\])(and|or)(?![a-zA-Z])|[;或和]', ','),
    (rf'(?<![a-zA-Z\\])({_FUNCTIONS})(?![a-zA-Z])', r'\\\1 '),
    (r'(?<![a-zA-Z\\])(infinity|inf)(?![a-zA-Z])', r'\\infty '),
    (r'\\sqrt\s*([0-9a-zA-Z])', r'\\sqrt{\1}'), (r'\\sqrt\s*\(([^()]*)\)', r'\\sqrt{\1}'),
    (r'\\frac\s*([0-9a-zA-Z])\s*([0-9a-zA-Z])', r'\\frac{\1}{\2}'),
    (r'\\frac\s*([0-9a-zA-Z])\s*\{', r'\\frac{\1}{'),
    (r'\\frac\s*\{([^{}]*)\}\s*([0-9a-zA-Z])', r'\\frac{\1}{\2}'),
    (r'\\text\s*\{\s*(\(?(?![mgshL])[A-Za-z]\)?|[^A-Za-z{}]*)\s*\}', r'\1'),
    (r'(?<![_^0-9])([0-9]+)\s*(?=\()', r'\1\\cdot '),  # or algebra takes 2(5) for a mixed number
    (rf'(?<=[0-9])\s*(\\text\s*\{{\s*)?({"|".join(_SCALES)})(?![a-zA-Z])(\s*\}})?',
     lambda m: rf'\cdot 10^{{{_SCALES[m[2]]}}}' + (r'\text{' if m[1] and not m[3] else '')),
    (r'^\s*\\text\s*\{[^{}0-9]*(\}\s*=|(:|\b(is|are))\s*\})', ''),  # what it is the answer to
))  # yapf: disable
_DEGREES = re.compile(r'\^\s*(\\circ|\{\s*\\circ\s*\})(\s*[CF](?![a-zA-Z]))?')
_TRIGONOMETRY = re.compile(r'\\(sin|cos|tan|sec|csc|cot)')
_NO_UNIT = (
    r'(?i:hundreds?|thousands?|[mbtr]+illions?|dozens?|lakhs?|crores?|tens|plus|minus|times|not|'
    r'squared|cubed|half|halves|zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|'
    r'twelve|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety)(?![a-zA-Z])')
_UNIT = re.compile(r'((?<=[0-9)}])|(?<=\\pi))\s*\\text\s*\{'
                   rf'(?![^{{}}]*((?<![\^a-zA-Z{{-])[0-9]|\?|(?<![a-zA-Z]){_NO_UNIT}))'
                   r'([^{}]|\{[^{}]*\})*\}\s*(\^\s*(\{\s*[0-9]\s*\}|[0-9]))?$')


def clean(text: str) -> str:
  """The text with one way of writing for what has several, spaces kept where they part words."""
  text = text.translate(_TABLE)
  for pattern, by in _REWRITES:
    text = pattern.sub(by, text)
  if not _TRIGONOMETRY.search(text):
    text = _DEGREES.sub('', text)
  text = _stripped(text)
  return _stripped(_UNIT.sub('', text)) if '{' in text else text


def _stripped(text):
  text = re.sub(' +', ' ', text).strip().rstrip('\\').rstrip(', ')
  return text if text.endswith('..') else text.rstrip('.').rstrip()


_OPTIONAL_BRACES = re.compile(r'(?<=[\^_])\{([0-9a-zA-Z])\}')


def key(text: str) -> str:
  """What two cleaned texts are compared by."""
  text = re.sub(r'\\text\s*\{([^{}]*)\}', r'\1', text)
  text = re.sub(r'(?<=[0-9]) (?=[0-9])', '_', text).replace(' ', '').rstrip('.')
  text = re.sub(r'(?<![0-9])\\cdot|\\cdot(?![0-9])', '', text)  # 2 times 3 is not 23
  return _OPTIONAL_BRACES.sub(r'\1', text)


# -- numbers ---------------------------------------------------------------------------------------


class Number(NamedTuple):
  """An exact value and how it was written."""
  value: Fraction
  step: Fraction | None  # of the last decimal place, if there is one; None: exact
  digits: int  # significant
  percent: bool


_DECIMAL = r'(?:[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]*)?|[0-9]+(?:\.[0-9]*)?|\.[0-9]+)'
_SIGN = r'\s*([+-]?)\s*'
_TEN = r'(?:\s*[eE]\s*|\s*(?:\\cdot|x|X)\s*10\s*\^\s*)'
_NUMBERS = tuple(map(re.compile, (
    rf'{_SIGN}({_DECIMAL}|[0-9]{{1,3}}(?: [0-9]{{3}})+)\s*(%?)',
    rf'{_SIGN}({_DECIMAL}){_TEN}\{{?\s*([+-]?\s*[0-9]{{1,4}})\s*\}}?\s*(%?)',
    rf'{_SIGN}10\s*\^\s*\{{?\s*([+-]?\s*[0-9]{{1,4}})\s*\}}?()',
    rf'{_SIGN}([0-9]+[ ])?\s*({_DECIMAL})\s*/\s*({_DECIMAL})\s*(%?)',
    rf'{_SIGN}([0-9]+)?\s*\\frac\s*\{{{_SIGN}({_DECIMAL})\s*\}}\s*\{{\s*({_DECIMAL})\s*\}}\s*(%?)',
)))  # yapf: disable


def number(text: str) -> Number | None:
  """The number that a cleaned text writes: a decimal, with thousands separators or a power of ten,
  a fraction, a mixed number, or one of them as a percentage. None if it is anything else."""
  if len(text) > MAX_DIGITS:
    return None
  decimal, scientific, power, slash, frac = (p.fullmatch(text) for p in _NUMBERS)
  if decimal:
    sign, digits, percent = decimal.groups()
    return _number(sign, digits, 0, percent)
  if scientific:
    sign, digits, exponent, percent = scientific.groups()
    return _number(sign, digits, int(exponent.replace(' ', '')), percent)
  if power:
    sign, exponent, _ = power.groups()
    return _number(sign, '1', int(exponent.replace(' ', '')), '')
  if slash or frac:
    sign, whole, *rest = (slash or frac).groups()
    minus, above, below, percent = rest if frac else ('', *rest)
    above, below = _number('', above, 0, '').value, _number('', below, 0, '').value
    if below and not (whole and minus):
      value = int(whole or 0) + above / below * (-1 if minus == '-' else 1)
      return Number(-value if sign == '-' else value, None, 0, bool(percent))
  return None


def _number(sign, text, exponent, percent):
  if abs(exponent) > MAX_EXPONENT:
    return None
  digits, _, places = re.sub('[, ]', '', text).partition('.')
  value = Fraction(int(digits + places or '0'), 10**len(places)) * Fraction(10)**exponent
  step = Fraction(10)**(exponent - len(places)) if places else None
  return Number(-value if sign == '-' else value, step, len((digits + places).lstrip('0')),
                bool(percent))


def _close(a: Number, b: Number) -> bool:
  """Whether two numbers are one: exactly, or as a decimal of enough digits, rounded or cut off, is
  the other. A reference of two places or more is what rounds to it. 50% is 0.5 and 50; it is not
  0.5%."""
  if a.percent == b.percent:
    return _near(a, b, a.value)
  return _near(a, b, a.value) or _near(a, b, a.value * Fraction(100)**(b.percent - a.percent))


def _near(a, b, value):
  apart = abs(value - b.value)
  rounded = max((x for x in (a, b) if x.step), key=lambda x: x.step, default=None)
  noise = abs(b.value) / 10**12 if max(a.digits, b.digits) > 14 else 0  # of a float in full
  if not rounded:
    return not apart
  if not a.step and value.denominator == 1:
    return apart <= min(noise, Fraction(1, 1000))
  rounds = value == a.value and a.step and 100 * a.step <= 1 < a.digits and 2 * apart <= a.step
  if rounds and (not b.step or b.step <= a.step):  # the reference is what b rounds to
    return True
  return apart <= noise or rounded.digits >= LEAST_DIGITS and apart < rounded.step


# -- verdicts --------------------------------------------------------------------------------------

_WORDS = re.compile(
    r'\\text\s*\{[^{}]*[A-Za-z]{2}|[^\x00-\x7f]|(?<![a-zA-Z\\])(?![bpvV]?matrix|array)[a-zA-Z]{4}')
_HAN = (r'(?![\u4e00-\u9fff]*(?:[一二两三四五六七八九零十百万亿半不]|分之|千(?![克米瓦])))'
        r'[\u4e00-\u9fff]{1,6}')  # but no more of the number, as in 3万 or 3个半
_WITH_UNIT = re.compile(
    r'((?:Rs\.? ?)?[-+]?(?:[0-9][0-9,./ ]*(?:\\cdot 10\^\{[0-9]+\})?|'
    r'[0-9]*\\frac\{[0-9]+\}\{[0-9]+\}))'
    rf'(\s*(?:cm|mm|km|kg|ml|mph|ft|mg|hr|hrs|min|mi|km/h|m/s|cm/s|st|nd|rd|th|{_HAN})'
    rf'(?:\s?\^\s?(?:[23]|\{{[23]\}}))?|(?:\s+(?!{_NO_UNIT})[a-zA-Z][a-zA-Z./\'-]{{2,}}){{1,4}})')
_ASSIGNED = re.compile(rf'((?:[A-Za-z]|\\(?!(?:{_FUNCTIONS})(?![a-z]))[a-z]+\s?)'
                       r'(?:_(?:[A-Za-z0-9]|\{[A-Za-z0-9,\\ ]*\}))?'
                       r'(?:\s?\(\s?[A-Za-z]\s?\))?)\s*(?:=|\\in(?![a-z]))\s*([^=<>]+)')
_BASE = re.compile(r'([0-9]+)\s*_\s*\{?\s*([0-9]+)\s*\}?')
_BY_ZERO = re.compile(r'/\s*0+(?![.0-9])|\\frac\s*\{[^{}]*\}\s*\{\s*0+\s*\}')
_SPACED = re.compile(r'[-+]? ?[0-9.]+( [0-9.]+)+')
_RATIO = re.compile(r'[0-9.]+(\s*:\s*[0-9.]+)+')


def verdict(gold: str, found: str) -> bool | None:
  """Whether an answer is plainly the reference, or plainly not; None where that takes algebra."""
  if gold.strip() == found.strip():
    return bool(gold.strip())
  return _verdict(clean(gold), clean(found), depth=0)


def _verdict(a, b, depth):
  """The same of cleaned texts: `a` is the reference."""
  if key(a) == key(b) or not (a and b):
    return bool(key(a)) and key(a) == key(b)
  x, y = (number(t) or _quantity(t) for t in (a, b))
  if x and y:
    return _close(x, y)
  bases = [_BASE.fullmatch(t) for t in (a, b)]
  if any(bases):  # the question says which base, so that an answer need not
    return bases[0] is not None and b == bases[0][1]
  if any(map(_RATIO.fullmatch, (a, b))) or not y and _SPACED.fullmatch(b) or _BY_ZERO.search(b):
    return False
  if _contradicts(b):
    return False
  if _WORDS.search(a) or _WORDS.search(b):
    return key(a).casefold() == key(b).casefold()
  m, n = _ASSIGNED.fullmatch(a), _ASSIGNED.fullmatch(b)
  if (m is None) != (n is None) or (m and n and key(m[1]) == key(n[1])):
    return _verdict(m[2] if m else a, n[2] if n else b, depth + 1) if depth < 3 else None
  return _lists(parts(a), parts(b), depth)


def _contradicts(text):
  """Whether it says of two different numbers that they are equal, as 1 = 2 does."""
  near = '\\approx' in text
  found = [number(piece.strip()) for piece in re.split(r'=|\\approx', text)]
  found = [(x.value / 100 if x.percent else x.value, x.step or int(near)) for x in found if x]
  return any(x != y and abs(x - y) >= max(s, t) for (x, s), (y, t) in zip(found, found[1:]))


def _quantity(text):
  """The number of a number with a unit after it, or None."""
  match = _WITH_UNIT.fullmatch(text)
  return number(match[1].removeprefix('Rs').lstrip('. ').strip()) if match else None


# -- lists -----------------------------------------------------------------------------------------

MAX_PARTS = 64
_BRACKET = re.compile(r'\\[{}]|[()\[\]{}]|,')


def parts(text: str) -> tuple[str, list[str]]:
  """The brackets around a cleaned list, as '()', '[)', '{}' or '' for none, and its elements."""
  depth, cuts, pairs = 0, [], []
  for match in _BRACKET.finditer(text):
    mark, place = match[0][-1], match.start()
    if mark in '([{':
      depth += 1
    elif mark in ')]}':
      depth -= 1
      pairs += [match.end()] if not depth else []
    cuts += [(depth, place)] if mark == ',' else []
    if depth < 0:
      return '', [text]
  opening = _BRACKET.match(text)
  if opening and opening[0] in ('(', '[', '\\{') and pairs == [len(text)]:
    around, level = opening[0][-1] + text[-1], 1
    start, end = opening.end(), len(text) - (2 if text.endswith('\\}') else 1)
  else:
    around, level, start, end = '', 0, 0, len(text)
  places = [place for depth, place in cuts if depth == level]
  bounds = zip([start, *(place + 1 for place in places)], [*places, end])
  return around, [text[i:j].strip() for i, j in bounds]


def _lists(a, b, depth):
  """The verdict on two lists: in order where one of them has round or square brackets."""
  (around_a, first), (around_b, second) = a, b
  longest = max(len(first), len(second))
  if longest == 1 and not (around_a or around_b) or longest > MAX_PARTS or depth > 3:
    return None
  if min(len(first), len(second)) == 1 < longest and '\\pm' in ''.join(first + second):
    return None
  if around_a and around_b and around_a != around_b and longest > 1:
    return False if all(map(number, first + second)) else None
  if len(first) != len(second):
    return False if all(map(number, first + second)) else None
  if longest == 1 or any(x and x != '{}' for x in (around_a, around_b)):
    found = [_verdict(x, y, depth + 1) for x, y in zip(first, second)]
    return None if None in found else all(found)
  left = list(second)
  for x in first:
    found = [_verdict(x, y, depth + 1) for y in left]
    if True not in found:
      return None if None in found else False
    del left[found.index(True)]
  return True
