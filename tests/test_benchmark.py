"""r1jax eval --tasks: the numbers by hand, the same bytes however it runs, and what is refused."""
from functools import partial
import itertools
import json
import os
from pathlib import Path
import signal

import numpy as np
import pytest

from r1jax import benchmark, evals, main, prompts, rewards, tokenizer
from r1jax.types import Benchmark, Completion, Problem, Reward, UserError

HERE = Path(__file__)
SAMPLES = 3


def load(split, template):
  """Sums of two digits."""
  del split
  asked = [f'{a}+{b}=' for a in range(4) for b in range(3)]
  return [Problem(template.format(question=x), x, id=f'sums/{i}') for i, x in enumerate(asked)]


def long(split, template):
  """The same, the second of them twice in a row."""
  return [p._replace(prompt=p.prompt * (1 + (i == 1))) for i, p in enumerate(load(split, template))]


def odd(problem, completion):
  """Right: an odd number of tokens, which a model that hardly speaks gets now and then."""
  del problem
  return float(completion.num_tokens % 2)


def deadly(problem, completion):
  """The same; it kills the process at the fifth problem as long as a file says so."""
  if problem.id == 'sums/5' and Path('deadly').exists():
    os.kill(os.getpid(), signal.SIGKILL)
  return odd(problem, completion)


def faulty(problem, completion):
  """The same, but for two problems that cannot be judged."""
  if problem.id in ('sums/2', 'sums/3'):
    raise TimeoutError('late') if problem.id == 'sums/2' else ValueError('no verdict')
  return odd(problem, completion)


def of(function, answer=lambda text: text[:1] or None):
  return Benchmark(load, Reward('accuracy', function), answer=answer, k=SAMPLES, max_tokens=16)


BENCHMARKS = dict(sums=of(odd), deadly=of(deadly), faulty=of(faulty), silent=of(odd, None),
                  long=of(odd)._replace(problems=long))


@pytest.fixture
def ask(finished, tmp_path, capsys, monkeypatch):
  """Tasks of this file, further arguments -> exit code, stdout, stderr, in an empty folder."""
  monkeypatch.chdir(tmp_path)

  def run(tasks, *more, model='base'):
    capsys.readouterr()
    names = ','.join(f'{HERE}:{name}' for name in tasks.split(','))
    code = main.main(['eval', str(finished / 'out' / model), '--tasks', names, '--template',
                      'plain', '--machine.data', '1', *map(str, more)])  # yapf: disable
    return code, *capsys.readouterr()

  return run


def rows_of(folder):
  return [json.loads(line) for line in (folder / 'completions.jsonl').read_text().splitlines()]


# -- the numbers -----------------------------------------------------------------------------------


def test_pass_at_k_by_hand_and_over_all_subsets():
  right = np.array([[0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 1, 0], [1, 1, 1, 1]], bool)
  assert evals.pass_at(2, right) == [0, 1 / 2, 1 - 1 / 6, 1]
  right = np.random.default_rng(0).random((5, 7)) < 0.3
  for k in range(1, 8):
    every = [right[:, list(some)].any(axis=1) for some in itertools.combinations(range(7), k)]
    np.testing.assert_allclose(evals.pass_at(k, right), np.mean(every, axis=0), rtol=1e-12)


def work_of(tmp_path, k, problems=2, **fields):
  asked = dict(enumerate(load('test', '{question}')[:problems]))
  return benchmark.Work('sums', BENCHMARKS['sums'], asked, 0, k, 8, None, '',
                        tmp_path)._replace(**fields)


def test_the_numbers_by_hand(tmp_path):
  """Two problems, four samples each: three and one of them right."""
  scores, answers = [1, 1, 0, 1, 0, 0, 1, 0], ['5', '5', '6', None, '7', '7', '8', None]
  errors = ['', '', '', '', 'failed: ValueError()', f'{rewards.TIMED_OUT} TimeoutError()', '', '']
  with open(tmp_path / 'completions.jsonl', 'w', encoding='utf-8') as f:
    for i, (score, answer, error) in enumerate(zip(scores, answers, errors)):
      f.write(
          json.dumps(
              dict(number=i // 4, sample=i % 4, score=score, answer=answer, error=error, length=10 +
                   i, finished=i > 1, text='')) + '\n')
  speed = [
      dict(problem=0, tokens=999, seconds=9.0),
      dict(problem=0, tokens=46, seconds=2.0),
      dict(problem=1, tokens=62, seconds=1.0)
  ]  # the first was killed and done again
  (tmp_path / 'speed.jsonl').write_text('\n'.join(map(json.dumps, speed)))
  numbers = benchmark.summarise(work_of(tmp_path, 4))
  assert numbers == dict(
      problems=2, skipped=0, k=4, pass_at_1=0.5, pass_at_1_stderr=0.25,
      pass_at_2=(1 + 1 / 2) / 2, pass_at_2_stderr=pytest.approx(0.25), pass_at_4=1.0,
      pass_at_4_stderr=0.0, cons_at_4=0.5, cons_at_4_stderr=0.5, length=13.5, finished=0.75,
      errors=1, timeouts=1, seconds=3.0, tokens_per_s=36.0)  # yapf: disable


# -- a run -----------------------------------------------------------------------------------------


@pytest.fixture
def done(ask):
  """The folder of the sums, evaluated with all their samples in one call."""
  code, out, err = ask('sums', '--out', 'whole')
  assert code == 0, err
  return Path('whole/sums').absolute(), out


def test_what_is_kept_and_what_is_said(done):
  folder, out = done
  rows = rows_of(folder)
  places = [(r['number'], r['sample']) for r in rows]
  assert places == [(n, g) for n in range(12) for g in range(SAMPLES)]
  for r in rows:
    assert r['id'] == f'sums/{r["number"]}' and r['score'] == r['length'] % 2
    assert r['answer'] == (r['text'][:1] or None) and (r['finished'] or r['length'] == 16)
  assert len({r['text'] for r in rows}) > 20 and len({r['score'] for r in rows}) == 2
  assert sorted(p.name for p in folder.iterdir()) == ['completions.jsonl', 'settings.json',
                                                      'speed.jsonl']  # yapf: disable
  table = json.loads((folder.parent / 'table.json').read_text())
  found = table['tasks']['sums']
  assert found['pass_at_1'] == pytest.approx(np.mean([r['score'] for r in rows]))
  assert table['settings']['sums']['temperature'] == 0.6 and 'jax' in table['versions']
  text = (folder.parent / 'table.md').read_text().strip()
  assert out.strip().endswith(text) and '| sums | 12 | 0 | 3 | ' in text
  assert f'| {found["pass_at_1"]:.3f} ± {found["pass_at_1_stderr"]:.3f} |' in text


@pytest.mark.parametrize('how', [
    ['--machine.sample-rows', 2],  # two calls a problem, the second half empty
    ['--machine.sample-rows', 20, '--machine.data', 2],
    ['--machine.sample-rows', 3, '--tasks', f'{HERE}:silent,{HERE}:sums'],
])  # yapf: disable
def test_the_same_bytes_in_other_calls_and_company(ask, done, how):
  code, out, err = ask('sums', '--out', 'parts', *how)
  assert code == 0, err
  both = [Path(x, 'sums/completions.jsonl').read_bytes() for x in ('whole', 'parts')]
  assert both[0] == both[1]
  silent = [line for line in out.splitlines() if line.startswith('| silent')]
  assert all('| – |' in line for line in silent)  # no answers, no votes
  if silent:  # another task draws other samples
    texts = [[r['text'] for r in rows_of(Path('parts', name))] for name in ('silent', 'sums')]
    assert texts[0] != texts[1]


def test_what_is_finished_is_not_done_again(ask, done):
  before = done[0].joinpath('completions.jsonl').stat()
  code, out, _ = ask('sums', '--out', 'whole')
  assert code == 0 and 'problem 12' not in out and '| sums |' in out
  assert done[0].joinpath('completions.jsonl').stat().st_ino == before.st_ino


def test_a_killed_evaluation_goes_on(start, finished, tmp_path):
  args = ['eval', finished / 'out/base', '--tasks', f'{HERE}:deadly', '--template', 'plain',
          '--machine.data', 1, '--machine.sample-rows', 6, '--out']  # yapf: disable
  (tmp_path / 'deadly').touch()
  killed = start(*args, 'killed', cwd=tmp_path)
  killed.communicate()
  assert killed.returncode == -signal.SIGKILL
  shards = {p: p.stat().st_ino for p in tmp_path.glob('killed/deadly/shard-*')}
  assert sorted(p.name[6:-6] for p in shards) == ['000000', '000002']
  torn = tmp_path / 'killed/deadly/shard-000004.jsonl.tmp'
  torn.write_text('{"number": 4, "sam')  # as a kill while a shard is written leaves it
  (tmp_path / 'deadly').unlink()
  for folder in ('killed', 'whole'):
    process = start(*args, folder, cwd=tmp_path)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert ('problem 2:' in out) == (folder == 'whole') and 'problem 6:' in out
  a, b = (tmp_path / x / 'deadly/completions.jsonl' for x in ('killed', 'whole'))
  assert a.read_bytes() == b.read_bytes()
  assert not list(tmp_path.glob('*/deadly/shard-*'))


# -- what goes wrong -------------------------------------------------------------------------------


@pytest.mark.parametrize('change, says', [
    (['--temperature', 0.7], 'temperature was 0.6 and is now 0.7'),
    (['--k', 2], 'k was 3 and is now 2'),
    (['--limit', 5], 'num_problems was 12 and is now 5'),
    (['--seed', 1], 'seed was 0 and is now 1'),
    (['--template', 'short'], "template was '{question}' and is now 'User"),
    (['--machine.dtype', 'bfloat16'], "dtype was 'float32' and is now 'bfloat16'"),
])  # yapf: disable
def test_other_settings_are_refused(ask, done, change, says):
  before = {p: p.read_bytes() for p in done[0].iterdir()}
  code, _, err = ask('sums', '--out', 'whole', *change)
  assert code == 2 and says in err and '--out' in err and err.count('\n') == 1, err
  assert {p: p.read_bytes() for p in done[0].iterdir()} == before


MINE = """
from r1jax.types import Benchmark, Problem, Reward
load = lambda split, template: [Problem(template.format(question='1+1='), '2')]
def right(problem, completion):
  return 1.0
BENCHMARKS = dict(mine=Benchmark(load, Reward('accuracy', right), max_tokens=4))
"""


def test_another_grader_is_refused(ask):
  Path('mine.py').write_text(MINE)
  task = ['--tasks', 'mine.py:mine', '--out', 'out']
  assert ask('mine', *task)[0] == ask('mine', *task)[0] == 0
  before = Path('out/table.json').read_bytes()
  Path('mine.py').write_text(MINE.replace('1.0', '0.0'))
  code, _, err = ask('mine', *task)
  assert code == 2 and "mine was made with other settings: grader was '" in err and '--out' in err
  Path('mine.py').write_text(MINE.replace('right', 'wrong'))
  code, _, err = ask('mine', *task)
  assert code == 2 and 'reward was' in err and Path('out/table.json').read_bytes() == before


def test_what_a_reward_is_called():
  found = benchmark.graders(benchmark.find('math500'))
  assert found['reward'].startswith('r1jax.grading.math.load') and len(found['grader']) == 64
  one, two = (benchmark.graders(of(partial(odd, n=n)))['reward'] for n in (1, 2))
  assert one == f'{__name__}.odd(n=1)' != two


def test_another_model_is_refused(ask, done):
  code, _, err = ask('sums', '--out', 'whole', model='zero')
  assert code == 2 and "settings: model was '" in err and err.count('\n') == 1


@pytest.mark.parametrize('change, says', [
    (['--tasks', 'sumz'], "there is no benchmark 'sumz': there are "),
    (['--tasks', f'{HERE}:sumz'], 'there are deadly, faulty, long, silent, sums'),
    (['--tasks', f'{HERE.parent}/experiment.py:sums'], "no benchmarks (KeyError: 'BENCHMARKS')"),
    (['--tasks', 'lost.py:sums'], 'lost.py has no benchmarks (FileNotFoundError'),
    (['--template', 'r2'], "there is no template 'r2': there are auto, r1, r1-think"),
    (['--k', 0], 'k is 0 and must be at least 1'),
    (['--top-p', 0], 'top_p above 0'),
    (['--max-prompt-tokens', 3], 'sums: 12 of 12 prompts have more than 3 tokens, up to 4'),
    (['--max-prompt-tokens', 3, '--skip-long'], '12 of 12 prompts'),
    (['--tasks', f'{HERE}:sums,{HERE}:long', '--max-prompt-tokens', 3],
     f'{HERE}:long: 12 of 12 prompts have more than 3 tokens'),
    (['--tasks', f'{HERE}:sums,other.py:sums'], 'sums and other.py:sums would both be kept in out'),
    (['--tasks', 'folder:x/test,folder:y/test/'], 'folder:x/test and folder:y/test/ would both be'),
])  # yapf: disable
def test_what_a_person_gets_wrong_is_one_sentence(ask, change, says):
  code, _, err = ask('sums', '--out', 'out', *change)
  assert code == 2 and says in err and err.count('\n') == 1 and len(err) < 700, err
  assert not Path('out').exists()


def test_usage(capsys):
  assert main.main(['eval']) == 2 and '--tasks NAME,NAME' in capsys.readouterr().err


def test_failed_verdicts_are_counted_and_too_many_end_the_work(ask):
  code, out, err = ask('faulty', '--out', 'out', '--machine.sample-rows', 6, '--max-errors', 0.1)
  numbers = json.loads(Path('out/table.json').read_text())['tasks']['faulty']
  assert code == 0 and (numbers['errors'], numbers['timeouts']) == (SAMPLES, SAMPLES), err
  bad = {(r['number'], r['score'], r['error']) for r in rows_of(Path('out/faulty')) if r['error']}
  late, failed = "timed out: TimeoutError('late')", "failed: ValueError('no verdict')"
  assert bad == {(2, 0.0, late), (3, 0.0, failed)}
  code, _, err = ask('faulty', '--out', 'strict', '--machine.sample-rows', 6)
  assert code == 2 and "3 rewards failed on 36 samples" in err and 'no verdict' in err
  assert [p.name for p in Path('strict/faulty').glob('shard*')] == ['shard-000000.jsonl']


def test_long_prompts_and_a_short_context(tmp_path, finished, capsys):
  words = tokenizer.load(finished / 'out/base')
  prepare = lambda context, **fields: benchmark.prepare(
      f'{HERE}:sums', benchmark.Config(tasks='', **fields), '{question}', tmp_path, context, words)
  work = prepare(100, limit=3)
  assert list(work.problems) == [0, 1, 2] and work.sampling.max_tokens == 16
  assert not capsys.readouterr().out
  assert prepare(19).sampling.max_tokens == 15  # beside prompts of four tokens
  assert 'sums: completions of up to 15 tokens, not 16' in capsys.readouterr().out
  with pytest.raises(UserError, match='a prompt has 4 tokens, all of the model'):
    prepare(4, max_prompt_tokens=4)


def test_problems_left_out_keep_the_others_numbers(tmp_path, finished, capsys):
  """A problem's samples are drawn by its number in the split, whatever else is asked."""
  words = tokenizer.load(finished / 'out/base')
  cfg = benchmark.Config(tasks='', skip_long=True, max_prompt_tokens=4, limit=4)
  work = benchmark.prepare(f'{HERE}:long', cfg, '{question}', tmp_path, 100, words)
  assert list(work.problems) == [0, 2, 3] and work.skipped == 1
  said = ':long: 1 of 4 problems left out, their prompts have more than 4 tokens\n'
  assert capsys.readouterr().out.endswith(said)


def test_a_think_block_that_the_template_opens_is_judged_with_the_rest(tmp_path, finished):
  words = tokenizer.load(finished / 'out/base')
  prepare = lambda template: benchmark.prepare(
      f'{HERE}:sums', benchmark.Config(tasks='', limit=1, k=2), template, tmp_path, 10_000, words)
  for closed in (prompts.R1, prompts.R1_ZERO, '<think>{question}', '{question}<think>\n</think>'):
    assert prepare(closed).opening == ''
  work = prepare('{question}<think>\n')
  term = Reward('accuracy', rewards.think_format)
  group = [Completion('3</think> 4', 5, True), Completion('3, so 4', 5, False)]
  assert [r['score'] for r in benchmark.grade(work, term, [0], [group])] == [1.0, 0.0]
  assert [r['text'] for r in benchmark.grade(work, term, [0], [group])] == [c.text for c in group]


def test_a_folder_of_json_lines_is_graded_as_maths(tmp_path, finished):
  """The real grader; it is reached at once for numbers and through its workers for algebra."""
  asked = [
      dict(question='What is a half?', answer='1/2'),
      dict(question='Expand it.', answer='2x+2')
  ]
  (tmp_path / 'test.jsonl').write_text('\n'.join(map(json.dumps, asked)))
  words = tokenizer.load(finished / 'out/base')
  work = benchmark.prepare(f'folder:{tmp_path}', benchmark.Config(tasks='', k=2), 'Q {question} A',
                           tmp_path / 'out', 10_000, words)
  assert work.problems[0].prompt.startswith('Q What is a half?\nPlease reason')
  assert work.problems[0].prompt.endswith('within \\boxed{}. A') and work.name == tmp_path.name
  term, = rewards.load([work.benchmark.reward], None, None, None)
  texts = ['so \\boxed{0.5}', 'so \\boxed{0.6}', '\\boxed{2(x+1)}', 'nothing']
  groups = [[Completion(text, 9, True) for text in texts[i:i + 2]] for i in (0, 2)]
  rows = benchmark.grade(work, term, [0, 1], groups)
  assert [(r['score'], r['answer'], r['error']) for r in rows] == [(1.0, '0.5', ''),
                                                                   (0.0, '0.6', ''),
                                                                   (1.0, '2(x+1)', ''),
                                                                   (0.0, None, '')]


def test_the_templates(tmp_path, capsys):
  assert benchmark.find_template('auto', tmp_path) == prompts.R1
  assert 'no chat template: r1 is used' in capsys.readouterr().out
  (tmp_path / 'chat_template.jinja').write_text(
      'Q {{ date_string }}: {{ messages[0].content }}\nA{% if add_generation_prompt %}:{% endif %}')
  assert benchmark.find_template('auto', tmp_path) == 'Q 26 Jul 2024: {question}\nA:'
  assert benchmark.find_template('r1-zero', tmp_path) == prompts.R1_ZERO


def test_the_benchmarks_of_the_package():
  names = benchmark.published()
  assert {'math500', 'aime24', 'gsm8k', 'humaneval'} <= names.keys()
  assert names['aime24'].k == 64 and names['math500'].k == 16  # v2, D.1
  assert all(x.reward.kinds == () and x.max_tokens == 32_768 for x in names.values())
