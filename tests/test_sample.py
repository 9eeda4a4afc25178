"""Sampling: the tokens, their log-probabilities and where they end; the same whatever the batch."""
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax import losses, rollout, sample, sharding
from r1jax.model import MoE
from r1jax.sample import Sampling
from r1jax.sharding import Machine
from r1jax.types import Problem, UserError

close, same = np.testing.assert_allclose, np.testing.assert_array_equal
P, G, T, C = 4, 4, 6, 40
EOS = {0, 7}  # a set, and the one is also what padding is made of
NUMBERS, LENGTHS = np.arange(P, dtype=np.int32), np.array([3, 6, 1, 4], np.int32)
PROMPTS = np.where(
    np.arange(T) < LENGTHS[:, None],
    np.random.default_rng(0).integers(0, 37, (P, T)), 0).astype(np.int32)


def draw(model, params, cfg, eos=EOS, data=1, tensor=1, pieces=1, rows=NUMBERS, prompts=PROMPTS,
         lengths=LENGTHS):
  """tokens_PGC, lengths_PG, finished_PG, logp_PGC."""
  mesh = sharding.make_mesh(Machine(data=data, tensor=tensor))
  params = jax.device_put(params, sharding.shardings(model.axes(), params, mesh))
  sampler = sample.make_sampler(model, cfg, eos, G, mesh, pieces)
  args = sharding.put_rows((rows, prompts, lengths), mesh)
  return jax.device_get(sampler(params, jax.random.key(5), *args))


@pytest.fixture(scope='module')
def drawn(tiny):
  return draw(*tiny(), Sampling(C, temperature=0.8))


def teacher_forced(model, params, tokens, temperature):
  run = lambda p: losses.completion_logp(model, model.split(p), PROMPTS, LENGTHS, tokens,
                                         temperature)
  return np.asarray(jax.jit(run)(params))


def test_completions_end_with_an_eos_and_zeros_follow(drawn):
  tokens, lengths, finished, logp = drawn
  assert tokens.shape == logp.shape == (P, G, C) and lengths.shape == finished.shape == (P, G)
  last = set()
  for row, n, done, lp in zip(tokens.reshape(-1, C), lengths.ravel(), finished.ravel(),
                              logp.reshape(-1, C)):
    ends = np.flatnonzero(np.isin(row, sorted(EOS)))
    if done:
      assert ends[0] == n - 1  # the first EOS is kept and counted, an EOS of id 0 too
      last.add(int(row[n - 1]))
    else:
      assert n == C and not len(ends)
    assert not row[n:].any() and not lp[n:].any() and (lp[:n] < 0).all()
  assert last == EOS and 0 < finished.mean() < 1 and len(set(lengths.ravel())) > 5


@pytest.mark.parametrize('sample_rows, rows', [(64, 1), (8, 2), (3, 3)])
def test_a_group_may_be_spread_over_rows(tiny, drawn, sample_rows, rows):
  """5 samples of each problem, however many a call has, are those of one call and one device."""
  model, params = tiny()
  mesh = sharding.make_mesh(Machine(data=2))
  tokenizer = SimpleNamespace(eos_ids=EOS, decode=lambda ids: ' '.join(map(str, ids)),
                              encode=lambda text: list(map(int, text.split())))
  sampler = rollout.make_sampler(model, tokenizer, Sampling(C, temperature=0.8), 5, T,
                                 Machine(sample_rows=sample_rows, pieces=1), mesh, P)
  assert len(sampler.firsts) == rows
  problems = [Problem(' '.join(map(str, row[:n])), '') for row, n in zip(PROMPTS, LENGTHS)]
  params = jax.device_put(params, sharding.replicated(mesh))
  calls = rollout.dispatch(sampler, params, jax.random.key(5), NUMBERS, problems)
  graded = rollout.collect(sampler, calls, ())
  assert graded.problems == problems and [len(row) for row in graded.completions] == [5] * P
  same(graded.rollout.tokens_PGC[:, :G], drawn[0])
  same(graded.rollout.lengths_PG[:, :G], drawn[1])
  close(graded.rollout.logp_PGC[:, :G], drawn[3], atol=1e-5)
  assert (graded.rollout.tokens_PGC[:, 4] != graded.rollout.tokens_PGC[:, 0]).any()


def test_log_probabilities_are_those_of_training(tiny, drawn):
  tokens, lengths, _, logp = drawn
  want = teacher_forced(*tiny(), tokens, 0.8)
  mask = np.arange(C) < lengths[..., None]
  close(logp[mask], want[mask], atol=1e-5)


def test_a_problem_draws_the_same_in_any_batch(tiny, drawn):
  order, numbers = np.array([2, 0, 1, 0]), np.array([2, 0, 77, 5], np.int32)
  tokens, lengths, _, logp = draw(*tiny(), Sampling(C, temperature=0.8), rows=numbers,
                                  prompts=PROMPTS[order], lengths=LENGTHS[order])
  for here, there in ((0, 2), (1, 0)):
    same(tokens[here], drawn[0][there])
    same(lengths[here], drawn[1][there])
    close(logp[here], drawn[3][there], atol=1e-5)
  assert (tokens[2] != drawn[0][1]).any()  # the same prompt as another problem,
  assert (tokens[3] != tokens[1]).any()  # and twice in a batch, as two problems
  assert len({row.tobytes() for row in drawn[0][0]}) == G  # and the completions of one differ


@pytest.mark.parametrize('how', [dict(pieces=3), dict(data=4)], ids=str)
def test_pieces_and_devices_change_no_token(tiny, drawn, how):
  tokens, lengths, finished, logp = draw(*tiny(), Sampling(C, temperature=0.8), **how)
  for a, b in zip((tokens, lengths, finished), drawn):
    same(a, b)
  close(logp, drawn[3], atol=1e-5)


@pytest.mark.parametrize('fields', [{}, dict(moe=MoE(E=4, I=8, top=2))], ids=['plain', 'experts'])
def test_copies_cut_over_devices_need_not_end_together(tiny, fields):
  """A copy whose loop has ended must not be waited for inside another's."""
  model, params = tiny(**fields)
  want = draw(model, params, Sampling(C, temperature=0.8))
  got = draw(model, params, Sampling(C, temperature=0.8), data=4, tensor=2)
  assert len(set(want[1].max(axis=1))) > 1  # they do not
  for a, b in zip(got[:3], want[:3]):
    same(a, b)
  close(got[3], want[3], atol=1e-5)


@pytest.mark.parametrize('fields, trained, sampled', [
    ({}, dict(fsdp=4, tensor=2), dict(data=2, tensor=4)),
    ({}, dict(fsdp=2, context=2, tensor=2), dict(data=8)),
    (dict(moe=MoE(E=4, I=8, top=2)), dict(fsdp=2, expert=4), dict(data=2, expert=2, tensor=2)),
], ids=['wider', 'copies', 'experts'])  # yapf: disable
def test_sampling_has_a_layout_of_its_own(tiny, fields, trained, sampled):
  """The parameters as training has them, laid out anew, draw what one device draws."""
  model, params = tiny(V=40, H=8, K=4, W=4, **fields)
  want = draw(model, params, Sampling(C, temperature=0.8))
  machine = Machine(sample_tensor=sampled.get('tensor', 1), sample_expert=sampled.get('expert', 1),
                    **trained)  # yapf: disable
  mesh = sharding.make_mesh(machine)
  params = jax.device_put(params, sharding.shardings(model.axes(), params, mesh))
  copy, there = sample.make_copy(model, machine, mesh)
  assert {axis: n for axis, n in there.shape.items() if n > 1} == sampled
  sampler = sample.make_sampler(model, Sampling(C, temperature=0.8), EOS, G, there)
  args = sharding.put_rows(sharding.pad_rows((NUMBERS, PROMPTS, LENGTHS), 8), there)
  got = sharding.fetch(sampler(copy(params), jax.random.key(5), *args))
  for a, b in zip(got[:3], want[:3]):
    same(a[:P], b)
  close(got[3][:P], want[3], atol=1e-5)


def test_greedy_takes_the_likeliest_token_of_the_whole_pass(tiny):
  model, params = tiny()
  tokens, lengths, _, logp = draw(model, params, Sampling(8, temperature=0), eos={7})
  same(tokens, np.repeat(tokens[:, :1], G, axis=1))
  assert np.isfinite(logp).all()
  want = teacher_forced(model, params, tokens, 1.0)
  mask = np.arange(8) < lengths[..., None]
  close(logp[mask], want[mask], atol=1e-5)

  whole = np.zeros((P, T + 8), np.int32)
  for p, n in enumerate(LENGTHS):
    whole[p, :n], whole[p, n:n + 8] = PROMPTS[p, :n], tokens[p, 0]
  split = model.split(params)
  hidden = jax.jit(lambda x: model.apply(split, x, jnp.arange(T + 8)[None])[0])(whole)
  best = np.argmax(model.logits(params, hidden), axis=-1)
  for p, n in enumerate(LENGTHS):
    m = lengths[p, 0]
    same(tokens[p, 0, :m], best[p, n - 1:n - 1 + m])


def test_the_loop_ends_with_the_last_row(tiny, monkeypatch):
  """Forward passes are counted as they run: with an EOS that is certain, possible, impossible."""
  model, params = tiny()
  counted = []

  def logits(params, hidden):
    jax.debug.callback(lambda: counted.append(1))
    return model.logits(params, hidden).at[..., jnp.array(sorted(EOS))].add(params['wish'])

  # Under shard_map over some of a mesh's axes there are no callbacks.
  monkeypatch.setattr(sharding, 'over_rows', lambda f, *_: f)
  mesh = sharding.make_mesh(Machine(data=1))
  sampler = sample.make_sampler(model._replace(logits=logits), Sampling(C), EOS, G, mesh, pieces=3)
  for wish, steps in (1e9, [1]), (3.0, range(2, C)), (-1e9, [C]):
    counted.clear()
    out = sampler({**params, 'wish': wish}, jax.random.key(5), NUMBERS, PROMPTS, LENGTHS)
    longest = int(out[1].max())
    jax.effects_barrier()
    assert len(counted) == longest and longest in steps


# -- one draw --------------------------------------------------------------------------------------


def test_categorical_draws_from_the_softmax():
  """Pearson's statistic over 30,000 rows; a token of -inf is never drawn."""
  n, V = 30_000, 23
  rng = np.random.default_rng(1)
  logits = rng.normal(0, 1.5, V).astype(np.float32)
  logits[[0, 4, 9, 22, *range(16, 20)]] = -np.inf  # both ends too, and much in a row
  draws = jax.jit(sample.categorical)(np.float32(rng.random((n, 2))),
                                      np.broadcast_to(logits, (n, V)))
  count = np.bincount(draws, minlength=V)
  assert count.shape == (V,) and not count[np.isinf(logits)].any()
  weight = np.exp(logits.astype(np.float64))
  expected = (n * weight / weight.sum())[weight > 0]
  statistic = ((count[weight > 0] - expected)**2 / expected).sum()
  assert statistic < 36.1  # 14 degrees of freedom: one seed in a thousand is above


@pytest.mark.parametrize('V', [1, 2, 23, 1000])
def test_categorical_at_the_edges(V):
  """With the lowest and the highest of uniform numbers, no token of weight 0 is drawn."""
  u = np.array([[a, b] for a in (0, 1 - 2**-24) for b in (0, 0.5, 1 - 2**-24)], np.float32)
  alone = np.full((3, 6, V), -np.inf, np.float32)
  for i, token in enumerate((0, V // 2, V - 1)):
    alone[i, :, token] = -80.0  # and unlikely in itself
    assert (jax.jit(sample.categorical)(u, alone[i]) == token).all()
  flat = np.asarray(jax.jit(sample.categorical)(u, np.zeros((6, V), np.float32)))
  assert flat[0] == 0 and flat[-1] == V - 1


def test_uniform_numbers_are_of_the_row_and_the_step_alone():
  """In whatever pieces they are drawn; and they are what `fold_in` of each gives."""
  keys = jax.random.split(jax.random.key(0), 3)
  whole = sample.uniforms(keys, 0, 6)
  same(np.concatenate([sample.uniforms(keys, 0, 2), sample.uniforms(keys, 2, 6)]), whole)
  same(sample.uniforms(keys[1:2], 4, 5)[0, 0], whole[4, 1])
  assert whole.shape == (6, 3, 2) and len(np.unique(whole)) == whole.size


LOGITS = np.log(np.array([[0.1, 0.5, 0.15, 0.25]], np.float32))


@pytest.mark.parametrize('top_k, top_p, kept', [
    (0, 1.0, [0, 1, 2, 3]), (1, 1.0, [1]), (2, 1.0, [1, 3]), (4, 1.0, [0, 1, 2, 3]),
    (9, 1.0, [0, 1, 2, 3]), (0, 0.4, [1]), (0, 0.6, [1, 3]), (0, 0.8, [1, 2, 3]),
    (0, 0.95, [0, 1, 2, 3]), (0, 1e-9, [1]),
    (2, 0.6, [1]),  # of the two likeliest, the first has two thirds
])  # yapf: disable
def test_the_likeliest_are_kept(top_k, top_p, kept):
  got = np.asarray(sample.keep_likeliest(jnp.asarray(LOGITS), top_k, top_p))
  assert np.flatnonzero(np.isfinite(got[0])).tolist() == kept
  same(got[0, kept], LOGITS[0, kept])


def test_ties_with_the_last_one_are_kept():
  logits = jnp.array([[1.0, 2.0, 1.0, 0.0]])
  assert np.isfinite(sample.keep_likeliest(logits, top_k=2)).tolist() == [[True, True, True, False]]


def test_log_probabilities_are_of_the_whole_distribution():
  """Of softmax(logits / temperature), whatever was cut off before the draw."""
  token, logp = sample.choose(Sampling(temperature=0.5, top_k=1), jnp.array([[0.9, 0.9]]),
                              jnp.asarray(LOGITS))
  same(token, [1])
  close(logp, np.log([0.25 / (0.01 + 0.25 + 0.0225 + 0.0625)]), rtol=1e-5)


def test_pieces_of_the_cache():
  assert sample.piece_ends(40, 1) == [40]
  assert sample.piece_ends(40, 3) == [32, 40]
  assert sample.piece_ends(1024, 4) == [256, 512, 768, 1024]
  assert sample.piece_ends(100, 2) == [64, 100]
  assert sample.piece_ends(5, 4) == [5]


@pytest.mark.parametrize(
    'bad',
    [dict(max_tokens=0),
     dict(temperature=-1),
     dict(top_p=0),
     dict(top_p=1.1),
     dict(top_k=-1)])
def test_settings_without_sense_are_refused(bad):
  with pytest.raises(UserError, match='makes no sense'):
    Sampling(**bad)
