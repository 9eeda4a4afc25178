"""Planning: what compiled programs say, counts by hand and as published, and the command."""
import dataclasses
import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import pytest

from r1jax import main, model as model_lib, sample, sharding
from r1jax.model import presets
from r1jax.plan import flops, hlo, plan, steps, topology
from r1jax.plan.topology import GIB
from r1jax.stages import generate
from r1jax.types import Stage, UserError

ROOT = Path(__file__).parents[1]
libtpu = pytest.mark.skipif(not importlib.util.find_spec('libtpu'), reason='needs libtpu')
MESH = SimpleNamespace(size=8, shape=dict(data=2, fsdp=1, tensor=4))  # device 4 d + t

# -- what a program says ---------------------------------------------------------------------------


@pytest.mark.parametrize('said, axes', [
    ('replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}', ('tensor',)),
    ('replica_groups=[4,2]<=[2,4]T(1,0), dimensions={0}', ('data',)),
    ('replica_groups=[2,4]<=[8], dimensions={0}', ('tensor',)),
    ('replica_groups={}, channel_id=1', ('data', 'tensor')),
    ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0'}, x=1", ('data',)),
    ("replica_groups=mesh['a'=2,'b'=4] {'b':(2)2}, x=1", ('tensor',)),
    ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}", ('tensor',)),
    ('source_target_pairs={{0,4},{4,0},{1,5},{5,1}}', ('data',)),
    ('source_target_pairs={{0,1},{1,2},{2,3},{3,0}}, channel_id=1', ('tensor',)),
])  # yapf: disable
def test_who_takes_part(said, axes):
  text = f'ENTRY %main (x: f32[8]) -> f32[8] {{\n  %y = f32[8]{{0}} all-reduce(%x), {said}\n}}'
  found, = hlo.collectives(text.replace('all-reduce', 'collective-permute')
                           if 'pairs' in said else text, MESH)  # yapf: disable
  assert found.axes == axes


PROGRAM = '''
%body (p: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %g = bf16[16,8]{1,0:T(8,128)(2,1)} all-gather(%x), replica_groups=[2,4]<=[8], dimensions={0}
  %f = bf16[4,8]{1,0} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.1
}
%cond (p: (s32[], bf16[4,8])) -> pred[] {
  %n = s32[]{:T(128)} constant(7), metadata={op_name="x"}
  %p = (s32[], bf16[4,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}
%all-reduce-scatter.1 (p: bf16[16,8]) -> bf16[4,8] {
  %r = bf16[16,8]{1,0} all-reduce(%p), replica_groups=[2,4]<=[8]
}
%until (p: (s32[], bf16[4,8])) -> pred[] {
  %n = s32[] constant(9)
  %p = (s32[], bf16[4,8]{1,0}) parameter(0)
  %lt = pred[] compare(%i, %n), direction=LT
  ROOT %and = pred[] and(%lt, %more)
}
%token (p: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %a = (f32[64]{0}, f32[64]{0}) all-reduce-start(%x, %y), replica_groups=[4,2]<=[2,4]T(1,0)
  %b = (f32[64]{0}, f32[64]{0}) all-reduce-done(%a)
  %c = bf16[4,8]{1,0} copy(%z)
}
ENTRY %main (x: bf16[4,8]) -> bf16[4,8] {
  %s = (f32[2]{0}, f32[8]{0}, u32[]) all-gather-start(%x), replica_groups=[2,4]<=[8]
  %w = (s32[], bf16[4,8]{1,0}) while(%t), condition=%cond, body=%body
  %v = (s32[], bf16[4,8]{1,0}) while(%t), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"2"}}
  %u = (s32[], bf16[4,8]{1,0}) while(%t), condition=%until, body=%token
}
'''  # noqa: E501


def test_collectives_are_counted_with_their_bytes():
  """Loops of 7 and 2 turns: 9 gathers of 256 bytes, of which each of 4 devices sends 3 / 4; as many
  scatters. One gather more of 32 bytes. A turn reduces 512 bytes between 2, each sends as much."""
  found = {(x.kind, x.per_turn): x for x in hlo.collectives(PROGRAM, MESH)}
  assert found == {
      ('all-gather', False): ('all-gather', ('tensor',), False, 10, 9 * 192 + 24),
      ('reduce-scatter', False): ('reduce-scatter', ('tensor',), False, 9, 9 * 192),
      ('all-reduce', True): ('all-reduce', ('data',), True, 1, 512),
  }
  assert hlo.copies(PROGRAM, 64) == ['c bf16[4,8]{1,0}'] and not hlo.copies(PROGRAM, 65)


def test_a_real_program_is_read():
  mesh = jax.make_mesh((2, 4), ('data', 'tensor'), axis_types=(jax.sharding.AxisType.Auto,) * 2)

  def turn(x, _):
    return jax.lax.psum(x, 'tensor') + jax.lax.ppermute(x, 'data', [(0, 1), (1, 0)]), None

  f = jax.shard_map(lambda x: jax.lax.scan(turn, x, None, length=5)[0], mesh=mesh,
                    in_specs=P('data', 'tensor'), out_specs=P('data', 'tensor'), check_vma=False)
  text = jax.jit(f).lower(jnp.ones((8, 16))).compile().as_text()
  assert hlo.collectives(text, mesh) == [
      ('all-reduce', ('tensor',), False, 5, 5 * 2 * 64 * 3 / 4),
      ('collective-permute', ('data',), False, 5, 5 * 64),
  ]


# -- counts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize('start, end, window', [(0, 7, 0), (3, 7, 0), (0, 7, 3), (2, 9, 4),
                                                (5, 9, 4), (0, 3, 4)])
def test_pairs(start, end, window):
  seen = [min(i + 1, window or end) for i in range(start, end)]
  assert flops.pairs(start, end, window) == sum(seen)


# Qwen2.5's technical report (2412.15115) and its models' pages: parameters without embeddings;
# DeepSeek-V3 (2412.19437): 37B activated for a token, its head among them.
@pytest.mark.parametrize('cfg, billions, ends', [
    (presets.QWEN_2_5_0_5B, 0.36, 0), (presets.QWEN_2_5_1_5B, 1.31, 0),
    (presets.QWEN_2_5_7B, 6.53, 0), (presets.QWEN_2_5_32B, 31.0, 0),
    (presets.DEEPSEEK_V3, 37, 1)])  # yapf: disable
def test_matrices_are_as_many_as_published(cfg, billions, ends):
  counted = flops.count(model_lib.make(cfg))
  total = counted.matrices + ends * cfg.D * cfg.V
  assert float(f'{total / 1e9:.{2 if billions < 10 else 0}f}') == billions


def test_flops_by_hand():
  """One layer, D = 3, H = 2 of W = 4, K = 1, F = 5, V = 7: q, k, v 3 x 16, out 8 x 3, ffn 3 x 15,
  head 21; two rows of positions 2, 3, 4 see 3 + 4 + 5, with 2 heads x 2 products of 4."""
  cfg = model_lib.Config(V=7, L=1, D=3, H=2, K=1, W=4, F=5)
  counted = flops.count(model_lib.make(cfg))
  assert counted.matrices == 48 + 24 + 45
  work = flops.Work(rows=2, start=2, end=5, heads=1)
  matrices, scores = 2 * 2 * (3 * 117 + 21), 2 * 2 * 12 * 16
  assert flops.forward(counted, work) == matrices + scores
  assert flops.update(counted, [work], frozen=False, remat=True) == 4 * (matrices + scores)
  assert flops.update(counted, [work], frozen=True, remat=False) == 2 * matrices + 3 * scores
  latent = dataclasses.replace(presets.DEEPSEEK_V3, L=4, mtp=0)
  one = latent.L * latent.H * 10  # positions 9: ten pairs
  assert flops.scores(latent, 9, 10) == one * (192 + 128)
  assert flops.scores(latent, 9, 10, decoding=True) == one * 2 * 576


def fake(rows, need, limit=100):
  return SimpleNamespace(rows=rows, total=need(rows), limit=limit, fits=need(rows) <= limit)


@pytest.mark.parametrize('rows, most, need, found, compiled', [
    (4, 64, lambda n: 20 + 3 * n, 16, 2), (4, 64, lambda n: 20 + n, 64, 2),
    (4, 8, lambda n: 20 + n, 8, 1), (16, 64, lambda n: 50 + 7 * n, 4, 2),
    (1, 64, lambda n: 101, 0, 0), (4, 64, lambda n: 20 + n * n / 2, 8, 2),
    (2, 20, lambda n: 20 + 4 * n, 20, 2),
])  # yapf: disable
def test_the_largest_that_fits(rows, most, need, found, compiled):
  again = []
  make = lambda n: again.append(n) or fake(n, need)
  assert plan.largest(fake(rows, need), most, make) == found and len(again) <= compiled + 1


# -- devices that are not here ---------------------------------------------------------------------


@pytest.mark.parametrize('name, said', [
    ('v9:2x2', 'a chip of v4, v5e'), ('v5e', 'write CHIP:SHAPE'), ('h100:12', 'a multiple of 8'),
])  # yapf: disable
def test_topologies_that_are_none(name, said):
  with pytest.raises(UserError, match=said):
    topology.describe(name)


@libtpu
def test_memory_runs_out():
  where = topology.describe('v5e:2x2')
  with pytest.raises(UserError, match='no topology v5e:3x5'):
    topology.describe('v5e:3x5')
  mesh = sharding.make_mesh(sharding.Machine(), where.devices)
  x = jax.ShapeDtypeStruct((2**16, 2**16), jnp.float32, sharding=sharding.replicated(mesh))
  with pytest.raises(topology.OutOfMemory) as error:
    topology.compile_for(where, jax.jit(lambda x: x + x.T), (x,))
  assert error.value.bytes == 32 * GIB and where.chip.limit == 15.75 * GIB


def decoding(tokens, mla=None, **machine):
  """A stage that samples from a tiny model, with experts if asked, and the model's config."""
  cfg = model_lib.Config(V=96, L=2, D=64, H=4, K=4 if mla else 2, W=16, F=48, max_tokens=8192,
                         moe=model_lib.MoE(E=4, I=16, top=2) if 'expert' in machine else None,
                         mla=mla)
  config = generate.Config(init='models/tiny', problems=None, select=None, samples=4, shard=16,
                           max_prompt_tokens=16, sampling=sample.Sampling(tokens),
                           machine=sharding.Machine(sample_rows=64, pieces=1, **machine))
  return Stage(generate.run, config, 'runs/tiny'), cfg


def check_decoding(step, compiled):
  """Only tensor and expert talk in the loop over tokens, and it copies nothing like a cache."""
  text = compiled.as_text()
  turns = [x for x in hlo.collectives(text, step.mesh) if x.per_turn]
  assert turns and {axis for x in turns for axis in x.axes} <= {'tensor', 'expert'}
  layer = steps.held(step.cache[1].k) // 2  # one of two layers' keys
  assert hlo.copies(text, 1) and not hlo.copies(text, layer)
  assert compiled.memory_analysis().temp_size_in_bytes < 1.3 * steps.held(step.cache)


@libtpu
@pytest.mark.parametrize('mla', [None, model_lib.MLA(Q=32, Z=32, A=8, J=8, O=16)],
                         ids=['heads', 'latents'])
def test_decoding_on_tpus_moves_no_weight_and_no_cache(mla):
  stage, cfg = decoding(4096, mla, dtype='bfloat16', expert=2, tensor=2)
  where = topology.describe('v5e:2x2')
  step = plan.make(stage, cfg, stage.config.machine, where)[0]['sampling']
  check_decoding(step, topology.compile_for(where, step.function, step.args))


def test_decoding_here_moves_no_weight_and_no_cache():
  stage, cfg = decoding(4096, fsdp=2, tensor=2)
  where = topology.Topology('cpu:4', topology.CHIPS['v5e'], jax.devices()[:4], 'cpu')
  step = plan.make(stage, cfg, stage.config.machine, where)[0]['sampling']
  check_decoding(step, step.function.lower(*step.args).compile())


# -- the command -----------------------------------------------------------------------------------


@libtpu
def test_a_stage_in_its_real_shape(tmp_path, capsys):
  """Log-probs of 32 billion parameters, 512 completions of 32,768 tokens, on the devices that the
  file says; cut so that it compiles fast."""
  file, out = ROOT / 'experiments/zero/qwen_32b.py', tmp_path / 'plan.json'
  stage, = main.load_experiment(file)
  cut = ['--machine.fsdp', '8', '--machine.tensor', '8']
  args = ['--function', 'log-probs', '--quick', '--json', str(out), *cut]
  assert main.main(['plan', str(file), *args]) == 0
  row, = json.loads(out.read_text())
  assert row['topology'] == stage.config.machine.topology == 'v5p:4x4x4' and row['fits']
  assert row['total'] == sum(row['bytes'].values()) <= row['limit']
  # Each weight is in 64 parts, but 129 norms and 64 layers' biases of 40 + 8 + 8 heads in 8.
  in_8 = 129 * 5120 + 64 * 56 * 128
  assert row['bytes']['parameters'] == 4 * ((32_763_876_352 - in_8) // 64 + in_8 // 8)
  assert row['bytes']['moments beside'] == pytest.approx(2 * row['bytes']['parameters'], rel=1e-6)
  assert row['bytes']['reference beside'] == pytest.approx(row['bytes']['parameters'] / 2, rel=1e-3)
  # Twice the matrices and the head for each token, and attention: 1.55e18 (flops.py).
  tokens = 512 * 32_768 * (1 + 2048 / 32_768)
  assert 2 * 31e9 * tokens < row['flops'] < 1.6 * 2 * 31e9 * tokens
  assert ['fsdp'] in [x['axes'] for x in row['collectives'] if x['kind'] == 'all-gather']
  printed = capsys.readouterr().out
  assert 'runs/zero/qwen_32b  log-probs  on v5p:4x4x4 (fsdp 8 x tensor 8)' in printed


@libtpu
def test_every_file_names_a_topology_that_could_hold_it():
  """Its functions in their real shapes: each size divides, and what is there before they begin
  leaves room. `r1jax plan FILE` compiles them (docs/plan.md)."""
  files = [path for folder in ('r1', 'distill', 'zero')
           for path in sorted((ROOT / 'experiments' / folder).glob('*.py'))]  # yapf: disable
  stages = [stage for path in files if 'def experiment' in path.read_text(encoding='utf-8')
            for stage in main.load_experiment(path)]  # yapf: disable
  assert len(stages) == 21
  for stage in stages:
    where = topology.describe(stage.config.machine.topology)
    cfg = steps.architecture(stage, {stage.out: stage for stage in stages})
    made, _ = plan.make(stage, cfg, stage.config.machine, where)
    for step in made.values():
      beside = sum(map(steps.held, step.beside.values()))
      assert steps.held(step.args) + beside + steps.held(step.cache) < 0.9 * where.chip.limit
      assert step.mesh.size == len(where.devices)


@libtpu
def test_what_does_not_fit_is_a_sentence(capsys):
  """The state of 32 billion parameters cannot lie on four small devices."""
  file = str(ROOT / 'experiments/zero/qwen_32b.py')
  args = ['--topology', 'v5e:2x2', '--machine.fsdp', '4', '--machine.tensor', '1', '--quick',
          '--function', 'log-probs']  # yapf: disable
  assert main.main(['plan', file, *args]) == 2
  said = capsys.readouterr()
  assert 'DOES NOT FIT' in said.out
  assert 'log-probs of runs/zero/qwen_32b needs ' in said.err and '15.75: take more' in said.err
  args[-1] = 'grading'
  assert main.main(['plan', file, *args]) == 2
  assert 'runs \'grading\'' in capsys.readouterr().err


def test_what_is_asked_for_must_be_there(capsys):
  file = str(ROOT / 'experiments/tiny/zero.py')
  preset = 'there is no preset' if importlib.util.find_spec('libtpu') else 'needs libtpu'
  for args, said in ((['--stage', 'one'], 'has no stage \'one\': it has base, zero'),
                     ([], 'base names no topology: give --topology'),
                     (['--chip', 'h100'], '--chip and --devices go together'),
                     (['--topology', 'v5e:2x2', '--model', 'GPT'], preset)):
    assert main.main(['plan', file, *args]) == 2
    assert said in capsys.readouterr().err
