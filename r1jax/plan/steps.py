"""What each stage runs on the devices: its own jitted functions, with abstract arguments."""
import dataclasses
from functools import partial
import math
import pathlib
from types import SimpleNamespace
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from r1jax import losses, model as model_lib, optim, rollout, sample, scoring, sharding
from r1jax.model import hf, lora as lora_lib, presets, scalar
from r1jax.plan import flops
from r1jax.stages import evaluate, generate, reward_model, rl, sft
from r1jax.types import Rollout, Rows, UserError


class Step(NamedTuple):
  """One jitted function of a stage."""
  name: str
  function: Callable
  args: tuple  # of jax.ShapeDtypeStruct with shardings
  mesh: jax.sharding.Mesh
  held: dict[str, Any]  # kind -> the part of args that is of this kind
  flops: int  # of all devices, at full budgets
  field: str  # of Machine, that gives it more rows at once
  most: int  # value of that field beyond which nothing changes
  beside: dict[str, Any] = {}  # kind -> what else lies in the devices' memory meanwhile
  cache: Any = ()  # keys and values that it makes, abstract
  tokens: int = 0  # that are decoded, one after the other
  token_flops: int = 0  # of each, of all rows together
  token_bytes: float = 0.0  # that a device reads for each: parameters and the cache so far


def of_stage(stage, cfg, machine, mesh, there) -> list[Step]:
  """The functions of a stage (types.Stage) for an architecture, in the order in which they first
  run, on a machine with nothing left to fill in and its meshes of training and of sampling."""
  return OF_STAGE[stage.run](stage.config, model_lib.make(cfg, machine), machine, mesh, there)


def held(tree) -> int:
  """Bytes of abstract arrays that one device holds."""
  return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
             for x in jax.tree.leaves(tree))  # yapf: disable


# -- which architecture ----------------------------------------------------------------------------


def architecture(stage, parents: dict, preset: str = ''):
  """The architecture of a stage: the preset of that name if one is given, its own `scratch`, that
  of the folder it starts from, or, where this is not there, that of the published model of the
  folder's name. `parents` are other stages by their folders, which lead to what they start from.

  A published context below 131,072 tokens is raised to that, as config.json's must be where a stage
  asks for more than it says.
  """
  if preset:
    known = {name: x for name, x in vars(presets).items() if isinstance(x, model_lib.Config)}
    if preset.upper() not in known:
      raise UserError(f'there is no preset {preset!r}: there are {", ".join(known)}')
    return _lengthened(known[preset.upper()])
  config = stage.config
  if getattr(config, 'scratch', None):
    return config.scratch
  init = config.init if hasattr(config, 'init') else next(iter(config.models.values()))
  if init in parents:
    return architecture(parents[init], parents)
  folder = pathlib.Path(init)
  if (folder / 'config.json').exists():
    return hf.read_config(folder)
  if folder.name not in presets.PUBLISHED:
    raise UserError(f'{stage.out} starts from {init}, which is not there, and no published '
                    'architecture has its name: give --model NAME, one of model/presets.py')
  return _lengthened(presets.PUBLISHED[folder.name])


def _lengthened(cfg):
  return dataclasses.replace(cfg, max_tokens=max(cfg.max_tokens, 131_072))


# -- abstract arrays -------------------------------------------------------------------------------


def abstract_params(model, dtype, mesh):
  """A model's parameters as they lie on a mesh."""
  shapes = hf.shapes(model, dtype)
  return _placed(shapes, sharding.shardings(model.axes(), shapes, mesh))


def _placed(shapes, where):
  """Shapes that lie as `where` says: a sharding for all or a tree of them."""
  if isinstance(where, jax.sharding.Sharding):
    where = jax.tree.map(lambda _: where, shapes)
  place = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
  return jax.tree.map(place, shapes, where)


SHORT = 37  # tokens that stand for a budget's in host arrays; no other axis is so long


def _batch(make, tokens, mesh):
  """The batch that make() puts on the mesh, abstract, with `tokens` in the place of SHORT."""
  long = lambda x: tuple(tokens if n == SHORT else n for n in x.shape)
  widen = lambda x: jax.ShapeDtypeStruct(long(x), x.dtype)
  return _placed(jax.tree.map(widen, jax.eval_shape(make)), sharding.by_rows(mesh))


def _adapted(cfg, model, machine, mesh):
  """(what is trained, its parameters), as lora.adapt makes them."""
  base = abstract_params(model, machine.param_dtype, mesh)
  if not cfg.lora.rank:
    return model, base
  learner = lora_lib.make(model, cfg.lora)
  adapters = dict(adapters=jax.eval_shape(learner.init, jax.random.key(0))['adapters'])
  where = sharding.shardings(dict(adapters=learner.axes()['adapters']), adapters, mesh)
  return learner, dict(base=base, **_placed(adapters, where))


def _reference(params, learner, machine):
  """What KL is measured against, where the parameters lie."""
  shapes = jax.eval_shape(lambda params: optim.copy(params, learner, machine.dtype), params)
  return _placed(shapes, jax.tree.map(lambda x: x.sharding, lora_lib.learnt(params)))


def _state_kinds(state):
  return dict(parameters=state.params, moments=state.opt, reference=state.reference)


# -- the stages ------------------------------------------------------------------------------------


def of_rl(cfg, model, machine, mesh, there) -> list[Step]:
  """Sampling, log-probs under the policy or the reference, the update, evaluation."""
  rl.check(cfg)
  rl.check_rounding(cfg, model, machine)
  learner, params = _adapted(cfg, model, machine, mesh)
  update, logp, tx = rl.make_steps(cfg, learner, machine, mesh)
  state = optim.abstract_state(tx, params)
  params = state.params
  if cfg.objective.needs_reference:
    state = state._replace(reference=_reference(params, learner, machine))
  judges, scored = _reward_models(cfg, model, machine, mesh)
  if cfg.staleness and not machine.sample_devices:  # of rollouts that are sampled ahead
    judges['policies'] = [abstract_params(model, machine.dtype, there)] * cfg.staleness
  batch = _rl_batch(cfg, machine, mesh)
  P, T, C = len(batch.prompts_PT), cfg.max_prompt_tokens, cfg.sampling.max_tokens
  work = [flops.Work(P, 0, T, 0),
          flops.Work(P * batch.tokens_PGC.shape[1], T, T + C, C)]  # yapf: disable
  counted = flops.count(model)
  total = flops.update(counted, work, bool(cfg.lora.rank), machine.remat)
  most = -(-cfg.batch * cfg.group // sharding.rows(mesh))
  kinds = _state_kinds(state)
  around = {**kinds, **judges}
  own = {name: x for name, x in around.items() if name != 'parameters'}
  bare = batch._replace(logp_ref_PGC=None)
  if not cfg.objective.beta:
    batch = bare
  out = [_sampler('sampling', cfg, cfg.sampling, cfg.group, cfg.batch * cfg.minibatches, model,
                  machine, there, around)]  # yapf: disable
  out += [step._replace(beside=around) for step in scored]
  if cfg.objective.needs_reference or cfg.objective.importance:
    out.append(
        Step('log-probs', logp, (params, bare), mesh, dict(parameters=params, batch=bare),
             sum(flops.forward(counted, x) for x in work), 'micro_rows', most, own))
  out.append(Step('update', update, (state, batch), mesh, dict(kinds, batch=batch), total,
                  'micro_rows', most, judges))  # yapf: disable
  return out + [_evaluation(cfg, cfg.evaluation, model, machine, there, around)]


def _rl_batch(cfg, machine, mesh):
  P, G, C = cfg.batch, cfg.group, SHORT
  ints, floats = lambda *shape: np.ones(shape, np.int32), np.zeros((P, G, C), np.float32)
  short = Rollout(ints(P, cfg.max_prompt_tokens), ints(P), ints(P, G, C), C * ints(P, G),
                  ints(P, G) > 0, floats)
  graded = rollout.Graded(short, [None] * P, [None] * P, {}, floats[..., 0], [[]] * P)
  make = lambda: rl.make_batch(cfg, graded, machine, mesh, floats)
  batch = _batch(make, cfg.sampling.max_tokens, mesh)
  return batch._replace(logp_ref_PGC=batch.logp_old_PGC)


def _reward_models(cfg, model, machine, mesh):
  """The parameters of the rewards that are models (scoring.model), of the policy's architecture as
  its tokenizer must be theirs, and what scores with the first of them."""
  is_model = lambda load: isinstance(load, partial) and load.func is scoring.model
  names = [reward.name for reward in cfg.rewards if is_model(reward.load)]
  lm = scalar.make(model)
  params = abstract_params(lm, machine.param_dtype, mesh)
  kinds = {f'reward model {name}': params for name in names}
  T = cfg.max_prompt_tokens + cfg.sampling.max_tokens
  return kinds, [_score(lm, params, min(T, model.config.max_tokens), machine, mesh)][:len(names)]


def of_sft(cfg, model, machine, mesh, there) -> list[Step]:
  """The update, and where there is one, the evaluation."""
  learner, params = _adapted(cfg, model, machine, mesh)
  update, tx, micro = sft.make_update(cfg, learner, machine, mesh)
  state = optim.abstract_state(tx, params)
  rows = Rows(*(np.ones((1, SHORT), dtype) for dtype in (np.int32, np.int32, np.float32)))
  batch = _batch(lambda: sft.make_batch(rows, [0] * cfg.batch, micro, mesh), cfg.row_tokens, mesh)
  B, T = batch.tokens_BT.shape
  total = flops.update(flops.count(model), [flops.Work(B, 0, T, T)], bool(cfg.lora.rank),
                       machine.remat)
  kinds, most = _state_kinds(state), -(-cfg.batch // sharding.rows(mesh))
  out = [Step('update', update, (state, batch), mesh, dict(kinds, batch=batch), total, 'micro_rows',
              most)]  # yapf: disable
  if cfg.evaluation:
    out.append(_evaluation(cfg, cfg.evaluation, model, machine, there, kinds))
  return out


def of_reward_model(cfg, model, machine, mesh, there) -> list[Step]:
  """The update, and scoring."""
  learner, params = _adapted(cfg, model, machine, mesh)
  learner, lm = scalar.make(learner), scalar.make(model)
  merged = abstract_params(lm, machine.param_dtype, mesh)
  params |= {name: merged[name] for name in ('score_head', 'score_bias')}
  update, tx, micro = reward_model.make_update(cfg, learner, machine, mesh, 1000)
  state = optim.abstract_state(tx, params)
  texts = [[1] * SHORT] * (1 if cfg.loss is losses.pointwise else 2)
  make = lambda: reward_model.make_batch([(texts, 1.0)] * cfg.batch, SHORT, micro, mesh)
  batch = _batch(make, cfg.max_tokens, mesh)
  B, N, T = batch[0].shape
  total = flops.update(flops.count(model), [flops.Work(B * N, 0, T, 0)], bool(cfg.lora.rank),
                       machine.remat)
  kinds, most = _state_kinds(state), -(-cfg.batch // sharding.rows(mesh))
  own = dict(moments=state.opt)
  return [Step('update', update, (state, batch), mesh, dict(kinds, batch=batch), total,
               'micro_rows', most),
          _score(lm, merged, cfg.max_tokens, machine, mesh)._replace(beside=own)]  # yapf: disable


def of_generate(cfg, model, machine, mesh, there) -> list[Step]:
  """Sampling."""
  return [_sampler('sampling', cfg, cfg.sampling, cfg.samples, cfg.shard, model, machine, there)]


def of_evaluate(cfg, model, machine, mesh, there) -> list[Step]:
  """Each task's sampling."""
  return [_evaluation(cfg, task.evaluation, model, machine, there)._replace(
      name=f'evaluation {task.name}') for task in cfg.tasks]  # yapf: disable


OF_STAGE = {rl.run: of_rl, sft.run: of_sft, reward_model.run: of_reward_model,
            generate.run: of_generate, evaluate.run: of_evaluate}  # yapf: disable

# -- what several of them run ----------------------------------------------------------------------


def _evaluation(cfg, evaluation, model, machine, mesh, beside=None):
  return _sampler('evaluation', cfg, evaluation.sampling, evaluation.k, evaluation.num_problems,
                  model, machine, mesh, beside)


def _sampler(name, cfg, sampling, k, problems, model, machine, mesh, beside=None):
  """Prefill and decoding of one call, with full prompts and completions.

  `beside` is what training has in memory meanwhile; None where nothing is trained and the
  parameters are loaded as sampling reads them.
  """
  trained = beside or {}
  params = abstract_params(model, machine.param_dtype if beside is None else machine.dtype, mesh)
  if _same(params, trained.get('parameters')):  # no copy of them is made (sample.make_copy)
    trained = {kind: x for kind, x in trained.items() if kind != 'parameters'}
  if machine.sample_devices:  # training has others
    trained = {}
  tokenizer = SimpleNamespace(eos_ids={1})
  made = rollout.make_sampler(model, tokenizer, sampling, k, cfg.max_prompt_tokens, machine, mesh,
                              problems)
  P, T, C, G = made.rows, cfg.max_prompt_tokens, sampling.max_tokens, made.firsts.step
  ints = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding.by_rows(mesh))
  key = _placed(jax.eval_shape(lambda: jax.random.key(0)), sharding.replicated(mesh))
  args = params, key, ints(P), ints(P, T), ints(P)
  cache = _cache(model, P, T, mesh), _cache(model, P * G, C, mesh)
  counted = flops.count(model)
  prefill = flops.forward(counted, flops.Work(P, 0, T, 1))
  decode = flops.forward(counted, flops.Work(P * G, T, T + C - 1, C - 1), decoding=True)
  ends = sample.piece_ends(C, machine.pieces)
  read = sum((end - start) * end for start, end in zip([0, *ends], ends)) / C**2  # of the cache
  return Step(name, made.sample, args, mesh, dict(parameters=params,
                                                  batch=args[1:]), prefill + decode, 'sample_rows',
              problems * k, trained, cache, C - 1, decode // max(1, C - 1),
              held((params, cache[0])) + read * held(cache[1]))


def _same(params, others):
  lies = lambda x, y: x.dtype == y.dtype and x.sharding.is_equivalent_to(y.sharding, x.ndim)
  if jax.tree.structure(params) != jax.tree.structure(others):
    return False
  return jax.tree.all(jax.tree.map(lies, params, others))


def _cache(model, B, S, mesh):
  """Keys and values of B rows with S slots: rows are spread, heads are cut where they divide."""

  def place(x):
    heads = 'tensor' if x.shape[-3] % mesh.shape['tensor'] == 0 else None
    spec = jax.sharding.PartitionSpec(*[None] * (x.ndim - 4), sharding.ROWS, heads)
    return jax.sharding.NamedSharding(mesh, spec)

  shapes = jax.eval_shape(lambda: model.init_cache(B, S))
  return _placed(shapes, jax.tree.map(place, shapes))


def _score(lm, params, tokens, machine, mesh):
  score, rows = scoring.make_scorer(lm, machine, mesh)
  ints = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding.by_rows(mesh))
  batch = ints(rows, tokens + -tokens % 64), ints(rows)
  total = flops.forward(flops.count(lm), flops.Work(rows, 0, tokens, 0))
  return Step('scoring', score, (params, batch), mesh, dict(parameters=params, batch=batch), total,
              'micro_rows', rows // sharding.rows(mesh))  # yapf: disable
