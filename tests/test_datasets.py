"""Data sets from JSON lines to rows, what is refused on the way, kills, and `r1jax data`."""
import gzip
import json
import os
from pathlib import Path
import signal
import subprocess
import sys

import pytest

from r1jax import benchmark, datasets, main, metrics
from r1jax.tasks import lines
from r1jax.types import Benchmark, Problem, Reward, UserError

HERE = Path(__file__)
COLUMNS = dict(id=str, problem=str, level=int, share=float, hard=bool, choices=list, more=object)
TOY = datasets.Set('toy', 'a few rows', 'example.org/toy', 'MIT', 2026,
                   dict(train='train', test='test'), COLUMNS)  # yapf: disable
ROWS = [
    dict(id='a', problem='1 + 1\u2028= ?', level=-3, share=0.25, hard=True, choices=['1', '二'],
         more={'x': [None, 1.5]}),
    dict(id='b', problem='', level=2**63 - 1, share=2.0, hard=False, choices=[], more='text'),
    dict(id='c', problem='😀 \0 {question}', level=0, share=0.1, hard=True, choices=[''],
         more=None),
]  # yapf: disable


def write(path, rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  text = ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows).encode()
  path.write_bytes(gzip.compress(text) if path.suffix == '.gz' else text)


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
  """(source, prepared): where sets are looked for, and where they are kept."""
  monkeypatch.setenv('R1JAX_DATA', str(tmp_path / 'source'))
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'tfds'))
  monkeypatch.chdir(tmp_path)
  return tmp_path / 'source', tmp_path / 'tfds'


@pytest.fixture
def source(places):
  """The file that the training split of TOY is made from."""
  file = places[0] / 'toy/train.jsonl'
  write(file, ROWS)
  return file


# -- rows ------------------------------------------------------------------------------------------


def test_rows_come_back_as_they_were_in_their_order(places, source):
  write(places[0] / 'toy/test.jsonl.gz', [dict(ROWS[0], id=f'{i}', extra=1) for i in range(1000)])
  rows = datasets.rows(TOY, 'train')
  assert len(rows) == 3 and [rows[i] for i in range(3)] == ROWS
  assert [type(x) for x in rows[0].values()] == [str, str, int, float, bool, list, dict]
  many = datasets.rows(TOY, 'test')
  assert [many[i]['id'] for i in (999, 0, 500)] == ['999', '0', '500'] and 'extra' not in many[0]
  assert [row['id'] for row in datasets.every(TOY, 'test')] == [f'{i}' for i in range(1000)]
  assert 'tensorflow' not in sys.modules


def test_shuffled_rows_are_a_function_of_seed_and_index():
  places_of = lambda seed: [row['level'] for row in rows.seed(seed).shuffle()[3:8]]
  write(Path('source/toy/train.jsonl'), [dict(ROWS[0], id=f'{i}', level=i) for i in range(99)])
  rows = datasets.rows(TOY, 'train')
  shuffled = rows.seed(0).shuffle()
  assert places_of(0) == [shuffled[i]['level'] for i in range(3, 8)] != places_of(1)


def test_tfds_reads_it_by_name(places, source):
  import tensorflow_datasets as tfds
  datasets.prepare(TOY)
  builder = tfds.builder('r1jax_toy', data_dir=places[1])
  assert builder.info.splits['train'].num_examples == 3 and builder.info.homepage == TOY.homepage
  assert builder.as_data_source('train')[1]['id'] == b'b'


def test_one_file_holds_several_splits(places):
  columns = dict(id=str, part=str)
  data = TOY._replace(columns=columns, splits=dict(a='all', b='all'), split_column='part')
  write(places[0] / 'toy/all.jsonl', [dict(id=str(i), part='ab'[i % 2]) for i in range(5)])
  assert [[row['id'] for row in datasets.every(data, x)] for x in 'ab'] == [['0', '2', '4'],
                                                                            ['1', '3']]


def test_problems_put_the_question_inside_the_template(source):
  ask = '{question} Use {{braces}}.'
  made = datasets.problems(TOY, 'train', 'Q: {question} A:', ask, kind='k',
                           answer=lambda row: str(row['level']))  # yapf: disable
  assert made[2] == Problem('Q: 😀 \0 {question} Use {braces}. A:', '0', 'k', 'en',
                            '😀 \0 {question}', 'c')


# -- what is refused -------------------------------------------------------------------------------

BAD = {
    'no JSON': (b'{"id": "x"', 'it is no JSON object'),
    'no object': (b'[1]', 'it is no JSON object'),
    'binary': (b'\xff\xfe\x00', 'it is no JSON object'),
    'deep': (b'[' * 4000, 'it is no JSON object'),
    'empty': (b'', 'it is no JSON object'),
    'absent': (json.dumps({k: v for k, v in ROWS[1].items() if k != 'hard'}), 'no column hard'),
    'twice': (json.dumps(ROWS[0]), 'column id is \'a\', as of a line before'),
    'number': (json.dumps(dict(ROWS[1], problem=3)), 'column problem is 3 and must be of type str'),
    'bool': (json.dumps(dict(ROWS[1], level=True)), 'column level is True and must be of type int'),
    'large': (json.dumps(dict(ROWS[1], level=2**63)), 'column level is 9223372036854775808'),
    'list': (json.dumps(dict(ROWS[1], choices=['a', 1])), 'must be a list of texts'),
    'surrogate': (json.dumps(dict(ROWS[1], problem='\ud800')), 'column problem has half a'),
    'surrogates': (json.dumps(dict(ROWS[1], choices=['\udfff'])), 'column choices has half a'),
    'long': (b'{"id": "' + b'x' * 5000 + b'"}', 'more than 4096 bytes'),
}  # yapf: disable


@pytest.mark.parametrize('line, why', BAD.values(), ids=BAD)
def test_a_bad_row_is_named(line, why, source, places, monkeypatch):
  monkeypatch.setattr(datasets, 'MAX_LINE', 4096)
  line = line.encode() if isinstance(line, str) else line
  source.write_bytes(json.dumps(ROWS[0]).encode() + b'\n' + line + b'\n')
  with pytest.raises(UserError) as error:
    list(datasets.lines(TOY, 'train', source))
  assert str(error.value).startswith(f'{source}, line 2: ') and why in str(error.value)


def test_a_bad_row_leaves_nothing_behind(source, places):
  source.write_text(json.dumps(ROWS[0]) + '\nnothing\n')
  with pytest.raises(UserError, match=r'train\.jsonl, line 2: it is no JSON object'):
    datasets.rows(TOY, 'train')
  assert not [*places[1].rglob('*.json'), *places[1].rglob('*array_record*')]


def test_a_file_that_is_cut_off_is_named(places):
  write(places[0] / 'toy/train.jsonl.gz', [dict(id=os.urandom(9).hex()) for _ in range(999)])
  file = places[0] / 'toy/train.jsonl.gz'
  file.write_bytes(file.read_bytes()[:-20])
  with pytest.raises(UserError, match='train.jsonl.gz, after line .*cannot be read'):
    datasets.prepare(TOY._replace(columns=dict(id=str)))


def test_what_is_not_there_is_asked_for(places, monkeypatch):
  with pytest.raises(UserError) as error:
    datasets.rows(TOY, 'train')
  for part in (places[1] / 'r1jax_toy/1.0.0', places[0] / 'toy/train.jsonl', 'level (int)',
               'example.org/toy', 'MIT'):  # yapf: disable
    assert str(part) in str(error.value)
  monkeypatch.delenv('R1JAX_DATA')
  with pytest.raises(UserError, match=str(Path.cwd() / 'data/toy/test.jsonl')):
    datasets.rows(TOY, 'train')


def test_splits_that_are_unknown_or_not_there(source):
  with pytest.raises(UserError, match='no split \'dev\': there are train, test'):
    datasets.rows(TOY, 'dev')
  with pytest.raises(UserError, match='without the split \'test\': put .*toy/test.jsonl'):
    datasets.rows(TOY, 'test')


def test_buckets_are_refused(monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', 'gs://bucket/data')
  with pytest.raises(UserError, match='only folders'):
    datasets.rows(TOY, 'train')


# -- change and kills ------------------------------------------------------------------------------


def test_a_changed_source_is_refused_until_it_is_prepared_again(source, places):
  folder = datasets.prepare(TOY)
  made = (folder / 'metadata.json').stat().st_mtime_ns
  assert datasets.prepare(TOY) == folder
  assert (folder / 'metadata.json').stat().st_mtime_ns == made, 'it was made again for nothing'
  write(source, ROWS[:2])
  with pytest.raises(UserError, match=r'source of train has changed.*data prepare toy'):
    datasets.rows(TOY, 'train')
  datasets.prepare(TOY)
  assert datasets.every(TOY, 'train') == ROWS[:2]
  source.unlink()
  assert len(datasets.rows(TOY, 'train')) == 2, 'the source is not needed any more'
  with pytest.raises(UserError, match='columns has changed'):
    datasets.rows(TOY._replace(columns=dict(id=str)), 'train')


SMALL = datasets.Set('small', 'a few rows', 'example.org', 'MIT', 2026, columns=dict(id=str))
PROGRAM = '''
import os, signal, sys
from r1jax import datasets
def kill(*_):
  os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[1] == 'within':
  lines = datasets.lines
  datasets.lines = lambda *args: (kill() if row['id'] == 'b' else row for row in lines(*args))
if sys.argv[1] == 'before the rename':
  datasets.os.rename = kill
datasets.prepare(
    datasets.Set('small', 'a few rows', 'example.org', 'MIT', 2026, columns=dict(id=str)))
'''


def prepare_aside(when):
  env = {**os.environ, 'PYTHONPATH': str(HERE.parents[1])}
  return subprocess.Popen([sys.executable, '-c', PROGRAM, when], env=env)


@pytest.mark.parametrize('when', ['within', 'before the rename'])
def test_a_killed_preparation_leaves_nothing_that_reads_as_whole(when, places):
  write(places[0] / 'small/test.jsonl', ROWS)
  assert prepare_aside(when).wait() == -signal.SIGKILL
  assert not datasets.counts(datasets.prepared(SMALL))
  assert [row['id'] for row in datasets.every(SMALL, 'test')] == ['a', 'b', 'c']


def test_two_at_once(places):
  write(places[0] / 'small/test.jsonl', ROWS)
  both = [prepare_aside('never'), prepare_aside('never')]
  assert [process.wait() for process in both] == [0, 0]
  assert [row['id'] for row in datasets.every(SMALL, 'test')] == ['a', 'b', 'c']
  assert [path.name for path in (places[1] / 'r1jax_small').iterdir()] == ['1.0.0']


# -- r1jax data ------------------------------------------------------------------------------------


@pytest.fixture
def data(capsys):
  """Arguments -> what `r1jax data` prints; what it says where it fails, if told so."""

  def run(*args, fails=False):
    capsys.readouterr()
    code = main.main(['data', *map(str, args)])
    out, err = capsys.readouterr()
    assert code == (2 if fails else 0), err
    return err if fails else out

  return run


def maths(problems):
  return [dict(id=f'{i}', problem=text, answer='1') for i, text in enumerate(problems)]


def test_list_prepare_show(data, places):
  write(places[0] / 'sat_math/test.jsonl', maths(['What is 3 - 2?', 'x' * 400]))
  lines = data('list').splitlines()
  state = dict(zip([line.split()[0] for line in lines[::2]], lines[1::2]))
  assert f'not prepared yet, from {places[0] / "sat_math"}' in state['sat_math']
  assert f'not there: put {places[0] / "gsm8k/train.jsonl"} and' in state['gsm8k']
  assert 'sat_math: test 2, in' in data('prepare', 'sat_math')
  assert 'test 2' in dict(zip([x.split()[0] for x in lines[::2]],
                              data('list').splitlines()[1::2]))['sat_math']
  shown = data('show', 'sat_math', '--rows', 9, '--width', 20)
  assert 'problem: What is 3 - 2?\nanswer: 1' in shown and 'x' * 20 + ' ...' in shown
  assert shown.endswith('2 of 2 rows\n')
  assert 'no data set \'sat\': there are advbench,' in data('show', 'sat', fails=True)
  write(Path('elsewhere/aqua/test.jsonl'), maths(['?']))
  assert 'aqua: test 1, in' in data('prepare', 'aqua', '--source', 'elsewhere')


def test_clean(data, places):
  ten = 'one two three four five six seven eight nine ten'
  write(places[0] / 'gsm8k/train.jsonl', [
      dict(row, solution='') for row in maths(
          [f'Zero {ten}?', 'Short: 1+2?', ten[:-4], f'eleven {ten.replace(" ", ", ")}', 'Apples'])
  ])
  write(places[0] / 'gsm8k/test.jsonl', [dict(row, solution='') for row in maths(['short 1, 2'])])
  write(places[0] / 'aime24/test.jsonl', maths(['Pears', f'a {ten} b']))
  said = data('clean', 'gsm8k', '--against', 'gsm8k,aime24', '--out', 'out.jsonl')
  assert ('gsm8k:train and gsm8k:test: 1 of 5 rows overlap with 1 of 1 by 10 words; 1 of them are '
          'the same') in said
  assert 'gsm8k:train and aime24:test: 2 of 5 rows overlap with 1 of 2 by 10 words; 0' in said
  gone = [json.loads(line) for line in Path('out.removed.jsonl').read_text().splitlines()]
  assert gone == [
      dict(id='1', other='0', against='gsm8k:test', shared='short12'),
      dict(id='0', other='1', against='aime24:test', shared=ten),
      dict(id='3', other='1', against='aime24:test', shared=ten)
  ]
  Path('train.jsonl').symlink_to('out.jsonl')
  assert [p.question for p in lines.load('train', '.')] == [ten[:-4], 'Apples']
  said = data('clean', 'out.jsonl', '--against', 'aime24:test', '--n', '9', '--out', 'two.jsonl')
  assert '1 of 2 rows overlap with 1 of 2 by 9 words' in said
  assert 'name one, as in aime24:test' in data('clean', 'aime24', '--against', 'gsm8k', '--out',
                                               'x', fails=True)


def test_clean_compares_all_that_a_row_asks_and_no_row_that_asks_nothing(data, places):
  asked = lambda text: dict(instruction='Put it into the past tense, please, all of it.',
                            input=text)  # yapf: disable
  write(Path('train.jsonl'), [asked('I go home.'), asked('She sings.'), dict(question='Who?')])
  write(Path('test.jsonl'), [asked('She sings.')])
  said = data('clean', 'train.jsonl', '--against', 'test.jsonl', '--n', 12, '--out', 'out.jsonl')
  assert '1 of 3 rows overlap with 1 of 1 by 12 words; 1 of them are the same' in said
  assert metrics.read('out.jsonl')[0]['question'].endswith('all of it.\n\nI go home.')
  write(places[0] / 'code_alpaca_2k/train.jsonl', [dict(asked('She sings.'), id='0', output='x')])
  said = data('clean', 'code_alpaca_2k', '--against', 'test.jsonl', '--n', 12, '--out', 'x.jsonl')
  assert '1 of 1 rows overlap' in said
  for field in (dict(Question='Who?'), dict(question=None)):
    write(Path('train.jsonl'), [dict(question='What?'), field])
    err = data('clean', 'train.jsonl', '--against', 'test.jsonl', '--out', 'no.jsonl', fails=True)
    assert 'train.jsonl, line 2: it has none of the fields question, problem, prompt, instr' in err
    assert err.count('\n') == 1 and not Path('no.jsonl').exists()


def sums(split, template):
  """Sums of two digits."""
  del split
  asked = [f'{a}+{b}=' for a in range(4) for b in range(3)]
  return [Problem(template.format(question=x), 'a', question=x, id=f'{i}', language='en')
          for i, x in enumerate(asked)]  # yapf: disable


def odd(problem, completion):
  """Right: an odd number of tokens."""
  ASKED.append(problem.id)
  return float(completion.num_tokens % 2)


def never(problem, completion):
  """No verdict."""
  raise ValueError('no verdict')


ASKED = []
of = lambda function: Benchmark(sums, Reward('accuracy', function), max_tokens=16)
BENCHMARKS = dict(sums=of(odd), faulty=of(never))


def test_filter(data, finished, monkeypatch):
  monkeypatch.setattr(benchmark, 'find', BENCHMARKS.get)  # their file would be run once more
  args = ['--model', finished / 'out/base', '--template', 'plain', '--k', 16]
  said = data('filter', 'sums', *args, '--out', 'out.jsonl', '--low', '0.3', '--high', '0.6')
  assert len(ASKED) == 12 * 16
  samples = metrics.read('out.graded/sums/completions.jsonl')
  rates = {n: sum(r['score'] for r in samples if r['id'] == n) / 16 for n in map(str, range(12))}
  assert len(set(rates.values())) > 2
  kept = [json.loads(line) for line in Path('out.jsonl').read_text().splitlines()]
  want = {n: rate for n, rate in rates.items() if 0.3 <= rate <= 0.6}
  assert {row['id']: row['pass_rate'] for row in kept} == want and 0 < len(kept) < 12
  assert f'{len(kept)} of 12 problems' in said
  Path('train.jsonl').symlink_to('out.jsonl')
  assert [p.question for p in lines.load('train', '.')] == [row['question'] for row in kept]
  data('filter', 'sums', *args, '--out', 'out.jsonl', '--low', '0', '--high', '1')
  assert len(ASKED) == 12 * 16, 'what was there was asked again'
  err = data('filter', 'sums', *args, '--out', 'out.jsonl', '--seed', '1', fails=True)
  assert 'was made with other settings: seed was 0 and is now 1' in err
  err = data('filter', 'faulty', *args, '--out', 'faulty.jsonl', fails=True)
  assert 'rewards failed on 192 samples' in err
  err = data('filter', 'sums', *args, '--out', 'x', '--low', '0.9', '--high', '0.1', fails=True)
  assert 'no larger than' in err
