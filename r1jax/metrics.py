"""Records of a run: JSON lines as the truth, TensorBoard beside them, and a live view.

metrics.jsonl and samples.jsonl depend on the seed alone, so a run that was killed and continued
leaves the same bytes as one that was not; wall-clock numbers go to speed.jsonl. Of several
processes the first writes, and the others write nothing.
"""
import json
import os
import pathlib
import sys
import time

from rich.console import Console
from rich.live import Live
from rich.table import Table
from tensorboardX import SummaryWriter

from r1jax import processes

FILES = ('metrics.jsonl', 'samples.jsonl', 'speed.jsonl')


def read(path) -> list[dict]:
  """The rows of a JSON-lines file, without a last line that a kill cut short; [] if absent."""
  path, rows = pathlib.Path(path), []
  if path.exists():
    for line in path.read_bytes().split(b'\n'):
      try:
        rows.append(json.loads(line))
      except ValueError:
        break
  return rows


def write_aside(path, text):
  """Replaces a file's text at once: a crash leaves the old text or the new. Process 0 does."""
  if not processes.first():
    return
  path = pathlib.Path(path)
  aside = path.with_name(path.name + '.tmp')
  with open(aside, 'w', encoding='utf-8') as f:
    f.write(text)
    f.flush()
    os.fsync(f.fileno())
  os.replace(aside, path)


def to_json(row) -> str:
  """One line, the same for the same values."""
  return json.dumps(row, ensure_ascii=False) + '\n'


class Log:
  """The open records of one stage, from `start` updates on: what came after it is cut off."""

  def __init__(self, out, steps, start):
    self.out, self.steps, self.start = pathlib.Path(out), steps, start
    self.name = self.out.name
    for file in FILES:
      rows = [row for row in read(self.out / file) if row['step'] <= start and start]
      write_aside(self.out / file, ''.join(map(to_json, rows)))
    self.writes = processes.first()
    place = lambda file: self.out / file if self.writes else os.devnull
    self.files = {file: open(place(file), 'a', encoding='utf-8') for file in FILES}
    self.board = SummaryWriter(str(self.out / 'tensorboard'), purge_step=start + 1,
                               write_to_disk=self.writes)
    self.began = self.last = time.monotonic()
    self.console = Console()
    self.live = Live(console=self.console, auto_refresh=False) if self.console.is_terminal else None
    if self.live:
      self.live.start()

  def lap(self) -> float:
    """Seconds since the last lap ended."""
    last, self.last = self.last, time.monotonic()
    return self.last - last

  def step(self, step, metrics, tokens, seconds, speed=None):
    """One update's numbers: `metrics` from the seed alone, seconds and `speed` from the clock."""
    speed = dict(speed or {}, seconds=seconds, tokens_per_s=tokens / seconds)
    self._write('metrics.jsonl', dict(step=step, **metrics))
    self._write('speed.jsonl', dict(step=step, **speed))
    for name, value in {**metrics, **speed}.items():
      self.board.add_scalar(name, value, step)
    self._show(step, {**metrics, **speed})

  def evaluation(self, step, metrics):
    """The numbers of an evaluation after `step` updates."""
    self._write('metrics.jsonl', dict(step=step, **metrics))
    for name, value in metrics.items():
      self.board.add_scalar(name, value, step)
    numbers = (f'{name.removeprefix("eval/")} {_short(x)}' for name, x in metrics.items())
    self.say(f'{self.name}  step {step}  evaluation: ' + ', '.join(numbers))
    self.lap()  # the next update's seconds are its own

  def samples(self, step, rows):
    """A few sampled completions with their rewards."""
    for row in rows:
      self._write('samples.jsonl', dict(step=step, **row))

  def say(self, text):
    """A line for the person at the terminal."""
    (self.live.console if self.live else self.console).print(text, highlight=False, markup=False,
                                                             soft_wrap=True)

  def flush(self):
    """Everything written so far is on disk when this returns."""
    for file in self.files.values():
      file.flush()
      if self.writes:
        os.fsync(file.fileno())

  def close(self):
    """Flushes and closes; the live view stays on the screen as it last was."""
    self.flush()
    for file in self.files.values():
      file.close()
    self.board.close()
    if self.live:
      self.live.stop()

  def _write(self, file, row):
    self.files[file].write(to_json(row))
    self.files[file].flush()

  def _show(self, step, numbers):
    spent = time.monotonic() - self.began
    left = spent / max(1, step - self.start) * (self.steps - step)
    shown = {name: _short(numbers[key]) for key, name in VIEW.items() if key in numbers}
    shown = {
        'step': f'{step}/{self.steps}', **shown, 'left': f'{left // 60:.0f}m{left % 60:02.0f}s'
    }
    if self.live:
      table = Table('stage', *shown, show_edge=False)
      table.add_row(self.name, *shown.values())
      self.live.update(table, refresh=True)
    elif step % max(1, self.steps // 20) == 0 or step == self.start + 1:
      self.say(f'{self.name}  ' + '  '.join(f'{name} {x}' for name, x in shown.items()))


VIEW = {  # what the live view shows of an update, where it is there
    'reward': 'reward', 'reward/accuracy': 'accuracy', 'length': 'length', 'kl': 'kl',
    'loss': 'loss', 'tokens_per_s': 'tokens/s',
}  # yapf: disable


def _short(x):
  return f'{x:.3f}' if abs(x) < 100 else f'{x:,.0f}'


def print_samples(out, file=None, last=8) -> int:
  """Prints the newest samples of a run folder for reading; returns how many there are in all."""
  file = file or sys.stdout
  strong, plain = ('\033[1m', '\033[0m') if file.isatty() else ('', '')
  rows = read(pathlib.Path(out) / 'samples.jsonl')
  for row in rows[-last:]:
    scores = ', '.join(f'{name} {value:g}' for name, value in row['scores'].items())
    end = '' if row['finished'] else ', cut off'
    print(
        f'--- step {row["step"]}: reward {row["reward"]:g} ({scores}), '
        f'{row["length"]} tokens{end}, reference {row["answer"]}', file=file)
    print(f'{row["prompt"]}{strong}{row["completion"]}{plain}', file=file)
  return len(rows)
