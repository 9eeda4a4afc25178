"""Asking a model: prompts in, one text each out, or the exception that stands for it.

An opener is a function (machine, mesh, tokenizer) -> write, made from `local` or `endpoint` with
functools.partial, so that a config can say it. write(prompts, draws=()) gives one item a prompt, in
their order. A prompt asked again with the same draw (0 unless given) is the same question; another
draw is another try at it. No failure of one prompt is the others': it is an Exception in its place.
"""
import collections
from functools import partial
import http.client
import io
import json
import os
import queue
import socket
import ssl
import threading
import time
import types
from typing import NamedTuple
import urllib.parse
import zlib

from r1jax import checkpoint, rollout, sample, seeds, sharding
from r1jax.types import Problem, Together, UserError

MAX_BYTES = 2**22  # of an endpoint's answer; 32,768 tokens spelled in JSON escapes are far below
BACKOFF_S = 0.5  # before the second try of a question; it doubles with each further one
GRACE_S = 0.1  # a thread's own word on why it is late is worth so much more waiting


class CutOff(ValueError):
  """The budget of tokens ended the text, which is `text`. Nothing says what would have followed."""

  def __init__(self, text, max_tokens):
    super().__init__(f'the text did not end within {max_tokens} tokens: raise max_tokens. It ends '
                     f'in {text[-60:]!r}')
    self.text = text


# -- a model in this process -----------------------------------------------------------------------


def local(folder, sampling: sample.Sampling, max_prompt_tokens: int, machine, mesh, tokenizer, *,
          template: str = '{prompt}', seed: int = 0):
  """write() of a run folder or Hugging Face folder, loaded once, with the project's own sampler.

  The template is put around each prompt; one of prompts.py with {question} will do as well. A draw
  depends on the seed, the prompt and its number alone, not on what else is asked, or was before.
  Too long a prompt is a UserError in its place, a text without an end a CutOff. All processes ask
  together. Raises UserError where there is no model, it has no room for the budgets, or the
  template for a prompt.
  """
  del tokenizer  # the model has its own
  fill = lambda prompt: template.format(prompt=prompt, question=prompt)
  try:
    if fill('a') == fill('b'):
      raise ValueError('it has no place for a prompt')
  except (ValueError, LookupError) as error:
    raise UserError(
        f'the template {template[:60]!r} does not work ({error}): write {{prompt}} where '
        'the prompt goes, and braces of its own twice') from None
  mesh = sharding.sampling_mesh(machine, mesh)
  model, params, own = checkpoint.load_model(folder, machine, mesh)
  sampler = rollout.make_sampler(model, own, sampling, 1, max_prompt_tokens, machine, mesh,
                                 machine.sample_rows)
  key = seeds.key(seed, 'ask')

  def write(prompts, draws=()):
    problems = [Problem(fill(prompt), '') for prompt in prompts]
    out = [_unfit(own, problem, max_prompt_tokens) for problem in problems]
    asked = [i for i, unfit in enumerate(out) if unfit is None]
    if asked:
      numbers = [number(prompts[i], draws[i] if draws else 0) for i in asked]
      few = sampler._replace(rows=_rows(len(asked), sharding.rows(mesh), sampler.rows))
      calls = rollout.dispatch(few, params, key, numbers, [problems[i] for i in asked])
      for i, (completion,) in zip(asked, rollout.collect(few, calls, ()).completions):
        out[i] = (completion.text
                  if completion.finished else CutOff(completion.text, sampling.max_tokens))
    return out

  return Together(write)


def number(prompt: str, draw: int = 0, seed: int = 0) -> int:
  """What the randomness of a question is counted by: 31 bits of its text, draw and seed."""
  return zlib.crc32(f'{seed} {draw} {prompt}'.encode('utf-8', 'surrogatepass')) >> 1


def _unfit(tokenizer, problem, max_prompt_tokens):
  """The exception that a prompt raises, None for one that can be asked."""
  try:
    rollout.encode(tokenizer, [problem], max_prompt_tokens)
    return None
  except Exception as error:  # a tokenizer may raise anything on half a character
    return error


def _rows(problems, data, most):
  """Rows a device call: a power of two a device, so that few sizes are ever compiled."""
  return min(most, data * 2**(-(-problems // data) - 1).bit_length())


# -- a server --------------------------------------------------------------------------------------


class Server(NamedTuple):
  """Where an endpoint is and how it is asked."""
  url: str
  host: str
  port: int
  path: str
  tls: ssl.SSLContext | None
  key_variable: str
  max_tokens: int
  retries: int
  late: str  # what a TimeoutError says


def endpoint(url: str, model: str, machine, mesh, tokenizer, *, max_tokens: int = 2048,
             temperature: float = 0.0, deadline_s: float = 120.0, retries: int = 4,
             parallel: int = 16, key_variable: str = '', seed: int = 0):
  """write() of a server with OpenAI's interface: POST {url}/chat/completions, one user message.

  At most `parallel` questions are under way, each for at most deadline_s seconds, tries and pauses
  included, however the server behaves: a TimeoutError stands for one that takes longer. 429, 5xx
  and broken connections are tried again `retries` times, after BACKOFF_S, twice that, and so on;
  any other failure is a ConnectionError, a text without an end a CutOff. No redirect is followed.
  The key is read from the environment variable `key_variable` as each question is sent. The server
  is sent number(prompt, draw, seed) as its seed. Raises UserError where an argument is at fault.
  """
  del machine, mesh, tokenizer
  address = _address(url)
  if min(max_tokens, parallel) < 1 or min(retries, temperature) < 0 or not deadline_s > 0:
    raise UserError(f'{url}: max_tokens and parallel must be at least 1, retries and temperature '
                    'at least 0, deadline_s above 0')
  late = f'{url} had not answered after {deadline_s:g} s: raise deadline_s, or lower parallel'
  server = Server(url, *address, key_variable, max_tokens, retries, late)
  _headers(key_variable)  # a lost key shows before the work

  def body(prompt, draw):
    message = dict(role='user', content=prompt)
    return json.dumps(
        dict(model=model, messages=[message], max_tokens=max_tokens, temperature=temperature,
             seed=number(prompt, draw, seed))).encode()

  def write(prompts, draws=()):
    bodies = [body(*x) for x in zip(prompts, draws or [0] * len(prompts), strict=True)]
    return _spread(partial(_question, server), bodies, parallel, deadline_s, late)

  return write


def _address(url):
  """(host, port, path, TLS context or None)."""
  if set('@?#') & set(url):  # a password or key, which is not to be repeated here
    raise UserError('the address of the server has a user, query or fragment in it: give the bare '
                    'address, and a key by the name of its environment variable, key_variable')
  try:
    parts = urllib.parse.urlsplit(url)
    port, plain = parts.port, url.isascii() and url.isprintable() and ' ' not in url
    if parts.scheme not in ('http', 'https') or not parts.hostname or not plain:
      raise ValueError('it must begin with http:// or https:// and a host')
  except ValueError as error:
    raise UserError(f'{url!r} is no address of a server ({error}): write http://HOST:PORT/v1, or '
                    'https') from None
  tls = ssl.create_default_context() if parts.scheme == 'https' else None
  path = parts.path.rstrip('/') + '/chat/completions'
  return parts.hostname, port or (443 if tls else 80), path, tls


def _headers(key_variable) -> dict:
  """The headers of a request. http.client would print a key that is no header's value: such a key
  must not get that far."""
  headers = {'Content-Type': 'application/json', 'Connection': 'close', 'User-Agent': 'r1jax'}
  key = _key(key_variable)
  if key_variable and not (key and key.isascii() and key.isprintable()):
    raise UserError(f'the environment variable {key_variable} holds no key: export it')
  return {**headers, 'Authorization': f'Bearer {key}'} if key else headers


def _key(key_variable):
  return os.environ.get(key_variable, '').strip() if key_variable else ''


def _question(server, body, end) -> str | Exception:
  """The answer's text, or the error that the question ends in, at the moment `end` at the latest.
  """
  said = ''
  for attempt in range(server.retries + 1):
    try:
      status, data = _post(server, body, end)
      if status == 200:
        return _text(server, data)
      if status != 429 and status < 500:
        return _refusal(server, status, data)
      said = f'answered {status}'
    except (OSError, http.client.HTTPException) as error:
      if time.monotonic() < end:
        said = f'could not be asked ({type(error).__name__}: {str(error)[:200]})'
    last = attempt == server.retries
    pause = 0 if last else BACKOFF_S * 2**attempt
    if time.monotonic() + pause >= end:
      return TimeoutError(server.late + (f'; of {attempt + 1} tries, it {said}' if said else ''))
    if last:
      return ConnectionError(f'{server.url} {said}, the last of {attempt + 1} tries: see that the '
                             'server is up and not overloaded')
    time.sleep(pause)


def _refusal(server, status, data):
  if status in (401, 403):
    mend = (f'check the key in {server.key_variable}'
            if server.key_variable else 'name the environment variable of a key as key_variable')
    return ConnectionError(f'{server.url} answered {status}, it does not let us in: {mend}')
  if 300 <= status < 400:
    return ConnectionError(
        f'{server.url} answered {status}, a redirect, and none is followed: give '
        'the address that it leads to')
  return ConnectionError(
      f'{server.url} answered {status}: check the address and the model\'s name; '
      f'it says {_quote(server, data)}')


def _text(server, data) -> str | Exception:
  """The text of an answer's first choice."""
  if len(data) > MAX_BYTES:
    return ConnectionError(f'{server.url} sent more than {MAX_BYTES} bytes: lower max_tokens, or '
                           'see that the address is that of a model server')
  try:
    choice = json.loads(data)['choices'][0]
    text = choice['message']['content']
    text.encode('utf-8')  # what is no text fails here, and half a character too
    return CutOff(text, server.max_tokens) if choice.get('finish_reason') == 'length' else text
  except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
    return ConnectionError(f'{server.url} sent no chat completion ({type(error).__name__} in '
                           f'{_quote(server, data)}): see that the address is that of a model '
                           'server')


def _quote(server, data):
  """The beginning of what a server sent, without the key."""
  said, key = data.decode(errors='replace'), _key(server.key_variable)
  return repr((said.replace(key, '***') if key else said)[:200])


def _post(server, body, end):
  """(status, the answer's bytes, at most MAX_BYTES + 1), at the moment `end` at the latest."""
  headers = _headers(server.key_variable)
  with _connect(server, end) as sock:
    reader = _Reader(sock, end)
    connection = http.client.HTTPConnection(server.host, server.port)
    connection.sock = types.SimpleNamespace(  # all that http.client asks of a socket
        sendall=reader.sendall, makefile=lambda mode: io.BufferedReader(reader), close=lambda: None)
    connection.request('POST', server.path, body, headers)
    with connection.getresponse() as response:
      data = response.read(MAX_BYTES + 1)
      if response.length and len(data) <= MAX_BYTES:
        raise ConnectionError(f'the answer broke off after {len(data)} bytes')
      return response.status, data


def _connect(server, end):
  sock = socket.create_connection((server.host, server.port), timeout=_left(end))
  if not server.tls:
    return sock
  try:
    sock.settimeout(_left(end))
    return server.tls.wrap_socket(sock, server_hostname=server.host)
  except BaseException:
    sock.close()
    raise


class _Reader(io.RawIOBase):
  """A socket up to the moment `end`. Its own timeout begins anew with each byte that comes in, and
  a server that sends one a second would hold us for ever."""

  def __init__(self, sock, end):
    super().__init__()
    self.sock, self.end = sock, end

  def readable(self):
    return True

  def readinto(self, buffer):
    self.sock.settimeout(_left(self.end))
    return self.sock.recv_into(buffer)

  def sendall(self, data):
    """Sends the bytes."""
    self.sock.settimeout(_left(self.end))
    self.sock.sendall(data)


def _left(end):
  """Seconds up to the moment `end`; TimeoutError from then on."""
  left = end - time.monotonic()
  if left <= 0:
    raise TimeoutError('out of time')
  return left


def _spread(ask, items, parallel, deadline_s, late) -> list:
  """ask(item, end) of each item, `parallel` threads at a time; TimeoutError(late) for one that is
  not back by its end. No lookup of a name can be interrupted, hence threads that can be left behind
  and, being daemons, hold up no exit."""
  out, waiting = [None] * len(items), collections.deque(range(len(items)))
  ends, done = {}, queue.SimpleQueue()

  def work(i, end):
    try:
      done.put((i, ask(items[i], end)))
    except Exception as error:
      done.put((i, error))

  while waiting or ends:
    while waiting and len(ends) < parallel:
      i = waiting.popleft()
      ends[i] = time.monotonic() + deadline_s
      threading.Thread(target=work, args=(i, ends[i]), daemon=True).start()
    first = min(ends, key=ends.get)
    try:
      i, found = done.get(timeout=max(0, ends[first] + GRACE_S - time.monotonic()))
    except queue.Empty:
      i, found = first, TimeoutError(late)
    if ends.pop(i, None) is not None:  # else it was left behind, and has come back after all
      out[i] = found
  return out
