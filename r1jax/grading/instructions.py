"""Instructions whose following a program can verify: the 25 kinds of IFEval (2311.07911, table 1).

A function a kind, (text, **kwargs of the instruction) -> bool, with the meaning that the program
published with the benchmark gives it, so that numbers compare: what is a keyword, a paragraph or a
bullet is said at each. Three things of that program are libraries' and are approximated by rules
here: sentences (NLTK's punkt), capital words (NLTK's word_tokenize) and languages (langdetect).

No pattern here takes more than linear time. What is judged should be the answer alone: give the
reward `view=prompts.summary`.
"""
import json
import operator
import re

from r1jax.grading import languages
from r1jax.types import Completion, Problem

RELATIONS = {'at least': operator.ge, 'less than': operator.lt}
ANSWERS = ('My answer is yes.', 'My answer is no.', 'My answer is maybe.')


def check(problem: Problem, completion: Completion) -> float:
  """1 if the completion follows every instruction of problem.answer, else 0: strict, of the prompt.

  Raises ValueError for an instruction, a relation or a language that is not known here.
  """
  return float(all(checks(problem.answer, completion.text)))


def loose(problem: Problem, completion: Completion) -> float:
  """The same where each instruction counts as followed if the text follows it as it is or without
  its first line, its last or both (as 'Sure, here it is:'), with or without asterisks."""
  lines = completion.text.split('\n')
  texts = ['\n'.join(part).strip() for part in (lines, lines[1:], lines[:-1], lines[1:-1])]
  texts = [completion.text, *texts[1:]]
  texts = dict.fromkeys(texts + [t.replace('*', '') for t in texts])
  verdicts = [checks(problem.answer, text) for text in texts]
  return float(all(map(any, zip(*verdicts))))


def checks(answer: str, text: str) -> list[bool]:
  """Whether the text follows each instruction of {"instruction_id_list": [...], "kwargs": [...]};
  an empty text follows none. Raises ValueError as `check` does."""
  work = json.loads(answer)
  out = []
  for name, kwargs in zip(work['instruction_id_list'], work['kwargs'], strict=True):
    if name not in KINDS:
      raise ValueError(f'no instruction {name!r} is known')
    kwargs = {key: value for key, value in kwargs.items() if value is not None}
    followed = KINDS[name](text, **kwargs)
    out.append(bool(text.strip()) and followed)
  return out


def _related(count, relation, number):
  if relation not in RELATIONS:
    raise ValueError(f'no relation {relation!r} is known')
  return RELATIONS[relation](count, number)


# -- words -----------------------------------------------------------------------------------------


def existence(text, keywords):
  """Every keyword is in the text, in any case, within a word too."""
  return all(keyword.lower() in text.lower() for keyword in keywords)


def frequency(text, keyword, frequency, relation):
  """The keyword comes so often, in any case, within words too."""
  return _related(text.lower().count(keyword.lower()), relation, frequency)


def forbidden_words(text, forbidden_words):
  """None of the words is in the text as a word of its own, in any case."""
  return not any(re.search(rf'\b{re.escape(w)}\b', text, re.IGNORECASE) for w in forbidden_words)


def letter_frequency(text, letter, let_frequency, let_relation):
  """The letter, or other sign, comes so often, in any case."""
  return _related(text.lower().count(letter.lower()), let_relation, let_frequency)


def response_language(text, language):
  """The text is in the language. Raises ValueError for one that `languages` cannot tell."""
  if language not in languages.KNOWN:
    raise ValueError(f'nothing here tells the language {language!r} from others')
  return languages.of(text) == language


# -- lengths ---------------------------------------------------------------------------------------

# A sentence ends with one of .?! and closing quotes before white space, also after the number of a
# list's item; not after a title or other abbreviation that something has to follow, nor, where
# something may, before a small letter.
_END = re.compile(r'[.?!]["\')\]*_]*(?=\s)')
_FOLLOWED = frozenset('mr mrs ms dr prof st vs e.g i.e fig mt gen sen rev capt cf'.split())
_MAYBE = frozenset('etc inc ltd co jr sr a.m p.m u.s u.k ph.d approx'.split())


def sentences(text: str) -> int:
  """How many sentences a text has; the last needs no end."""
  text = text.strip() + ' '
  count, start = 0, 0
  for end in _END.finditer(text):
    before = text[max(start, end.start() - 12):end.start()].split()
    word = before[-1].lower().lstrip('("\'[*_') if before else ''
    after = text[end.end():end.end() + 2].strip()
    if end[0][0] == '.' and (word in _FOLLOWED or word in _MAYBE and after.islower()):
      continue
    count, start = count + 1, end.end()
  return count + bool(text[start:].strip())


def number_sentences(text, num_sentences, relation):
  """The text has so many sentences."""
  return _related(sentences(text), relation, num_sentences)


def number_words(text, num_words, relation):
  """The text has so many runs of letters, digits and underscores."""
  return _related(sum(1 for _ in re.finditer(r'\w+', text)), relation, num_words)


def number_paragraphs(text, num_paragraphs):
  """So many paragraphs stand between dividers ***, none of them empty but before the first divider
  and after the last."""
  parts = [part.strip() for part in text.split('***')]
  return all(parts[1:-1]) and sum(map(bool, parts)) == num_paragraphs


def nth_paragraph_first_word(text, num_paragraphs, nth_paragraph, first_word):
  """Empty lines divide the text into so many paragraphs, and the n-th begins with the word, in any
  case, quotes before it and punctuation from its middle on left out."""
  parts = text.split('\n\n')
  if not nth_paragraph <= sum(bool(p.strip()) for p in parts) == num_paragraphs:
    return False
  words = parts[nth_paragraph - 1].split(maxsplit=1)
  word = re.split(r'[.,?!\'"]', words[0].lstrip("'").lstrip('"'))[0] if words else ''
  return word.lower() == first_word.lower()


# -- content and format ----------------------------------------------------------------------------


def number_placeholders(text, num_placeholders):
  """At least so many [placeholders], each within a line."""
  count = 0
  for line in text.split('\n'):
    start = line.find('[')
    while start >= 0 and (end := line.find(']', start)) >= 0:
      count, start = count + 1, line.find('[', end)
  return count >= num_placeholders


def postscript(text, postscript_marker):
  """The marker is in the text, in any case; P.S. and P.P.S may have a space between letters."""
  spaced = {'P.S.': r'p\.\s?s\.', 'P.P.S': r'p\.\s?p\.\s?s'}
  pattern = spaced.get(postscript_marker, re.escape(postscript_marker.lower()))
  return re.search(pattern, text.lower()) is not None


def number_bullet_lists(text, num_bullets):
  """Exactly so many lines that begin with a bullet, * or -."""
  lines = [line.lstrip() for line in text.split('\n')]
  return sum(x[:1] == '-' or x[:1] == '*' and x[:2] != '**' for x in lines) == num_bullets


def constrained_response(text):
  """One of the three answers allowed is in the text."""
  return any(answer in text for answer in ANSWERS)


def number_highlighted_sections(text, num_highlights):
  """At least so many *highlights* or **highlights** with something in them, each within a line."""
  single = re.findall(r'\*[^\n*]*\*', text)
  double = re.findall(r'\*\*[^\n*]*\*\*', text)
  return sum(bool(x.strip('*').strip()) for x in single + double) >= num_highlights


def multiple_sections(text, section_spliter, num_sections):
  """At least so many section headings: the word and a number."""
  return len(re.findall(re.escape(section_spliter) + r'\s?\d', text)) >= num_sections


def json_format(text):
  """The text is JSON, in a code block or not."""
  text = re.sub(r'^```(?:json|Json|JSON)?', '', text.strip()).removesuffix('```').strip()
  try:
    json.loads(text, parse_int=str)  # int() refuses more than some thousand digits
  except (ValueError, RecursionError):
    return False
  return True


def title(text):
  """A <<title>> with something in it, within a line."""
  for line in text.split('\n'):
    start, end = line.find('<<'), line.rfind('>>')
    if 0 <= start and start + 3 <= end and line[start:end + 2].lstrip('<').rstrip('>').strip():
      return True
  return False


def two_responses(text):
  """Two different answers, divided by ******."""
  parts = [part.strip() for part in text.split('******')]
  answers = [part for part in parts if part]
  return all(parts[1:-1]) and len(answers) == 2 and answers[0] != answers[1]


def repeat_prompt(text, prompt_to_repeat):
  """The text begins with the prompt, in any case."""
  return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def end_checker(text, end_phrase):
  """The text ends with the phrase, in any case, quotes after it left out."""
  return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def quotation(text):
  """The whole text is in double quotes."""
  text = text.strip()
  return len(text) > 1 and text[0] == text[-1] == '"'


def no_comma(text):
  """There is no comma."""
  return ',' not in text


# -- case ------------------------------------------------------------------------------------------

_PARTS = re.compile(r'[^\s;@#$%&?!\[\](){}<>,:"…]+')
_SHORTENED = re.compile(r"(?i)(n't|'(?:s|m|d|ll|re|ve))(?![\w'])")


def capital_word_frequency(text, capital_frequency, capital_relation):
  """So many words in capitals, as A, NASA and TO-DO are; DON'T counts as the two, DO and N'T."""
  words = _PARTS.findall(_SHORTENED.sub(r' \1', text.replace('--', ' ')))
  return _related(sum(map(str.isupper, words)), capital_relation, capital_frequency)


def english_capital(text):
  """No small letter, and English as far as can be told."""
  return text.isupper() and languages.of(text) in ('en', '')


def english_lowercase(text):
  """No capital, and English as far as can be told."""
  return text.islower() and languages.of(text) in ('en', '')


GROUPS = {
    'keywords': (existence, frequency, forbidden_words, letter_frequency),
    'language': (response_language,),
    'length_constraints': (number_sentences, number_words, number_paragraphs,
                           nth_paragraph_first_word),
    'detectable_content': (number_placeholders, postscript),
    'detectable_format': (number_bullet_lists, constrained_response, number_highlighted_sections,
                          multiple_sections, json_format, title),
    'combination': (two_responses, repeat_prompt),
    'startend': (end_checker, quotation),
    'punctuation': (no_comma,),
    'change_case': (capital_word_frequency, english_capital, english_lowercase),
}  # yapf: disable
KINDS = {f'{group}:{f.__name__}': f for group, functions in GROUPS.items() for f in functions}
