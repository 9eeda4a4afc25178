"""Problems -> graded completions: text to device arrays, sampling, and back to text and rewards."""
from typing import Any, Callable, NamedTuple

import jax
import numpy as np

from r1jax import processes, rewards as rewards_lib
from r1jax import sample, sharding
from r1jax.types import Completion, Rollout, UserError


class Sampler(NamedTuple):
  """A jitted sampler with what turns text into its arguments and its results into text."""
  sample: Callable
  tokenizer: Any
  max_prompt_tokens: int
  k: int  # samples of a problem
  firsts: range  # the number of the first of each of its rows; its step: the samples of a row
  rows: int  # of a device call
  mesh: Any


class Graded(NamedTuple):
  """A rollout with its texts and scores."""
  rollout: Rollout
  problems: list  # P
  completions: list  # P lists of G
  scores: dict  # reward name -> float32 [P, G]
  rewards_PG: Any  # their weighted sum
  errors: list  # P lists of sentences about rewards that failed


def make_sampler(model, tokenizer, cfg: sample.Sampling, k, max_prompt_tokens, machine, mesh,
                 problems) -> Sampler:
  """A Sampler of k completions a problem, for calls with about `problems` problems.

  Where one problem on each part of the mesh would make a call larger than machine.sample_rows, a
  problem's samples are spread over several rows. What is drawn does not depend on it.
  """
  if k < 1 or problems < 1:
    raise UserError(f'{problems} problems with {k} completions each: there must be at least one')
  if max_prompt_tokens + cfg.max_tokens > model.config.max_tokens:
    raise UserError(f'prompts of {max_prompt_tokens} tokens and completions of {cfg.max_tokens} '
                    f'exceed the model\'s context of {model.config.max_tokens}: lower a budget')
  data = sharding.rows(mesh)
  firsts = range(0, k, -(-k // -(-k * data // machine.sample_rows)))
  jitted = sample.make_sampler(model, cfg, tokenizer.eos_ids, firsts.step, mesh, machine.pieces)
  rows = min(max(1, machine.sample_rows // firsts.step), problems * len(firsts))
  return Sampler(jitted, tokenizer, max_prompt_tokens, k, firsts, -(-rows // data) * data, mesh)


def encode(tokenizer, problems, max_prompt_tokens):
  """Right-padded prompt tokens [P, T] and lengths [P]; UserError where a prompt is too long."""
  prompts_PT = np.zeros((len(problems), max_prompt_tokens), np.int32)
  lengths_P = np.zeros(len(problems), np.int32)
  for p, problem in enumerate(problems):
    ids = tokenizer.encode(problem.prompt)
    if not ids:
      raise UserError('a prompt is empty: give at least one token to go on from')
    if len(ids) > max_prompt_tokens:
      raise UserError(f'a prompt has {len(ids)} tokens and the budget, max_prompt_tokens, is '
                      f'{max_prompt_tokens}: {problem.prompt[:100]!r}')
    prompts_PT[p, :len(ids)], lengths_P[p] = ids, len(ids)
  return prompts_PT, lengths_P


def dispatch(sampler: Sampler, params, key, numbers, problems) -> list:
  """Sends the sampling of all problems to the device, some a call, and returns at once.

  `numbers` are the problems' places in the run's stream; with the key they decide every draw.
  """
  processes.check_together('sampling')
  calls = []
  rows_of_all = [(number, problem, first)
                 for number, problem in zip(numbers, problems, strict=True)
                 for first in sampler.firsts]  # yapf: disable
  for start in range(0, len(rows_of_all), sampler.rows):
    numbers, part, firsts = zip(*rows_of_all[start:start + sampler.rows])
    prompts_PT, lengths_P = encode(sampler.tokenizer, part, sampler.max_prompt_tokens)
    places = [np.asarray(x, np.int32) for x in (numbers, firsts)]
    rows = sharding.pad_rows((places[0], prompts_PT, lengths_P, places[1]), sampler.rows)
    calls.append((part, prompts_PT, lengths_P,
                  sampler.sample(params, key, *sharding.put_rows(rows, sampler.mesh))))
  return calls


def collect(sampler: Sampler, calls: list, rewards) -> Graded:
  """Waits for each call in turn, decodes it and grades it while the next one samples.

  Each process grades a share of it. The processes tell one another at the end, since between the
  calls they would wait for those that have been sent already.
  """
  parts, shares = [], []
  for call in calls:
    parts.append(_decode(sampler, *call))
    columns = rewards_lib.flatten(*parts[-1][1:])
    shares += [processes.mine(rewards_lib.scorer(reward), *columns) for reward in rewards]
  found = iter(processes.gather(shares) if shares else ())
  graded = concatenate([_graded(rewards, [next(found) for _ in rewards], *part) for part in parts])
  return _regroup(graded, len(sampler.firsts), sampler.k)


def _decode(sampler, problems, prompts_PT, lengths_P, out):
  tokens, lengths, finished, logp = (x[:len(problems)] for x in sharding.fetch(out))

  def completion(p, g):
    text = sampler.tokenizer.decode(tokens[p, g, :lengths[p, g]].tolist())
    return Completion(text, int(lengths[p, g]), bool(finished[p, g]))

  P, G, _ = tokens.shape
  completions = [[completion(p, g) for g in range(G)] for p in range(P)]
  rollout = Rollout(prompts_PT, lengths_P, tokens, lengths, finished, logp)
  return rollout, list(problems), completions


def _graded(rewards, found, rollout, problems, completions):
  scores, errors = rewards_lib.tally(rewards, found, problems, completions)
  total_PG = rewards_lib.total(rewards, scores, rollout.lengths_PG.shape)
  return Graded(rollout, problems, completions, scores, total_PG, errors)


def _regroup(graded: Graded, rows: int, k: int) -> Graded:
  """Problems of k samples, from a Graded in which each problem takes `rows` rows, one after the
  other, with a few samples too many if these do not divide k; their errors stay on record."""

  def join(x):
    if type(x) is list:
      return [sum(x[i:i + rows], [])[:k] for i in range(0, len(x), rows)]
    return x.reshape(-1, rows * x.shape[1], *x.shape[2:])[:, :k]

  first = lambda x: x[::rows]
  r = graded.rollout
  sampled = r._replace(prompts_PT=first(r.prompts_PT), prompt_lengths_P=first(r.prompt_lengths_P),
                       tokens_PGC=join(r.tokens_PGC), lengths_PG=join(r.lengths_PG),
                       finished_PG=join(r.finished_PG), logp_PGC=join(r.logp_PGC))  # yapf: disable
  return Graded(sampled, first(graded.problems), join(graded.completions),
                {name: join(x) for name, x in graded.scores.items()}, join(graded.rewards_PG),
                [sum(graded.errors[i:i + rows], []) for i in range(0, len(graded.errors), rows)])


def concatenate(parts: list) -> Graded:
  """Several graded rollouts as one."""
  join = lambda *x: sum(x, []) if type(x[0]) is list else np.concatenate(x)
  return jax.tree.map(join, *parts, is_leaf=_is_list)


def take(graded: Graded, indices) -> Graded:
  """The problems at `indices`."""
  pick = lambda x: [x[i] for i in indices] if type(x) is list else x[np.asarray(indices, int)]
  return jax.tree.map(pick, graded, is_leaf=_is_list)


def _is_list(x):
  return type(x) is list
