"""Log-probabilities of tokens, and cross-entropy. Float32 throughout."""
from functools import partial

import chex
import jax
import jax.numpy as jnp

from r1jax import sharding
from r1jax.types import Past

LOAD = 'router_bias'  # the weight whose gradient is a load, not a slope (model/moe.py)


def log_prob(logits, tokens):
  """log softmax(logits)[token] over the last axis, float32: logits [..., V], tokens [...]."""
  return _picked(logits, tokens, jnp.arange(logits.shape[-1])) - jax.nn.logsumexp(logits, axis=-1)


def _picked(logits, tokens, vocabulary_V):
  # A comparison instead of a gather: its gradient is no scatter, and the vocabulary may be cut.
  vocabulary = jnp.expand_dims(vocabulary_V, range(tokens.ndim))
  return jnp.where(tokens[..., None] == vocabulary, logits, 0).sum(axis=-1)


def token_logp(model, params, hidden_BTD, tokens_BT, temperature=1.0, chunk=0):
  """log softmax(logits / temperature)[token], float32 [B, T].

  With `chunk`, logits of about so many positions of all rows exist at a time on a device, in the
  backward pass too, so that [B, T, V] is never stored. `params` are in the model's split form.
  """
  chex.assert_rank([hidden_BTD, tokens_BT], [3, 2])
  B, T, D = hidden_BTD.shape

  mine_V = sharding.vocabulary(model.config.V)

  def logp(hidden_BTD, tokens_BT):
    if mine_V is None:
      return log_prob(model.logits(params, hidden_BTD) / temperature, tokens_BT)
    # Instead of the head, the largest of all weights, the tokens travel, to each of its parts.
    meet = partial(sharding.at_positions, lambda x: jax.lax.all_gather(x, 'expert', tiled=True))
    hidden_NTD, tokens_NT = meet(hidden_BTD), meet(tokens_BT)
    logits_NTV = model.logits(params, hidden_NTD, part=True) / temperature
    logp_NT = _over_parts(logits_NTV, tokens_NT, mine_V)
    return jax.lax.dynamic_slice_in_dim(logp_NT, B * jax.lax.axis_index('expert'), B)

  s = sharding.cuts('context')  # a chunk has some positions of each part that T is cut into
  t = max(1, chunk // B) * s
  if not chunk or t >= T:
    return logp(hidden_BTD, tokens_BT)
  n = -(-T // t)

  def cut(x):  # [B, T, ...] -> [n, B, t, ...]
    x = jnp.pad(x, [(0, 0), (0, n * t - T)] + [(0, 0)] * (x.ndim - 2))
    x = x.reshape(B, s, n, t // s, *x.shape[2:])
    return jnp.moveaxis(x, 2, 0).reshape(n, B, t, *x.shape[4:])

  out = jax.lax.map(lambda x: jax.checkpoint(logp)(*x), (cut(hidden_BTD), cut(tokens_BT)))
  out = jnp.moveaxis(out.reshape(n, B, s, t // s), 0, 2)
  return out.reshape(B, n * t)[:, :T]


def _over_parts(logits_NTV, tokens_NT, mine_V):
  """log_prob where each device of the axis expert has the logits of its part of the vocabulary."""
  add = partial(sharding.at_positions, lambda x: jax.lax.psum(x, 'expert'))
  part_NT = jax.nn.logsumexp(logits_NTV, axis=-1)
  most = partial(sharding.at_positions, lambda x: jax.lax.pmax(x, 'expert'))
  most_NT = most(jax.lax.stop_gradient(part_NT))
  all_NT = most_NT + jnp.log(add(jnp.exp(part_NT - most_NT)))
  return add(_picked(logits_NTV, tokens_NT, mine_V)) - all_NT


def completion_logp(model, params, prompts_PT, prompt_lengths_P, tokens_PGC, temperature=1.0,
                    chunk=0):
  """Log-probability of every completion token given its prompt and the tokens before it, [P, G, C].

  The prompt is computed once and its keys and values are shared by the G completions, exactly as
  in sampling; a single completion follows its prompt in one row, which is half the programs to
  compile. What stands after a completion's end is finite and means nothing: mask it. Only the
  completions count for the load of experts, as a prompt may be computed for some of them at a time.
  """
  chex.assert_rank([prompts_PT, prompt_lengths_P, tokens_PGC], [2, 1, 3])
  (P, G, C), T = tokens_PGC.shape, prompts_PT.shape[1]
  tokens_BC = tokens_PGC.reshape(P * G, C)
  positions_1T = jnp.arange(T)[None]
  real_PT = positions_1T < prompt_lengths_P[:, None]
  positions_BC = jnp.repeat(prompt_lengths_P, G)[:, None] + jnp.arange(C)[None]
  if G == 1:
    whole = lambda *x: jnp.concatenate([x.astype(jnp.int32) for x in x], axis=1)
    rows = (whole(prompts_PT, tokens_BC), whole(jnp.broadcast_to(positions_1T, (P, T)),
                                                positions_BC),
            whole(real_PT, jnp.ones_like(tokens_BC)))  # segments: padding is seen by none
    hidden_PSD, _ = model.apply(params, *rows, uncounted=T)
    hidden_PTD, hidden_BCD = hidden_PSD[:, :T], hidden_PSD[:, T:]
  else:
    hidden_PTD, kv = model.apply(params, prompts_PT, positions_1T, uncounted=T)
    prompt = Past(kv, real_PT, positions_1T)
    hidden_BCD, _ = model.apply(params, tokens_BC, positions_BC, past=(prompt,))
  last_P1D = last_hidden(hidden_PTD, prompt_lengths_P)
  hidden_BCD = jnp.concatenate([jnp.repeat(last_P1D, G, axis=0), hidden_BCD[:, :-1]], axis=1)
  return token_logp(model, params, hidden_BCD, tokens_BC, temperature, chunk).reshape(P, G, C)


def last_hidden(hidden_PTD, lengths_P):
  """The hidden state of each row's last position, [P, 1, D]."""
  index_P = jnp.maximum(lengths_P - 1, 0)
  return jnp.take_along_axis(hidden_PTD, index_P[:, None, None], axis=1)


def cross_entropy(model, params, rows, chunk=0):
  """weight * -log p(next token), summed over each packed row: float32 [B], and no further sums.

  rows: types.Rows. Position t predicts token t + 1 with weight weights_BT[:, t].
  """
  positions_BT = positions_in_segments(rows.segments_BT)
  hidden_BTD, _ = model.apply(params, rows.tokens_BT, positions_BT, rows.segments_BT)
  targets_BT = jnp.roll(rows.tokens_BT, -1, axis=1)
  logp_BT = token_logp(model, params, hidden_BTD, targets_BT, chunk=chunk)
  loss_B = -(logp_BT * rows.weights_BT).sum(axis=1)
  return loss_B, {}


def positions_in_segments(segments_BT):
  """0, 1, 2, ... from the start of each segment, int32 [B, T]."""
  index_T = jnp.arange(segments_BT.shape[1], dtype=jnp.int32)[None]
  starts_BT = jnp.pad(segments_BT[:, 1:] != segments_BT[:, :-1], [(0, 0), (1, 0)],
                      constant_values=True)
  return index_T - jax.lax.cummax(jnp.where(starts_BT, index_T, 0), axis=1)


# -- reward models ---------------------------------------------------------------------------------


def sequence_score(model, params, tokens_BT, lengths_B):
  """A reward model's score of each right-padded text, float32 [B] (model/scalar.py)."""
  chex.assert_rank([tokens_BT, lengths_B], [2, 1])
  positions_1T = jnp.arange(tokens_BT.shape[1])[None]
  hidden_BTD, _ = model.apply(params, tokens_BT, positions_1T)
  last_BD = last_hidden(hidden_BTD, lengths_B)[:, 0].astype(jnp.float32)
  head_D = sharding.gathered(params['score_head'], 'D')
  return jnp.einsum('BD,D->B', last_BD, head_D) + params['score_bias']


def bradley_terry(scores_BN, labels_B):
  """-log sigmoid(s_chosen - s_rejected), float32 [B]; scores_BN = [chosen, rejected].

  The model of paired comparisons of Bradley and Terry (1952); R1 names a pairwise loss and no form.
  """
  chex.assert_shape(scores_BN, (None, 2))
  del labels_B
  return jax.nn.softplus(scores_BN[:, 1] - scores_BN[:, 0])


def pointwise(scores_BN, labels_B):
  """Binary cross-entropy of sigmoid(score) against the label, float32 [B]; one score a row."""
  chex.assert_shape(scores_BN, (None, 1))
  return jax.nn.softplus(scores_BN[:, 0]) - labels_B * scores_BN[:, 0]
