"""Chat templates: the text and the ids of transformers, in bounds that a template cannot leave."""
from datetime import datetime
from functools import partial
import json
from pathlib import Path
import re
import shutil
import time

import jinja2
import pytest

from r1jax import chat, prompts, rewards, tokenizer
from r1jax.types import Completion, Problem, Reward, UserError

CHAT = Path(__file__).parent / 'fixtures/chat'  # made with transformers by make_chat.py
FAMILIES = sorted(path.parent.name for path in CHAT.glob('*/ref.json'))
USER = [{'role': 'user', 'content': 'What is 12 * 7?'}]


@pytest.mark.parametrize('family', FAMILIES)
def test_text_and_ids_are_those_of_transformers(family):
  tok, source = tokenizer.load(CHAT / family), chat.read(CHAT / family)
  chats = json.loads((CHAT / family / 'ref.json').read_text())['chats']
  assert any(text for _, _, text, _ in chats)
  for messages, more, text, ids in chats:  # in this process, as two hundred others take time
    if text is None:
      with pytest.raises(jinja2.TemplateError, match=re.escape(ids)):
        chat.write(source.source, chat.variables(source, messages, **more))
    else:
      assert chat.write(source.source, chat.variables(source, messages, **more)) == text
      assert tok.encode(text) == ids
  messages, more, text, _ = chats[0]
  assert chat.render(CHAT / family, messages, **more) == text


def test_what_a_template_refuses_is_said():
  with pytest.raises(UserError, match='gemma.*No system role here'):
    chat.render(CHAT / 'gemma', [{'role': 'system', 'content': 'Be brief.'}, *USER])


def test_where_a_folder_may_keep_its_templates(tmp_path):
  config = tmp_path / 'tokenizer_config.json'
  with pytest.raises(UserError, match=str(tmp_path)):
    chat.read(tmp_path)
  named = [{'name': 'default', 'template': 'a{{ bos_token }}'}, {'name': 'tools', 'template': 'b'}]
  config.write_text(json.dumps({'chat_template': named, 'bos_token': {'content': '<s>'}}))
  assert chat.render(tmp_path, USER) == 'a<s>'
  assert chat.read(tmp_path, 'tools').source == 'b'
  (tmp_path / 'chat_template.jinja').write_text('c')
  (tmp_path / 'additional_chat_templates').mkdir()
  (tmp_path / 'additional_chat_templates/tools.jinja').write_text('d')
  assert chat.read(tmp_path).source == 'c'
  assert chat.read(tmp_path, 'tools').source == 'd'
  with pytest.raises(UserError, match="default.*tools"):
    chat.read(tmp_path, 'rag')


@pytest.mark.parametrize('source, text', [
    ("{{ {'b': 'é<', 'a': [1]} | tojson }}", '{"b": "é<", "a": [1]}'),
    ("{{ [1] | tojson(indent=1) }}", '[\n 1\n]'),
    ("{{ strftime_now('%Y') }}", str(datetime.now().year)),
    ('{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}', '01'),
    ('{% generation %}{% set x = 1 %}a{% endgeneration %}{{ x is defined }}', 'aFalse'),
    ('  {% if true %}\nx\n  {% endif %}\n{{ tools is none }}\n', 'x\nTrue'),
    ("{{ dict(a=1).a }}{% set ns = namespace(n=1) %}{% set ns.n = 2 %}{{ ns.n }}", '12'),
    ('{{ messages[0].name is defined }}{{ nothing }}', 'False'),
    ('\ud800', '\ud800'),
])  # yapf: disable
def test_what_templates_can_use(source, text):
  assert chat.write(source, {'messages': USER, 'tools': None}) == text


@pytest.mark.parametrize('source, why', [
    ('{% for i in range(10**12) %}{% endfor %}', 'Range too big'),
    ("{{ 'a' * 10**9 }}", 'MemoryError'), ("{{ 'a'.center(10**9) }}", 'MemoryError'),
    ("{% set n = namespace(s='a') %}{% for i in range(40) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
     'MemoryError|not end'), ('{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}', 'RecursionError'),
    ("{{ 'a' * 9 * 10**6 }}", 'characters'), ("{{ ''.__class__.__mro__ }}", 'unsafe'),
    ('{% set n = namespace() %}{% set n.__class__ = 1 %}', 'no field'),
    ('{% for %}', 'TemplateSyntaxError'), ('x' * 200_001, '200001 characters'),
])  # yapf: disable
def test_hostile_and_broken_templates_are_refused(source, why):
  with pytest.raises(UserError, match=why):
    chat.render(chat.Template(source), USER)


@pytest.mark.parametrize('source', [
    '{{ 10**(10**9) }}',
    '{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}'
])  # yapf: disable
def test_templates_without_end_are_stopped(source, monkeypatch):
  monkeypatch.setattr(chat, 'SECONDS', 1)
  start = time.monotonic()
  with pytest.raises(UserError, match='does not end within 1 s'):
    chat.render(chat.Template(source), USER)
  assert time.monotonic() - start < 5


@pytest.mark.parametrize('family', ['gemma', 'llama3', 'qwen2'])
def test_a_question_in_the_template_is_the_question_in_the_chat(family):
  question = '{"a": {}} 多少? {question} {{x}}\n\nso'
  made = chat.template(CHAT / family, date_string='1 Jan')
  assert made.format(question=question) == chat.render(CHAT / family,
                                                       [{'role': 'user', 'content': question}],
                                                       date_string='1 Jan')


def test_system_message_and_forced_thinking():
  made = chat.template(CHAT / 'qwen3', system='Be {brief}.', think=prompts.THINK)
  assert made.format(question='Why?') == (
      '<|im_start|>system\nBe {brief}.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n'
      '<|im_start|>assistant\n<think>\n')  # yapf: disable
  # DeepSeek's template opens the block itself; R1_THINK is what it writes, BOS being encode's.
  made = chat.template(CHAT / 'deepseek', think=prompts.THINK)
  assert made == '<｜begin▁of▁sentence｜>' + prompts.R1_THINK
  encode = tokenizer.load(CHAT / 'deepseek').encode
  assert encode(made) == encode(prompts.R1_THINK)
  assert chat.template(CHAT / 'qwen3', enable_thinking=False).endswith('</think>\n\n')


@pytest.mark.parametrize('source', [
    '{{ messages[0].content | upper }}', 'none', 'cut {{ m[:3] }}',
    '{{ messages[0].content }}{{ messages[0].content }}'
])
def test_a_template_must_write_the_question_once_and_as_it_is(source, tmp_path):
  (tmp_path / 'chat_template.jinja').write_text(source)
  with pytest.raises(UserError, match='times as it is|cannot write'):
    chat.template(tmp_path)


def test_the_template_travels_with_the_tokenizer(tmp_path):
  for family in ('qwen3', 'llama3'):  # a file, an entry of the config
    shutil.rmtree(tmp_path / family, ignore_errors=True)
    tokenizer.load(CHAT / family).save(tmp_path / family)
    assert chat.read(tmp_path / family).source == chat.read(CHAT / family).source


@pytest.mark.parametrize('text, summary, good', [
    ('hm, 84\n</think>\n\nIt is 84.', 'It is 84.', 1), ('hm, 84', None, 0), ('84</think>', '', 0),
    ('</think> 84', '84', 0), ('<think>hm</think> 84', '84', 0), ('', None, 0),
    ('hm</think> a </think> b', 'b', 0)
])  # yapf: disable
def test_completions_of_an_opened_think_block(text, summary, good):
  assert prompts.opened_summary(text) == summary
  assert prompts.in_format(prompts.opened(text)) == bool(good)
  assert prompts.thinking(prompts.opened(text)) == prompts.thinking(text)
  problem, completion = Problem('', '84', language='en'), Completion(text, 9, True)
  scores = partial(rewards.score, problems=[problem], completions=[completion])
  assert scores(Reward('format', rewards.think_format, view=prompts.opened)) == [good]
  assert scores(Reward('free', rewards.free_format, view=prompts.opened)) == [good]
