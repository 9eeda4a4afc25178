"""The transformer against itself: cached, scanned, recomputed, or split, it is one function."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax import sample
from r1jax.model import head_norm, MLA, moe, MoE, parts, rope, whole_norm
from r1jax.types import Past, UserError

close = np.testing.assert_allclose
DEEPSEEK = dict(
    K=4, W=10, tied=False, mla=MLA(Q=12, Z=16, A=6, J=4, O=7),
    moe=MoE(E=8, I=12, top=3, M=20, dense=1, score=moe.sigmoid, bias=True, groups=4, top_groups=2,
            group_score=moe.best_two, normalise=True, scale=2.5))  # yapf: disable
GEMMA = dict(activation=parts.gelu_tanh, post_norm=True, norm_offset=1.0, embed_scale=5.0, window=3,
             attn_cap=2.0, logit_cap=1.0, windowed=(0,), rope_windowed=rope.Default(100.0))
KINDS = {
    'plain': dict(), 'qwen': dict(K=1, qkv_bias=True, qk_norm=head_norm, tied=False),
    'gemma': GEMMA, 'olmo': dict(pre_norm=False, post_norm=True, qk_norm=whole_norm),
    'smollm': dict(unrotated=(1,)), 'deepseek': DEEPSEEK,
    'qwen moe': dict(mla=None, moe=MoE(E=4, I=8, top=2)),
    'lite': dict(K=4, W=10, mla=MLA(Q=None, Z=16, A=6, J=4, O=7), mtp=1)}  # yapf: disable


def tokens_of(B, T, seed=0):
  return np.random.default_rng(seed).integers(0, 37, (B, T)).astype(np.int32)


def apply(model, params, tokens, **more):
  """Logits and keys and values of a jitted call."""

  @jax.jit
  def run(params, tokens, more):
    params = model.split(params)
    positions = jnp.arange(tokens.shape[1])[None] + more.pop('start', 0)
    hidden, kv = model.apply(params, tokens, positions, **more)
    return model.logits(params, hidden), kv

  return run(params, tokens, more)


@pytest.mark.parametrize('unroll', [True, False])
@pytest.mark.parametrize('kind', KINDS.values(), ids=KINDS)
def test_prefill_and_decode_are_the_whole_pass(tiny, kind, unroll):
  model, params = tiny(unroll, **kind)
  tokens, lengths = tokens_of(3, 11), np.array([4, 6, 2])  # a prompt of each length, then 5 tokens
  whole, _ = apply(model, params, tokens)
  prompts = np.where(np.arange(6) < lengths[:, None], tokens[:, :6], 0)
  logits, kv = apply(model, params, prompts)
  prompt = Past(kv, np.arange(6) < lengths[:, None], np.arange(6)[None])
  rows = np.arange(3)
  close(logits[rows, lengths - 1], whole[rows, lengths - 1], atol=1e-5)

  @jax.jit
  def decode(params, cache, token, position, slot):
    params = model.split(params)
    slots = jnp.arange(5)[None]
    past = prompt, Past(cache, slots < slot, lengths[:, None] + slots)
    hidden, fresh = model.apply(params, token[:, None], position[:, None], past=past)
    return model.logits(params, hidden)[:, 0], sample.write(cache, fresh, slot)

  cache = sample.grow(model.init_cache(3, 0), 5)
  for slot in range(5):
    at = lengths + slot
    logits, cache = decode(params, cache, tokens[rows, at], at, slot)
    close(logits, whole[rows, at], atol=1e-5)


@pytest.mark.parametrize('kind', KINDS.values(), ids=KINDS)
def test_scanned_layers_are_the_unrolled_ones(tiny, kind):
  (one, params), (other, same), tokens = tiny(True, **kind), tiny(False, **kind), tokens_of(2, 7)
  jax.tree.map(np.testing.assert_array_equal, params, same)
  logits, kv = apply(one, params, tokens)
  scanned, stacked = apply(other, params, tokens)
  close(logits, scanned, atol=1e-5)
  for layers, stacks in zip(kv, stacked):
    for one, other in zip(layers, (layer for stack in stacks for layer in stack), strict=True):
      close(one, other, atol=1e-5)


@pytest.mark.parametrize('fields, what', [
    (dict(K=3), 'K = 3 does not divide H = 4'),
    ({**DEEPSEEK, 'W': 8}, 'W = A . J'),
    ({**DEEPSEEK, 'qkv_bias': True}, 'no qkv_bias'),
    (dict(moe=MoE(E=4, I=8, top=5)), 'more experts'),
    (dict(moe=MoE(E=4, I=8, top=1, groups=3)), 'groups do not divide'),
    (dict(moe=MoE(E=4, I=8, top=1, dense=2)), 'no layer has experts'),
])
def test_models_that_there_are_not(tiny, fields, what):
  with pytest.raises(UserError, match=what):
    tiny(**fields)


def test_join_is_the_inverse_of_split(tiny):
  for unroll in (True, False):
    model, params = tiny(unroll)
    back = model.join(model.split(params))
    assert jax.tree.structure(back) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, back, params)


def test_recomputing_gives_the_same_gradients(tiny):
  tokens = tokens_of(2, 7)

  def gradient(remat):
    model, params = tiny(unroll=False, remat=remat)

    def total(params):
      params = model.split(params)
      hidden, _ = model.apply(params, tokens, jnp.arange(7)[None])
      return jax.nn.log_softmax(model.logits(params, hidden))[..., 3].sum()

    return jax.jit(jax.grad(total))(params)

  jax.tree.map(lambda a, b: close(a, b, rtol=1e-5, atol=1e-5), gradient(True), gradient(False))


@pytest.mark.parametrize('segments', [None, [1, 1, 1, 2, 2, 2, 2, 2]])
def test_nothing_looks_ahead_or_into_another_document(tiny, segments):
  """The gradient of position t's logits reaches the embeddings of exactly the tokens it may see."""
  model, params = tiny(tied=False)
  tokens = np.arange(8)[None]  # all different: token t's embedding is row t
  segments = None if segments is None else np.array([segments])

  @jax.jit
  def reach(params, t):

    def total(table):
      split = model.split({**params, 'embed': table})
      hidden, _ = model.apply(split, tokens, jnp.arange(8)[None], segments)
      return model.logits(split, hidden)[0, t].sum()

    return jnp.abs(jax.grad(total)(params['embed'])).max(axis=1)[:8] > 0

  for t in range(8):
    sees = np.arange(8) <= t
    if segments is not None:
      sees &= segments[0] == segments[0, t]
    np.testing.assert_array_equal(reach(params, t), sees)


@pytest.mark.parametrize('kind, unroll', [('plain', True), ('plain', False), ('gemma', True),
                                          ('deepseek', False)])  # yapf: disable
def test_a_shared_past_is_a_repeated_one(tiny, kind, unroll):
  model, params = tiny(unroll, **KINDS[kind])
  P, G, T, C = 2, 3, 5, 4
  _, kv = apply(model, params, tokens_of(P, T))
  mask, slots = np.arange(T) < np.array([3, 5])[:, None], np.arange(T)[None]
  completions = tokens_of(P * G, C, 1)
  shared, _ = apply(model, params, completions, start=T, past=(Past(kv, mask, slots),))
  axis = 0 if unroll else 1
  repeated = Past(jax.tree.map(lambda x: jnp.repeat(x, G, axis), kv), np.repeat(mask, G, 0), slots)
  close(shared, apply(model, params, completions, start=T, past=(repeated,))[0], atol=1e-5)


def test_a_latent_cache_holds_one_latent_and_one_key_a_position(tiny):
  model, _ = tiny(**DEEPSEEK)
  cache = model.init_cache(3, 5)
  assert cache.k[0].shape == (3, 1, 16 + 4, 5) and cache.v[0].size == 0


def test_half_precision_keeps_logits_and_statistics_in_float32(tiny):
  (full, params), (half, _), tokens = tiny(), tiny(dtype='bfloat16'), tokens_of(2, 7)
  logits, kv = apply(half, params, tokens)
  assert kv.k[0].dtype == half.init_cache(1, 4).v[0].dtype == jnp.bfloat16
  assert logits.dtype == jnp.float32
  want, _ = apply(full, params, tokens)
  assert 1e-4 < np.abs(logits - want).mean() / np.abs(want).mean() < 0.03
  assert np.abs(logits - np.asarray(logits.astype(jnp.bfloat16), np.float32)).max() > 0
