"""Tokenizers: nothing of a text is lost, and a completion ends where the model's folder says."""
import json
import os
from pathlib import Path
import shutil

import pytest
import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, processors

from r1jax import tokenizer
from r1jax.model import hf as hf_config
from r1jax.types import UserError

HERE = Path(__file__).parent
QWEN2 = HERE / 'fixtures/qwen2'
CHAT = HERE / 'fixtures/chat'  # made with transformers by make_chat.py
FAMILIES = sorted(path.parent.name for path in CHAT.glob('*/ref.json'))
DATA = Path(os.environ.get('R1JAX_DATA', HERE.parents[1] / 'shared/data'))
TAGS = ('<think>', '</think>', '<answer>', '</answer>')
CORPUS = ['<think> 12 + 7 = 19 </think>\n<answer> 19 </answer>', 'Let me see: 4 * 5 is 20, so\n',
          'the cat sat on the mat, and the dog sat too'] * 5  # yapf: disable
TEXTS = ['', ' ', 'a', ' a', 'a ', '  two  spaces   three', 'line\nline\n\n\tend\r\n', '12345 6789',
         '你好，世界！（“引号”）。', 'naïve café e\u0301 \u00a0\u3000\ufeff', '🙂👩‍👩‍👧', 'a▁b▁ ▁',
         'nul\0nul', '</s> <unk> <s> <0x41>', '<think>\n1 + 1 = 2 </think><answer>2</answer>',
         'ﬁ Å ①']  # yapf: disable


@pytest.fixture(scope='module')
def trained():
  return tokenizer.train(CORPUS, 320, TAGS)


@pytest.mark.parametrize('text', TEXTS)
def test_trained_tokenizer_loses_nothing(trained, text):
  ids = trained.encode(text)
  assert trained.decode(ids) == text
  assert all(0 <= i < trained.vocab_size for i in ids)
  assert not trained.eos_ids & set(ids)


@pytest.mark.parametrize('text', TEXTS)
def test_byte_level_tokenizer_loses_nothing(text):
  tok = tokenizer.load(QWEN2)
  assert tok.decode(tok.encode(text)) == text


def test_trained_tokenizer_keeps_tags_and_digits_whole(trained):
  for tag in TAGS:
    id_, = trained.encode(tag)
    assert trained.decode([id_]) == tag
    assert id_ in trained.encode(f'x{tag}y')
  assert len(trained.encode('1219')) == 4
  assert len(trained.encode('the cat sat')) < len('the cat sat')


def test_training_is_deterministic_and_survives_its_file(trained, tmp_path):
  again = tokenizer.train(iter(CORPUS), 320, TAGS)
  trained.save(tmp_path / 'a')
  again.save(tmp_path / 'b')
  name = 'tokenizer.model'
  assert (tmp_path / 'a' / name).read_bytes() == (tmp_path / 'b' / name).read_bytes()
  # A model's config beside it must not make a BOS appear.
  config = {'model_type': 'llama', 'bos_token_id': None, 'eos_token_id': 1}
  (tmp_path / 'a/config.json').write_text(json.dumps(config))
  loaded = tokenizer.load(tmp_path / 'a')
  assert loaded.eos_ids == trained.eos_ids == {1}
  assert loaded.vocab_size == trained.vocab_size == 320
  for text in TEXTS:
    assert loaded.encode(text) == trained.encode(text)
    assert loaded.decode(trained.encode(text)) == text


def test_a_text_without_spaces_still_teaches_them():
  tok = tokenizer.train(['ab', 'abc', 'ab\nc'] * 4, 264)
  assert tok.decode(tok.encode(' a▁ b')) == ' a▁ b'


@pytest.mark.parametrize('vocab_size', [100, 100000])
def test_training_refuses_a_vocabulary_it_cannot_make(vocab_size):
  with pytest.raises(UserError, match=str(vocab_size)):
    tokenizer.train(CORPUS, vocab_size)


def test_characters_cut_in_half_are_shown_as_such(trained):
  for tok in (trained, tokenizer.load(QWEN2)):
    ids = tok.encode('🙂')
    assert len(ids) == 4
    assert '\N{REPLACEMENT CHARACTER}' in tok.decode(ids[:2])
    assert tok.decode([tok.vocab_size + 7]) == ''


def test_control_tokens_leave_no_text_and_tags_do():
  tok = tokenizer.load(QWEN2)
  end = sorted(tok.eos_ids)[0]
  think = tok.encode('<think>')
  assert len(think) == 1
  assert tok.decode([*think, *tok.encode(' so'), end]) == '<think> so'


def test_eos_is_what_the_folder_says_first(tmp_path):
  for file in ('tokenizer.json', 'tokenizer_config.json'):
    shutil.copy(QWEN2 / file, tmp_path)
  inner = tokenizers.Tokenizer.from_file(str(QWEN2 / 'tokenizer.json'))
  im_end, end_of_text = (inner.token_to_id(t) for t in ('<|im_end|>', '<|endoftext|>'))
  assert tokenizer.load(QWEN2).eos_ids == {im_end, end_of_text}
  assert tokenizer.load(tmp_path).eos_ids == {im_end}
  (tmp_path / 'config.json').write_text(json.dumps({'eos_token_id': 7}))
  assert tokenizer.load(tmp_path).eos_ids == {7}
  (tmp_path / 'generation_config.json').write_text(json.dumps({'eos_token_id': [0, 9]}))
  tok = tokenizer.load(tmp_path)
  assert tok.eos_ids == {0, 9}
  assert tok.decode([8, 9]) == tok.decode([8])  # no special token, and yet it ends
  for file in ('tokenizer_config.json', 'config.json', 'generation_config.json'):
    (tmp_path / file).unlink()
  with pytest.raises(UserError, match='eos_token_id in generation_config.json'):
    tokenizer.load(tmp_path)


def test_tokenizer_json_round_trip_and_precedence(trained, tmp_path):
  trained.save(tmp_path)
  tok = tokenizer.load(QWEN2)
  tok.save(tmp_path)
  again = tokenizer.load(tmp_path)
  assert again.encode('so x = 4') == tok.encode('so x = 4')
  assert (tmp_path / 'tokenizer.json').read_bytes() == (QWEN2 / 'tokenizer.json').read_bytes()


def test_a_completion_keeps_its_leading_space(tmp_path):
  # Like Llama 2's: every text begins with BOS and a space, and decoding strips one space.
  vocab = {'<s>': 0, '</s>': 1, '▁': 2, 'a': 3, 'b': 4, '.': 5, '▁a': 6}
  inner = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[('▁', 'a')]))
  steps = [normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')]
  inner.normalizer = normalizers.Sequence(steps)
  steps = [decoders.Replace('▁', ' '), decoders.Fuse(), decoders.Strip(' ', 1, 0)]
  inner.decoder = decoders.Sequence(steps)
  inner.add_special_tokens(['<s>', '</s>'])
  begin = processors.TemplateProcessing(single='<s> $A', special_tokens=[('<s>', 0)])
  inner.post_processor = begin
  inner.enable_truncation(3)
  inner.save(str(tmp_path / 'tokenizer.json'))
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps({'eos_token': {'content': '</s>'}}))
  tok = tokenizer.load(tmp_path)
  ids = tok.encode('a b a b')
  assert ids[0] == 0 and len(ids) > 3 and tok.eos_ids == {1}
  assert tok.decode(ids) == 'a b a b'
  for cut in range(2, len(ids)):  # cut at 1, the space before the text would be the completion's
    assert tok.decode(ids[:cut]) + tok.decode([*ids[cut:], 1]) == 'a b a b'


@pytest.mark.parametrize('family', FAMILIES)
def test_a_familys_ids_and_texts_are_those_of_transformers(family):
  tok = tokenizer.load(CHAT / family)
  ref = json.loads((CHAT / family / 'ref.json').read_text())
  front = tok.encode('')
  assert tok.vocab_size == ref['size'] and len(ref['texts']) > 30
  assert bool(front) == (family in ('deepseek', 'gemma', 'llama2', 'llama3', 'mistral'))
  for text, ids, decoded in ref['texts']:
    # The one difference: a text that spells BOS at its start does not get another.
    ids = ids[1:] if ids[:2] == front * 2 else ids
    assert tok.encode(text) == ids, text
    assert tok.decode(ids) == decoded, text


def test_each_of_several_eos_ends_a_completion():
  tok = tokenizer.load(CHAT / 'llama3')
  inner = tokenizers.Tokenizer.from_file(str(CHAT / 'llama3/tokenizer.json'))
  ends = [inner.token_to_id(t) for t in ('<|end_of_text|>', '<|eom_id|>', '<|eot_id|>')]
  assert tok.eos_ids == set(ends)
  for end in ends:
    assert tok.decode([*tok.encode('so'), end]) == 'so'


@pytest.mark.parametrize('family, bos', [('llama2', '<s>'), ('gemma', '<bos>'),
                                         ('deepseek', '<｜begin▁of▁sentence｜>')])
def test_a_text_begins_with_one_bos(family, bos):
  tok = tokenizer.load(CHAT / family)
  front, = tok.encode('')
  assert tok.encode('so').count(front) == tok.encode(bos + 'so').count(front) == 1
  assert tokenizer.encode_rest(tok, 'so')[0] != front


def test_sentencepiece_and_tokenizer_json_of_llama_2_agree(tmp_path):
  for name in ('tokenizer.model', 'tokenizer_config.json'):
    shutil.copy(CHAT / 'llama2' / name, tmp_path)
  one, other = tokenizer.load(tmp_path), tokenizer.load(CHAT / 'llama2')
  assert (one.vocab_size, one.eos_ids) == (other.vocab_size, other.eos_ids)
  for text, ids, decoded in json.loads((CHAT / 'llama2/ref.json').read_text())['texts']:
    if not any(token in text for token in ('</s>', '<unk>')):  # these stay text in tokenizer.model
      assert one.encode(text) == other.encode(text), text
      assert one.decode(ids) == decoded
  assert one.encode('<s>so') == one.encode('so') and 2 not in one.encode('x</s> y')


def test_bos_that_only_the_config_asks_for_and_eos_that_every_text_would_get(tmp_path):
  shutil.copytree(CHAT / 'deepseek', tmp_path, dirs_exist_ok=True)
  path = tmp_path / 'tokenizer.json'
  inner = tokenizers.Tokenizer.from_file(str(path))
  inner.post_processor = processors.ByteLevel(trim_offsets=False)  # as DeepSeek publishes it
  inner.save(str(path))
  assert tokenizer.load(tmp_path).encode('so') == tokenizer.load(CHAT / 'deepseek').encode('so')
  inner.post_processor = processors.TemplateProcessing(single='$A <think>',
                                                       special_tokens=[('<think>', 3)])
  inner.save(str(path))
  with pytest.raises(UserError, match='post_processor'):
    tokenizer.load(tmp_path)


def test_folders_without_a_tokenizer_or_with_a_broken_one(tmp_path):
  with pytest.raises(UserError, match='tokenizer.json and tokenizer.model') as e:
    tokenizer.load(tmp_path)
  assert str(tmp_path) in str(e.value)
  for name in ('tokenizer.model', 'tokenizer.json'):
    (tmp_path / name).write_text('version https://git-lfs')
    with pytest.raises(UserError, match=name):
      tokenizer.load(tmp_path)


@pytest.mark.parametrize('name', ['stories260K', 'babyllama105'])
def test_llama_sentencepiece_begins_with_bos(name):
  folder = DATA / 'models' / name / 'hf'
  if not (folder / 'tokenizer.model').exists():
    pytest.skip(f'{folder} is not there: set R1JAX_DATA to the folder of the data sets')
  tok = tokenizer.load(folder)
  pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / 'tokenizer.model'))
  text = 'Once upon a time, there was a big dog'
  ids = tok.encode(text)
  assert ids == [1, *pieces.encode(text)]
  assert tok.vocab_size == pieces.vocab_size() and tok.eos_ids == {1, 2}
  for cut in range(2, len(ids)):  # cut at 1, the space before the text would be the completion's
    assert tok.decode(ids[:cut]) + tok.decode([*ids[cut:], 2]) == text


def test_a_saved_model_folder_reads_prompts_as_its_source_did(tmp_path):
  source = DATA / 'models/stories260K/hf'
  if not source.exists():
    pytest.skip(f'{source} is not there: set R1JAX_DATA to the folder of the data sets')
  before = tokenizer.load(source)
  before.save(tmp_path)
  hf_config.write_config(hf_config.read_config(source), tmp_path, before.eos_ids, before.bos_id)
  after = tokenizer.load(tmp_path)
  assert after.encode('Once upon a time') == before.encode('Once upon a time')
  assert after.encode('Once upon a time')[0] == 1
