"""Reinforcement learning with GRPO: R1-Zero, and every later RL stage with other settings."""
import collections
import dataclasses
from functools import partial
import time
from typing import Callable

import jax
import jax.numpy as jnp
import numpy as np

from r1jax import checkpoint, evals, grpo, losses, metrics, optim, processes, rewards, rollout
from r1jax import sample, seeds, sharding
from r1jax.model import lora as lora_lib
from r1jax.types import Batch, Problem, Reward, Source, Stopped, UserError


@dataclasses.dataclass(frozen=True)
class Config:
  """The settings of one RL run; the defaults are R1-Zero's (arXiv 2501.12948 v2, section 2.1)."""
  init: str  # folder of a finished stage, or of a Hugging Face model
  problems: Callable[[str], list[Problem]]  # split -> problems; 'train' is trained on
  evaluation: evals.Evaluation  # before, after, and every eval_every updates
  more: tuple[Source, ...] = ()  # further problems that join an update's, as in R1's last stage
  rewards: tuple[Reward, ...] = rewards.R1_ZERO  # weighted and added; the first says what is right
  steps: int = 10_400  # policy updates
  batch: int = 32  # problems an update
  group: int = 16  # completions a problem
  minibatches: int = 16  # updates a rollout: batch * minibatches problems are sampled at once
  resample: int = 0  # times that groups with equal rewards are replaced by fresh problems (DAPO)
  staleness: int = 0  # rollouts sampled ahead, from parameters as many rollouts old; 0: on-policy
  max_prompt_tokens: int = 512  # a longer prompt is an error
  sampling: sample.Sampling = sample.Sampling(max_tokens=32_768)  # of the rollouts
  objective: grpo.Objective = grpo.Objective()  # the loss
  optimizer: optim.Optimizer = optim.Optimizer(lr=3e-6)  # the update
  lora: lora_lib.LoRA = lora_lib.LoRA()  # rank 0: all parameters learn
  refresh_every: int = 400  # updates after which the reference becomes the latest policy; 0: never
  max_reward_errors: float = 0.01  # share of samples whose reward may fail before the run stops
  max_reward_timeouts: float = 0.1  # and of those whose reward may come too late
  seed: int = 0  # of problem order and sampling
  save_every: int = 400  # updates between saved states
  eval_every: int = 0  # updates between evaluations; 0: before and after only
  samples_every: int = 400  # updates between records of a few completions
  machine: sharding.Machine = sharding.Machine()  # what the hardware wants


def run(cfg: Config, out: str) -> dict:
  """Trains from cfg.init, leaves everything in the folder `out`, returns the result's numbers."""
  check(cfg)
  machine, mesh = sharding.start(cfg.machine)
  model, params, tokenizer = checkpoint.load_model(cfg.init, machine, mesh)
  learner, params = lora_lib.adapt(cfg.lora, model, params, cfg.seed, mesh)
  merge = partial(lora_lib.merge, cfg.lora)
  for_sampling, sampling_mesh = sample.make_copy(model, machine, mesh, merge)
  check_rounding(cfg, model, machine)
  problem = make_stream(cfg, tokenizer)
  terms = rewards.load(cfg.rewards, machine, mesh, tokenizer)
  sampler = rollout.make_sampler(model, tokenizer, cfg.sampling, cfg.group, cfg.max_prompt_tokens,
                                 machine, sampling_mesh, cfg.batch * cfg.minibatches)
  evaluate = evals.make_evaluate(cfg.evaluation, terms, model, tokenizer, cfg.max_prompt_tokens,
                                 cfg.seed, machine, sampling_mesh)
  update, reference_logp, tx = make_steps(cfg, learner, machine, mesh)
  learning_rate = optim.learning_rate(cfg.optimizer, cfg.steps)

  refer = lambda params: optim.copy(params, learner, machine.dtype)
  state = optim.init(tx, params)
  del params  # some are others now
  if cfg.objective.needs_reference:
    state = state._replace(reference=refer(state.params))
  states = checkpoint.States(out)
  start = states.latest()
  state = states.restore(start, state) if start else state
  log = metrics.Log(out, cfg.steps, start)
  pending = []  # updates sent to the device whose numbers have not been read yet
  ahead = collections.deque()  # rollouts sent to the device, and what they were asked

  def send(step):
    key, numbers = seeds.key(cfg.seed, 'rollout', step), problem_numbers(cfg, step)
    calls = rollout.dispatch(sampler, for_sampling(state.params), key, numbers,
                             [problem(n) for n in numbers])
    ahead.append((key, numbers, calls))

  try:
    if not start:
      assess(0, evaluate, for_sampling(state.params), log)
    for step in range(start, cfg.steps, cfg.minibatches):
      clock = [time.monotonic()]
      for later in range(step, horizon(cfg, step), cfg.minibatches)[len(ahead):]:
        send(later)
      key, numbers, calls = ahead.popleft()
      pending = read(pending, log)  # the last updates' numbers, while the device samples
      counting = rewards.active(terms, step)
      graded = rollout.collect(sampler, calls, counting)
      check_errors(cfg, graded)
      del calls  # its memory is the update's
      if cfg.resample:  # by the latest parameters, which with staleness are others
        graded = resample(cfg, graded, numbers[-1] + 1, sampler, for_sampling(state.params), key,
                          problem, counting)
      clock.append(time.monotonic())

      weighed = weigh(cfg, graded, state, reference_logp, machine, mesh)
      for m in range(cfg.minibatches):  # each is one update, with the rollout's old log-probs
        rows = range(m * cfg.batch, (m + 1) * cfg.batch)
        part, advantages_PGC, over_sampler_PGC = rollout.take(weighed, rows)
        batch = make_batch(cfg, part, machine, mesh, advantages_PGC)
        if cfg.objective.beta:
          batch = batch._replace(logp_ref_PGC=reference_logp(optim.reference(state), batch))
        state, out_numbers = update(state, batch)
        if over_sampler_PGC is not None:
          out_numbers['mismatch'] = abs(over_sampler_PGC).sum()
        step += 1
        pending.append((step, float(learning_rate(step - 1)), part, out_numbers, clock))

      if step % cfg.samples_every == 0:
        log.samples(step, records(graded))
      refresh = cfg.objective.needs_reference and cfg.refresh_every
      if refresh and step % cfg.refresh_every == 0:
        pending = read(pending, log)  # a failed update must not change the reference
        state = state._replace(reference=refer(state.params))
      last = step == cfg.steps
      if last or (cfg.eval_every and step % cfg.eval_every == 0):
        pending = read(pending, log)
        assess(step, evaluate, for_sampling(state.params), log)
      # What is sampled ahead would come from newer parameters in a run that continues from here.
      stop = processes.stop_requested() and not ahead
      if last or step % cfg.save_every == 0 or stop:
        pending = read(pending, log)
        log.flush()  # before the state: what lies behind a state is always on record
        states.save(step, state)
      if stop:
        raise Stopped(out, step)
  except (FloatingPointError, UserError) as error:
    log.flush()
    raise UserError(f'{error}; {states.keep_last_good(state, cfg.minibatches)}') from error
  finally:
    states.close()
    log.close()
  checkpoint.save_model(out, model, merge(state.params), tokenizer)
  return processes.agree(partial(result, out, cfg.steps))


def check(cfg: Config):
  """Raises UserError where settings contradict each other."""
  if cfg.sampling.temperature == 0 or cfg.sampling.top_p < 1 or cfg.sampling.top_k:
    raise UserError('rl samples from the whole distribution that it trains: sampling.temperature '
                    'must be above 0, top_p 1 and top_k 0 (an evaluation may cut)')
  if cfg.staleness and not cfg.objective.importance:
    raise UserError('with staleness the policy that samples is older than the one that learns: set '
                    'objective.importance, to grpo.truncated say')
  rewards.check(cfg.rewards)
  if sum(source.share for source in cfg.more) > cfg.batch:
    raise UserError(f'the shares of `more` add up to more than the batch of {cfg.batch} problems')
  windows = [x for of in (*cfg.more, *cfg.rewards) for x in (of.start, of.stop or 0)]
  if any(x % cfg.minibatches for x in windows):
    raise UserError(f'start and stop of rewards and of `more` must be multiples of minibatches, '
                    f'{cfg.minibatches}: a rollout is made and graded as a whole')
  for name, least in dict(steps=1, batch=1, group=2, minibatches=1, staleness=0, save_every=1,
                          samples_every=1).items():
    if vars(cfg)[name] < least:
      raise UserError(f'{name} is {vars(cfg)[name]} and must be at least {least}')
  for name in ('steps', 'refresh_every', 'save_every', 'eval_every', 'samples_every'):
    if vars(cfg)[name] % cfg.minibatches:
      raise UserError(f'{name} is {vars(cfg)[name]}, not a multiple of minibatches, '
                      f'{cfg.minibatches}: a rollout is trained on as a whole')


def check_rounding(cfg, model, machine):
  """Raises UserError where sampling and training would round differently and nothing mends it."""
  latent = getattr(model.config, 'mla', None)
  if latent and machine.dtype != 'float32' and not cfg.objective.importance:
    raise UserError(f'latent attention decodes by another route than it trains, and in '
                    f'{machine.dtype} the two do not agree: set objective.importance, to '
                    'grpo.truncated say, or machine.dtype to float32')


def horizon(cfg, step):
  """Before which update the rollouts end that may be sampled at `step`: none goes beyond the next
  saved state, so that a run that continues from there samples from the same parameters."""
  saved = (step // cfg.save_every + 1) * cfg.save_every
  return min(step + (1 + cfg.staleness) * cfg.minibatches, saved, cfg.steps)


def problem_numbers(cfg, step):
  """Places in the stream of the problems sampled at `step`. Each step has room for resampling."""
  first = step * cfg.batch * (1 + cfg.resample)
  return range(first, first + cfg.batch * cfg.minibatches)


def make_stream(cfg, tokenizer) -> Callable[[int], Problem]:
  """number -> problem, for ever. Of each cfg.batch numbers in a row, the last belong to the sources
  that are active in that update, each with its share and its own order; the rest to cfg.problems.
  """

  def stream(problems):
    train = problems('train')
    if not train:
      raise UserError('there are no problems to train on: what `problems` gives for "train" is '
                      'empty')
    rollout.encode(tokenizer, train, cfg.max_prompt_tokens)  # too long shows before the work
    return seeds.stream(train, cfg.seed)

  own = stream(cfg.problems)
  others = [(source, stream(source.problems)) for source in cfg.more]

  def problem(number):
    turn, place = divmod(number, cfg.batch)
    step, place = turn // (1 + cfg.resample), cfg.batch - 1 - place
    for source, item in others:
      if source.start <= step and (source.stop is None or step < source.stop):
        if place < source.share:
          return item(turn * source.share + place)
        place -= source.share
    return own(number)

  return problem


def check_errors(cfg, graded):
  """Raises UserError where too many of the rewards failed or came too late."""
  rewards.check_errors(graded.errors, graded.rewards_PG.size, cfg.max_reward_errors,
                       cfg.max_reward_timeouts)


def resample(cfg, graded, first, sampler, params, key, problem, counting):
  """Puts fresh problems in the place of groups whose rewards are all equal, cfg.resample times.

  The errors of a group that goes stay on record.
  """
  for _ in range(cfg.resample):
    equal = grpo.degenerate(graded.rewards_PG)
    numbers = range(first, first + int(equal.sum()))
    if not numbers:
      break
    calls = rollout.dispatch(sampler, params, key, numbers, [problem(n) for n in numbers])
    fresh = rollout.collect(sampler, calls, counting)
    check_errors(cfg, fresh)
    old = rollout.take(graded, np.flatnonzero(equal))
    fresh = fresh._replace(errors=[a + b for a, b in zip(old.errors, fresh.errors)])
    place = np.arange(len(equal))
    place[equal] = len(equal) + np.arange(len(numbers))
    graded, first = rollout.take(rollout.concatenate([graded, fresh]), place), numbers[-1] + 1
  return graded


def make_steps(cfg, model, machine, mesh):
  """The jitted update: state, batch -> state, numbers; log-probs: params, batch -> by row; the
  optimizer."""

  def logp(params, batch):
    return losses.completion_logp(model, params, batch.prompts_PT, batch.prompt_lengths_P,
                                  batch.tokens_PGC, cfg.sampling.temperature, machine.logp_chunk)

  def loss(params, batch):
    C = batch.tokens_PGC.shape[-1]
    mask_PGC = jnp.arange(C)[None, None] < batch.lengths_PG[..., None]
    per_token = (logp(params, batch), batch.logp_old_PGC, batch.logp_ref_PGC, batch.advantages_PGC,
                 mask_PGC, batch.weights_PGC)
    return grpo.loss(cfg.objective, *jax.tree.map(lambda x: x.reshape(-1, C), per_token))

  micro = micro_shape(cfg, machine, mesh)[0]
  tx = optim.chain(cfg.optimizer, cfg.steps)
  update = optim.make_update(loss, model, tx, mesh, micro)
  return update, optim.make_map(logp, model, mesh, micro), tx


def micro_shape(cfg, machine, mesh):
  """(problems, completions of each) that a device trains on at once, about machine.micro_rows in
  all and no more than its share of the batch; the latter divides the group."""
  rows = max(1, min(machine.micro_rows, -(-cfg.batch * cfg.group // sharding.rows(mesh))))
  g = max(n for n in range(1, cfg.group + 1) if cfg.group % n == 0 and n <= rows)
  return rows // g, g


def weigh(cfg, graded, state, logp, machine, mesh):
  """What all updates of a rollout share, made before the first of them: the rollout, its advantages
  [P, G, C], and with importance weights log(pi_old / pi_sampled) [P, G, C].

  With importance weights the rollout's log-probs become those that the trainer's maths gives the
  parameters that sampled. These, and the reference's where the reward has them, are computed on the
  device; an objective with neither costs nothing here.
  """
  objective, mask_PGC, sampled_PGC = cfg.objective, token_mask(graded), graded.rollout.logp_PGC

  def logp_under(params):
    out_PGC = np.zeros_like(sampled_PGC)
    for first in range(0, len(out_PGC), cfg.batch):
      part = rollout.take(graded, range(first, first + cfg.batch))
      rows = sharding.fetch(logp(params, make_batch(cfg, part, machine, mesh)))
      rows = rows.reshape(-1, rows.shape[-1])[:cfg.batch * cfg.group]  # without padding
      out_PGC[first:first + cfg.batch, :, :rows.shape[-1]] = rows.reshape(cfg.batch, cfg.group, -1)
    return out_PGC

  old_PGC = logp_under(state.params) if objective.importance else sampled_PGC
  over_sampler_PGC = (old_PGC - sampled_PGC) * mask_PGC if objective.importance else None
  over_reference_PGC = None
  if objective.reward_beta:
    over_reference_PGC = (old_PGC - logp_under(optim.reference(state))) * mask_PGC
  advantages_PGC = grpo.token_advantages(objective, graded.rewards_PG, mask_PGC, over_reference_PGC,
                                         over_sampler_PGC)
  graded = graded._replace(rollout=graded.rollout._replace(logp_PGC=old_PGC))
  return graded, advantages_PGC, over_sampler_PGC


def token_mask(graded):
  """True at the tokens of each completion, bool [P, G, C]."""
  rollout_ = graded.rollout
  return np.arange(rollout_.tokens_PGC.shape[-1]) < rollout_.lengths_PG[..., None]


def make_batch(cfg, graded, machine, mesh, advantages_PGC=None) -> Batch:
  """A minibatch on the device: padded to the mesh, cut to the longest completion's bucket.

  Without advantages_PGC (of `weigh`), the advantages are those of this minibatch's rewards alone.
  """
  rollout_, mask_PGC = graded.rollout, token_mask(graded)
  if advantages_PGC is None:
    advantages_PGC = grpo.token_advantages(cfg.objective, graded.rewards_PG, mask_PGC)
  batch = Batch(rollout_.prompts_PT, rollout_.prompt_lengths_P, rollout_.tokens_PGC,
                rollout_.lengths_PG, rollout_.logp_PGC, None, advantages_PGC,
                cfg.objective.aggregate(mask_PGC))
  longest = int(rollout_.lengths_PG.max())
  pieces = sample.piece_ends(mask_PGC.shape[-1], machine.pieces)
  bucket = next(end for end in pieces if end >= longest)
  problems, g = micro_shape(cfg, machine, mesh)
  shapes = Batch('P', 'P', 'PGC', 'PG', 'PGC', None, 'PGC', 'PGC')

  def lay_out(x, letters):
    x = x[..., :bucket] if 'C' in letters else x
    if 'G' not in letters:
      return np.repeat(x, cfg.group // g, axis=0)
    return x.reshape(-1, g, *x.shape[2:])

  batch = Batch(*(x if x is None else lay_out(x, letters) for x, letters in zip(batch, shapes)))
  return sharding.put_rows(sharding.pad_rows(batch, problems * sharding.rows(mesh)), mesh)


def read(pending, log):
  """Writes the numbers of dispatched updates, returns []; FloatingPointError if not finite."""
  jax.block_until_ready([numbers for _, _, _, numbers, _ in pending])
  seconds = log.lap() / len(pending) if pending else 0
  for step, lr, graded, numbers, (began, sampled) in pending:
    numbers = jax.device_get(numbers)
    G = graded.rewards_PG.shape[1]
    place = lambda row: f'at sample {row}, of the problem {graded.problems[row // G].prompt!r}'
    optim.check_finite(step, numbers, place)
    tokens = float(numbers['tokens'])
    means = ('kl', 'clipped', 'gap', 'surprise', 'mismatch')
    row = {name: float(numbers[name]) / max(tokens, 1) for name in means if name in numbers}
    row.update(loss=float(numbers['loss']), grad_norm=float(numbers['grad_norm']), lr=lr)
    clock = dict(sample_s=sampled - began, update_s=time.monotonic() - sampled)
    log.step(step, {**summarise(graded), **row}, tokens, seconds, clock)
  return []


def assess(step, evaluate, params, log):
  """Evaluates, and records the numbers and one completion of each of the first problems."""
  numbers, graded = evaluate(params)
  log.evaluation(step, numbers)
  log.samples(step, records(graded, problems=10, completions=1))


def summarise(graded) -> dict:
  """What a minibatch's samples were like, plain floats."""
  mean = lambda x: float(np.nanmean(x, dtype=np.float64))
  applied = {name: x for name, x in graded.scores.items() if not np.isnan(x).all()}
  return {
      'reward': mean(graded.rewards_PG),
      **{f'reward/{name}': mean(scores) for name, scores in applied.items()},
      'length': mean(graded.rollout.lengths_PG),
      'finished': mean(graded.rollout.finished_PG),
      'degenerate': mean(grpo.degenerate(graded.rewards_PG)),
      'reward/errors': sum(not rewards.timed_out(error) for row in graded.errors for error in row),
      'reward/timeouts': sum(rewards.timed_out(error) for row in graded.errors for error in row),
  }


def records(graded, problems=2, completions=2):
  """A few samples as rows for samples.jsonl."""
  for p, problem in enumerate(graded.problems[:problems]):
    for g, completion in enumerate(graded.completions[p][:completions]):
      scores = {name: float(x[p, g]) for name, x in graded.scores.items() if x[p, g] == x[p, g]}
      yield dict(kind=problem.kind, prompt=problem.prompt, completion=completion.text,
                 answer=problem.answer, reward=float(graded.rewards_PG[p, g]), scores=scores,
                 length=completion.num_tokens, finished=completion.finished)


def result(out, steps) -> dict:
  """The evaluations before ('base_...') and after the run, from its records."""
  rows = [row for row in metrics.read(f'{out}/metrics.jsonl') if 'eval/pass_at_1' in row]
  named = {}
  for prefix, step in (('base_', 0), ('', steps)):
    row = next(row for row in rows if row['step'] == step)
    named |= {k.replace('eval/', prefix): v for k, v in row.items() if k != 'step'}
  return named
