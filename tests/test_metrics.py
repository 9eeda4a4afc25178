"""Records: what a kill cut short is dropped, what came after the saved state is cut off."""
import io
import json
import os

import pytest

from r1jax import metrics


@pytest.fixture
def log(tmp_path):
  """steps, start -> an open Log on the same folder; all are closed at the end."""
  logs = []

  def open_log(start, steps=4):
    logs.append(metrics.Log(tmp_path, steps, start))
    return logs[-1]

  yield open_log
  for each in logs:
    each.close()


def write(log, steps):
  for step in steps:
    log.samples(step, [dict(text=f'样本 {step}')])
    log.step(step, dict(reward=step / 3, loss=-1e-9), tokens=10, seconds=0.5)
  log.flush()


def test_a_continued_log_has_the_bytes_of_one_that_was_not_interrupted(log, tmp_path):
  first = log(0)
  first.evaluation(0, {'eval/pass_at_1': 0.1})
  write(first, [1, 2, 3, 4])
  want = {name: (tmp_path / name).read_bytes() for name in ('metrics.jsonl', 'samples.jsonl')}
  with open(tmp_path / 'metrics.jsonl', 'a', encoding='utf-8') as f:
    f.write('{"step": 5, "rew')  # a kill in the middle of a line
  write(log(2), [3, 4])
  for name, content in want.items():
    assert (tmp_path / name).read_bytes() == content
  assert [row['step'] for row in metrics.read(tmp_path / 'speed.jsonl')] == [1, 2, 3, 4]


def test_starting_from_nothing_leaves_nothing_of_before(log, tmp_path):
  write(log(0), [1, 2])
  log(0)
  assert all((tmp_path / name).read_bytes() == b'' for name in metrics.FILES)


@pytest.mark.parametrize('tail', ['', '{"step": 3', '{"step": 3, "text": "\u6837'])
def test_reading_stops_at_a_torn_line(tail, tmp_path):
  path = tmp_path / 'x.jsonl'
  torn = tail.encode()[:-1] if tail.endswith('\u6837') else tail.encode()  # inside a character
  path.write_bytes(b'{"step": 1}\n{"step": 2}\n' + torn)
  assert metrics.read(path) == [{'step': 1}, {'step': 2}]
  assert metrics.read(tmp_path / 'absent') == []


def test_floats_come_back_exactly():
  values = [0.1, 1 / 3, 1e-300, 123456789.123456789]
  assert json.loads(metrics.to_json({'values': values}))['values'] == values
  assert metrics.to_json({'text': '多少'}) == '{"text": "多少"}\n'


def test_write_aside_replaces_at_once(tmp_path, monkeypatch):
  path = tmp_path / 'a.json'
  metrics.write_aside(path, 'old')

  def crash(*_):
    raise OSError('no more')

  monkeypatch.setattr(os, 'replace', crash)
  with pytest.raises(OSError):
    metrics.write_aside(path, 'new and longer')
  assert path.read_text() == 'old'
  monkeypatch.undo()
  metrics.write_aside(path, '新')
  assert path.read_text(encoding='utf-8') == '新'
  assert [p.name for p in tmp_path.iterdir()] == ['a.json']


def test_print_samples(tmp_path):
  rows = [dict(step=i, prompt='3+4=', completion='7', answer='7', reward=1.5,
               scores={'accuracy': 1.0, 'format': 0.5}, length=2, finished=i != 3)
          for i in range(1, 4)]  # yapf: disable
  (tmp_path / 'samples.jsonl').write_text(''.join(map(metrics.to_json, rows)))
  out = io.StringIO()
  assert metrics.print_samples(tmp_path, file=out, last=2)
  text = out.getvalue()
  assert 'step 1' not in text and 'step 2' in text
  assert 'reward 1.5 (accuracy 1, format 0.5), 2 tokens, cut off' in text
  assert metrics.print_samples(tmp_path / 'absent', file=out) == 0
