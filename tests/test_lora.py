"""LoRA by hand and against the plain model: exact, with a base that stays as it is."""
import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from r1jax import checkpoint, losses, model as model_lib, optim, packing, prompts, sharding
from r1jax.model import lora, scalar
from r1jax.sharding import Machine
from r1jax.stages import reward_model, sft
from r1jax.types import Document, Judged, UserError
from tests import experiment

close, same = np.testing.assert_allclose, np.testing.assert_array_equal
CFG = lora.LoRA(rank=3, alpha=6.0)
MACHINE = Machine(data=1, cpu_devices=1, unroll=True, remat=False)
DEEPSEEK = dict(L=3, H=4, K=4, W=12, mla=model_lib.MLA(Q=12, Z=8, A=8, J=4, O=6),
                moe=model_lib.MoE(E=4, I=6, top=2, M=6, dense=1))  # yapf: disable
KINDS = [dict(), dict(unroll=False, **DEEPSEEK)]


def adapted(model, params, cfg=CFG):
  """(learner, its parameters): adapters of which nothing is zero."""
  learner = lora.make(model, cfg)
  shapes = jax.eval_shape(learner.init, jax.random.key(0))['adapters']
  rng = np.random.default_rng(1)
  adapters = jax.tree.map(lambda x: jnp.float32(rng.normal(0, 0.2, x.shape)), shapes)
  return learner, {'base': params, 'adapters': adapters}


def tokens_of(B, T):
  return np.random.default_rng(0).integers(0, 37, (B, T)).astype(np.int32)


def logits(model, params, tokens):

  @jax.jit
  def run(params):
    params = model.split(params)
    hidden, _ = model.apply(params, tokens, jnp.arange(tokens.shape[1])[None])
    return model.logits(params, hidden)

  return run(params)


def leaf(tree, path):
  for key in path:
    tree = tree[key.key]
  return tree


# -- the maths -------------------------------------------------------------------------------------


def test_a_merged_weight_by_hand():
  base = {'o': jnp.float32([[1, 2, 3], [4, 5, 6]]), 'norm': jnp.ones(3)}
  pair = {'a': jnp.float32([[1], [-2]]), 'b': jnp.float32([[10, 0, 1]])}
  params = {'base': base, 'adapters': {'o': pair, 'norm': {}}, 'score_head': jnp.ones(2)}
  got = lora.merge(lora.LoRA(rank=1, alpha=0.5), params)
  close(got['o'], [[6, 2, 3.5], [-6, 5, 5]])
  assert got['norm'] is base['norm'] and got['score_head'] is params['score_head']
  assert lora.merge(lora.LoRA(rank=0), base) is base


@pytest.mark.parametrize('letters, inputs, outputs', [
    ('LDKNW', 'D', 'KNW'),
    ('LKRWD', 'KRW', 'D'),
    ('LDUF', 'D', 'UF'),
    ('LFD', 'F', 'D'),
    ('LDQ', 'D', 'Q'),
    ('LQHW', 'Q', 'HW'),
    ('LZHY', 'Z', 'HY'),
    ('LHOD', 'HO', 'D'),
    ('LDE', 'D', 'E'),
    ('LEDUI', 'D', 'UI'),
    ('LEID', 'I', 'D'),
    ('VD', 'V', 'D'),
])
def test_which_letters_are_inputs(letters, inputs, outputs):
  i, j = lora.cut(letters)
  assert (letters[i:j], letters[j:]) == (inputs, outputs)


@pytest.mark.parametrize('kind', KINDS, ids=lambda kind: 'deepseek' if 'mla' in kind else str(kind))
def test_adapters_apart_are_adapters_merged(tiny, kind):
  model, params = tiny(**kind)
  learner, whole = adapted(model, params)
  merged, tokens = lora.merge(CFG, whole), tokens_of(2, 7)
  close(logits(learner, whole, tokens), logits(model, merged, tokens), atol=2e-5)
  for path, w in jax.tree.leaves_with_path(params):
    pair, letters, got = (leaf(x, path) for x in (whole['adapters'], model.axes(), merged))
    if not pair:
      same(got, w)
      continue
    i, j = lora.cut(letters)
    flat = lambda x, at: np.float64(x).reshape(*x.shape[:i], -1, np.prod(x.shape[at:], dtype=int))
    want = flat(w, j) + 2 * flat(pair['a'], j) @ flat(pair['b'], i + 1)
    close(got, want.reshape(w.shape), atol=1e-5)


def test_what_learns_and_where_it_lies(tiny):
  model, params = tiny(unroll=False, **DEEPSEEK)
  chosen = lambda cfg: {
      path[-2].key
      for path, _ in jax.tree.leaves_with_path(lora.make(model, cfg).axes()['adapters'])
  }
  assert chosen(CFG) == {
      'q_down', 'q_up', 'kv_down', 'kv_up', 'o', 'gate_up', 'down', 'experts_gate', 'experts_up',
      'experts_down', 'shared_gate_up', 'shared_down'
  }
  assert chosen(lora.LoRA(rank=1, targets=('o', 'router', 'embed'))) == {'o', 'router', 'embed'}
  assert chosen(lora.LoRA(rank=1, targets=('F',))) == {'gate_up', 'down'}
  experts = {'experts_gate', 'experts_up', 'experts_down'}
  assert chosen(lora.LoRA(rank=1, targets=('IE', 'o'))) == experts | {'o'}
  assert chosen(lora.LoRA(rank=1, targets=('V',))) == {'embed'}
  axes = lora.make(model, CFG).axes()['adapters']['layers']
  assert axes['experts_up'] == {'a': 'LEDr', 'b': 'LErI'}
  assert axes['o'] == {'a': 'LHOr', 'b': 'LrD'} and axes['router'] == {}
  with pytest.raises(UserError, match="has 'qkv', and the model's matrices are .*down, embed"):
    chosen(lora.LoRA(rank=1, targets=('o', 'qkv')))
  with pytest.raises(UserError, match="has 'FH', .*or their axis letters"):
    chosen(lora.LoRA(rank=1, targets=('FH',)))
  with pytest.raises(UserError, match='rank is -1'):
    lora.LoRA(rank=-1)


def test_fresh_adapters_change_nothing(tiny):
  model, params = tiny()
  mesh = sharding.make_mesh(MACHINE)
  learner, whole = lora.adapt(CFG, model, params, 0, mesh)
  jax.tree.map(same, lora.merge(CFG, whole), params)
  tokens = tokens_of(2, 7)
  want = logits(model, params, tokens)
  same(logits(learner, whole, tokens), want)
  a = np.asarray(whole['adapters']['layers']['o']['a'])
  close(a.std(), 32**-0.5, rtol=0.15)  # KRW = 32 inputs
  assert not np.array_equal(a[0], a[1])


def test_what_reads_is_random_of_the_embedding_and_of_the_head(tiny):
  """An embedding reads one of V = 38 rows, and a head D = 32 numbers, though both are 'VD'."""
  model, params = tiny(tied=False)
  cfg = lora.LoRA(rank=64, targets=('embed', 'head'))
  adapters = lora.adapt(cfg, model, params, 0, sharding.make_mesh(MACHINE))[1]['adapters']
  embed, head = adapters['embed'], adapters['head']
  assert embed['a'].shape == head['a'].shape == (38, 64)
  close(embed['a'].std(), 1, rtol=0.1)
  close(head['b'].std(), 32**-0.5, rtol=0.1)
  assert not embed['b'].any() and not head['a'].any()


def test_a_bfloat16_base_stays_so(tiny, tmp_path):
  model, params = tiny(V=275)
  half = jax.tree.map(lambda x: x.astype('bfloat16'), params)
  learner, whole = adapted(model, half)
  merged = jax.jit(lambda params: lora.merge(CFG, params))(whole)
  assert {x.dtype.name for x in jax.tree.leaves(merged)} == {'bfloat16'}
  _, wide = adapted(model, jax.tree.map(jnp.float32, half))
  jax.tree.map(lambda x, y: same(x, y.astype('bfloat16')), merged, lora.merge(CFG, wide))
  tokens = tokens_of(2, 7)
  close(logits(learner, whole, tokens), logits(model, merged, tokens), atol=2e-5)  # one model

  checkpoint.save_model(tmp_path, model, merged, experiment.train_tokenizer(['1+1'], 265))
  mesh = sharding.make_mesh(MACHINE)
  for dtype in ('bfloat16', 'float32'):
    machine = dataclasses.replace(MACHINE, param_dtype=dtype)
    got = checkpoint.load_model(tmp_path, machine, mesh)[1]
    jax.tree.map(lambda x, y: same(x, y.astype(dtype), strict=True), got, merged)


# -- updates ---------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def update(tiny):
  """Mesh axes, micro-batch -> a supervised update of 1 against the gradient: before and after."""
  model, params = tiny(unroll=False)
  learner, whole = adapted(model, params)
  whole = jax.device_get(whole)
  rng = np.random.default_rng(0)
  documents = [(rng.integers(0, 37, n).tolist(), 1) for n in rng.integers(2, 12, 20)]
  rows = packing.pack(documents, 12)

  def run(micro, model=learner, params=whole, **axes):
    mesh = sharding.make_mesh(Machine(**axes))
    loss = lambda params, part: losses.cross_entropy(model, params, part)
    step = optim.make_update(loss, model, optax.sgd(1.0), mesh, micro)
    there = jax.device_put(params, sharding.shardings(model.axes(), params, mesh))
    batch = sft.make_batch(rows, range(7), micro, mesh)
    return jax.device_get(step(optim.init(optax.sgd(1.0), there), batch)[0].params)

  return model, run, whole


def test_gradients_are_those_of_the_chain_rule(update):
  """dA = s dW B^T and dB = s A^T dW, float64, with dW of the plain model at the merged weights."""
  model, run, whole = update
  merged = jax.device_get(lora.merge(CFG, whole))
  grads = jax.tree.map(np.subtract, merged, run(7, model, merged, data=1))
  got = jax.tree.map(np.subtract, whole['adapters'], run(7, data=1)['adapters'])
  count = 0
  for path, grad in jax.tree.leaves_with_path(grads):
    pair = leaf(whole['adapters'], path)
    if not pair:
      continue
    i, j = lora.cut(leaf(model.axes(), path))
    flat = lambda x, at: np.float64(x).reshape(*x.shape[:i], -1, np.prod(x.shape[at:], dtype=int))
    dw, a, b = flat(grad, j), flat(pair['a'], j), flat(pair['b'], i + 1)
    close(flat(leaf(got, path)['a'], j), 2 * dw @ b.swapaxes(-1, -2), atol=2e-6)
    close(flat(leaf(got, path)['b'], i + 1), 2 * a.swapaxes(-1, -2) @ dw, atol=2e-6)
    assert np.abs(dw).max() > 1e-3
    count += 1
  assert count == 4


def test_an_update_does_not_change_with_the_mesh_and_leaves_the_base(update):
  _, run, whole = update
  want, got = run(7, data=1), run(2, data=2, fsdp=2, tensor=2)
  jax.tree.map(same, got['base'], whole['base'])
  jax.tree.map(lambda a, b: close(a, b, atol=1e-5, rtol=1e-5), got['adapters'], want['adapters'])


def test_moments_and_reference_are_those_of_the_adapters(tiny):
  model, params = tiny()
  mesh = sharding.make_mesh(MACHINE)
  learner, whole = lora.adapt(CFG, model, params, 0, mesh)
  tx = optim.chain(optim.Optimizer(), 1)
  count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
  # A layer's qkv 32 x 64, o 32 x 32, gate_up 32 x 48, down 24 x 32: sums of the sides, times rank.
  learnt = 2 * 3 * (96 + 64 + 80 + 56)
  state = optim.init(tx, whole, optim.copy(whole, learner, 'bfloat16'))
  assert count(whole['adapters']) == count(state.reference) == learnt
  assert count(state.opt) == 2 * learnt + 2  # and two counters
  assert optim.reference(state)['base'] is state.params['base']


def test_layers_for_further_tokens_do_not_learn(tiny, tmp_path):
  """They have no moments and no place in saved states, and the model keeps them."""
  model, params = tiny(unroll=False, mtp=1)
  mesh = sharding.make_mesh(MACHINE)
  tx = optim.chain(optim.Optimizer(lr=0.1, weight_decay=0.1), 1)
  batch = sft.make_batch(packing.pack([([1, 2, 3, 4], 1)], 12), range(1), 1, mesh)
  loss = lambda params, part: losses.cross_entropy(model, params, part)
  there = jax.device_put(params, sharding.shardings(model.axes(), params, mesh))
  copied = lambda: optim.copy(there, model, 'float32')
  fresh = lambda: optim.init(tx, jax.tree.map(jnp.copy, there), copied())
  state = optim.make_update(loss, model, tx, mesh, 1)(fresh(), batch)[0]
  jax.tree.map(same, state.params['mtp'], params['mtp'])
  assert np.abs(state.params['embed'] - params['embed']).max() > 0.05
  assert 'mtp' not in state.reference
  count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
  assert count(state.opt) == 2 * (count(params) - count(params['mtp'])) + 2

  states = checkpoint.States(tmp_path)
  states.save(1, state)
  states.close()
  again = checkpoint.States(tmp_path)
  got = again.restore(1, fresh())
  again.close()
  jax.tree.map(same, got, state)
  assert not list((tmp_path / 'state/1/params').glob('mtp*'))


# -- stages ----------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def stages(tmp_path_factory):
  """The folder of a base model, and of SFT and RL from it with adapters."""
  base, zero = experiment.experiment()
  folder = tmp_path_factory.mktemp('lora')
  init = str(folder / 'base')
  base.run(dataclasses.replace(base.config, evaluation=None, steps=40, save_every=40), init)
  more = dict(init=init, lora=CFG, optimizer=optim.Optimizer(lr=1e-2))
  one_answer = lambda: [Document(p.prompt, '<answer>7</answer>') for p in experiment.sums('train')]
  taught = dataclasses.replace(base.config, evaluation=None, scratch=None, tokenizer=None, steps=12,
                               documents=one_answer, **more)
  runs = {'sft': (base.run, taught), 'rl': (zero.run, dataclasses.replace(zero.config, **more))}
  for name, (run, cfg) in runs.items():
    run(cfg, str(folder / name))
  return folder, runs


def rows(folder):
  lines = (folder / 'metrics.jsonl').read_text().splitlines()
  return [row for row in map(json.loads, lines) if 'loss' in row]


def test_adapters_learn(stages):
  folder, _ = stages
  learnt = [row['loss'] for row in rows(folder / 'sft')]
  assert np.mean(learnt[-2:]) < np.mean(learnt[:2]) - 0.5, learnt
  kl = [row['kl'] for row in rows(folder / 'rl')]
  assert kl[0] == 0 and kl[3] > 1e-5 and kl[4] == 0  # the base, and at 4 the policy, refreshed


@pytest.mark.parametrize('name', ['sft', 'rl'])
def test_a_run_that_lost_its_last_state_ends_with_the_same_bytes(stages, name):
  folder, runs = stages
  run, cfg = runs[name]
  again = folder / f'{name}_again'
  shutil.copytree(folder / name, again)
  shutil.rmtree(again / 'params')
  shutil.rmtree(again / 'state' / str(cfg.steps))
  run(cfg, str(again))
  assert checkpoint.fingerprint(again) == checkpoint.fingerprint(folder / name)
  for file in (folder / name).glob('*.jsonl'):
    if file.name != 'speed.jsonl':
      assert (again / file.name).read_bytes() == file.read_bytes(), file.name


@pytest.mark.parametrize('name', ['sft', 'rl'])
def test_out_is_a_plain_model_and_state_is_adapters_alone(stages, name, tmp_path):
  folder, runs = stages
  mesh = sharding.make_mesh(MACHINE)
  model, base, tokenizer = checkpoint.load_model(folder / 'base', MACHINE, mesh)
  _, params, _ = checkpoint.load_model(folder / name, MACHINE, mesh)
  changed = jax.tree.map(lambda a, b: bool((a != b).any()), params, base)
  layers = changed.pop('layers')
  assert {k for k, x in layers.items() if x} == {'qkv', 'o', 'gate_up', 'down'}
  assert not any(changed.values())
  checkpoint.export(tmp_path, model, params, tokenizer)
  jax.tree.map(same, checkpoint.load_model(tmp_path, MACHINE, mesh)[1], params)

  learner = lora.make(model, CFG)
  shapes = lora.learnt(jax.eval_shape(learner.init, jax.random.key(0)))
  where = sharding.shardings(lora.learnt(learner.axes()), shapes, mesh)
  state = folder / name / 'state' / str(runs[name][1].steps)
  saved = checkpoint.load_params(state / 'params', shapes, where)
  jax.tree.map(same, lora.merge(CFG, {'base': base, **saved}), params)


def test_a_reward_model_learns_its_head_beside_the_adapters(stages):
  folder, _ = stages
  judged = lambda: [Judged(f'{a}+{b}=', ('good', 'bad')) for a in range(5) for b in range(5)]
  cfg = reward_model.Config(str(folder / 'base'), judged, prompts.whole, batch=4, epochs=2,
                            max_tokens=64, lora=CFG, optimizer=optim.Optimizer(lr=1e-2),
                            machine=experiment.MACHINE)
  assert reward_model.run(cfg, str(folder / 'judge'))['accuracy'] == 1
  mesh = sharding.make_mesh(MACHINE)
  _, params, _ = checkpoint.load_model(folder / 'judge', MACHINE, mesh, wrap=scalar.make)
  _, base, _ = checkpoint.load_model(folder / 'base', MACHINE, mesh)
  assert np.abs(params['score_head']).max() > 0
  assert np.abs(params['layers']['o'] - base['layers']['o']).max() > 1e-3
