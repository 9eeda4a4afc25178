"""What runs inside the sandbox: a model's program in one process, what judges it in another.

`sandbox.run` gives this source to a bare interpreter of the standard library alone, and a request
on stdin; the verdict is what the first process prints. It imports nothing of ours.

The tests never share a process with the program. The process that runs the program is forked before
the tests are read, and has two pipes: calls arrive on one, replies leave by the other. In the
tests, each name that they do not define stands for the program's, and using it asks over there.
Only plain data comes back, through an unpickler that makes nothing else. So a program cannot read
what is expected, reach the tests' frames or their output, or hand over an object that claims to be
equal to everything; `os._exit(0)` ends only itself. What remains to it is to give the right values.
"""
import _pickle  # its C part: the module around it takes longer to import than all else here
import builtins
import os
import resource
import sys

SIGKILL = 9  # the module signal takes 1 ms
MOST = 1 << 20  # bytes of output a program may print
PLAIN = (type(None), bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set,
         frozenset, range)  # yapf: disable


class Unsendable(BaseException):
  """The tests hand the program something that cannot be sent: they are at fault, not it."""


class Remote:
  """In the tests: something that is not plain data and stays in the program's process."""

  def __init__(self, ask, ref):
    vars(self).update(_ask=ask, _ref=ref)

  def __call__(self, *args, **kwargs):
    return self._ask('call', self, args, kwargs)

  def __getattr__(self, name):
    if name.startswith('__'):
      raise AttributeError(name)
    return self._ask('get', self, name)

  def __setattr__(self, name, value):
    self._ask('set', self, name, value)

  def __iter__(self):
    return iter(self._ask('list', self))


class Names(dict):
  """The tests' builtins, where an unknown name is one of the program's."""

  def __init__(self, ask):
    super().__init__(vars(builtins))
    self.ask = ask

  def __missing__(self, name):
    return Remote(self.ask, name)


class Pickler(_pickle.Pickler):
  """Plain data by value, subclasses of it as what they extend, all else as `ref(it)`."""

  def __init__(self, file, ref):
    super().__init__(file)
    self.ref = ref

  def persistent_id(self, x):
    plain = isinstance(x, PLAIN) or any(x is t for t in PLAIN)
    return None if plain else self.ref(x)

  def reducer_override(self, x):
    base = next((t for t in PLAIN if isinstance(x, t) and type(x) is not t), None)
    return (base, (base(x),)) if base else NotImplemented


class Unpickler(_pickle.Unpickler):
  """Makes plain data and `find(ref)`, whatever the bytes say. None of the classes it knows can be
  changed, so that none can be taught another equality."""

  def __init__(self, file, find):
    super().__init__(file)
    self.find = find

  def persistent_load(self, ref):
    return self.find(ref)

  def find_class(self, module, name):
    found = getattr(builtins, name, None) if module == 'builtins' else None
    if found not in PLAIN:
      raise _pickle.UnpicklingError(f'{module}.{name} is not plain data')
    return found


def send(file, x, ref):
  """Writes x to the pipe; `ref` says what stands for that in it which is no plain data."""
  Pickler(file, ref).dump(x)
  file.flush()


def only(*kept):
  """Closes every descriptor but these; stdin, stdout and stderr lead nowhere unless kept."""
  null = os.open(os.devnull, os.O_RDWR)
  for fd in range(resource.getrlimit(resource.RLIMIT_NOFILE)[0]):
    if fd not in kept:
      os.dup2(null, fd) if fd < 3 else os.closerange(fd, fd + 1)


def module(name):
  """The names of a new module, for a program to run in."""
  sys.modules[name] = type(sys)(name)
  return vars(sys.modules[name])


def serve(calls, replies):
  """The program's side: runs it, then does what the tests ask for."""
  names, objects = module('solution'), []

  def keep(x):
    objects.append(x)
    return len(objects) - 1

  def find(ref):
    if isinstance(ref, int):
      return objects[ref]
    if ref not in names:
      raise NameError(f'name {ref!r} is not defined')
    return names[ref]

  do = dict(run=lambda text: exec(compile(text, '<solution>', 'exec'), names), list=list,
            call=lambda f, args, kwargs: f(*args, **kwargs), get=getattr, set=setattr)
  while True:
    try:
      what, args = Unpickler(calls, find).load()
      reply = True, do[what](*args)
    except BaseException as error:  # SystemExit as well: it ends the program, not the tests
      reply = False, (type(error).__name__, str(error)[:200])
    send(replies, reply, keep)


def judge():
  """One line: passed, failed WHY, timeout, or error WHY where the tests are at fault."""
  (their_calls, calls), (replies, their_replies) = os.pipe(), os.pipe()
  child = os.fork()
  if not child:
    only(their_calls, their_replies)
    serve(open(their_calls, 'rb'), open(their_replies, 'wb'))
  os.close(their_calls)
  os.close(their_replies)
  program, tests = _pickle.load(sys.stdin.buffer)
  calls, replies = open(calls, 'wb'), open(replies, 'rb')

  def ref(x):
    if type(x) is not Remote:
      raise Unsendable(f'the tests hand over a {type(x).__name__}')
    return vars(x)['_ref']

  def ask(what, *args):
    send(calls, (what, args), ref)
    well, x = Unpickler(replies, lambda ref: Remote(ask, ref)).load()
    if well:
      return x
    kind = getattr(builtins, x[0], None)
    known = isinstance(kind, type) and issubclass(kind, Exception)
    if not known or kind is StopIteration:  # which would end a loop of the tests before its time
      raise RuntimeError(f'{x[0]}: {x[1]}')
    raise kind(x[1])

  try:
    tests = compile(tests, '<tests>', 'exec')
  except Exception as error:
    return line('error', error)
  try:
    ask('run', program)
    exec(tests, {'__builtins__': Names(ask), '__name__': '__main__'})
    return 'passed'
  except Unsendable as error:
    return line('error', error)
  except BaseException as error:
    os.kill(child, SIGKILL)
    return 'timeout' if overran(os.wait4(child, 0)[2]) else line('failed', error)


def line(verdict, error):
  """One line, whatever is in the error's text, which may be the program's."""
  return f'{verdict} {type(error).__name__}: {str(error)!r}'


def overran(used):
  """Whether a process that has ended had used up its CPU time."""
  return used.ru_utime + used.ru_stime > resource.getrlimit(resource.RLIMIT_CPU)[0] - 0.1


def feed():
  """Runs the program on each input: passed, and its outputs in hexadecimal, a line each; or failed
  WHY, or timeout. What they should be never enters the sandbox."""
  program, inputs = _pickle.load(sys.stdin.buffer)
  lines = []
  for text in inputs:
    source = os.open('/tmp', os.O_TMPFILE | os.O_RDWR)
    os.write(source, text.encode())
    os.lseek(source, 0, os.SEEK_SET)
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
      os.dup2(source, 0)
      os.dup2(theirs, 1)
      only(0, 1)
      sys.argv = ['solution.py']
      exec(compile(program, '<solution>', 'exec'), module('__main__'))
      sys.exit()
    os.close(source)
    os.close(theirs)
    with open(ours, 'rb') as f:
      out = f.read(MOST + 1)
    if len(out) > MOST:
      return f'failed more than {MOST} bytes of output'
    _, status, used = os.wait4(child, 0)
    if status:
      return 'timeout' if overran(used) else f'failed with status {status}'
    lines.append(out.hex())
  return '\n'.join(['passed', *lines])


def main():
  """Arguments: judge or feed, then limits, as AS=1000000."""
  for limit in sys.argv[2:]:
    name, _, value = limit.partition('=')
    resource.setrlimit(getattr(resource, f'RLIMIT_{name}'), (int(value), int(value)))
  os.write(1, b'started\n')
  verdict = dict(judge=judge, feed=feed)[sys.argv[1]]()
  with open(1, 'wb') as out:
    out.write(verdict.encode('ascii', 'backslashreplace'))


if __name__ == '__main__':
  main()
