"""Every module may import only what stands above it here, and each library has its own room."""
import ast
import os
from pathlib import Path
import re
import subprocess
import sys

import pytest

ROOT = Path(__file__).parents[1] / 'r1jax'
ORDER = '''types prompts language tokenizer chat grading datasets overlap tasks rewards judges
processes sharding losses grpo packing seeds model optim checkpoint metrics sample rollout evals
scoring ask selection page svg stages plan benchmark library report main __main__'''.split()
TEXT = ORDER[:ORDER.index('processes')]  # strings in, strings and floats out
FENCES = {  # library: the only rooms that may import it
    'jax': set(ORDER) - set(TEXT), 'flax': {'model'}, 'optax': {'optim'}, 'orbax': {'checkpoint'},
    'safetensors': {'model'}, 'sentencepiece': {'tokenizer'}, 'tokenizers': {'tokenizer'},
    'jinja2': {'chat'}, 'math_verify': {'grading'}, 'sympy': {'grading'},
    'tensorflow_datasets': {'datasets'}, 'grain': {'datasets'}, 'tensorboardX': {'metrics'},
    'rich': {'metrics'}, 'tyro': {'main'},
}  # yapf: disable
FILES = sorted(p for p in ROOT.rglob('*.py') if p.relative_to(ROOT) != Path('__init__.py'))
TREES = {path: ast.parse(path.read_text(encoding='utf-8')) for path in FILES}


def room(path):
  return path.relative_to(ROOT).parts[0].removesuffix('.py')


def imports(tree):
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, 'imports are absolute'
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_only_what_stands_above(path):
  here = room(path)
  for name in imports(TREES[path]):
    top, _, rest = name.partition('.')
    if top == 'r1jax':
      other = rest.split('.')[0]
      above = ORDER.index(other) < ORDER.index(here)
      within = here == other and here in ('model', 'grading', 'plan')
      assert above or within, f'{here} imports {name}'
    else:
      assert here in FENCES.get(top, ORDER), f'{here} imports {top}'


def dataclasses_of(tree):
  """(class, its fields) of each dataclass."""
  for node in ast.walk(tree):
    if isinstance(node, ast.ClassDef) and 'dataclass' in map(decorator, node.decorator_list):
      yield node, [n.target.id for n in node.body if isinstance(n, ast.AnnAssign)]


def decorator(node):
  node = node.func if isinstance(node, ast.Call) else node
  return node.attr if isinstance(node, ast.Attribute) else node.id


def reads(tree):
  """Attributes read (not in a config's own check), and the axis letters of declared weights."""
  if isinstance(tree, ast.FunctionDef) and tree.name == '__post_init__':
    return
  if isinstance(tree, ast.Attribute) and isinstance(tree.ctx, ast.Load):
    yield tree.attr
  if isinstance(tree, ast.Call) and ast.unparse(tree.func).endswith('weight'):
    yield from (x.value for x in tree.args if isinstance(x, ast.Constant) and x.value)
  for node in ast.iter_child_nodes(tree):
    yield from reads(node)


CONFIGS = [(path, *found) for path in FILES for found in dataclasses_of(TREES[path])]


@pytest.mark.parametrize('path, node, fields', CONFIGS,
                         ids=[f'{room(path)}.{node.name}' for path, node, _ in CONFIGS])
def test_no_dead_knobs(path, node, fields):
  names = [name for tree in TREES.values() for name in reads(tree)]
  letters = set(''.join(name for name in names if re.fullmatch('[A-Z]+', name)))
  dead = [field for field in fields if field not in letters.union(names)]
  assert not dead, f'{node.name} of {path.name} has fields that nothing reads: {dead}'


def test_the_configs_are_found():
  found = {node.name for _, node, _ in CONFIGS}
  assert found >= {'Config', 'Sampling', 'Objective', 'Optimizer', 'Machine', 'Evaluation'}


def test_importing_touches_nothing(tmp_path):
  modules = [
      '.'.join(p.relative_to(ROOT.parent).with_suffix('').parts)
      for p in FILES
      if p.name not in ('__init__.py', '__main__.py')
  ]
  text = [name for name in modules if name.split('.')[1] in TEXT]
  program = f'''
import importlib, sys
for name in {text}:
  importlib.import_module(name)
assert 'jax' not in sys.modules, 'a text room imports jax'
for name in {modules}:
  importlib.import_module(name)
import jax
jax.config.update('jax_num_cpu_devices', 3)  # refused where a device has been touched
assert jax.device_count() == 3
'''
  env = {**os.environ, 'PYTHONPATH': str(ROOT.parent), 'PYTHONDONTWRITEBYTECODE': '1'}
  done = subprocess.run([sys.executable, '-c', program], cwd=tmp_path, env=env, text=True,
                        capture_output=True, check=False)
  assert done.returncode == 0, done.stderr
  assert not list(tmp_path.iterdir())
