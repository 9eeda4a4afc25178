"""Supervised learning on texts: pretraining from nothing, and fine-tuning of any model."""
import dataclasses
from functools import partial
from typing import Callable

import jax
import numpy as np

from r1jax import checkpoint, evals, losses, metrics, model as model_lib, optim, packing, processes
from r1jax import rewards as rewards_lib
from r1jax import sample, seeds, sharding
from r1jax import tokenizer as tokenizer_lib
from r1jax.model import lora as lora_lib
from r1jax.types import Document, Reward, Rows, Stopped, UserError


@dataclasses.dataclass(frozen=True)
class Config:
  """The settings of one supervised run."""
  documents: Callable[[], list[Document]]  # what is learnt: the responses, and EOS after each
  init: str = ''  # folder of a finished stage or a Hugging Face model; '': from nothing
  scratch: model_lib.Config | None = None  # from nothing: the architecture
  tokenizer: Callable | None = None  # from nothing: texts, vocabulary size -> Tokenizer
  evaluation: evals.Evaluation | None = None  # afterwards
  rewards: tuple[Reward, ...] = rewards_lib.R1_ZERO  # for the evaluation
  steps: int = 1000  # updates
  epochs: int = 0  # passes over the packed rows, instead of steps
  batch: int = 64  # packed rows an update
  row_tokens: int = 256  # a longer document is cut
  max_prompt_tokens: int = 64  # of the evaluation
  optimizer: optim.Optimizer = optim.Optimizer(lr=1e-3, schedule=optim.cosine, warmup_steps=50)
  lora: lora_lib.LoRA = lora_lib.LoRA()  # rank 0: all parameters learn
  seed: int = 0  # of parameters and order
  save_every: int = 500  # updates between saved states
  machine: sharding.Machine = sharding.Machine()  # what the hardware wants


def run(cfg: Config, out: str) -> dict:
  """Trains, leaves everything in the folder `out`, returns the result's numbers."""
  machine, mesh = sharding.start(cfg.machine)
  documents = cfg.documents()
  if not documents or min(cfg.steps, cfg.batch, cfg.save_every) < 1:
    raise UserError('there must be documents, and steps, batch and save_every of at least 1')
  model, params, tokenizer = start(cfg, documents, machine, mesh)
  learner, params = lora_lib.adapt(cfg.lora, model, params, cfg.seed, mesh)
  merge = partial(lora_lib.merge, cfg.lora)
  for_sampling, sampling_mesh = sample.make_copy(model, machine, mesh, merge)
  rows = packing.pack([encode(tokenizer, d, cfg.row_tokens) for d in documents], cfg.row_tokens)
  if cfg.epochs:
    steps = max(1, cfg.epochs * len(rows.tokens_BT) // cfg.batch)
    cfg = dataclasses.replace(cfg, steps=steps, epochs=0)
  update, tx, micro = make_update(cfg, learner, machine, mesh)
  learning_rate = optim.learning_rate(cfg.optimizer, cfg.steps)
  evaluate = cfg.evaluation and evals.make_evaluate(
      cfg.evaluation, rewards_lib.load(cfg.rewards, machine, mesh, tokenizer), model, tokenizer,
      cfg.max_prompt_tokens, cfg.seed, machine, sampling_mesh)

  state = optim.init(tx, params)
  del params  # some are others now
  states = checkpoint.States(out)
  start_step = states.latest()
  state = states.restore(start_step, state) if start_step else state
  log = metrics.Log(out, cfg.steps, start_step)
  order, pending = seeds.stream(range(len(rows.tokens_BT)), cfg.seed), None
  try:
    for step in range(start_step, cfg.steps):
      indices = [order(step * cfg.batch + b) for b in range(cfg.batch)]
      batch = make_batch(rows, indices, micro, mesh)
      state, numbers = update(state, batch)
      pending = optim.read(pending, log)  # the last update's numbers, while this one runs
      pending = (step + 1, float(learning_rate(step)), numbers, cfg.batch * cfg.row_tokens)
      stop = processes.stop_requested()
      if step + 1 == cfg.steps or (step + 1) % cfg.save_every == 0 or stop:
        pending = optim.read(pending, log)
        log.flush()  # before the state: what lies behind a state is always on record
        states.save(step + 1, state)
      if stop:
        raise Stopped(out, step + 1)
    result = {}
    if evaluate:
      result = evaluate(for_sampling(state.params))[0]
      seen = lambda: any('eval/pass_at_1' in row for row in metrics.read(f'{out}/metrics.jsonl'))
      if not processes.agree(seen):
        log.evaluation(cfg.steps, result)  # else it was there before a kill
  except FloatingPointError as error:
    raise UserError(f'{error}; {states.last_good()}') from error
  finally:
    states.close()
    log.close()
  checkpoint.save_model(out, model, merge(state.params), tokenizer)
  return {name.removeprefix('eval/'): value for name, value in result.items()}


def make_update(cfg, model, machine, mesh):
  """The jitted update: state, rows -> state, numbers; the optimizer; rows a device has at once."""
  loss = lambda params, part: losses.cross_entropy(model, params, part, machine.logp_chunk)
  tx = optim.chain(cfg.optimizer, cfg.steps)
  micro = min(machine.micro_rows, -(-cfg.batch // sharding.rows(mesh)))
  return optim.make_update(loss, model, tx, mesh, micro), tx, micro


def start(cfg, documents, machine, mesh):
  """(model, params, tokenizer): cfg.init's, or new ones."""
  if bool(cfg.init) == bool(cfg.scratch) or bool(cfg.scratch) != bool(cfg.tokenizer):
    raise UserError('give either init, the model to start from, or scratch and tokenizer, to start '
                    'from nothing')
  if cfg.scratch and cfg.lora.rank:
    raise UserError('lora adapts a model that has learnt something: give init, not scratch')
  if cfg.init:
    return checkpoint.load_model(cfg.init, machine, mesh)
  tokenizer = cfg.tokenizer([d.prompt + d.response for d in documents], cfg.scratch.V)
  model = model_lib.make(cfg.scratch, machine)
  key = seeds.key(cfg.seed, 'init')
  where = sharding.shardings(model.axes(), jax.eval_shape(model.init, key), mesh)
  return model, jax.jit(model.init, out_shardings=where)(key), tokenizer


def encode(tokenizer, document, max_tokens):
  """(token ids with EOS, index of the first learnt token), cut to max_tokens."""
  prompt = tokenizer.encode(document.prompt) if document.prompt else []
  rest = tokenizer_lib.encode_rest if prompt else lambda tokenizer, text: tokenizer.encode(text)
  ids = prompt + rest(tokenizer, document.response) + [min(tokenizer.eos_ids)]
  return ids[:max_tokens], min(len(prompt), max_tokens)


def make_batch(rows, indices, micro, mesh) -> Rows:
  """The rows at `indices`, on the device, each learnt token with weight 1 / their number."""
  batch = Rows(*(x[np.asarray(indices)] for x in rows))
  batch = batch._replace(weights_BT=batch.weights_BT / np.float32(max(batch.weights_BT.sum(), 1)))
  return sharding.put_rows(sharding.pad_rows(batch, micro * sharding.rows(mesh)), mesh)
