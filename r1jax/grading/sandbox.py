"""Runs a program nobody trusts: bubblewrap, limits, a filter of system calls, a deadline.

What a program finds inside (`guest.py` says how it is run there): the Python standard library and
the system's shared libraries, read only; four device files; an empty /tmp of a few MB; nothing
else. No network, no /proc, no /etc, no home, no environment, no capability, no user namespace to
gain one in. It has a few processes, each with its memory, and all of them end with the run.

Where this process is root, each worker has an unprivileged user of its own, because root escapes
the limit on processes and other users share it. An outer bubblewrap then only puts the interpreter
where that user can read it.

Not defended: a hole in the kernel, in bubblewrap or in CPython's unpickler; what a program takes
of the machine within its limits (PROCESSES times MEMORY bytes at worst, and the CPU); and that the
standard library may be read, which holds no secret.
"""
import math
import os
from pathlib import Path
import pickle
import platform
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import sysconfig
import time

GUEST = Path(__file__).with_name('guest.py')
MB = 1 << 20
PROCESSES, MEMORY = 16, 512 * MB
LIMITS = dict(AS=MEMORY, FSIZE=16 * MB, NOFILE=64, CORE=0, STACK=16 * MB)
TMP = 64 * MB  # of memory, which is what /tmp is made of
OUTPUT = 16 * MB  # bytes that are read of a verdict; the guest keeps far below
USERS = range(61184, 65520)  # systemd's for services that own no file
RAISED = 1000  # the kernel's badness of a sandboxed process: it goes first where memory runs out

# System calls that are refused, by architecture: what reaches into other processes, what takes
# memory that no limit counts, and parts of the kernel that a program does not need.
CALLS = {  # x86_64, aarch64 (asm/unistd_64.h, asm-generic/unistd.h)
    'ptrace': (101, 117), 'process_vm_readv': (310, 270), 'process_vm_writev': (311, 271),
    'kcmp': (312, 272), 'pidfd_getfd': (438, 438), 'process_madvise': (440, 440),
    'shmget': (29, 194), 'semget': (64, 190), 'msgget': (68, 186), 'mq_open': (240, 180),
    'memfd_create': (319, 279), 'memfd_secret': (447, 447),
    'io_uring_setup': (425, 425), 'bpf': (321, 280), 'perf_event_open': (298, 241),
    'userfaultfd': (323, 282), 'add_key': (248, 217), 'request_key': (249, 218),
    'keyctl': (250, 219), 'syslog': (103, 116),
}  # yapf: disable
NEEDS = ('it needs bubblewrap 0.8 or newer and user namespaces (as the system has it, sysctl '
         'kernel.unprivileged_userns_clone=1 or kernel.apparmor_restrict_unprivileged_userns=0; in '
         'a container a seccomp profile that allows them)')
MACHINES = {'x86_64': 0xC000003E, 'aarch64': 0xC00000B7}  # linux/audit.h

PROBE = '''
import os, socket, threading, time
found = [f'{{x}} can be read' for x in {readable} if os.path.exists(x)]
for x in {writable}:
  try:
    found.append(f'{{open(x, "w").name}} can be written')
  except OSError:
    pass
try:
  found.append(f'{{socket.create_connection(("127.0.0.1", {port}), 1)}} can be reached')
except OSError:
  pass
try:
  for _ in range({processes}):
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
  found.append('processes are not counted')
except RuntimeError:
  pass
print('; '.join(found) or 'closed')
'''


class Failure(Exception):
  """The sandbox failed, not the program in it."""


def call_filter() -> bytes:
  """The filter of system calls as classic BPF: EPERM for CALLS, death by another architecture's."""
  load, equal, at_least, end = 0x20, 0x15, 0x35, 0x06
  column = list(MACHINES).index(platform.machine())
  numbers = [row[column] for row in CALLS.values()]
  refuse = len(numbers) + 1  # instructions to jump over, one less with each test
  tests = [(at_least, refuse, 0, 0x40000000)]  # x86_64's other numbering
  tests += [(equal, refuse - 1 - i, 0, number) for i, number in enumerate(numbers)]
  program = [
      (load, 0, 0, 4), (equal, 1, 0, MACHINES[platform.machine()]), (end, 0, 0, 0x80000000),
      (load, 0, 0, 0), *tests, (end, 0, 0, 0x7FFF0000), (end, 0, 0, 0x00050001)
  ]  # yapf: disable
  return b''.join(struct.pack('=HBBI', *row) for row in program)


def interpreter() -> tuple[str, list[str]]:
  """This process's base interpreter, not a virtual environment's, and what it reads to run."""
  base = Path(sys.base_prefix)
  python = base / 'bin/python{}.{}'.format(*sys.version_info)
  return str(python), [str(x) for x in (python, base / 'lib', base / 'lib64') if x.exists()]


def user(worker: int) -> int:
  """Who this process's worker runs programs as, where we are root.

  Two processes with 16 workers each share no user unless their ids are 215 or more apart, with 2
  each 1,951; where they do share one, its limit on processes counts for both together.
  """
  return USERS[(os.getpid() * 1089 + worker) % len(USERS)]  # found by trying every factor


def bubblewrap(filter_fd: int, who: int | None, command: list[str]) -> list[str]:
  """The command line that runs `command` inside; `who` is its user, where we are root."""
  base = sys.base_prefix
  source = {path: path for path in interpreter()[1]}
  outer = ['choom', '-n', str(RAISED), '--']
  if who is not None:
    outer += [
        'bwrap', '--die-with-parent', '--unshare-pid', '--dev-bind', '/', '/', '--proc', '/proc',
        '--tmpfs', '/tmp'
    ]
    for i, path in enumerate(source):
      source[path] = f'/tmp/{i}'
      outer += ['--ro-bind', path, source[path]]
    outer += ['setpriv', f'--reuid={who}', f'--regid={who}', '--clear-groups', '--']
  inner = [
      'bwrap', '--unshare-all', '--unshare-user', '--disable-userns', '--die-with-parent',
      '--new-session', '--clearenv', '--cap-drop', 'ALL', '--seccomp',
      str(filter_fd)
  ]
  for path in ('/lib', '/lib64', '/usr/lib', '/usr/lib64'):
    if os.path.islink(path):
      inner += ['--symlink', os.readlink(path), path]
    else:
      inner += ['--ro-bind-try', path, path]
  for path, where in source.items():
    if not path.startswith('/usr/lib'):
      inner += ['--ro-bind', where, path]
  packages = sysconfig.get_path('purelib', 'posix_prefix', dict(base=base))
  if os.path.isdir(packages):
    inner += ['--tmpfs', packages, '--remount-ro', packages]
  for name in ('null', 'zero', 'random', 'urandom'):
    inner += ['--dev-bind', f'/dev/{name}', f'/dev/{name}']
  inner += ['--size', str(TMP), '--tmpfs', '/tmp', '--chdir', '/tmp', '--remount-ro', '/']
  for name, value in environment().items():
    inner += ['--setenv', name, value]
  return [*outer, *inner, '--', *command]


def environment() -> dict[str, str]:
  """All that a program gets; the hash seed is fixed so that a verdict does not depend on it."""
  return {'PYTHONHASHSEED': '0', 'HOME': '/tmp', 'PATH': '/usr/bin',
          'LD_LIBRARY_PATH': f'{sys.base_prefix}/lib'}  # yapf: disable


def run(mode: str, request: tuple, seconds: float, worker: int = 0, trust: bool = False) -> list:
  """What guest.py said to a request (`judge`: program, tests; `feed`: program, inputs), as lines:
  its verdict, then what the program printed on each input, in hexadecimal.

  Args:
    seconds: of wall-clock for all of it, and of CPU for each process.
    worker: which of this process's users it runs as; no two runs at a time may share one.
    trust: outside any sandbox, under the limits alone.

  Raises:
    TimeoutError: the deadline passed, or the program used up its CPU time.
    Failure: the sandbox did not come up.
  """
  limits = {**LIMITS, 'CPU': math.ceil(seconds)}
  if not trust:
    limits['NPROC'] = PROCESSES  # outside, all that the user runs would count
  command = [interpreter()[0], '-s', '-S', '-P', '-X', 'utf8', '-c', GUEST.read_text('utf-8'),
             mode, *(f'{name}={value}' for name, value in limits.items())]  # yapf: disable
  with held(call_filter()) as calls, held(pickle.dumps(request)) as stdin:
    if not trust:
      command = bubblewrap(calls.fileno(), None if os.geteuid() else user(worker), command)
    with subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          bufsize=0, pass_fds=[calls.fileno()], process_group=0, cwd='/',
                          env=environment() if trust else dict(PATH=os.environ['PATH'])) as process:
      try:
        said = read(process.stdout.fileno(), seconds)
      finally:
        os.killpg(process.pid, signal.SIGKILL)  # the sandbox dies with what started it
  before, started, said = said.decode('ascii', 'replace').partition('started\n')
  if not started:
    raise Failure(f'the sandbox did not start: {before[-300:].strip()}')
  lines = said.split('\n')
  if lines[0] == 'timeout':
    raise TimeoutError(f'the program used up {seconds:g} s of CPU time')
  return lines if lines[0] else ['failed it ended what runs it']


def held(data: bytes):
  """An open file in memory that holds the data, to be read from its start."""
  file = open(os.memfd_create('r1jax'), 'wb+', buffering=0)
  file.write(data)
  file.seek(0)
  return file


def read(fd, seconds) -> bytes:
  """All that comes, up to OUTPUT bytes; TimeoutError where it does not end in time."""
  said, deadline, ready = b'', time.monotonic() + seconds, select.poll()
  ready.register(fd, select.POLLIN)
  while len(said) < OUTPUT:
    if not ready.poll(1000 * max(0.0, deadline - time.monotonic())):
      raise TimeoutError(f'the program ran for more than {seconds:g} s')
    piece = os.read(fd, 1 << 16)
    if not piece:
      break
    said += piece
  return said


def probe() -> str | None:
  """None where a sandbox starts here and holds, tried with a program; else what to do about it."""
  if platform.machine() not in MACHINES:
    return f'the sandbox knows the system calls of {list(MACHINES)}, not of {platform.machine()}'
  for tool, package in dict(bwrap='bubblewrap', setpriv='util-linux', choom='util-linux').items():
    if not shutil.which(tool):
      return f'{tool} is not there: install {package} (sudo apt-get install {package}, say)'
  base = sys.base_prefix
  inside = [Path(x) for x in (base, '/usr/lib', '/lib', '/lib64', '/dev/null', '/tmp')]
  home = [x for x in Path(os.path.expanduser('~')).glob('*')
          if not any(y.is_relative_to(x) for y in inside)]  # yapf: disable
  readable = ['/etc/passwd', '/proc/self', str(GUEST), *map(str, home)]
  with socket.create_server(('127.0.0.1', 0)) as server:
    program = PROBE.format(port=server.getsockname()[1], processes=PROCESSES, readable=readable,
                           writable=['/x', f'{base}/lib/x', '/usr/lib/x'])
    try:
      lines = run('feed', (program, ['']), 20.0)
    except (Failure, TimeoutError, OSError) as error:
      return f'{error}; {NEEDS}'
  said = bytes.fromhex(lines[1]).decode() if lines[0] == 'passed' else lines[0]
  return f'the sandbox is open: {said}' if said != 'closed\n' else None
