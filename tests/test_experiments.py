"""The paper's experiments: their numbers, their chain of models, and each step in its full size.

Nothing is compiled and no weight is made: jax traces every stage's own step with abstract arrays of
the published architectures (model/presets.py), DeepSeek-V3's 671 billion parameters among them, so
that what cannot be a step of that size shows here.
"""
import dataclasses
from functools import partial
import json
from pathlib import Path
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax import grpo, losses, main, model as model_lib, optim, prompts, rewards, sharding
from r1jax.grading import code, math
from r1jax.model import presets
from r1jax.plan import steps
from r1jax.stages import evaluate, generate, reward_model, rl, sft
from r1jax.tasks import lines
from r1jax.types import Completion, Document, Judged, Problem, UserError

ROOT = Path(__file__).parents[1]
FOUND = (path for name in ('r1', 'distill', 'zero')
         for path in sorted((ROOT / 'experiments' / name).glob('*.py')))  # yapf: disable
FILES = {f'{path.parent.name}/{path.stem}': path for path in FOUND if path.stem != 'common'}
STAGES = {stage.out.removeprefix('runs/'): stage
          for path in FILES.values() for stage in main.load_experiment(path)}  # yapf: disable

# -- the numbers -----------------------------------------------------------------------------------

V3, LONG = 'models/DeepSeek-V3-Base', 32_768

# Evaluation (D.1): AIME 2024 in passing, 16 samples each (v1, figure 2).
AIME = {'num_problems': 30, 'k': 16, 'sampling.max_tokens': LONG, 'sampling.temperature': 0.6,
        'sampling.top_p': 0.95}  # yapf: disable
CHECK = {f'evaluation.{name}': value for name, value in AIME.items()}
# AdamW and its surroundings: chosen.
ADAM = {'optimizer.b1': 0.9, 'optimizer.b2': 0.95, 'optimizer.weight_decay': 0,
        'optimizer.clip_norm': 1, 'optimizer.warmup_steps': 0}  # yapf: disable
# Sections 2.1 and 3.2.1. Chosen: the token form, the clip of all but stage 1, the prompts' budget,
# what is saved and evaluated how often.
GRPO = {
    'optimizer.lr': 3e-6, 'optimizer.schedule': optim.constant, **ADAM, 'objective.beta': 0.001,
    'objective.clip_low': 10, 'objective.clip_high': 10, 'objective.reward_beta': 0,
    'objective.level': grpo.per_token, 'objective.aggregate': grpo.sequence_mean,
    'objective.advantages': grpo.group_advantages, 'objective.surrogate': grpo.clipped,
    'objective.kl': grpo.k3, 'objective.importance': grpo.truncated, 'sampling.temperature': 1,
    'sampling.top_p': 1, 'sampling.top_k': 0, 'sampling.max_tokens': LONG, 'batch': 32, 'group': 16,
    'minibatches': 16, 'resample': 0, 'refresh_every': 400, 'max_prompt_tokens': 2048,
    'eval_every': 400, 'save_every': 16, 'samples_every': 400, 'seed': 0, **CHECK,
}  # yapf: disable
# Equations 4, 7 and 8; test_each_prompt_gets_the_rewards_of_its_set has weights and the rest.
RULES = {'rewards.0.name': 'accuracy', 'rewards.1.load': code.load,
         'rewards.2.function': rewards.think_format,
         'rewards.3.function': rewards.consistency}  # yapf: disable
RULES_ZERO = {'rewards.0.load.extract': prompts.last_answer,
              'rewards.1.load': code.load, 'rewards.2.function': rewards.format}  # yapf: disable
# B.4.2: both SFT stages of R1. Chosen: save_every, no warm-up.
TUNE = {'init': V3, 'batch': 128, 'row_tokens': LONG, 'optimizer.lr': 5e-5,
        'optimizer.end_lr': 5e-6, 'optimizer.schedule': optim.cosine, **ADAM,
        'max_prompt_tokens': 2048, 'save_every': 100, **CHECK}  # yapf: disable
# B.4.3: the students.
STUDENT = {'epochs': 2, 'batch': 64, 'row_tokens': LONG, 'optimizer.schedule': optim.cosine,
           **ADAM, 'max_prompt_tokens': 2048,
           'documents.0': 'runs/r1/rejection', **CHECK, 'evaluation.k': 64}  # yapf: disable
SAMPLE = {'max_prompt_tokens': 2048, 'sampling.max_tokens': LONG}
# Section 3.1: both reward models. Chosen: held_out.
JUDGE = {'init': 'runs/r1/dev3', 'epochs': 1, 'batch': 256, 'max_tokens': 8192,
         'optimizer.lr': 6e-6, 'held_out': 0.02, **ADAM}  # yapf: disable


def asked(path, tokens, seconds, **more):
  """Settings of a prompted DeepSeek-V3; all are chosen."""
  settings = dict(max_tokens=tokens, deadline_s=seconds, parallel=256, **more)
  return {f'{path}.{name}': value for name, value in settings.items()}


def tabled(**models):
  """The three tasks of a table, asked of these models: D.1 for k, temperature and top-p."""
  models = {name.replace('_', '-'): folder for name, folder in models.items()}
  rows, tasks = dict(models=models, max_prompt_tokens=2048), ['aime24', 'math500', 'gpqa']
  for i, (name, problems, k) in enumerate(zip(tasks, (30, 500, 198), (64, 16, 64))):
    here = {**AIME, 'num_problems': problems, 'k': k, 'problems.folder': f'data/{name}'}
    rows |= {f'tasks.{i}.evaluation.{field}': value for field, value in here.items()}
  return rows


NUMBERS = {
    'r1/zero_32k': {**GRPO, 'init': V3, 'steps': 8192, **RULES_ZERO},
    'r1/zero': {**GRPO, 'init': 'runs/r1/zero_32k', 'steps': 2208, 'sampling.max_tokens': 65_536,
                'seed': 1, **RULES_ZERO},
    'r1/cold_start': {**SAMPLE, 'init': 'runs/r1/zero', 'num_problems': 8192, 'samples': 4,
                      'sampling.temperature': 1, 'select.keep': 1,
                      **asked('select.rewriter.0', LONG, 3600)},
    'r1/dev1': {**TUNE, 'documents.0': 'runs/r1/cold_start', 'epochs': 3},
    'r1/dev2': {**GRPO, **RULES, 'init': 'runs/r1/dev1', 'steps': 2400},
    'r1/rejection': {**SAMPLE, 'init': 'runs/r1/dev2', 'num_problems': 1_000_000, 'samples': 16,
                     'sampling.temperature': 1, 'select.keep': 8,
                     **asked('select.gates.2.load.0', 4096, 600)},
    'r1/dev3': {**TUNE, 'documents.0': 'runs/r1/rejection', 'epochs': 2},
    'r1/pairs': {**SAMPLE, 'init': 'runs/r1/dev3', 'num_problems': 66_000, 'samples': 4,
                 'sampling.temperature': 0.7, 'select.judgements': 4, 'select.threshold': 1,
                 'select.view': prompts.summary,
                 **{f'select.scale.{i}': value for i, value in enumerate((2, 1, 0, -1, -2))},
                 **asked('select.judge.0', 8192, 600, temperature=0.6)},
    'r1/labels': {**SAMPLE, 'init': 'runs/r1/dev3', 'num_problems': 106_000, 'samples': 1,
                  'sampling.temperature': 0.7,
                  **asked('select.judge.load.0', 8192, 600, temperature=0.6)},
    'r1/helpful': {**JUDGE, 'judged.0': 'runs/r1/pairs', 'judged.1': 66_000,
                   'view': prompts.summary, 'loss': losses.bradley_terry},
    'r1/safety': {**JUDGE, 'judged.0': 'runs/r1/labels', 'view': prompts.whole,
                  'loss': losses.pointwise},
    'r1/r1': {**GRPO, **RULES, 'init': 'runs/r1/dev3', 'steps': 1696, 'sampling.temperature': 0.7,
              'more.0.share': 13, 'more.0.start': 1296, 'more.1.share': 3, 'more.1.start': 1296,
              'rewards.4.start': 1296, 'rewards.5.start': 1296, 'rewards.6.start': 1296,
              'rewards.5.load.0': 'runs/r1/helpful', 'rewards.5.view': prompts.summary,
              'rewards.6.load.0': 'runs/r1/safety', 'rewards.6.view': prompts.whole},
    'r1/table_zero': tabled(base=V3, R1_Zero='runs/r1/zero'),
    'r1/table': tabled(Dev1='runs/r1/dev1', Dev2='runs/r1/dev2', Dev3='runs/r1/dev3',
                       R1='runs/r1/r1'),
    # Table 6, cosine to a tenth (B.4.3)
    'distill/qwen_1_5b': {**STUDENT, 'init': 'models/Qwen2.5-Math-1.5B', 'optimizer.lr': 1e-4,
                          'optimizer.end_lr': 1e-5},
    'distill/qwen_7b': {**STUDENT, 'init': 'models/Qwen2.5-Math-7B', 'optimizer.lr': 8e-5,
                        'optimizer.end_lr': 8e-6},
    'distill/qwen_14b': {**STUDENT, 'init': 'models/Qwen2.5-14B', 'optimizer.lr': 7e-5,
                         'optimizer.end_lr': 7e-6},
    'distill/qwen_32b': {**STUDENT, 'init': 'models/Qwen2.5-32B', 'optimizer.lr': 6e-5,
                         'optimizer.end_lr': 6e-6},
    'distill/llama_8b': {**STUDENT, 'init': 'models/Llama-3.1-8B', 'optimizer.lr': 5e-5,
                         'optimizer.end_lr': 5e-6},
    'distill/llama_70b': {**STUDENT, 'init': 'models/Llama-3.3-70B-Instruct',
                          'optimizer.lr': 2e-5, 'optimizer.end_lr': 2e-6},
    # B.4.1; ">10K" updates: chosen
    'zero/qwen_32b': {**GRPO, 'init': 'models/Qwen2.5-32B', 'optimizer.lr': 2e-6,
                      'steps': 10_400, **RULES_ZERO, 'objective.importance': None},
}  # yapf: disable


def items(value):
  """(name, part, default) of each part of a config's value."""
  absent = object()
  if dataclasses.is_dataclass(value):
    return [(f.name, vars(value)[f.name], f.default) for f in dataclasses.fields(value)]
  if isinstance(value, partial):
    parts = [*enumerate(value.args), *value.keywords.items()]
    return [(str(name), part, absent) for name, part in parts]
  if isinstance(value, dict):
    return [(name, part, absent) for name, part in value.items()]
  if hasattr(value, '_fields'):
    return [(f, getattr(value, f), value._field_defaults.get(f, absent)) for f in value._fields]
  return [(str(i), part, absent) for i, part in enumerate(value)]


def get(value, path):
  """What stands at a path such as rewards.4.load.0."""
  for name in path.split('.'):
    value = next(part for found, part, _ in items(value) if found == name)
  return value


def stated(value, path=''):
  """The paths of all numbers of a config that are not the defaults of their fields."""
  for name, part, default in items(value):
    if isinstance(part, (int, float)) and not isinstance(part, bool) and part != default:
      yield f'{path}{name}'
    elif dataclasses.is_dataclass(part) or isinstance(part, (tuple, dict, partial)):
      yield from stated(part, f'{path}{name}.')


@pytest.mark.parametrize('name', NUMBERS)
def test_numbers(name):
  config, table = STAGES[name].config, NUMBERS[name]
  found = {path: get(config, path) for path in table}
  numeric = lambda x: isinstance(x, (int, float))
  assert found == {k: pytest.approx(v, rel=1e-12) if numeric(v) else v for k, v in table.items()}
  untold = [path for path in stated(config) if not path.startswith('machine.')]
  assert not set(untold) - set(table), 'numbers that the table does not have'


def test_every_stage_is_in_the_table():
  assert NUMBERS.keys() == STAGES.keys()
  for name, path in FILES.items():
    text = path.read_text(encoding='utf-8').partition('"""\n')[0].lower()
    assert f'experiments/{name}.py' in text and 'expected' in text and 'not yet run' in text


def test_the_paper_s_sums():
  config = {name: stage.config for name, stage in STAGES.items()}
  for name, cfg in config.items():
    if isinstance(cfg, rl.Config):
      rl.check(cfg)
      assert (cfg.batch * cfg.group, cfg.batch * cfg.group * cfg.minibatches) == (512, 8192), name
  assert config['r1/zero_32k'].steps + config['r1/zero'].steps == 10_400
  assert config['r1/r1'].steps - config['r1/r1'].more[0].start == 400
  assert sum(source.share for source in config['r1/r1'].more) == 16
  docstring = FILES['r1/rejection'].read_text(encoding='utf-8').partition('"""\n')[0]
  line, = (line for line in docstring.splitlines() if 'Total' in line)
  *counts, total = (int(n.replace(',', '')) for n in re.findall(r'[\d,]{5,}', line))
  assert counts == [395_285, 211_129, 10_124, 10_395, 177_812] and sum(counts) == total == 804_745


# -- what is asked and rewarded --------------------------------------------------------------------


def write(folder, name, *rows):
  """A file with a JSON object a line."""
  file = folder / name
  file.parent.mkdir(parents=True, exist_ok=True)
  file.write_text(''.join(f'{json.dumps(row, ensure_ascii=False)}\n' for row in rows))
  return file


@pytest.fixture
def data(tmp_path, monkeypatch):
  """A working directory with a little of all the data that experiments/r1 asks for."""
  row = dict(question='2+3?', answer='5', kind='math')
  write(tmp_path, 'data/reasoning/train.jsonl', row, dict(row, question='谁？', kind='logic'))
  write(tmp_path, 'data/added/train.jsonl', dict(question='Prove it.', answer='Done.'))
  for name in ('helpful', 'safety', 'safety_labels'):
    write(tmp_path, f'data/{name}/train.jsonl', dict(question='Hello?'))
  write(tmp_path, 'data/general/train.jsonl', dict(prompt='Hi', response='Hello.'))
  for name in ('aime24', 'math500', 'gpqa'):
    write(tmp_path, f'data/{name}/test.jsonl', dict(question='2+3?', answer='5'))
  monkeypatch.chdir(tmp_path)
  return tmp_path


def test_problems_have_their_stage_s_template(data):
  for name, stage in STAGES.items():
    cfg, zero = stage.config, name in ('r1/zero_32k', 'r1/zero', 'r1/cold_start', 'zero/qwen_32b')
    asked_, template = [], prompts.R1_ZERO if zero else prompts.R1
    if hasattr(cfg, 'problems'):
      asked_ += cfg.problems('train')
      asked_ += [p for source in getattr(cfg, 'more', ()) for p in source.problems('train')]
      assert all(p.prompt == template.format(question=p.question) for p in asked_)
    evaluations = [task.evaluation for task in getattr(cfg, 'tasks', ())]
    if getattr(cfg, 'evaluation', None):
      evaluations.append(cfg.evaluation)
    for evaluation in evaluations:
      problem, = evaluation.problems('test')
      start = (prompts.R1_ZERO if zero or name == 'r1/table_zero' else prompts.R1).split('{')[0]
      assert problem.prompt.startswith(start) and '2+3?' in problem.prompt
      asked_.append(problem)
    assert all(p.language in ('en', 'zh') and '{' not in p.prompt.replace('{}', '')
               for p in asked_)  # yapf: disable
  boxed, = STAGES['r1/r1'].config.evaluation.problems('test')
  assert boxed.prompt == ('<｜User｜>2+3?\nPlease reason step by step, and put your final answer '
                          'within \\boxed{}.<｜Assistant｜>')
  assert [p.kind for p in STAGES['r1/rejection'].config.problems('train')] == [
      'math', 'logic', 'added']  # yapf: disable
  assert [p.kind for p in STAGES['zero/qwen_32b'].config.problems('train')] == ['math']
  others = STAGES['r1/rejection'].config.others()
  assert others == [Document('<｜User｜>Hi<｜Assistant｜>', 'Hello.', 'general')]


def test_kinds_that_no_reward_knows_are_refused(data):
  write(data, 'data/reasoning/train.jsonl', dict(question='Sort.', answer='x', kind='poem'))
  with pytest.raises(UserError, match="train.jsonl, line 1: kind is 'poem', and reasoning, math"):
    STAGES['r1/dev2'].config.problems('train')


def test_what_is_kept_is_right_and_readable():
  readable = [rewards.ended, rewards.think_format, rewards.no_repetition, rewards.short_paragraphs,
              rewards.no_code]  # yapf: disable
  functions = lambda name: [g.function for g in STAGES[name].config.select.gates]
  assert functions('r1/cold_start') == [None, None, *readable, rewards.unmixed]
  assert functions('r1/rejection') == [None, None, None, *readable, rewards.one_language]


ONLY = {'math': ['accuracy', 'format', 'language'],
        'code': ['programs', 'format', 'language'],
        'helpful': ['language', 'free_format', 'helpful'],
        'safety': ['language', 'free_format', 'safety']}  # yapf: disable


def test_each_prompt_gets_the_rewards_of_its_set():
  terms = [r._replace(load=None, many=lambda p, c: [0.5] * len(p)) if r.load else r
           for r in STAGES['r1/r1'].config.rewards]  # yapf: disable
  text = '<think>We add them.</think> It is \\boxed{5}.'
  for kind, names in ONLY.items():
    problem = [Problem('2+3?', '5', kind, 'en')]
    scores, errors = rewards.grade(terms, problem, [[Completion(text, 9, True)]])
    assert [name for name, x in scores.items() if not np.isnan(x).any()] == names
    assert errors == [[]] and rewards.total(terms, scores, (1, 1)) == 2.5
  assert STAGES['r1/r1'].config.rewards[0].load.func is math.load
  early = [r.name for r in rewards.active(terms, 1280)]
  assert early == ['accuracy', 'programs', 'format', 'language']
  assert len(rewards.active(terms, 1296)) == 7
  assert all(r.weight == 1 for stage in STAGES.values()
             for r in getattr(stage.config, 'rewards', ()))  # yapf: disable


def test_the_cold_start_s_texts(data):
  functions = main.runpy.run_path(str(FILES['r1/cold_start']))
  prompt = prompts.R1_ZERO.format(question='What {is} 2+3?')
  row = dict(prompt=prompt, response='<think>We add.</think> \\boxed{5}', kind='math')
  write(data, 'runs/x/data/result.jsonl', row)
  document, = functions['documents']('runs/x')
  assert document == Document(prompts.R1.format(question='What {is} 2+3?'), row['response'], 'math')

  parts = '<thinking>\nWe add.\n</thinking>\n<summary>\nIt is \\boxed{%s}.\n</summary>'
  said = [parts % 5, parts % 6, 'nothing', ConnectionError('down')]
  many = functions['rewriter'](lambda *_: lambda texts, draws: said, None, None, None)
  found = many([Problem(prompt, '5')] * 4, [Completion('<think>2+3</think> 5', 9, True)] * 4)
  assert found[0] == '<think>\nWe add.\n</think>\n\nIt is \\boxed{5}.' and found[1] is None
  assert [type(x).__name__ for x in found[2:]] == ['MalformedVerdict', 'ConnectionError']


@pytest.mark.parametrize('text, right', [('<think>A</think> It is C.\nANSWER: C', 'C'),
                                         ('ANSWER: B\nor **ANSWER: D**', 'D'), ('ANSWER:', None),
                                         ('<think>ANSWER: A', None), ('It is A.', None)])
def test_the_letter_of_an_option(text, right):
  functions = main.runpy.run_path(str(FILES['r1/evaluation']))
  assert functions['letter'](text) == right
  assert functions['option'](Problem('', 'C'), Completion(text, 1, True)) == (right == 'C')


# -- data in lines ---------------------------------------------------------------------------------


def test_lines(tmp_path):
  file = write(tmp_path, 'test.jsonl', dict(question='What is {x}?', answer='5', id=7),
               dict(question='x 是多少？', answer=' 6 ', kind='logic', language='en'),
               dict(question='圆的面积是多少？', answer='π'))
  with open(file, 'a', encoding='utf-8') as end:
    end.write('\n  \n')
  assert lines.load('test', tmp_path, 'Q: {question} A:') == [
      Problem('Q: What is {x}? A:', '5', 'reasoning', 'en', 'What is {x}?'),
      Problem('Q: x 是多少？ A:', ' 6 ', 'logic', 'en', 'x 是多少？'),
      Problem('Q: 圆的面积是多少？ A:', 'π', 'reasoning', 'zh', '圆的面积是多少？')]  # yapf: disable
  asked_ = lines.requests('test', tmp_path, 'helpful', '{question}')
  assert [(p.answer, p.kind) for p in asked_] == [('', 'helpful')] * 3
  file = write(tmp_path, 'x.jsonl', dict(prompt='a', response='b'),
               dict(prompt='c', response='d', kind='math'))
  assert lines.documents(
      file, '<{question}>') == [Document('<a>', 'b', 'general'),
                                Document('<c>', 'd', 'math')]
  file = write(tmp_path, 'y.jsonl', dict(prompt='a', responses=['b', 'c']),
               dict(prompt='d', responses=['e'], label=0))
  assert lines.judged(file) == [Judged('a', ('b', 'c'), 1.0), Judged('d', ('e',), 0.0)]


GOOD = '{"question": "2?", "answer": "2"}'


@pytest.mark.parametrize('line, said', [
    ('{"question": "2?"}', 'it has no answer'), ('{"answer": "2"}', 'it has no question'),
    ('{"question": "2?", "answer": 2}', 'answer is 2 and must be a text'),
    ('{"question": "2?", "answer": " "}', 'answer is \' \' and must be a text'),
    ('{"question": "", "answer": "2"}', 'question is \'\' and must'),
    ('{"question": null, "answer": "2"}', 'question is None'),
    (GOOD[:-1] + ', "kind": 3}', 'kind is 3'), (GOOD[:-1] + ', "kind": "x"}', 'kind is \'x\', and'),
    (GOOD[:-1] + ', "language": "fr"}', 'language is \'fr\', and en, zh are known'),
    (GOOD[:-1], 'it is no JSON object'), ('[1]', 'it is no JSON object'),
    ('nothing', 'it is no JSON object'), ('[' * 100_000, 'it is no JSON object'),
    (b'{"question": "\xff", "answer": "2"}', 'it is no JSON object'),
])  # yapf: disable
def test_a_malformed_line(tmp_path, line, said):
  line = line if isinstance(line, bytes) else line.encode()
  (tmp_path / 'train.jsonl').write_bytes(GOOD.encode() + b'\n\n' + line + b'\n')
  with pytest.raises(UserError) as error:
    lines.load('train', tmp_path, kinds=('reasoning',))
  text = str(error.value)
  assert f'{tmp_path}/train.jsonl, line 3: {said}' in text and lines.PROBLEM in text
  assert '\n' not in text


@pytest.mark.parametrize('row, said', [
    (dict(prompt='a', responses='b'), 'a list of one text or two'),
    (dict(prompt='a', responses=['b', 'c', 'd']), 'a list of one text or two'),
    (dict(prompt='a', responses=['b', 3]), 'response is 3 and must be a text'),
    (dict(prompt='a', responses=['b']), 'label is None'),
    (dict(prompt='a', responses=['b'], label='good'), "label is 'good'"),
    (dict(prompt='a', responses=['b', 'c'], label=0), 'label is 0'),
    (dict(responses=['b', 'c']), 'it has no prompt'),
])  # yapf: disable
def test_malformed_judgements(tmp_path, row, said):
  with pytest.raises(UserError, match=f'line 1: .*{said}.*responses'):
    lines.judged(write(tmp_path, 'x.jsonl', row))


def test_missing_and_empty_files(tmp_path):
  with pytest.raises(UserError, match='none.jsonl cannot be read .No such file.*make it.*prompt'):
    lines.documents(tmp_path / 'none.jsonl')
  (tmp_path / 'train.jsonl').write_text('\n\n')
  with pytest.raises(UserError, match='train.jsonl is empty: put lines there.*question'):
    lines.requests('train', tmp_path, 'helpful')


# -- the experiments that are run here -------------------------------------------------------------

SMALL = sorted(path for name in ('tiny', 'ablations', 'stories', 'gsm8k')
               for path in (ROOT / 'experiments' / name).glob('*.py'))  # yapf: disable


@pytest.mark.parametrize('path', SMALL, ids=lambda path: f'{path.parent.name}/{path.stem}')
def test_small_experiments_are_whole(path):
  """Settings agree, and what a stage starts from is made by one before it."""
  stages = main.override(path, main.load_experiment(path), [])
  made = set()
  for stage in stages:
    if stage.run is rl.run:
      rl.check(stage.config)
    named = {name for name in main.strings(main.describe(stage.config)) if name.startswith('runs/')}
    assert named <= made, f'{stage.out} needs {named - made}'
    made.add(stage.out)


def test_a_stage_is_the_same_run_or_imported():
  """What one experiment has finished, another that goes on from it does not run again."""
  settings = lambda path: {
      stage.out: main.describe(stage.config)
      for stage in main.load_experiment(ROOT / 'experiments' / path)
  }
  whole, part = settings('tiny/r1.py'), settings('ablations/distil_or_rl.py')
  shared = whole.keys() & part.keys()
  assert len(shared) == 15 and all(whole[out] == part[out] for out in shared)
  assert 'experiments.tiny.r1.texts' in main.strings(whole['runs/tiny/r1/base'])


# -- every step, by shape --------------------------------------------------------------------------

FOLDERS = {stage.out: stage for stage in STAGES.values()}


def test_each_base_leads_to_its_models():
  for name, stage in STAGES.items():
    cfg = steps.architecture(stage, FOLDERS)
    assert (cfg == presets.DEEPSEEK_V3) == name.startswith('r1/') and cfg.max_tokens >= 131_072
  with pytest.raises(UserError, match='runs/r1/dev1, which is not there.*give --model'):
    steps.architecture(STAGES['r1/dev2'], {})
  small = steps.architecture(STAGES['r1/dev2'], {}, 'qwen_2_5_0_5b')
  assert small.D == presets.QWEN_2_5_0_5B.D


def abstract(x):
  return jax.tree.map(lambda a: (a.shape, a.dtype), x)


def trace(step, cfg):
  """Traces a function of a stage, which must give what the next one reads."""
  out = jax.eval_shape(step.function, *step.args)
  if step.name == 'update':
    (state, _), (new, numbers) = step.args, out
    assert abstract(new) == abstract(state)
    assert numbers['loss'].shape == numbers['grad_norm'].shape == ()
  elif step.name == 'log-probs':
    tokens = step.args[1].tokens_PGC
    assert out.shape == tokens.shape and tokens.size == 512 * cfg.sampling.max_tokens
  elif step.name == 'scoring':
    assert out.shape == step.args[1][1].shape
  else:
    P, C = len(step.args[2]), step.tokens + 1
    G = out[1].shape[1]
    assert abstract(out) == (((P, G, C), jnp.int32), ((P, G), jnp.int32), ((P, G), bool),
                             ((P, G, C), jnp.float32))  # yapf: disable


RUNS = {
    rl.run: {'sampling', 'log-probs', 'update', 'evaluation'}, sft.run: {'update', 'evaluation'},
    generate.run: {'sampling'}, reward_model.run: {'update', 'scoring'},
    evaluate.run: {f'evaluation {task}' for task in ('aime24', 'math500', 'gpqa')},
}  # yapf: disable


@pytest.mark.parametrize('name', STAGES)
def test_every_step_can_be_traced_in_full_size(name):
  stage, cfg = STAGES[name], steps.architecture(STAGES[name], FOLDERS)
  own = stage.config.machine
  one = {axis: 1 for axis in sharding.AXES}
  here = dataclasses.replace(sharding.fill(own, 'gpu'), **one)
  mesh = sharding.make_mesh(here, jax.devices()[:1])
  made = steps.of_stage(stage, cfg, here, mesh, mesh)
  scoring = {'scoring'} if name == 'r1/r1' else set()
  assert {step.name for step in made} == RUNS[stage.run] | scoring
  for step in made:
    trace(step, stage.config)
  model = model_lib.make(cfg)
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  cut = SimpleNamespace(shape={**one, **{axis: getattr(own, axis) for axis in sharding.AXES[1:]}})
  jax.tree.map(lambda x, letters: sharding.spec(letters, x.shape, cut), shapes, model.axes())


def test_a_short_context_is_refused():
  """What the students' files say of Qwen2.5-Math."""
  machine = sharding.fill(sharding.Machine(data=1), 'gpu')
  mesh = sharding.make_mesh(machine, jax.devices()[:1])
  with pytest.raises(UserError, match='exceed the model\'s context of 4096'):
    steps.of_stage(STAGES['distill/qwen_7b'], presets.QWEN_2_5_MATH_7B, machine, mesh, mesh)
