"""Chat templates: a model's own jinja template makes one text of a conversation.

The text is that of transformers' apply_chat_template, character for character, and so are the ids
that `tokenizer.encode` gives for it: where the template writes BOS, the tokenizer adds no other.

A template comes with a model from wherever that came from, so it runs in jinja's sandbox, in a
process of its own with a limit on seconds and memory. A bound within this process would have to
know every filter and method that can repeat, pad, nest or multiply; one on the process need not.
"""
import datetime
import json
import os
from pathlib import Path
import resource
import subprocess
import sys
from typing import NamedTuple

import jinja2
from jinja2 import ext, nodes, sandbox, utils

from r1jax import tokenizer
from r1jax.types import UserError

SECONDS = 10  # of the process; a template takes a tenth of a second, starting included
MEMORY = 1 << 29  # bytes of it
MAX_TEMPLATE = 200_000  # characters; the longest published ones have 20,000
MAX_TEXT = 8_000_000  # characters of a conversation
QUESTION = 'thequestionstandshere'  # what a template may do to it, it would do to a question


class Template(NamedTuple):
  """A chat template and the special tokens that it may write, {'bos_token': '<s>', ...}."""
  source: str
  tokens: dict = {}
  path: str = 'the chat template'  # for messages


def read(folder, name: str = 'default') -> Template:
  """The chat template of that name of a Hugging Face folder; UserError where there is none, or it
  cannot be read."""
  texts = sources(folder)
  if name not in texts:
    raise UserError(f'{folder} has no chat template {name!r}, only {sorted(texts) or "none"}: copy '
                    'chat_template.jinja of the model there, or give a template of prompts.py')
  own = tokenizer.read_json(Path(folder) / 'tokenizer_config.json')
  return Template(texts[name], tokenizer.special_tokens(own), f'the chat template of {folder}')


def sources(folder) -> dict[str, str]:
  """{name: template} of a Hugging Face folder: 'default' is chat_template.jinja's, those of other
  names are in additional_chat_templates/; else tokenizer_config.json's, one text or a list of named
  ones; {} where there is none. Raises UserError where that file is not JSON."""
  folder = Path(folder)
  texts = tokenizer.read_json(folder / 'tokenizer_config.json').get('chat_template') or {}
  texts = {'default': texts} if isinstance(texts, str) else texts
  texts = texts if isinstance(texts, dict) else {t['name']: t['template'] for t in texts}
  for path in (folder / 'chat_template.jinja', *folder.glob('additional_chat_templates/*.jinja')):
    if path.is_file():
      key = 'default' if path.parent == folder else path.stem
      texts = {**texts, key: path.read_text(encoding='utf-8')}
  return texts


def variables(chat: Template, messages, add_generation_prompt: bool, **kwargs) -> dict:
  """What a template is given: special tokens, the messages without what is None, and `kwargs`."""
  messages = [{k: v for k, v in m.items() if v is not None} for m in messages]
  return {**chat.tokens, 'tools': None, 'documents': None, 'messages': messages,
          'add_generation_prompt': add_generation_prompt, **kwargs}  # yapf: disable


def render(source, messages, add_generation_prompt: bool = True, **kwargs) -> str:
  """The text of a conversation, [{'role': 'user', 'content': '...'}, ...]; BOS is in it where the
  template writes it.

  `source` is a Template, or a folder to `read` it from; `kwargs` are what it may know besides the
  messages, as enable_thinking=False or date_string='26 Jul 2024' (some templates write today's date
  where none is given: give one, or a run continues tomorrow with other prompts). Raises UserError
  where the template refuses the conversation, is broken, or does not end within SECONDS and MEMORY.
  """
  chat = source if isinstance(source, Template) else read(source)
  if len(chat.source) > MAX_TEMPLATE:
    raise UserError(f'{chat.path} has {len(chat.source)} characters, more than the {MAX_TEMPLATE} '
                    'allowed: use another')
  known = variables(chat, messages, add_generation_prompt, **kwargs)
  work = {'source': chat.source, 'known': known, 'seconds': SECONDS, 'memory': MEMORY}
  places = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get('PYTHONPATH')])]
  command, why = [sys.executable, '-P', '-m', 'r1jax.chat'], ''
  try:
    done = subprocess.run(command, input=json.dumps(work), capture_output=True, encoding='utf-8',
                          env={**os.environ, 'PYTHONPATH': os.pathsep.join(places)},
                          timeout=SECONDS, check=False)  # yapf: disable
    why = done.stderr.strip().rpartition('\n')[2]
    answer = json.loads(done.stdout)
  except (subprocess.TimeoutExpired, ValueError):  # killed by one limit or another: no answer
    raise UserError(f'{chat.path} does not end within {SECONDS} s and {MEMORY >> 20} MB '
                    f'({why or "stopped"}): use another template') from None
  if answer['error']:
    raise UserError(f'{chat.path} cannot write these messages ({answer["error"]}): change them, or '
                    'use another template')
  return answer['text']


def template(folder, system: str | None = None, think: str = '', **kwargs) -> str:
  """The folder's chat template as text with one {question}, for str.format: `template=` of a task.

  `system` is a system message; `think` is what the prompt has to end with, as R1's forced opening
  prompts.THINK, and is added where the template does not write it; `kwargs` are those of `render`.
  A template that strips white space around a question cannot do so any more: give it stripped.
  Raises UserError as `render` does, and where a question does not come through once and as it is.
  """
  messages = [{'role': 'system', 'content': system}] if system is not None else []
  text = render(folder, [*messages, {'role': 'user', 'content': QUESTION}], **kwargs)
  parts = text.split(QUESTION)
  if len(parts) != 2:
    raise UserError(f'the chat template of {folder} writes a question {len(parts) - 1} times as it '
                    'is, not once: use another template')
  before, after = (part.replace('{', '{{').replace('}', '}}') for part in parts)
  there = text.rstrip().endswith(think.rstrip())
  return before + '{question}' + after + ('' if there else think)


# -- in the process of its own ---------------------------------------------------------------------


class Generation(ext.Extension):
  """{% generation %} marks the assistant's words for who wants to know; here it changes nothing."""
  tags = {'generation'}

  def parse(self, parser):
    line = next(parser.stream).lineno
    return nodes.Scope(parser.parse_statements(('name:endgeneration',), drop_needle=True),
                       lineno=line)


def write(source: str, known: dict) -> str:
  """What the template writes, in this very process: no limits. Raises jinja2.TemplateError and
  whatever the template's own operations raise."""
  env = sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                              extensions=[Generation, ext.loopcontrols])
  env.filters['tojson'] = _to_json
  env.globals['raise_exception'] = _raise
  env.globals['strftime_now'] = lambda form: datetime.datetime.now().strftime(form)
  env.globals['namespace'] = _namespace
  env.globals['dict'] = lambda *args, **fields: dict(*args, **fields)  # not the type itself
  tree = env.parse(source)
  for ref in tree.find_all(nodes.NSRef):
    _check_name(ref.attr)
  return env.from_string(tree).render(**known)


def _to_json(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
  return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                    sort_keys=sort_keys)  # jinja's own escapes HTML


def _raise(message):
  raise jinja2.TemplateError(message)


def _namespace(*args, **fields):
  fields = dict(*args, **fields)
  for name in fields:
    _check_name(name)
  return utils.Namespace(fields)


def _check_name(name):
  if name.startswith('_'):  # a way around the sandbox
    raise jinja2.exceptions.SecurityError(f'namespaces have no field {name}')


def main():
  """Reads one rendering's work from stdin and writes {'text', 'error'} to stdout."""
  work, text, error = json.load(sys.stdin), '', ''
  resource.setrlimit(resource.RLIMIT_AS, (work['memory'],) * 2)
  resource.setrlimit(resource.RLIMIT_CPU, (work['seconds'],) * 2)
  try:
    text = write(work['source'], work['known'])
    if len(text) > MAX_TEXT:
      text, error = '', f'it writes {len(text)} characters'
  except Exception as e:  # whatever a template does wrong
    error = f'{type(e).__name__}: {str(e)[:1000]}'
  json.dump({'text': text, 'error': error}, sys.stdout)


if __name__ == '__main__':
  main()
