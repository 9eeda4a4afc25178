"""Problems -> graded completions: text to device arrays, sampling, and back to text and rewards."""
from typing import Any, Callable, NamedTuple

import jax
import numpy as np

from r1jax import rewards as rewards_lib
from r1jax import sample, sharding
from r1jax.types import Completion, Rollout, UserError


class Sampler(NamedTuple):
  """A jitted sampler with what turns text into its arguments and its results into text."""
  sample: Callable
  tokenizer: Any
  max_prompt_tokens: int
  rows: int  # problems a device call
  mesh: Any


class Graded(NamedTuple):
  """A rollout with its texts and scores."""
  rollout: Rollout
  problems: list  # P
  completions: list  # P lists of G
  scores: dict  # reward name -> float32 [P, G]
  rewards_PG: Any  # their weighted sum
  errors: list  # P lists of sentences about rewards that failed


def make_sampler(model, tokenizer, cfg: sample.Sampling, G, max_prompt_tokens, machine, mesh,
                 problems) -> Sampler:
  """A Sampler of G completions a problem, for calls with about `problems` problems."""
  if G < 1 or problems < 1:
    raise UserError(f'{problems} problems with {G} completions each: there must be at least one')
  if max_prompt_tokens + cfg.max_tokens > model.config.max_tokens:
    raise UserError(f'prompts of {max_prompt_tokens} tokens and completions of {cfg.max_tokens} '
                    f'exceed the model\'s context of {model.config.max_tokens}: lower a budget')
  jitted = sample.make_sampler(model, cfg, tokenizer.eos_ids, G, mesh, machine.pieces)
  data = mesh.shape['data']
  rows = min(max(1, machine.sample_rows // G), problems)
  return Sampler(jitted, tokenizer, max_prompt_tokens, -(-rows // data) * data, mesh)


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


def dispatch(sampler: Sampler, params, key, numbers, problems, firsts=None) -> list:
  """Sends the sampling of all problems to the device, some a call, and returns at once.

  `numbers` are the problems' places in the run's stream; with the key they decide every draw.
  `firsts` are the numbers of their first samples, where a problem's are spread over several rows.
  """
  calls, firsts = [], firsts or [0] * len(problems)
  for start in range(0, len(problems), sampler.rows):
    part = problems[start:start + sampler.rows]
    prompts_PT, lengths_P = encode(sampler.tokenizer, part, sampler.max_prompt_tokens)
    places = [np.asarray(x[start:start + sampler.rows], np.int32) for x in (numbers, firsts)]
    rows = sharding.pad_rows((places[0], prompts_PT, lengths_P, places[1]), sampler.rows)
    calls.append((part, prompts_PT, lengths_P,
                  sampler.sample(params, key, *sharding.put_rows(rows, sampler.mesh))))
  return calls


def collect(sampler: Sampler, calls: list, rewards) -> Graded:
  """Waits for each call in turn, decodes it and grades it while the next one samples."""
  return concatenate([_grade(sampler, rewards, *call) for call in calls])


def _grade(sampler, rewards, problems, prompts_PT, lengths_P, out):
  tokens, lengths, finished, logp = (x[:len(problems)] for x in jax.device_get(out))

  def completion(p, g):
    text = sampler.tokenizer.decode(tokens[p, g, :lengths[p, g]].tolist())
    return Completion(text, int(lengths[p, g]), bool(finished[p, g]))

  P, G, _ = tokens.shape
  completions = [[completion(p, g) for g in range(G)] for p in range(P)]
  scores, errors = rewards_lib.grade(rewards, problems, completions)
  return Graded(Rollout(prompts_PT, lengths_P, tokens, lengths, finished, logp), list(problems),
                completions, scores, rewards_lib.total(rewards, scores, (P, G)), errors)


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
