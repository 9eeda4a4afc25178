"""Log-probabilities against float64, and losses that do not depend on how rows are laid out."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax import losses, packing, sharding
from r1jax.types import Rows

close = np.testing.assert_allclose


def log_softmax(logits):
  """In float64."""
  logits = np.asarray(logits, np.float64)
  logits = logits - logits.max(-1, keepdims=True)
  return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def pick(logp, tokens):
  return np.take_along_axis(logp, np.asarray(tokens)[..., None], -1)[..., 0]


def tokens_of(shape, seed=0):
  return np.random.default_rng(seed).integers(0, 37, shape).astype(np.int32)


def normal(*shape):
  return np.random.default_rng(2).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize('temperature', [1.0, 0.7])
def test_token_logp_is_log_softmax(tiny, temperature):
  model, params = tiny()
  hidden = normal(2, 7, 32)
  tokens = tokens_of((2, 7))
  got = jax.jit(losses.token_logp, static_argnums=(0, 4))(model, params, hidden, tokens,
                                                          temperature)
  close(got, pick(log_softmax(np.asarray(model.logits(params, hidden)) / temperature), tokens),
        atol=2e-5)


@pytest.mark.parametrize('chunk', [1, 5])
def test_chunks_change_neither_value_nor_gradient(tiny, chunk):
  model, params = tiny()
  hidden, weights = normal(2, 7, 32), normal(2, 7)
  tokens = tokens_of((2, 7))

  def total(params, hidden, chunk):
    logp = losses.token_logp(model, params, hidden, tokens, 0.7, chunk)
    return (logp * weights).sum(), logp

  run = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True), static_argnums=2)
  jax.tree.map(lambda a, b: close(a, b, atol=1e-5, rtol=1e-5), run(params, hidden, chunk),
               run(params, hidden, 0))


def test_completion_logp_is_that_of_the_whole_text_row_by_row(tiny):
  model, params = tiny()
  (P, G, C), T, lengths = (3, 2, 5), 6, np.array([2, 6, 4], np.int32)
  prompts, tokens = tokens_of((P, T)), tokens_of((P, G, C), 1)
  got = jax.jit(lambda p: losses.completion_logp(model, model.split(p), prompts, lengths, tokens,
                                                 0.7))(params)
  whole = np.zeros((P, G, T + C), np.int32)  # prompt and completion without a gap, then padding
  for p, n in enumerate(lengths):
    whole[p, :, :n], whole[p, :, n:n + C] = prompts[p, :n], tokens[p]
  whole = whole.reshape(P * G, T + C)

  @jax.jit
  def logits(params, tokens):
    params = model.split(params)
    return model.logits(params, model.apply(params, tokens, jnp.arange(T + C)[None])[0])

  logp = log_softmax(np.asarray(logits(params, whole)) / 0.7)[:, :-1]
  logp = pick(logp, whole[:, 1:]).reshape(P, G, T + C - 1)
  for p, n in enumerate(lengths):
    close(got[p], logp[p, :, n - 1:n - 1 + C], atol=1e-5)


def test_packing_changes_neither_loss_nor_gradient(tiny):
  model, params = tiny()
  lengths, learnt = [9, 5, 2, 7, 1, 6], [0, 3, 1, 6, 0, 6]  # the last is read, not learnt
  documents = [(tokens_of(n, n).tolist(), i) for n, i in zip(lengths, learnt)]
  packed = packing.pack(documents, 12)
  assert len(packed.tokens_BT) < len(documents)
  packed = sharding.pad_rows(packed, len(documents))  # one compilation for both
  alone = [packing.pack([document], 12) for document in documents]
  alone = Rows(*(np.concatenate(x) for x in zip(*alone)))

  @jax.jit
  def run(params, rows):

    def total(params):
      loss, _ = losses.cross_entropy(model, model.split(params), rows)
      return loss.sum(), loss

    return jax.value_and_grad(total, has_aux=True)(params)

  (together, rows), gradient = run(params, packed)
  (separate, documents_loss), gradient_alone = run(params, alone)
  assert rows.shape == (len(documents),)
  close(together, separate, rtol=1e-5)
  jax.tree.map(lambda a, b: close(a, b, atol=1e-5 * np.abs(b).max(), rtol=1e-5), gradient,
               gradient_alone)

  # And a document's loss is that of a plain forward pass over it, without segments.
  hidden, _ = jax.jit(lambda p, x: model.apply(model.split(p), x,
                                               jnp.arange(12)[None]))(params, alone.tokens_BT)
  logp = log_softmax(model.logits(params, hidden))
  for i, (ids, first) in enumerate(documents):
    want = -sum(logp[i, t - 1, ids[t]] for t in range(max(first, 1), len(ids)))
    close(documents_loss[i], want, rtol=1e-5, atol=1e-6)


def test_positions_start_again_in_each_segment():
  segments = jnp.array([[1, 1, 1, 2, 2, 0, 0], [1, 2, 3, 3, 3, 3, 0]])
  np.testing.assert_array_equal(losses.positions_in_segments(segments),
                                [[0, 1, 2, 0, 1, 0, 1], [0, 0, 0, 1, 2, 3, 0]])


def test_preference_losses_by_hand():
  scores_B2 = jnp.float32([[2.0, 1.0], [0.0, 0.0]])
  close(losses.bradley_terry(scores_B2, None), [np.log1p(np.exp(-1)), np.log(2)], rtol=1e-6)
  scores_B1, labels_B = jnp.float32([[2.0], [2.0]]), jnp.float32([1.0, 0.0])
  p = 1 / (1 + np.exp(-2))
  close(losses.pointwise(scores_B1, labels_B), [-np.log(p), -np.log(1 - p)], rtol=1e-6)


def test_the_score_is_the_last_token_s(tiny):
  model, params = tiny()
  head = jnp.asarray(normal(model.config.D))
  params = model.split({**params, 'score_head': head, 'score_bias': jnp.float32(0.5)})
  tokens_BT, lengths_B = tokens_of((2, 6)), jnp.int32([4, 6])
  got = losses.sequence_score(model, params, tokens_BT, lengths_B)
  for row, length, score in zip(tokens_BT, lengths_B, got):  # without padding
    hidden_1TD, _ = model.apply(params, row[None, :length], jnp.arange(length)[None])
    close(score, hidden_1TD[0, -1] @ head + 0.5, rtol=1e-5, atol=1e-5)
