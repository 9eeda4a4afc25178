"""Data sets: TFDS builders made from JSON lines, read back with grain. TensorFlow is not needed.

A set is described, as a `Set`, in the file of tasks/ that uses it. What it is made from lies in
NAME/FILE.jsonl or NAME/FILE.jsonl.gz, a JSON object a line, in the folder that the environment
variable R1JAX_DATA names, else in the folder `data` of the working directory. What is made lies
where TFDS keeps its own (TFDS_DATA_DIR, else ~/tensorflow_datasets), as r1jax_NAME/VERSION, and is
made at first use.
"""
import contextlib
import errno
import functools
import gzip
import hashlib
import io
import json
import os
from pathlib import Path
import tempfile
from typing import Any, Callable, NamedTuple
import zlib

import numpy as np

from r1jax.language import consistency, LANGUAGES
from r1jax.types import Problem, UserError

MAX_LINE = 1 << 24  # bytes; a longer line is no row

# How maths questions are put (v2, appendix J), and the same in Chinese, which is ours.
BOXED = '{question}\nPlease reason step by step, and put your final answer within \\boxed{{}}.'
BOXED_ZH = '{question}\n请逐步推理，并将最终答案放在 \\boxed{{}} 中。'

COLUMNS = dict(id=str, problem=str, answer=str)  # of most problem sets


class Set(NamedTuple):
  """What a data set is made of and where it comes from.

  The columns have one of the types str, int, float, bool, list (of texts) and object (any JSON).
  What else a line holds is left out.
  """
  name: str
  about: str  # a few words
  homepage: str
  licence: str  # of the texts
  year: int  # of publication
  splits: dict[str, str] = dict(test='test')  # split -> the file it is read from, without .jsonl
  columns: dict[str, type] = COLUMNS  # 'id' among them, a text that is unique in its split
  text: str = 'problem'  # the column that asks
  split_column: str = ''  # names each row's split, where one file holds several
  version: str = '1.0.0'


# -- reading ---------------------------------------------------------------------------------------


def rows(data: Set, split: str):
  """The rows of a split as a grain.MapDataset: dicts in the order of the source, read when asked
  for by index, so that an index is all there is to resume from.

  Raises UserError where there is neither the prepared set nor its source, where the source is no
  longer the one it was prepared from, and where the split is none of its own.
  """
  import grain
  import tensorflow_datasets as tfds
  if split not in data.splits:
    raise UserError(f'the data set {data.name} has no split {split!r}: there are '
                    f'{", ".join(data.splits)}')
  folder = ready(data)
  if split not in counts(folder):
    raise UserError(f'{folder} is without the split {split!r}: put {places(data, split)} there '
                    f'and run `r1jax data prepare {data.name}`')
  source = tfds.builder_from_directory(folder).as_data_source(split=split)
  return grain.MapDataset.source(source).map(functools.partial(_decode, data.columns))


def every(data: Set, split: str) -> list[dict]:
  """The same, all of them at once."""
  found = rows(data, split)
  return [found[i] for i in range(len(found))]


def problems(data: Set, split: str, template: str, ask: str = '{question}', *, language: str = 'en',
             kind: str = 'reasoning', question: Callable | None = None,
             answer: Callable = lambda row: row['answer']) -> list[Problem]:  # yapf: disable
  """The rows of a split as problems: the question as `ask` puts it, inside the model's template.

  `question` and `answer` are functions of a row; the question is else its text column. Where the
  language is '', it is that of most of the question's words.
  """
  out = []
  for row in every(data, split):
    text = question(row) if question else row[data.text]
    prompt = template.format(question=ask.format(question=text))
    script = language or max(LANGUAGES, key=lambda name: consistency(text, name))
    out.append(Problem(prompt, answer(row), kind, script, text, row['id']))
  return out


def ready(data: Set) -> Path:
  """The folder of the prepared set, which is prepared first where only its source is there."""
  folder = prepared(data)
  made, now = _made_from(folder), _origin(data, sources(data))
  if made is None:
    return prepare(data)
  changed = [name for name, value in now.items() if made.get(name) != value]
  if changed:
    raise UserError(f'{folder} was made from something else than what is in {_top() / data.name} '
                    f'now ({changed[0]} has changed): `r1jax data prepare {data.name}` makes it '
                    'again')
  return folder


def prepared(data: Set) -> Path:
  """Where the prepared set is, or would be."""
  top = os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'
  if '://' in top:
    raise UserError(f'TFDS_DATA_DIR is {top}: only folders are supported, so mount it and name the '
                    'mount point')
  return Path(top).expanduser() / f'r1jax_{data.name}' / data.version


def counts(folder) -> dict[str, int]:
  """{split: rows} of a prepared set; {} where there is none."""
  info = Path(folder) / 'dataset_info.json'
  if not info.exists():
    return {}
  splits = json.loads(info.read_text(encoding='utf-8'))['splits']
  return {split['name']: sum(map(int, split['shardLengths'])) for split in splits}


def _decode(columns, row):
  return {name: _DECODE[kind](row[name]) for name, kind in columns.items()}


_DECODE = {
    str: bytes.decode, int: int, float: float, bool: bool, object: json.loads,
    list: lambda texts: [text.decode() for text in texts],
}  # yapf: disable

# -- preparing -------------------------------------------------------------------------------------


def sources(data: Set, folder=None) -> dict[str, Path]:
  """{split: the file it would be made from} of those that are there; of two, the plain one."""
  top, out = _top(folder) / data.name, {}
  for split, name in data.splits.items():
    for path in (top / f'{name}.jsonl.gz', top / f'{name}.jsonl'):
      if path.exists():
        out[split] = path
  return out


def prepare(data: Set, source=None) -> Path:
  """Makes the set from the files in the folder source/NAME, else from where they are looked for.

  Written aside and renamed: a kill leaves what was there before. Nothing is done where what is
  there was made from these very files. Returns the folder; raises UserError where there is no file,
  and, naming file, line and column, where a row is not as described.
  """
  files, folder = sources(data, source), prepared(data)
  if not files:
    raise UserError(
        f'the data set {data.name} is not there: {folder} would hold it, made from '
        f'{places(data, *data.splits, folder=source)}, with the columns '
        f'{", ".join(f"{name} ({kind.__name__})" for name, kind in data.columns.items())}; it '
        f'comes from {data.homepage} ({data.licence})')
  origin = _origin(data, files)
  if _made_from(folder) == origin:
    return folder
  folder.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(prefix='.making-', dir=folder.parent) as aside:
    built = _build(data, files, origin, aside)
    if _made_from(folder) == origin:  # another process was faster
      return folder
    if folder.exists():
      os.rename(folder, Path(aside) / 'old')
    try:
      os.rename(built, folder)
    except OSError as error:  # another process was faster
      if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or _made_from(folder) != origin:
        raise
  return folder


def _build(data, files, origin, aside):
  import tensorflow_datasets as tfds
  text = tfds.features.Text()  # an example keeps floats in 32 bits, so they are kept as text
  features = {str: text, int: np.int64, float: text, bool: np.bool_,
              list: tfds.features.Sequence(text), object: text}  # yapf: disable
  about = dict(
      description=data.about, homepage=data.homepage, license=data.licence, disable_shuffling=True,
      citation=f'{data.about}, {data.year}, {data.homepage}',
      features=tfds.features.FeaturesDict({n: features[k] for n, k in data.columns.items()}),
      metadata=tfds.core.MetadataDict(origin))  # yapf: disable

  class Rows(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """TFDS reads its parts from a class."""
    name = f'r1jax_{data.name}'
    VERSION = tfds.core.Version(data.version)
    code_path = None  # nothing lies beside it; to look needs a library that TFDS does not install

    def _info(self):
      return tfds.core.DatasetInfo(builder=self, **about)

    def _split_generators(self, dl_manager):
      del dl_manager
      return {split: enumerate(lines(data, split, path)) for split, path in files.items()}

    def _generate_examples(self):
      """Abstract in TFDS, and not asked: the splits are generators already."""

  tfds.disable_progress_bar()
  with contextlib.redirect_stdout(io.StringIO()):
    builder = Rows(data_dir=aside, file_format='array_record')
    builder.download_and_prepare()
  return builder.data_dir


def lines(data: Set, split: str, path):
  """The rows of one split of a source file, as TFDS takes them; UserError naming file, line and
  column where one is not as described."""
  seen = set()

  def row(found):
    cells = {name: _cell(found, name, kind) for name, kind in data.columns.items()}
    if cells['id'] in seen:
      raise ValueError(f'column id is {cells["id"]!r:.80}, as of a line before')
    seen.add(cells['id'])
    return cells

  for cells in objects(path, row):
    if not data.split_column or cells[data.split_column] == split:
      yield cells


def objects(path, make=lambda row: row):
  """make(object) of each line of a file of JSON lines, plain or .gz, split at line feeds only.

  Raises UserError, naming file and line, where the file cannot be read, where a line is no object
  or has more than MAX_LINE bytes, and where `make` raises ValueError.
  """
  number = 0
  try:
    with (gzip.open if str(path).endswith('.gz') else open)(path, 'rb') as file:
      while line := file.readline(MAX_LINE + 1):
        number += 1
        yield make(json_object(line))
  except (OSError, EOFError, zlib.error) as error:  # gzip's own are among them
    raise UserError(
        f'{path}, after line {number}: it cannot be read ({error}); get it again') from None
  except ValueError as error:
    raise UserError(f'{path}, line {number}: {error}; mend the line or take it out') from None


def json_object(line: bytes) -> dict:
  """The object in a line; ValueError where there is none, or more than MAX_LINE bytes."""
  if len(line) > MAX_LINE:
    raise ValueError(f'it has more than {MAX_LINE} bytes')
  try:
    row = json.loads(line)
  except (ValueError, RecursionError):
    row = None
  if not isinstance(row, dict):
    raise ValueError('it is no JSON object')
  return row


def _cell(row, name, kind) -> Any:
  """A column's value as it is stored; ValueError where it is of another type or cannot be kept."""
  if name not in row:
    raise ValueError(f'it has no column {name}')
  value = row[name]
  if not _FITS[kind](value):
    wanted = 'a list of texts' if kind is list else f'of type {kind.__name__}'
    raise ValueError(f'column {name} is {value!r:.80} and must be {wanted}')
  try:
    ''.join(value if kind is list else [value] if kind is str else []).encode()
  except UnicodeEncodeError:
    raise ValueError(f'column {name} has half a surrogate pair in it, which is no text') from None
  return json.dumps(value) if kind in (float, object) else value


_FITS = {
    str: lambda x: type(x) is str, bool: lambda x: type(x) is bool, object: lambda x: True,
    int: lambda x: type(x) is int and -2**63 <= x < 2**63, float: lambda x: type(x) in (int, float),
    list: lambda x: type(x) is list and all(type(text) is str for text in x),
}  # yapf: disable


def _origin(data, files) -> dict[str, str]:
  """What a set is made from: its columns, and the sha256 of each split's file."""
  out = {'columns': ', '.join(f'{name} {kind.__name__}' for name, kind in data.columns.items())}
  for split, path in files.items():
    with open(path, 'rb') as file:
      out[f'source of {split}'] = hashlib.file_digest(file, 'sha256').hexdigest()
  return out


def _made_from(folder):
  file = folder / 'metadata.json'
  return json.loads(file.read_text(encoding='utf-8')) if file.exists() else None


def _top(folder=None):
  return Path(folder or os.environ.get('R1JAX_DATA') or 'data')


def places(data, *splits, folder=None):
  """Where the files of some splits must be put, in words."""
  names = dict.fromkeys(data.splits.get(split, split) for split in splits)
  top = _top(folder).absolute() / data.name
  return ' and '.join(f'{top / name}.jsonl' for name in names) + ' (or .jsonl.gz)'
