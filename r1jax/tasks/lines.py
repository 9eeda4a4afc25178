"""Your own data, in files with a JSON object a line (UTF-8):

FOLDER/train.jsonl, FOLDER/test.jsonl
        problems: question, answer; if you like kind, and language, 'en' or 'zh'
        requests, which a model judges: the same without answer and kind
a file  documents to learn from: prompt, response; if you like kind
a file  judged responses: prompt, responses (two, the better one first, or one) and, of one, label,
        which is 1 where it is good and 0 where it is bad

All are texts but responses and label. A line may have more fields, which mean nothing here. What is
missing or malformed is a UserError that names the file and the line.
"""
from pathlib import Path

from r1jax import datasets, prompts
from r1jax import language as language_lib
from r1jax.types import Document, Judged, Problem, UserError

PROBLEM = '{"question": "What is 2 + 3?", "answer": "5"}'
REQUEST = '{"question": "Write a poem about rain."}'
DOCUMENT = '{"prompt": "Hello!", "response": "Hello! How can I help?"}'
JUDGED = '{"prompt": "Hello!", "responses": ["Hello! How can I help?", "What?"]}'


def load(split: str, folder: str, template: str = prompts.R1, kind: str = 'reasoning',
         kinds: tuple[str, ...] = ()) -> list[Problem]:  # yapf: disable
  """The problems of folder/{split}.jsonl, each question put into the template.

  A line without a kind is of the `kind`; with `kinds`, any other than these is an error, since
  rewards go by it. A line without a language has that of its question's script.
  """

  def problem(row):
    found = _text(row, 'kind', kind)
    if kinds and found not in kinds:
      raise ValueError(f'kind is {found!r}, and {", ".join(kinds)} are known')
    return _problem(row, template, _text(row, 'answer'), found)

  return _each(Path(folder) / f'{split}.jsonl', PROBLEM, problem)


def requests(split: str, folder: str, kind: str, template: str = prompts.R1) -> list[Problem]:
  """The questions of folder/{split}.jsonl as problems of a kind that have no reference answer."""
  problem = lambda row: _problem(row, template, '', kind)
  return _each(Path(folder) / f'{split}.jsonl', REQUEST, problem)


def documents(file: str, template: str = '{question}', kind: str = 'general') -> list[Document]:
  """The documents of a file, each prompt put into the template."""

  def document(row):
    prompt = template.format(question=_text(row, 'prompt'))
    return Document(prompt, _text(row, 'response'), _text(row, 'kind', kind))

  return _each(Path(file), DOCUMENT, document)


def judged(file: str, template: str = '{question}') -> list[Judged]:
  """The judged responses of a file, each prompt put into the template."""

  def item(row):
    prompt, responses = template.format(question=_text(row, 'prompt')), row.get('responses')
    if not isinstance(responses, list) or len(responses) not in (1, 2):
      raise ValueError('responses must be a list of one text or two')
    texts = tuple(_text(dict(response=x), 'response') for x in responses)
    label = row.get('label', 1 if len(texts) == 2 else None)
    if label not in ((1,) if len(texts) == 2 else (0, 1)):
      raise ValueError(f'label is {label!r:.40}: of one response it is 1 or 0, and two, of which '
                       'the better one is the first, need none')
    return Judged(prompt, texts, float(label))

  return _each(Path(file), JUDGED, item)


def _problem(row, template, answer, kind):
  question = _text(row, 'question')
  script = max(language_lib.LANGUAGES, key=lambda x: language_lib.consistency(question, x))
  language = _text(row, 'language', script)
  if language not in language_lib.LANGUAGES:
    raise ValueError(f'language is {language!r}, and {", ".join(language_lib.LANGUAGES)} are known')
  return Problem(template.format(question=question), answer, kind, language, question)


def _text(row, name, absent=None):
  """A field that must be a text with something in it; `absent` where it is not there."""
  text = absent if row.get(name) is None else row[name]
  if not isinstance(text, str) or not text.strip():
    raise ValueError(f'{name} is {text!r:.40} and must be a text' if name in row else f'it has no '
                     f'{name}')
  return text


def _each(file, example, make):
  """make(object) of each line; UserError with an example where one cannot be read or made."""
  out, number = [], 0
  try:
    with open(file, 'rb') as lines:
      for number, line in enumerate(lines, 1):
        if line.strip():
          out.append(make(datasets.json_object(line)))
  except OSError as error:
    raise UserError(f'{file} cannot be read ({error.strerror}): make it, with lines such as '
                    f'{example}') from None
  except ValueError as error:
    raise UserError(f'{file}, line {number}: {error}; write a line such as {example}') from None
  if not out:
    raise UserError(f'{file} is empty: put lines there such as {example}')
  return out
