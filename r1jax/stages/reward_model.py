"""Reward models: the policy's architecture with a scalar head, from pairs or from labels."""
import dataclasses
from typing import Callable

import numpy as np

from r1jax import checkpoint, losses, metrics, optim, processes, scoring, seeds, sharding
from r1jax.model import lora as lora_lib, scalar
from r1jax.types import Judged, Stopped, UserError


@dataclasses.dataclass(frozen=True)
class Config:
  """The settings of one reward model; the defaults are the paper's (v2, section 3.1)."""
  init: str  # folder of the policy's base or of a finished stage; the head is new
  judged: Callable[[], list[Judged]]  # pairs, the better response first, or labelled responses
  view: Callable[[str], str | None]  # response -> what the model sees of it, in use as in training
  loss: Callable = losses.bradley_terry  # or losses.pointwise for labels
  held_out: float = 0.1  # share of the prompts that accuracy is measured on
  epochs: int = 1
  batch: int = 256  # pairs or labelled responses an update
  max_tokens: int = 8192  # of prompt and response; what is longer is left out and counted
  optimizer: optim.Optimizer = optim.Optimizer(lr=6e-6)
  lora: lora_lib.LoRA = lora_lib.LoRA()  # rank 0: all learn; the head always does
  seed: int = 0  # of the order and of what is held out
  save_every: int = 100  # updates between saved states
  machine: sharding.Machine = sharding.Machine()  # what the hardware wants


def run(cfg: Config, out: str) -> dict:
  """Trains, leaves the model in the folder `out`, returns accuracy and a length-only baseline."""
  machine, mesh = sharding.start(cfg.machine)
  trunk, params, tokenizer = checkpoint.load_model(cfg.init, machine, mesh)
  learner, params = lora_lib.adapt(cfg.lora, trunk, params, cfg.seed, mesh)
  learner, model = scalar.make(learner), scalar.make(trunk)
  head = scalar.add_head({}, trunk.config.D)
  where = sharding.shardings({'score_head': 'D', 'score_bias': ''}, head, mesh)
  params = {**params, **{name: sharding.put(x, where[name]) for name, x in head.items()}}
  train, test, long = split(cfg, tokenizer)
  steps = max(1, cfg.epochs * len(train) // cfg.batch)
  update, tx, micro = make_update(cfg, learner, machine, mesh, steps)
  learning_rate = optim.learning_rate(cfg.optimizer, steps)
  T = max(len(ids) for texts, _ in train for ids in texts)

  state = optim.init(tx, params)
  del params  # some are others now
  states = checkpoint.States(out)
  start = states.latest()
  state = states.restore(start, state) if start else state
  log = metrics.Log(out, steps, start)
  order, pending = seeds.stream(train, cfg.seed), None
  try:
    for step in range(start, steps):
      items = [order(step * cfg.batch + b) for b in range(cfg.batch)]
      state, numbers = update(state, make_batch(items, T, micro, mesh))
      pending = optim.read(pending, log)  # the last update's numbers, while this one runs
      pending = (step + 1, float(learning_rate(step)), numbers, cfg.batch)
      stop = processes.stop_requested()
      if step + 1 == steps or (step + 1) % cfg.save_every == 0 or stop:
        pending = optim.read(pending, log)
        log.flush()  # before the state: what lies behind a state is always on record
        states.save(step + 1, state)
      if stop:
        raise Stopped(out, step + 1)
  except FloatingPointError as error:
    raise UserError(f'{error}; {states.last_good()}') from error
  finally:
    states.close()
    log.close()
  score = scoring.make_score(model, machine, mesh)
  params = standardise(cfg, score, lora_lib.merge(cfg.lora, state.params), train)
  checkpoint.save_model(out, model, params, tokenizer)
  return dict(assess(score, params, train, test), left_out=long)


def split(cfg, tokenizer):
  """Train and test items, (token ids of each response, label), by prompt; and how many are left out
  because they are longer than cfg.max_tokens or the view shows nothing of them."""
  limit = cfg.max_tokens
  items = cfg.judged()
  prompts = sorted({item.prompt for item in items})
  place = seeds.stream(prompts, cfg.seed)
  held = {place(i) for i in range(max(1, round(cfg.held_out * len(prompts))))}
  train, test, left_out = [], [], 0
  for item in items:
    views = [cfg.view(response) for response in item.responses]
    texts = [scoring.encode(tokenizer, item.prompt, v) for v in views if v is not None]
    if len(texts) < len(views) or max(map(len, texts)) > limit:
      left_out += 1
    else:
      (test if item.prompt in held else train).append((texts, item.label))
  if not train or not test:
    raise UserError(f'{len(train)} judged items to train on and {len(test)} to test on, after '
                    f'{left_out} were left out: make more')
  return train, test, left_out


def make_update(cfg, model, machine, mesh, steps):
  """The jitted update: state, batch -> state, numbers; the optimizer; rows a device has at once."""

  def loss(params, part):
    tokens_BNT, lengths_BN, labels_B, weights_B = part
    B, N, T = tokens_BNT.shape
    scores_B = losses.sequence_score(model, params, tokens_BNT.reshape(B * N, T),
                                     lengths_BN.reshape(B * N))
    return weights_B * cfg.loss(scores_B.reshape(B, N), labels_B), {}

  tx = optim.chain(cfg.optimizer, steps)
  micro = min(machine.micro_rows, -(-cfg.batch // sharding.rows(mesh)))
  return optim.make_update(loss, model, tx, mesh, micro), tx, micro


def make_batch(items, T, micro, mesh):
  """tokens [B, N, T], lengths [B, N], labels [B] and weights [B] of 1 / B, on the device."""
  B, N = len(items), len(items[0][0])
  tokens_BNT, lengths_BN = np.zeros((B, N, T), np.int32), np.ones((B, N), np.int32)
  for b, (texts, _) in enumerate(items):
    for n, ids in enumerate(texts):
      tokens_BNT[b, n, :len(ids)], lengths_BN[b, n] = ids, len(ids)
  labels_B = np.asarray([label for _, label in items], np.float32)
  batch = tokens_BNT, lengths_BN, labels_B, np.full(B, 1 / B, np.float32)
  return sharding.put_rows(sharding.pad_rows(batch, micro * sharding.rows(mesh)), mesh)


def standardise(cfg, score, params, train):
  """Pairs fix neither the zero nor the scale of a score, and a policy is to earn as much by the one
  model as by another: mean 0 and standard deviation 1 over the training responses. A labelled score
  is a log-odds and stays."""
  if cfg.loss is losses.pointwise:
    return params
  probabilities = score(params, [ids for texts, _ in train for ids in texts]).astype(np.float64)
  probabilities = probabilities.clip(1e-7, 1 - 1e-7)
  scores = np.log(probabilities / (1 - probabilities))
  mean, std = np.float32(scores.mean()), np.float32(scores.std() + 1e-6)
  return {**params, 'score_head': params['score_head'] / std,
          'score_bias': (params['score_bias'] - mean) / std}  # yapf: disable


def assess(score, params, train, test) -> dict:
  """Accuracy on the held-out prompts, its standard error, and that of judging by length alone."""
  flat = score(params, [ids for texts, _ in test for ids in texts])
  N = len(test[0][0])
  scores_BN, lengths_BN = flat.reshape(-1, N), np.array([[len(i) for i in t] for t, _ in test])
  labels_B = np.array([label for _, label in test])
  if N == 2:
    right_B = (scores_BN[:, 0] > scores_BN[:, 1]) + 0.5 * (scores_BN[:, 0] == scores_BN[:, 1])
    longer_B = (lengths_BN[:, 0] > lengths_BN[:, 1]) + 0.5 * (lengths_BN[:, 0] == lengths_BN[:, 1])
    train_B = np.array([np.sign(len(a) - len(b)) for (a, b), _ in train])
    baseline_B = longer_B if train_B.mean() >= 0 else 1 - longer_B
  else:
    right_B = (scores_BN[:, 0] > 0.5) == (labels_B > 0.5)
    baseline_B = by_length(train)(lengths_BN[:, 0]) == (labels_B > 0.5)
  return dict(train=len(train), held_out=len(test), accuracy=float(right_B.mean()),
              accuracy_stderr=float(right_B.std() / len(test)**0.5),
              length_only=float(baseline_B.mean()))


def by_length(train):
  """The best rule 'good if longer than n', or if shorter, on the training responses."""
  lengths = np.array([len(ids) for (ids,), _ in train])
  good = np.array([label > 0.5 for _, label in train])
  rules = [(n, longer) for n in np.unique(np.append(lengths, 0)) for longer in (True, False)]
  n, longer = max(rules, key=lambda r: (((lengths > r[0]) == r[1]) == good).mean())
  return lambda x: (x > n) == longer
