"""One interface over sentencepiece (tokenizer.model) and Hugging Face tokenizers (tokenizer.json).

Decoding is exact about spaces, so that texts can be joined as their tokens are: what `decode` gives
for a prompt and for its completion, one after the other, is the text of both. A completion keeps
its leading space; the space that some tokenizers put before every text is taken off again after the
BOS that marks where a text begins, and only there.

A text begins with one BOS at most: `encode` puts it there where the folder asks for it, and not a
second one where the text spells it, as chat templates do. What else a text spells of the special
tokens of a tokenizer.json becomes those tokens, as in transformers, in a user's words too: who
writes <|im_end|> in a question ends the turn. Those of a tokenizer.model stay text.

A tokenizer.json is followed as it is. transformers 5 replaces that of Llama 2 by a pipeline of its
own, which loses a space at the start of a text and after special tokens (its pull request 47700).
"""
import io
import json
from pathlib import Path
from typing import Callable, Iterable, NamedTuple, Sequence

import sentencepiece
import tokenizers

from r1jax.types import UserError

SPACE = '▁'  # U+2581, a space inside a piece of sentencepiece
FILES = ('tokenizer.json', 'tokenizer.model', 'tokenizer_config.json', 'special_tokens_map.json',
         'chat_template.jinja')
SPECIAL = ('bos', 'eos', 'unk', 'sep', 'pad', 'cls', 'mask')  # what chat templates may name
EOS = 1  # of the tokenizers trained here; 0 is unknown
LOSSLESS = dict(
    model_type='bpe', normalization_rule_name='identity', remove_extra_whitespaces=False,
    add_dummy_prefix=False, byte_fallback=True, split_digits=True,
    required_chars=SPACE,  # else texts without spaces leave a space to be spelled in bytes
    max_sentence_length=2**20,  # longer texts are passed over; the default does so at 4192 bytes
    pad_id=-1, unk_id=0, eos_id=EOS, bos_id=-1, num_threads=1, minloglevel=2)  # yapf: disable


class Tokenizer(NamedTuple):
  """Text to token ids and back."""
  encode: Callable[[str], list[int]]  # what the model reads, BOS in front where the folder asks it
  decode: Callable[[Sequence[int]], str]  # control tokens and ids beyond the vocabulary: no text
  eos_ids: frozenset[int]  # any of them ends a completion
  vocab_size: int
  save: Callable  # folder -> None, writes the tokenizer's own files
  bos_id: int | None = None  # what config.json has to say for `load` to give the same again


def special_tokens(own: dict) -> dict[str, str]:
  """{'bos_token': '<s>', ...} of a tokenizer_config.json's contents, those that it names."""
  named = {f'{name}_token': own.get(f'{name}_token') for name in SPECIAL}
  return {key: t['content'] if isinstance(t, dict) else t for key, t in named.items() if t}


def encode_rest(tokenizer: Tokenizer, text: str) -> list[int]:
  """The ids of a text that goes on from another: without the BOS that `encode` may put in front."""
  front, ids = tokenizer.encode(''), tokenizer.encode(text)
  return ids[len(front):] if ids[:len(front)] == front else ids


def same(a: Tokenizer, b: Tokenizer) -> bool:
  """Whether two tokenizers mean the same by the same ids."""
  return (a.vocab_size, a.eos_ids) == (b.vocab_size, b.eos_ids) and all(
      a.decode([i]) == b.decode([i]) for i in range(a.vocab_size))


def load(folder) -> Tokenizer:
  """The tokenizer of a Hugging Face folder: tokenizer.json, else tokenizer.model.

  The ids that end a completion are those of generation_config.json, else of config.json, else the
  tokenizer's own. Raises UserError where there is no tokenizer, it cannot be read, or nothing says
  what ends a completion.
  """
  folder = Path(folder)
  files = {name: (folder / name).read_bytes() for name in FILES if (folder / name).is_file()}
  kinds = [(name, make) for name, make in LOADERS.items() if name in files]
  if not kinds:
    raise UserError(f'no tokenizer in {folder}, where {" and ".join(LOADERS)} were looked for: '
                    'copy the one that the model was trained with there')
  name, make = kinds[0]
  own, model, generation = (read_json(folder / f'{name}.json')
                            for name in ('tokenizer_config', 'config', 'generation_config'))
  named = (generation.get('eos_token_id'), model.get('eos_token_id'))
  eos = next((ids for ids in named if ids not in (None, [])), None)
  eos = frozenset(() if eos is None else eos if isinstance(eos, list) else [eos])
  return make(folder / name, files, own, model, eos)


def train(texts: Iterable[str], vocab_size: int, tags: Sequence[str] = ()) -> Tokenizer:
  """A sentencepiece BPE tokenizer of the texts, the same each time; no BOS, one EOS, id 1.

  Any text comes back exactly as it was: nothing is normalized, spaces stay, and what the texts lack
  is spelled in bytes. Digits stand alone, each tag is one token, and no text encodes to EOS.
  Raises UserError where the texts need more pieces than `vocab_size`, or cannot fill it.
  """
  out = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(texts), model_writer=out,
                                             vocab_size=vocab_size, user_defined_symbols=list(tags),
                                             **LOSSLESS)
  except RuntimeError as e:
    raise UserError(f'no tokenizer of vocab_size {vocab_size} can be trained on these texts: '
                    f'{str(e).split("] ")[-1]}') from e
  own = {'add_bos_token': False, 'eos_token': '</s>'}
  files = {'tokenizer.model': out.getvalue(), 'tokenizer_config.json': json.dumps(own).encode()}
  return _sentencepiece('the trained tokenizer', files, own, {}, frozenset([EOS]))


def _sentencepiece(path, files, own, model, eos):
  """The Tokenizer of tokenizer.model; `own` and `model` are its and the model's config, {} if none.
  An empty `eos` leaves that to the tokenizer."""
  try:
    pieces = sentencepiece.SentencePieceProcessor(model_proto=files['tokenizer.model'])
  except RuntimeError as e:
    raise UserError(f'{path} is not a sentencepiece model: fetch it again') from e
  size = pieces.vocab_size()
  # Llama's tokenizers put BOS first unless they say otherwise, and often say nothing.
  bos = model.get('bos_token_id')
  add_bos = own.get('add_bos_token', model.get('model_type') == 'llama' and bos is not None)
  bos = pieces.bos_id() if bos is None else bos
  if add_bos and not 0 <= bos < size:
    raise UserError(f'{path} is to begin texts with BOS, but has no such token: '
                    'name it as bos_token_id in config.json')
  front, spelled_bos = ([bos], pieces.id_to_piece(bos)) if add_bos else ([], '')
  eos = eos or _own_eos(path, pieces.eos_id() if pieces.eos_id() >= 0 else None)
  spelled = [b'' if i in eos else _bytes_of(pieces, i) for i in range(size)]
  adds_space = pieces.encode('a', out_type=str)[0].startswith(SPACE)
  # A U+2581 of the text itself would come back as a space; its bytes come back as what they are.
  utf8 = [pieces.piece_to_id(f'<0x{byte:02X}>') for byte in SPACE.encode()]
  split = not adds_space and all(pieces.is_byte(i) for i in utf8)

  def encode(text):
    text = text.removeprefix(spelled_bos)
    first, *others = text.split(SPACE) if split else [text]
    ids = front + pieces.encode(first)
    for other in others:
      ids += utf8 + pieces.encode(other)
    return ids

  def decode(ids):
    data = b''.join(spelled[i] for i in ids if i < size)
    text = data.decode('utf-8', errors='replace')  # a completion may end inside a character
    return text.removeprefix(' ') if adds_space and front and list(ids[:1]) == front else text

  return Tokenizer(encode, decode, eos, size, lambda folder: _save(folder, files),
                   model.get('bos_token_id'))


def _bytes_of(pieces, i):
  """What a piece stands for in a text: UTF-8, of which a byte piece is one byte."""
  if pieces.is_control(i):
    return b''
  if pieces.is_unknown(i):
    return '\N{REPLACEMENT CHARACTER}'.encode()
  piece = pieces.id_to_piece(i)
  return bytes([int(piece[3:5], 16)]) if pieces.is_byte(i) else piece.replace(SPACE, ' ').encode()


def _huggingface(path, files, own, model, eos):
  """The same of tokenizer.json."""
  try:
    inner = tokenizers.Tokenizer.from_str(files['tokenizer.json'].decode('utf-8'))
  except Exception as e:  # the library raises nothing narrower
    raise UserError(f'{path} cannot be read ({e}): fetch it again') from e
  inner.no_truncation()  # some files keep what their last training run set
  inner.no_padding()
  named = special_tokens(own)
  front = _front(path, inner, own.get('add_bos_token') and named.get('bos_token'))
  # Some decoders strip the first space of whatever they are given, a completion's too. With a full
  # stop in front that space is not the first any more.
  stop = inner.encode('.', add_special_tokens=False).ids[-1:]
  stop_text = inner.decode(stop)
  eos = eos or _own_eos(path, inner.token_to_id(named.get('eos_token', '')))

  def encode(text):
    ids = inner.encode(text, add_special_tokens=False).ids
    return ids if ids[:len(front)] == front else front + ids

  def decode(ids):
    ids = [int(i) for i in ids]
    begins = bool(front) and ids[:len(front)] == front
    ids = [i for i in ids if i not in eos]  # the file may not list them among its special tokens
    return inner.decode(ids) if begins else inner.decode(stop + ids).removeprefix(stop_text)

  size = max(inner.get_vocab().values()) + 1
  return Tokenizer(encode, decode, eos, size, lambda folder: _save(folder, files),
                   model.get('bos_token_id'))


def _front(path, inner, bos):
  """The ids that every text begins with; `bos` is the token that the config asks for, if any."""
  front = inner.encode('').ids
  if inner.encode('.').ids != front + inner.encode('.', add_special_tokens=False).ids:
    raise UserError(
        f'{path} ends every text, a prompt too, with a special token: take it out of the '
        'post_processor there, as training puts EOS where it belongs')
  # DeepSeek's files leave BOS to add_bos_token, which transformers 4 obeys and 5 passes over.
  if not front and bos:
    front = [inner.token_to_id(bos)]
    if front == [None]:
      raise UserError(f'{path} is to begin texts with {bos!r}, but has no such token: set '
                      'add_bos_token in tokenizer_config.json to false, or fetch both again')
  return front


def _own_eos(path, eos_id):
  if eos_id is None:
    raise UserError(f'nothing says which token of {path} ends a completion: '
                    'name it as eos_token_id in generation_config.json beside it')
  return frozenset([eos_id])


LOADERS = {'tokenizer.json': _huggingface, 'tokenizer.model': _sentencepiece}  # the first wins


def _save(folder, files):
  folder = Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  for name, data in files.items():
    part = folder / f'{name}.part'
    part.write_bytes(data)
    part.replace(folder / name)


def read_json(path: Path) -> dict:
  """The file's contents, {} where there is no file. Raises UserError where it is not JSON."""
  try:
    return json.loads(path.read_text(encoding='utf-8')) if path.is_file() else {}
  except ValueError as e:
    raise UserError(f'{path} is not JSON ({e}): fetch it again') from None
