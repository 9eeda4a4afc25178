"""The report of a run: well-formed, self-contained, escaped, bounded, whatever the run holds."""
import html.parser
import json
import re
import xml.etree.ElementTree

import pytest

from r1jax import page, report, svg
from r1jax.types import UserError

HOSTILE = [
    '</script><script>alert(1)</script>', '<img src=x onerror=alert(1)>', ']]>--><svg onload=x>',
    '" style="position:fixed" onmouseover="alert(1)', 'abc \u202egnp.exe\u202c \x00\x1b[31m',
    '\ud800 lone', 'x' * 1_000_000, '&lt;script&gt;', '<think>a < b', 'z' + '\u0301' * 3000
]  # yapf: disable
VOID = {'meta', 'br', 'hr'}
TABLE = dict(
    columns=[dict(name='pass_at_1', label='pass@1'), dict(name='length', label='<b>length')],
    rows={'base': dict(pass_at_1=0.3453, pass_at_1_stderr=0.0158, length=29.0),
          HOSTILE[1]: dict(pass_at_1=0.9784, pass_at_1_stderr=0.0052, length=float('nan')),
          'R1': dict(pass_at_1=0.9841, pass_at_1_stderr=0.0041)},
    notes=[HOSTILE[0]])  # yapf: disable


class Walk(html.parser.HTMLParser):
  """Checks that elements nest, and notes their names and attributes."""

  def __init__(self):
    super().__init__()
    self.open, self.seen, self.attributes = [], [], []

  def handle_starttag(self, tag, attrs):
    self.seen.append(tag)
    self.attributes += [(tag, *attr) for attr in attrs]
    if tag not in VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.seen.append(tag)
    self.attributes += [(tag, *attr) for attr in attrs]

  def handle_endtag(self, tag):
    assert self.open and self.open.pop() == tag, f'</{tag}> closes nothing'


def walk(text):
  walker = Walk()
  walker.feed(text)
  walker.close()
  assert not walker.open
  return walker


def stage(folder, kind, order, parents=(), result=None, **files):
  """A stage's folder as main writes it, with JSON files and, for lists, JSON lines."""
  (folder / 'data').mkdir(parents=True)
  record = dict(file='experiments/x.py', run=f'r1jax.stages.{kind}.run', order=order,
                config=dict(steps=60, batch=32, group=16, note=HOSTILE[0]), commit='ab' * 20,
                parents={f'runs/{p}': 'cd' * 32 for p in parents}, devices=['cpu:0'])
  files = {'experiment.json': record, **files}
  if result is not None:
    files['result.json'] = dict(result=result)
  for name, content in files.items():
    path = folder / name.replace('__', '/')
    lines = content if isinstance(content, list) else [content]
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines), encoding='utf-8')


@pytest.fixture(scope='module', name='run')
def make_run(tmp_path_factory):
  """A pipeline of each kind of stage, with everything hostile in it."""
  run = tmp_path_factory.mktemp('run')
  losses = [dict(step=i, loss=3 / i) for i in range(1, 6)] + [{'step': 5, 'eval/pass_at_1': 0.3}]
  stage(run / 'base', 'sft', 0, result={}, **{'metrics.jsonl': losses})
  updates = [{'step': i, 'reward': i / 5000, 'reward/accuracy': 0.5, 'reward/errors': int(i == 3),
              'length': float('nan') if i % 7 else 50, 'kl': 1e400, 'grad_norm': 0.0}
             for i in range(1, 5001)]  # yapf: disable
  judged = [{'step': i, 'eval/pass_at_1': p, 'eval/pass_at_1_stderr': 0.0151}
            for i, p in ((0, 0.3447), (5000, 0.9775))]  # yapf: disable
  speed = [dict(step=i, seconds=0.5) for i in range(1, 5001)]
  samples = [dict(step=step, prompt=text, completion=text, answer='8', reward=1.0,
                  scores={text[:90]: 1.0}, length=9, finished=False)
             for text in HOSTILE for step in (0, 5000)]  # yapf: disable
  stage(run / 'zero', 'rl', 1, ['base'],
        **{'metrics.jsonl': updates + judged, 'speed.jsonl': speed, 'samples.jsonl': samples})
  rows = [dict(number=n, kind='reasoning', prompt='2+2=', completion=text, length=9, reason=reason,
               kept=[dict(prompt='2+2=', response='rewritten: ' + text)])
          for n, text in enumerate(HOSTILE) for reason in ('', HOSTILE[0])]  # yapf: disable
  counts = dict(problems=10, samples=20, kept=10, none=1, dropped={HOSTILE[0]: 10})
  stage(run / 'made', 'generate', 2, ['zero'], result=dict(kept=10),
        **{'data__report.json': dict(kinds={'reasoning': counts}), 'data__shard-00000.jsonl': rows})
  answers = [dict(row, row=f'{HOSTILE[1]} {i}', task=HOSTILE[3], prompt=HOSTILE[4])
             for i, row in enumerate(samples[::2])]  # yapf: disable
  stage(run / 'table', 'evaluate', 3, ['base', 'zero'], result={},
        **{'table.json': TABLE, 'samples.jsonl': answers})
  (run / 'other').mkdir()  # no stage
  return run


@pytest.fixture(scope='module', name='text')
def make_text(run):
  path = report.write(run)
  assert path == run / 'report.html'
  return path.read_text(encoding='utf-8')


def test_the_page_is_well_formed_and_needs_nothing_else(text):
  walker = walk(text)
  allowed = '''html head meta title style body header main section nav p h1 h2 h3 h4 h5 a b i em
  small span div ol ul li table thead tbody tr th td details summary article svg path text circle
  rect g'''
  assert set(walker.seen) <= set(allowed.split())
  for tag, name, value in walker.attributes:
    assert not name.startswith('on') and name not in ('src', 'srcset', 'action', 'xlink:href')
    assert name != 'href' or tag == 'a' and re.fullmatch(r'#[a-z0-9-]+', value)
    assert name != 'style' or re.fullmatch(r'(--v:[0-9.]+|--lanes:\d+px|color:var\(--c\d\))', value)
  style = re.search('<style>(.*?)</style>', text, re.DOTALL)[1]
  assert 'url(' not in style and '@import' not in style and '<' not in style
  ids = [value for _, name, value in walker.attributes if name == 'id']
  links = [value[1:] for _, name, value in walker.attributes if name == 'href']
  assert set(links) <= set(ids) and len(set(ids)) == len(ids)
  policy = re.search('content="(default-src [^"]*)"', text)[1]
  assert policy.startswith(
      "default-src 'none'; style-src 'unsafe-inline'") and 'script' not in policy


def test_what_models_write_is_only_shown(text):
  assert '&lt;/script&gt;&lt;script&gt;alert(1)' in text and '&amp;lt;script&amp;gt;' in text
  assert 'abc ⟨U+202E⟩gnp.exe⟨U+202C⟩ ⟨U+0000⟩⟨U+001B⟩[31m' in text and '⟨U+D800⟩ lone' in text
  assert not re.search('[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069\ufeff]', text)
  assert '<span>&lt;think&gt;a &lt; b</span>' in text  # thinking without an end
  assert 'x' * 1600 not in text and 'and 998,500 more characters' in text
  assert len(text.encode()) < 700_000


def test_its_numbers_are_those_of_the_files(text):
  assert '0.345 <small>± 0.016</small>' in text
  best = re.findall('<td class=best[^>]*>(.*?) <small>', text)
  assert best == ['0.978', '0.984']  # 0.0057 apart, with an error of 0.0066
  assert 'pass@1 0.345 <small>± 0.015</small> → 0.978 <small>± 0.015</small>' in text
  assert 'update 5,000: pass@1 0.978 ± 0.015' in text  # the title of a point
  assert '5,000 of 60 updates' in text and '4 stages, 1 not finished' in text and '42 min' in text
  assert '10 rows of 20 samples' in text and '1 reward could not be computed' in text
  assert 'from base, zero' in text and 'rewritten: ' in text


def test_missing_parts_are_left_out(tmp_path):
  for broken in (tmp_path / 'absent', tmp_path):
    with pytest.raises(UserError):
      report.write(broken)
  old = dict(config=dict(group=4), parent=dict(folder='runs/base', params='ab'))
  (tmp_path / 'experiment.json').write_text(json.dumps(old))  # a single stage, as of old
  text = report.write(tmp_path).read_text(encoding='utf-8')
  walk(text)
  assert re.findall('<h2>(.*?)</h2>', text) == ['Pipeline', 'Settings']
  assert 'not finished' in text and 'from base' in text and 'reinforcement learning' in text
  (tmp_path / 'metrics.jsonl').write_text('{"step": 1, "reward": 0.5, "kl": 0}\n[]\nx\n{"step": 2')
  (tmp_path / 'samples.jsonl').write_text('[' * 100_000 + '\n{"step": 1}\n')
  text = report.write(tmp_path).read_text(encoding='utf-8')
  walk(text)
  assert re.findall('<h2>(.*?)</h2>', text)[1:3] == ['Learning', 'What the models write']


def test_a_section_has_a_size_and_long_files_an_end(tmp_path):
  assert len(page.fit((f'<p>{n:090}</p>' for n in range(10**9)), 1000, 'about')) < 1300
  assert 'more than this page' in page.fit(['x' * 2000], 1000) and not page.fit([], 1000)
  with open(tmp_path / 'shard.jsonl', 'wb') as file:
    file.write(b'{"a": "' + b'x' * 3000 + b'"}\n' + b'{"a": 1}\n' * 1000)
  assert len(list(report.rows(tmp_path / 'shard.jsonl', most=7000, longest=1000))) < 500
  assert next(report.rows(tmp_path / 'shard.jsonl', longest=1000)) == {'a': 1}


def test_a_figure_of_its_own_is_xml_with_every_line():
  series = {'a < b': [(i, i * i) for i in range(5000)], 'none': [(0, float('nan'))], 'c': [(3, 2)]}
  text = svg.lines(series, 'update', 'pass@1 & more', 'A "title" \u202e')
  root = xml.etree.ElementTree.fromstring(text)
  assert root.tag == '{http://www.w3.org/2000/svg}svg' and len(text) < 60_000
  said = ''.join(root.itertext())
  assert 'a < b' in said and 'pass@1 & more' in said and 'none' not in said.replace('fill:none', '')
  with pytest.raises(ValueError):
    svg.lines({'a': []}, 'x', 'y', 'title')


def test_thin_lines_keep_means_and_scales_are_round():
  rows = svg.thin([(i, i % 2) for i in range(10_400)])
  assert len(rows) <= 200 and all(row[1:] == (0.5, 0, 1) for row in rows)
  assert svg.thin([(1, 2, None), (2, 4, None)]) == [(1, 2, 2, 2), (2, 4, 4, 4)]
  assert svg.scale(0, 0.97, 4) == ([0, 0.25, 0.5, 0.75, 1], 0, 1)
  assert svg.scale(-0.02, 1.03, 4, 0.01) == ([0, 0.5, 1], -0.02, 1.03)
  for values in ([0], [5], [-3], [1e-9], [0.3, 0.31], [-1e14, 1e14], [7, 11]):
    ticks, low, high = svg.scale(*svg.extent(values, None), 4)
    assert 2 <= len(ticks) < 8 and low <= min(*values, ticks[0]) and high >= max(*values, ticks[-1])
