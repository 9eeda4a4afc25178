"""Hostile programs for the code grader, and what is looked at after them.

Three kinds, by what a verdict on them means:
  ESCAPES print `held` at their end if all that they tried was refused: they have to score 1.
  FLOODS take more than their share, and print `broke` if they got it: 0, or a TimeoutError.
  FORGERIES claim to pass tests that they cannot pass: 0, or a TimeoutError.

An escape reads `facts` from stdin: what of the machine outside it may try to reach.
"""
import contextlib
import json
import os
from pathlib import Path
import random
import select
import socket
import sys
import sysconfig
import time

from r1jax.grading import sandbox
from r1jax.types import Completion, Problem

HEAD = '''
import ctypes, json, os, resource, signal, socket, stat, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
def refused(f, *args, errors=Exception):
  try:
    x = f(*args)
  except errors:
    return
  raise SystemExit(f'broke: {f} {args} gave {x!r}')
def fails(name, *args):
  if getattr(libc, name)(*args) != -1:
    raise SystemExit(f'broke: {name} {args}')
'''
READ = 'facts = json.loads(sys.stdin.read())\n'

ESCAPES = {
    'write outside': '''
for path in ('/x', '/usr/lib/x', '/dev/x', '/etc/x', '/root/x', facts['canary'],
             facts['checkout'] + '/x', os.__file__, os.path.dirname(os.__file__) + '/x', '/lib/x'):
  refused(open, path, 'w', errors=OSError)
  refused(os.unlink, path, errors=OSError)
  refused(os.chmod, path, 0o777, errors=OSError)
refused(os.mkdir, '/new', errors=OSError)
''',
    'read /etc': '''
for name in ('passwd', 'shadow', 'hostname', 'hosts', 'resolv.conf', 'environment'):
  refused(open, '/etc/' + name, errors=FileNotFoundError)
''',
    'read the home folder': '''
for path in facts['home']:
  refused(os.stat, path, errors=OSError)
assert os.path.expanduser('~') == '/tmp' and not os.listdir('/tmp')
''',
    'read the checkout and a file of the grader': '''
refused(open, facts['canary'], errors=FileNotFoundError)
refused(os.listdir, facts['checkout'], errors=FileNotFoundError)
seen = [x for x in os.listdir('/') if x not in facts['roots']]
assert not seen, seen
''',
    'import r1jax': '''
sys.path[:0] = [facts['checkout'], facts['site']]
import importlib
for name in ('r1jax', 'jax', 'numpy', 'pip'):
  refused(importlib.import_module, name, errors=ImportError)
''',
    'read the environment': '''
whole = repr(dict(os.environ)) + repr(os.environb)
assert facts['secret'] not in whole and 'PYTEST' not in whole, whole
assert len(os.environ) <= 6, whole
''',
    'connect to a local server': '''
for host in ('127.0.0.1', '::1', 'localhost'):
  refused(socket.create_connection, (host, facts['port']), 2, errors=OSError)
''',
    'send a datagram, look at the interfaces': '''
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
refused(udp.sendto, b'x', ('8.8.8.8', 53), errors=OSError)
refused(socket.socket, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP, errors=OSError)
refused(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, errors=OSError)
assert [name for _, name in socket.if_nameindex()] == ['lo']
''',
    'look up a name': '''
refused(socket.getaddrinfo, 'example.com', 80, errors=OSError)
refused(socket.getaddrinfo, 'pypi.org', 443, errors=OSError)
''',
    'unix sockets of the machine': '''
for path in ('\\0' + facts['abstract'], facts['socket'], '/run/docker.sock',
             '/run/dbus/system_bus_socket'):
  refused(socket.socket(socket.AF_UNIX).connect, path, errors=OSError)
''',
    'signal a process outside': '''
assert os.getpid() < 100, 'not in a pid namespace of its own'
for pid in facts['pids']:
  if pid > 100:
    refused(os.kill, pid, 0, errors=ProcessLookupError)
''',
    'a symlink and a hard link': '''
os.symlink('/etc/passwd', '/tmp/a'), os.symlink(facts['canary'], '/tmp/b')
os.symlink('/', '/tmp/root'), os.symlink('/tmp/loop', '/tmp/loop')
for path in ('/tmp/a', '/tmp/b', '/tmp/root/etc/passwd', '/tmp/root/../../etc/passwd', '/tmp/loop'):
  refused(open, path, errors=OSError)
refused(os.link, os.__file__, '/tmp/hard', errors=OSError)
refused(os.rename, os.__file__, '/tmp/moved', errors=OSError)
''',
    '/proc': '''
for path in ('self/mem', 'self/environ', '1/environ', '1/root/etc/passwd', 'self/fd', 'kcore',
             'sysrq-trigger', 'sys/kernel/core_pattern', f'{facts["pids"][0]}/environ'):
  refused(open, '/proc/' + path, errors=FileNotFoundError)
refused(os.listdir, '/sys', errors=FileNotFoundError)
''',
    'a user namespace': '''
for flag in (0x10000000, 0x10020000, 0x20000, 0x40000000, 0x20000000):
  fails('unshare', flag)
if os.uname().machine == 'x86_64':
  pid = libc.syscall(56, 0x10000000 | signal.SIGCHLD, 0, 0, 0, 0)
  if pid == 0:
    os._exit(0)
  assert pid == -1
''',
    'mount': '''
fails('mount', b'none', b'/tmp', b'tmpfs', 0, None)
fails('mount', b'none', b'/', None, 32, None)
fails('mount', b'proc', b'/tmp', b'proc', 0, None)
fails('mount', b'/', b'/tmp', None, 4096, None)
fails('umount2', b'/tmp', 2)
fails('umount2', os.path.dirname(os.__file__).encode() + b'/site-packages', 2)
''',
    'chroot and device files': '''
refused(os.chroot, '/tmp', errors=PermissionError)
refused(os.mknod, '/tmp/disk', 0o666 | stat.S_IFBLK, os.makedev(8, 0), errors=PermissionError)
refused(os.mknod, '/tmp/mem', 0o666 | stat.S_IFCHR, os.makedev(1, 1), errors=PermissionError)
for name in ('sda', 'vda', 'mem', 'kmsg', 'fuse', 'kvm', 'net/tun', 'tty', 'shm', 'pts', 'ptmx'):
  refused(os.open, '/dev/' + name, os.O_RDONLY, errors=OSError)
''',
    'ptrace': '''
for pid in (1, os.getppid()):
  for request in (16, 0x4206):
    fails('ptrace', request, pid, 0, 0)
  buffer = ctypes.create_string_buffer(64)
  vector = (ctypes.c_size_t * 2)(ctypes.addressof(buffer), 64)
  fails('process_vm_readv', pid, vector, 1, vector, 1, 0)
  fails('process_vm_writev', pid, vector, 1, vector, 1, 0)
  pidfd = libc.syscall(434, pid, 0)
  for fd in range(8):
    assert libc.syscall(438, pidfd, fd, 0) == -1
''',
    'setuid and capabilities': '''
for f in (os.setuid, os.setgid, os.seteuid):
  refused(f, 0, errors=OSError)
refused(os.setgroups, [0], errors=OSError)
assert libc.prctl(39, 0, 0, 0, 0) == 1  # no new privileges, whatever is executed
assert all(libc.prctl(23, i, 0, 0, 0) != 1 for i in range(41)), 'a capability may be had'
for folder, _, files in os.walk('/'):
  for name in files:
    path = os.path.join(folder, name)
    if not os.path.islink(path) and os.stat(path).st_mode & 0o6000:
      assert os.statvfs(path).f_flag & os.ST_NOSUID, path
''',
    'system settings': '''
refused(socket.sethostname, 'mine', errors=PermissionError)
refused(time.clock_settime, time.CLOCK_REALTIME, 0, errors=PermissionError)
fails('reboot', 0)
fails('swapoff', b'/x')
fails('klogctl', 3, ctypes.create_string_buffer(64), 64)
refused(os.nice, -5, errors=PermissionError)
''',
    'higher limits': '''
for name in ('CPU', 'AS', 'NOFILE', 'NPROC', 'FSIZE', 'CORE', 'STACK'):
  limit = getattr(resource, 'RLIMIT_' + name)
  _, hard = resource.getrlimit(limit)
  assert hard != resource.RLIM_INFINITY, name
  refused(resource.setrlimit, limit, (hard + 1, hard + 1), errors=ValueError)
''',
    'memory that no limit counts': '''
assert not os.path.exists('/dev/shm')
refused(os.memfd_create, 'x', errors=OSError)
fails('shmget', 0, 1 << 30, 0o1600)
fails('msgget', 0, 0o1600)
from multiprocessing import shared_memory
refused(lambda: shared_memory.SharedMemory(create=True, size=1 << 20), errors=OSError)
''',
    'system calls that nobody needs': '''
numbers = dict(x86_64=(321, 298, 323, 250, 248), aarch64=(280, 241, 282, 219, 217))
for number in (*numbers[os.uname().machine], 425):
  assert libc.syscall(number, 0, 0, 0, 0, 0) == -1 and ctypes.get_errno() == 1, number
''',
    'leave something for the next': '''
open('/tmp/left', 'w').write('x')
os.chmod('/tmp', 0o777)
''',
    'find what the last one left': '''
assert not os.listdir('/tmp')
''',
    'the descriptors it starts with': '''
assert [fd for fd in range(64) if libc.fcntl(fd, 1) != -1] == [0, 1, 2]
''',
}  # yapf: disable

FLOODS = {
    'fork bomb': 'while True:\n  try:\n    os.fork()\n  except OSError:\n    pass\n',
    'a hundred processes': '''
for i in range(100):
  if not os.fork():
    os.close(1), time.sleep(60)
print('broke')
''',
    'threads': '''
for i in range(100):
  threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
print('broke')
''',
    'memory': 'x = bytearray(1 << 30)\nprint("broke")\n',
    'memory in small pieces': 'x = []\nwhile True:\n  x.append(bytearray(1 << 20))\n',
    'endless output': 'while True:\n  os.write(1, b"broke\\n" * 10000)\n',
    'endless errors': 'while True:\n  os.write(2, b"x" * 65536)\n',
    'endless output from a child': '''
if not os.fork():
  while True:
    print('broke' * 1000)
''',
    'recursion': 'sys.setrecursionlimit(10**9)\nf = lambda x: f(x + 1)\nf(0)\nprint("broke")\n',
    'recursion in C': '''
x = []
for i in range(10**7):
  x = [x]
sys.setrecursionlimit(10**9)
repr(x)
print('broke')
''',
    'nested source': 'eval("(" * 100000 + ")" * 100000)\nprint("broke")\n',
    'a big file': 'f = open("/tmp/x", "wb")\nwhile True:\n  f.write(bytes(1 << 20))\n',
    'big files': '''
for i in range(16):
  with open(f'/tmp/{i}', 'wb') as f:
    f.write(bytes(8 << 20))
print('broke')
''',
    'many files': 'i = 0\nwhile True:\n  open(f"/tmp/{i}", "w").close()\n  i += 1\n',
    'open files': 'x = [open("/dev/null") for i in range(100)]\nprint("broke")\n',
    'an endless file': 'open("/dev/zero", "rb").read()\nprint("broke")\n',
    'a loop that ignores signals': '''
for number in range(1, 65):
  try:
    signal.signal(number, signal.SIG_IGN)
  except (OSError, ValueError):
    pass
while True:
  pass
''',
    'a sleep that ignores signals': '''
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
while True:
  time.sleep(60)
''',
    'a daemon': '''
if not os.fork():
  os.setsid()
  if not os.fork():
    for fd in range(64):
      try:
        os.close(fd)
      except OSError:
        pass
    while True:
      time.sleep(60)
  os._exit(0)
''',
    'zombies': '''
for i in range(1000):
  if not os.fork():
    os._exit(0)
print('broke')
''',
    'a power that takes years': 'x = 9 ** 9 ** 9 ** 9\nprint("broke")\n',
    'a regular expression': 'import re\nre.match("(a+)+$", "a" * 64 + "b")\nprint("broke")\n',
    'kill the first process and the parent': '''
os.kill(1, 9)
os.kill(os.getppid(), 9)
time.sleep(60)
print('broke')
''',
    'kill everything': '''
if os.getpid() < 100:  # in a pid namespace of its own, that is, and not on this machine
  os.kill(-1, 9)
''',
    'stop the parent': 'os.kill(os.getppid(), signal.SIGSTOP)\ntime.sleep(60)\n',
    'close everything and wait': 'os.closerange(0, 64)\ntime.sleep(60)\n',
    'a crash': 'ctypes.string_at(0)\nprint("broke")\n',
}  # yapf: disable

TESTS = 'assert triple(14) == 42\nassert [triple(x) for x in (0, 1, -5)] == [0, 3, -15]\n'
RIGHT = 'def triple(x):\n  return 3 * x\n'
FORGERIES = {
    'say passed': 'print("passed")\nprint("started\\npassed", file=sys.stderr)\n',
    'say passed on every descriptor': '''
for fd in range(64):
  try:
    os.write(fd, b'started\\npassed\\n')
  except OSError:
    pass
''',
    'leave with 0': 'def triple(x):\n  sys.exit(0)\n',
    'leave with 0 at once': 'os._exit(0)\n',
    'leave with 0 when asked': 'def triple(x):\n  os._exit(0)\n',
    'raise SystemExit': 'def triple(x):\n  raise SystemExit(0)\n',
    'kill itself': 'os.kill(os.getpid(), 9)\n',
    'kill the tests': 'def triple(x):\n  os.kill(os.getppid(), 9)\n',
    'execute another program': '''
def triple(x):
  os.execv(sys.executable, ["python", "-c", "0"])
''',
    'an error that says passed': 'def triple(x):\n  raise ValueError("x\\npassed\\n")\n',
    'an error named passed': '''
def triple(x):
  raise type("passed", (Exception,), {})("\\npassed\\n")
''',
    'equal to everything': '''
class Equal:
  __eq__ = __le__ = __ge__ = lambda self, other: True
  __ne__ = lambda self, other: False
  __hash__ = lambda self: 0
triple = lambda x: Equal()
''',
    'a number equal to everything': '''
class Equal(int):
  __eq__ = lambda self, other: True
  __ne__ = lambda self, other: False
  __hash__ = int.__hash__
triple = lambda x: Equal(7)
''',
    'an object that unpickles as a call': '''
class Gadget:
  def __reduce__(self):
    return os._exit, (0,)
class List(list):
  def __reduce_ex__(self, protocol):
    return eval, ('print("passed")',)
triple = lambda x: [Gadget(), List()]
''',
    'its own answers on the pipe': '''
import pickle
class Call:
  def __init__(self, f, *args):
    self.f, self.args = f, args
  def __reduce__(self):
    return self.f, self.args
for fd in range(3, 64):
  for x in ((True, Call(eval, 'print("passed")')), (True, Call(os._exit, 0)), (True, 42),
            (False, ('SystemExit', '0')), (False, ('KeyboardInterrupt', '')), (True, True)):
    try:
      os.write(fd, pickle.dumps(x))
    except OSError:
      pass
triple = None
''',
    'junk on the pipe': '''
for fd in range(3, 64):
  try:
    os.write(fd, os.urandom(4096))
  except OSError:
    pass
''',
    'teach a class to be equal': '''
import pickle
from fractions import Fraction
for fd in range(3, 64):  # Fraction.__eq__ = complex, by the opcodes GLOBAL and BUILD
  body = b'cfractions\\nFraction\\n(N}Vj__eq__\\ncbuiltins\\ncomplex\\nstb.'
  try:
    os.write(fd, body)
  except OSError:
    pass
triple = Fraction
''',
    'its own assert': '''
import builtins
class AssertionError(Exception):
  pass
builtins.AssertionError = AssertionError
builtins.exec = builtins.compile = lambda *args, **kwargs: None
sys.excepthook = lambda *args: os._exit(0)
def triple(x):
  return x
''',
    'the frames that call it': '''
import gc, inspect
def triple(x):
  frame, seen = sys._getframe(), []
  while frame:
    for value in [*frame.f_locals.values(), *frame.f_globals.values(), *frame.f_code.co_consts]:
      seen.append(repr(value))
    frame = frame.f_back
  seen += [repr(x) for x in gc.get_objects() if isinstance(x, (str, bytes, dict, list))]
  seen += [repr(inspect.stack(context=100))]
  if any(''.join(['trip', 'le(1', '4)']) in text for text in seen):
    return {14: 42, 0: 0, 1: 3, -5: -15}[x]
''',
    'the tests from stdin and the descriptors': '''
found = sys.stdin.read()
for fd in range(64):
  try:
    os.set_blocking(fd, False)
    os.lseek(fd, 0, 0)
    found += os.read(fd, 1 << 16).decode('latin')
  except OSError:
    pass
def triple(x):
  return 3 * x if 'trip' + 'le(14)' in found else 0
''',
    'a trace of everything': '''
def trace(frame, event, arg):
  frame.f_globals['triple'] = lambda x: 3 * x
  return trace
sys.settrace(trace), threading.settrace(trace)
def triple(x):
  return x
''',
    'no function at all': '',
    'a syntax error': 'def triple(x:\n',
    'names of the tests': '''
__builtins__ = {}
range = list = lambda *x: [0, 3, -15]
''',
}  # yapf: disable


@contextlib.contextmanager
def world(folder: Path):
  """Gives a machine's things to reach for, as `facts`, and `after`: sentences on what was reached.

  Three servers listen, a file waits to be read or changed, and the environment holds a secret.
  """
  canary, unix = folder / 'canary', str(folder / 'socket')
  canary.write_text('unharmed')
  root = Path(__file__).parents[1]
  base = Path(sys.base_prefix)
  kept = (base, '/usr', '/lib', '/lib64', '/dev', '/tmp')
  home = [str(x) for x in Path.home().glob('*') if not any(Path(k).is_relative_to(x) for k in kept)]
  secret = f'r1jax-{random.getrandbits(64):x}'
  with contextlib.ExitStack() as stack:
    servers = [stack.enter_context(socket.create_server(('127.0.0.1', 0)))]
    for path in ('\0' + secret, unix):
      servers.append(stack.enter_context(socket.socket(socket.AF_UNIX)))
      servers[-1].bind(path)
      servers[-1].listen()
    os.environ['R1JAX_SECRET'] = secret
    stack.callback(os.environ.pop, 'R1JAX_SECRET')
    facts = dict(canary=str(canary), checkout=str(root), home=home, secret=secret, abstract=secret,
                 port=servers[0].getsockname()[1], socket=unix, pids=[os.getpid(),
                                                                      os.getppid()],
                 site=sysconfig.get_path('purelib'),
                 roots=['usr', 'lib', 'lib64', 'dev', 'tmp', base.parts[1]])

    def after():
      found = [f'{x} was written' for x in (Path('/x'), root / 'x', base / 'lib/x') if x.exists()]
      if canary.read_text() != 'unharmed':
        found.append('the canary was changed')
      if select.select(servers, [], [], 0)[0]:
        found.append('a server was reached')
      return found + [f'process {pid} is left' for pid in leaked()]

    yield facts, after


def leaked(patience=2.0, users=None) -> list[int]:
  """Processes of sandboxes that are still there after so many seconds: where this process is root,
  those of its workers' users, or of others; else all that run the guest."""
  mark, users = sandbox.GUEST.read_bytes()[:64], users or {sandbox.user(i) for i in range(64)}
  deadline = time.monotonic() + patience
  while True:
    found = []
    for entry in Path('/proc').glob('[0-9]*'):
      with contextlib.suppress(OSError):
        owner = not os.geteuid() and entry.stat().st_uid
        if mark in (entry / 'cmdline').read_bytes() and (owner is False or owner in users):
          found.append(int(entry.name))
    if not found or time.monotonic() >= deadline:
      return found
    time.sleep(0.02)


def attack(kind, name, facts):
  """(problem, completion) of the attack `name` of ESCAPES, FLOODS or FORGERIES."""
  head, end = HEAD, ''
  if kind is FORGERIES:
    answer = dict(before='', after=TESTS)
  else:
    answer = dict(cases=[dict(input=json.dumps(facts), output='broke')])
    head += READ
  if kind is ESCAPES:
    answer['cases'][0]['output'], end = 'held', "print('held')"
  return Problem('', json.dumps(answer), id=name), completion(f'{head}{kind[name]}\n{end}')


def completion(program):
  """As a model writes it."""
  return Completion(f'<think>So.</think>\n```python\n{program}\n```\n', 1, True)


def hostile(count, seed, facts):
  """`count` hostile (problem, completion, expected), a seeded mix: attacks, and texts that are
  junk, endless, broken or huge. `expected` are the verdicts that would be right: a float or a type.
  """
  rng = random.Random(seed)
  task = Problem('', json.dumps(dict(before='', after=TESTS)), id='hostile')
  names = [(kind, name) for kind in (ESCAPES, FLOODS, FORGERIES) for name in kind]
  for _ in range(count):
    if rng.random() < 0.25:
      kind, name = rng.choice(names)
      yield *attack(kind, name, facts), (float(kind is ESCAPES), TimeoutError)
    else:
      yield task, Completion(rng.choice(JUNK)(rng), 1, True), (0.0, TimeoutError)


JUNK = (
    lambda rng: rng.randbytes(rng.randrange(4000)).decode('utf-8', 'replace'),
    lambda rng: completion(rng.randbytes(rng.randrange(4000)).decode('latin-1')).text,
    lambda rng: completion(rng.randbytes(2000).decode('utf-8', 'surrogateescape')).text,
    lambda rng: completion(RIGHT[:-2] + f'"\ud800{chr(rng.randrange(0xD800, 0xE000))}"').text,
    lambda rng: 'x' * (1 << 20),
    lambda rng: '```' * (1 << 18),
    lambda rng: '```python\n' * (1 << 16),
    lambda rng: completion('x = 1\n' * (1 << 18)).text,
    lambda rng: completion('(' * 100_000).text,
    lambda rng: completion('-' * 100_000 + '1').text,
    lambda rng: completion(RIGHT + '\0').text,
    lambda rng: completion(f'while True:\n  {rng.randrange(9)}').text,
    lambda rng: completion(RIGHT.replace('3', str(rng.randrange(4, 99)))).text,
    lambda rng: '<think>' * rng.randrange(1000),
    lambda rng: completion('def triple(x):\n  return ' + ' + '.join(['x'] * 5000)).text,
    lambda rng: completion('def triple(x):\nreturn 3 * x').text,
)  # yapf: disable
