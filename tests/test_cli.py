"""The command line: what a person gets wrong is one sentence and exit code 2; nothing is lost."""
import json
from pathlib import Path
import re
import shutil
import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from r1jax import checkpoint, main, sharding
from r1jax.model import scalar
from r1jax.types import UserError

EXPERIMENT = Path(__file__).parent / 'experiment.py'


@pytest.fixture
def cli(capsys, monkeypatch, tmp_path):
  """Arguments -> exit code, stdout, stderr of a command run in an empty folder."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, 'path', sys.path[:])  # experiments put their folder there

  def run(*args):
    capsys.readouterr()
    try:
      code = main.main([str(x) for x in args])
    except SystemExit as error:
      code = error.code
    return code, *capsys.readouterr()

  return run


@pytest.fixture
def refused(cli):
  """Arguments -> the one sentence on stderr."""

  def run(*args):
    code, _, err = cli(*args)
    assert code == 2 and err.startswith('r1jax: ') and err.count('\n') == 1 and len(err) < 600, err
    return err[len('r1jax: '):]

  return run


# -- experiment files ------------------------------------------------------------------------------


def test_no_file_and_no_command(cli, refused):
  assert 'there is no experiment file lost.py' in refused('run', 'lost.py')
  assert 'usage: r1jax run EXPERIMENT.py' in refused('run')
  code, out, _ = cli('rum')
  assert code == 2 and 'usage' in out
  code, out, _ = cli('--help')
  assert code == 0 and all(name in out for name in main.COMMANDS)


@pytest.mark.parametrize('text, says', [
    ('def experiment():\n  return 1 / 0', r'ZeroDivisionError: division by zero \(line 2\)'),
    ('import nowhere', 'raised ModuleNotFoundError: .*nowhere'),
    ('def experiment(:', 'raised SyntaxError'),
    ('def experiment():\n  return {}["x"]', "raised KeyError: 'x' .line 2"),
    ('def experiment():\n  return 3', 'must return a Stage or a tuple of Stages, not 3'),
    ('def experiment():\n  return ()', 'must return a Stage or a tuple of Stages'),
    ('x = 1', r'has no function experiment\(\) that returns a Stage'),
    ('from r1jax.sample import Sampling\n\n\ndef experiment():\n  return Sampling(top_p=2.0)',
     'top_p above 0 and at most 1'),
])  # yapf: disable
def test_files_that_are_no_experiments(refused, text, says):
  Path('bad.py').write_text(text)
  said = refused('run', 'bad.py')
  assert re.search(says, said), said


def test_an_unknown_field_is_refused_and_close_ones_are_named(cli):
  code, out, err = cli('run', EXPERIMENT, '--zero.optimizer.lrr', '1')
  assert code == 2 and '--zero.optimizer.lr ' in out + err
  code, out, err = cli('run', EXPERIMENT, '--zero.steps', 'many')
  assert code == 2 and 'many' in out + err
  assert not list(Path().iterdir())


# -- a finished run --------------------------------------------------------------------------------


def contents(folder):
  return {p: p.read_bytes() for p in folder.rglob('*') if p.is_file()}


def test_what_is_finished_is_skipped(cli, finished, monkeypatch):
  monkeypatch.chdir(finished)
  before = contents(finished)
  code, out, _ = cli('run', EXPERIMENT, '--out', 'out')
  assert code == 0 and out.count('finished already') == 2
  last = json.loads(out.splitlines()[-1].removeprefix('result '))
  stored = json.loads((finished / 'out/zero/result.json').read_text())['result']
  assert {**last, 'seconds': 0} == {**stored, 'seconds': 0}
  assert contents(finished) == before


@pytest.mark.parametrize('change, says', [
    (['--zero.steps', 10], 'steps was 8 and is now 10'),
    (['--base.optimizer.lr', 0.5], 'optimizer.lr was 0.01 and is now 0.5'),
    (['--base.scratch.L', 2], 'scratch.L was 1 and is now 2'),
])  # yapf: disable
def test_other_settings_for_the_same_folder_are_refused(refused, finished, monkeypatch, change,
                                                        says):
  monkeypatch.chdir(finished)
  before = contents(finished)
  said = refused('run', EXPERIMENT, '--out', 'out', *change)
  assert says in said and '--out' in said
  assert contents(finished) == before


def test_eval_gives_the_numbers_of_the_run(cli, finished):
  code, out, _ = cli('eval', finished / 'out/zero', EXPERIMENT)
  assert code == 0
  numbers = json.loads(out.removeprefix('result '))
  stored = json.loads((finished / 'out/zero/result.json').read_text())['result']
  assert numbers == {f'eval/{k}': stored[k] for k in stored if not k.startswith('base_')}


def test_sample(cli, refused, finished):
  ask = ['sample', finished / 'out/zero', '--prompt', '3+4=', '--max-tokens', 6]
  code, out, _ = cli(*ask, '--number', 2, '--temperature', 0)
  first, second = out.splitlines()
  assert code == 0 and first == second and first.startswith('3+4=')
  _, out, _ = cli(*ask, '--number', 4)
  assert len(set(out.splitlines())) > 1
  said = refused(*ask[:-1], 2000)
  assert 'prompts of 4 tokens' in said and '2000' in said and '1024' in said


def test_samples(cli, refused, finished):
  code, out, _ = cli('samples', finished / 'out/zero', '--last', 3)
  assert code == 0 and out.count('--- step 8') == 3
  assert 'there are no samples' in refused('samples', finished / 'out/base')


def test_fingerprint_and_export(cli, refused, finished):
  stored = json.loads((finished / 'out/zero/result.json').read_text())['fingerprint']
  _, out, _ = cli('fingerprint', finished / 'out/zero')
  assert re.fullmatch('[0-9a-f]{64}', stored) and out.strip() == stored
  _, other, _ = cli('fingerprint', finished / 'out/base')
  assert other != out
  code, _, _ = cli('export', finished / 'out/zero', 'hf')
  assert code == 0 and Path('hf/model.safetensors').exists()
  shutil.copytree('hf', 'copy')
  _, ours, _ = cli('fingerprint', 'hf')
  assert cli('fingerprint', 'copy')[1] == ours and ours not in (out, other)
  weights = Path('copy/model.safetensors')
  weights.write_bytes(weights.read_bytes()[:-1] + b'\1')
  assert cli('fingerprint', 'copy')[1] != ours
  shutil.copy('hf/model.safetensors', 'copy')
  Path('copy/config.json').write_text('{}')
  assert cli('fingerprint', 'copy')[1] != ours
  for command in (['fingerprint', 'lost'], ['export', 'lost',
                                            'hf2'], ['sample', 'lost', '--prompt', 'x']):
    assert 'there is no model in lost' in refused(*command)


def test_a_fingerprint_is_that_of_the_parameters(finished):
  machine, mesh = sharding.start(sharding.Machine(data=1))
  params = checkpoint.load_model(finished / 'out/zero', machine, mesh)[1]
  assert checkpoint.fingerprint(finished / 'out/zero') == checkpoint.hash_tree(params)


def test_a_language_model_is_no_reward_model(finished, tmp_path):
  machine, mesh = sharding.start(sharding.Machine(data=1))
  checkpoint.export(tmp_path, *checkpoint.load_model(finished / 'out/zero', machine, mesh))
  with pytest.raises(UserError, match='without score_bias and score_head: train a reward model'):
    checkpoint.load_model(tmp_path, machine, mesh, wrap=scalar.make)


def test_half_precision_in_files_and_in_memory(cli, finished):
  run = finished / 'out/zero'
  cli('export', run, 'half', '--dtype', 'bfloat16')
  assert {x.dtype.name for x in load_file('half/model.safetensors').values()} == {'bfloat16'}
  assert json.loads(Path('half/config.json').read_text())['torch_dtype'] == 'bfloat16'
  machine, mesh = sharding.start(sharding.Machine(data=1, param_dtype='bfloat16'))
  trained, exported = (checkpoint.load_model(x, machine, mesh)[1] for x in (run, 'half'))
  jax.tree.map(np.testing.assert_array_equal, trained, exported)
  assert {x.dtype.name for x in jax.tree.leaves(trained)} == {'bfloat16'}


# -- runs that cannot go on ------------------------------------------------------------------------


@pytest.fixture
def base(finished, tmp_path):
  """A folder whose first stage is finished."""
  shutil.copytree(finished / 'out/base', tmp_path / 'out/base')
  return tmp_path / 'out/base'


def test_a_checkpoint_that_does_not_fit(refused, base):
  config = json.loads((base / 'config.json').read_text())
  config['intermediate_size'] += 16
  (base / 'config.json').write_text(json.dumps(config))
  said = refused('sample', base, '--prompt', '3+4=')
  assert 'layers/down is (1, 32, 32) there and (1, 48, 32) in the model' in said


def test_a_prompt_that_is_too_long(refused, base):
  before = contents(base)
  said = refused('run', EXPERIMENT, '--out', 'out', '--zero.max-prompt-tokens', 3)
  assert 'a prompt has 4 tokens' in said and 'max_prompt_tokens, is 3' in said and '+' in said
  assert contents(base) == before


@pytest.mark.parametrize('change, says', [
    (['--zero.sampling.temperature', 0], 'sampling.temperature must be above 0'),
    (['--zero.save-every', 3], 'save_every is 3, not a multiple of minibatches, 2'),
    (['--zero.machine.data', 3, '--zero.machine.tensor', 5], 'does not fit 8 devices'),
    (['--zero.lora.rank', -1], 'lora.rank is -1'),
    (['--zero.lora.targets', 'F'], 'lora.rank is 0 and must be'),
    (['--zero.machine.fsdp', -1], 'fsdp=-1 x expert=1 x context=1 x tensor=1 does not fit'),
    (['--zero.machine.tensor', 0], 'tensor=0 does not fit'),
])  # yapf: disable
def test_settings_that_contradict_each_other(refused, base, change, says):
  assert says in refused('run', EXPERIMENT, '--out', 'out', *change)


def test_a_loss_that_is_not_finite_stops_the_run(refused, base):
  before = contents(base)
  said = refused('run', EXPERIMENT, '--out', 'out', '--zero.optimizer.lr', 1e30)
  assert re.match(r'step \d: the loss is not finite', said) and 'state' in said
  assert contents(base) == before
  zero = base.parent / 'zero'
  assert not (zero / 'result.json').exists() and not (zero / 'params').exists()
  rows = [json.loads(line) for line in (zero / 'metrics.jsonl').read_text().splitlines()]
  assert rows and int(said[5]) > rows[-1]['step']
  state = checkpoint.States(zero)
  assert state.latest() < int(said[5])
  state.close()


def test_rewards_that_fail_stop_the_run(refused, base):
  text = EXPERIMENT.read_text().replace('1 - completion.num_tokens / 16', 'problem.lost')
  Path('experiment.py').write_text(text.replace('  del problem\n', ''))
  said = refused('run', 'experiment.py', '--out', 'out')
  assert 'rewards failed on' in said and "no attribute 'lost'" in said
