"""What a stage leaves behind and takes up again, with orbax.

OUT/params       the finished stage's parameters: the next stage's init
OUT/config.json  the architecture, as Hugging Face writes it; the tokenizer's own files beside it
OUT/state/N      the train state after N updates, the last few
OUT/result.json  written last: a stage that has it is complete

Every write goes aside and is renamed, so that a kill at any moment leaves the old or the new. All
processes save and restore together, each what lies on its devices, onto whatever mesh there is.
"""
import hashlib
import json
import logging
import pathlib

import jax
import numpy as np
import orbax.checkpoint as ocp

from r1jax import model as model_lib
from r1jax import processes, sharding
from r1jax import tokenizer as tokenizer_lib
from r1jax.model import hf, lora
from r1jax.types import TrainState, UserError

RESULTS = ('data/result.jsonl', 'table.json')  # what stages are for that make no model

logging.getLogger('absl').setLevel(logging.ERROR)


def load_model(folder, machine, mesh, wrap=lambda model: model):
  """(model, params on the mesh, tokenizer) of a run folder or of a Hugging Face folder.

  `wrap` is what the folder's parameters have on top of the architecture, such as scalar.make."""
  folder = pathlib.Path(folder)
  if not (folder / 'config.json').exists():
    raise UserError(f'there is no model in {folder} (no config.json): give the folder of a '
                    'finished stage or of a Hugging Face model, or run the stage that makes it')
  bare = model_lib.make(hf.read_config(folder), machine)
  model = wrap(bare)
  shapes = hf.shapes(model, machine.param_dtype)
  where = sharding.shardings(model.axes(), shapes, mesh)
  if (folder / 'params').exists():
    params = load_params(folder / 'params', shapes, where)
  elif any(folder.glob('*.safetensors')):
    more = ' and '.join(sorted(model.axes().keys() - bare.axes().keys()))
    if more:
      raise UserError(f'{folder} is a language model without {more}: train a reward model from it '
                      'with stages/reward_model and name that one\'s folder')
    params = hf.load_params(folder, model.config, where, machine.param_dtype)
  else:
    raise UserError(f'{folder} has a config.json but neither params/ nor *.safetensors: the stage '
                    'that writes it is not finished')
  tokenizer = tokenizer_lib.load(folder)
  if tokenizer.vocab_size > model.config.V:
    raise UserError(f'the tokenizer in {folder} has {tokenizer.vocab_size} tokens, the model only '
                    f'{model.config.V}: they do not belong together')
  return model, params, tokenizer


def save_model(folder, model, params, tokenizer):
  """Makes `folder` a model folder that load_model reads."""
  processes.agree(lambda: _write_description(folder, model, tokenizer))
  with ocp.StandardCheckpointer() as saver:
    saver.save((pathlib.Path(folder) / 'params').absolute(), params, force=True)


def export(folder, model, params, tokenizer, dtype='float32'):
  """Makes `folder` a Hugging Face folder: config, tokenizer, safetensors of float32 or bfloat16."""
  params = sharding.fetch(params) if processes.count() > 1 else params

  def write():
    _write_description(folder, model, tokenizer, dtype)
    hf.save_params(folder, model.config, params, dtype=dtype)

  processes.agree(write)


def _write_description(folder, model, tokenizer, dtype='float32'):
  """Everything but the weights, which come last: a folder without them is refused."""
  hf.write_config(model.config, folder, tokenizer.eos_ids, tokenizer.bos_id, dtype)
  tokenizer.save(folder)


def load_params(folder, shapes, where):
  """Parameters from orbax, each leaf placed by `where`; UserError where they do not fit."""
  folder = pathlib.Path(folder).absolute()
  with ocp.StandardCheckpointer() as reader:
    check_fit(folder, _by_name(reader.metadata(folder).item_metadata.tree), _by_name(shapes))
    target = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes,
                          where)
    return reader.restore(folder, target)


def check_fit(folder, found, wanted):
  """Raises UserError naming the first leaf, by name, whose shape differs, and both shapes."""
  for name in sorted(found.keys() | wanted.keys()):
    shape = lambda leaves: tuple(leaves[name].shape) if name in leaves else 'absent'
    if shape(found) != shape(wanted):
      raise UserError(f'the checkpoint {folder} does not fit the model: {name} is {shape(found)} '
                      f'there and {shape(wanted)} in the model')


def _by_name(tree):
  return {_name(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def _name(path):
  return jax.tree_util.keystr(path, simple=True, separator='/')


def fingerprint(folder) -> str:
  """sha256 of what a folder is for: of a stage's model, the name, dtype, shape and bytes of every
  parameter; of a stage that makes none, RESULTS; of a Hugging Face model, config.json and
  safetensors. One parameter, or a piece of a file, is in memory at a time; one process is enough.
  """
  folder = pathlib.Path(folder)
  made = sorted(path for name in RESULTS for path in folder.glob(name))
  if made:
    return _hash_files(made)
  if (folder / 'params').exists():
    return _hash_arrays(_stored(folder / 'params'))
  weights = sorted(folder.glob('*.safetensors'))
  if not weights:
    raise UserError(f'there is no model in {folder} (neither params/ nor *.safetensors): give the '
                    'folder of a finished stage or of a Hugging Face model')
  return _hash_files([folder / 'config.json', *weights])


def hash_tree(tree) -> str:
  """sha256 over the name, dtype, shape and bytes of all leaves, in the order of their names."""
  return _hash_arrays((name, sharding.fetch(x)) for name, x in sorted(_by_name(tree).items()))


def _hash_arrays(named):
  digest = hashlib.sha256()
  for name, array in named:
    digest.update(f'{name} {array.dtype} {array.shape}\n'.encode())
    digest.update(np.ascontiguousarray(array).tobytes())
  return digest.hexdigest()


def _hash_files(paths):
  digest = hashlib.sha256()
  for path in paths:
    with open(path, 'rb') as f:
      digest.update(f'{path.name} {hashlib.file_digest(f, "sha256").hexdigest()}\n'.encode())
  return digest.hexdigest()


def _stored(path):
  """Yields (name, array) of what orbax stored there, in the order of the names."""
  path = path.absolute()
  me = processes.index()  # orbax need not wait for the others
  alone = ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me})
  handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
  with ocp.Checkpointer(handler, multiprocessing_options=alone) as reader:
    tree = reader.metadata(path).item_metadata.tree
    whole = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    for name in sorted(_by_name(tree)):
      here = lambda at, x, name=name: x if _name(at) == name else ocp.PLACEHOLDER
      one = reader.restore(path, jax.tree.map_with_path(here, tree), restore_args=whole)
      yield name, _by_name(one)[name]


class States:
  """The train states of a stage, the last `keep` of them. Only complete ones are ever read."""

  def __init__(self, out, keep=2):
    self.folder = pathlib.Path(out).absolute() / 'state'
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
    self.manager = ocp.CheckpointManager(self.folder, options=options)
    # It would ask jax itself, with the steps of one stage, and spoil processes.stop_requested.
    self.manager.reached_preemption = lambda step: False

  def latest(self) -> int:
    """Updates done in the newest complete state; 0 if there is none."""

    def newest():
      for step in sorted(self.manager.all_steps(), reverse=True):
        meta = self.folder / str(step) / 'meta' / 'metadata'
        if meta.exists() and json.loads(meta.read_text()) == {'step': step}:
          return step
      return 0

    return processes.agree(newest)

  def save(self, step: int, state: TrainState):
    """Saves in the background; a kill meanwhile leaves the earlier states as they were."""
    if step in self.manager.all_steps():
      return  # as when a failed update leaves the state that was just saved
    items = {name: ocp.args.StandardSave(tree) for name, tree in _items(state).items()}
    meta = ocp.args.JsonSave({'step': step})
    self.manager.save(step, args=ocp.args.Composite(meta=meta, **items))

  def restore(self, step: int, like: TrainState) -> TrainState:
    """The state saved at `step`, placed as `like` is."""
    abstract = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
    items = {name: ocp.args.StandardRestore(jax.tree.map(abstract, tree))
             for name, tree in _items(like).items()}  # yapf: disable
    got = self.manager.restore(step, args=ocp.args.Composite(**items))
    number = sharding.put(np.int32(step), like.step.sharding)
    trees = {name: got[name] for name in items}
    trees['params'] = {**like.params, **trees['params']}
    return like._replace(step=number, **trees)

  def keep_last_good(self, state: TrainState, every: int = 1) -> str:
    """Saves the state that a failed update left as it was; says in words where it is.

    `every`: only a state of so many updates, or a multiple, can be continued from.
    """
    if int(state.step) % every == 0 and int(state.step):
      self.save(int(state.step), state)
      self.manager.wait_until_finished()
    return self.last_good()

  def last_good(self) -> str:
    """Says in words where the newest saved state is."""
    step = self.latest()
    return (f'the last good state, of step {step}, is in {self.folder}'
            if step else 'the last good state is the one that the stage started from')

  def close(self):
    """Waits for a save under way."""
    self.manager.close()


def _items(state):
  """The trees of a state that orbax stores, each on its own: what updates change."""
  state = state._replace(params=lora.learnt(state.params))
  return {name: tree for name, tree in state._asdict().items() if name != 'step' and tree}
