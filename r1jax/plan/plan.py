"""Does it fit, and how long does it take? Compiles a stage's functions for devices that are not
here, and says what each needs of a device."""
import argparse
import dataclasses
import json
import pathlib
import resource
import time
from typing import NamedTuple

import jax

from r1jax import metrics, sharding
from r1jax.plan import hlo, steps, topology
from r1jax.plan.topology import GIB
from r1jax.types import UserError


class Measured(NamedTuple):
  """What one function needs. Bytes and seconds are those of one device."""
  stage: str
  name: str
  topology: str
  mesh: dict[str, int]
  field: str  # of Machine, that gives it more rows at once
  rows: int  # its value
  bytes: dict[str, int]  # by kind, what lies beside it included
  total: int  # their sum
  limit: int
  fits: bool
  flops: float  # of all devices, at full budgets
  seconds: float  # of one call, at the stated utilisation
  token_s: float  # of one decoded token of every row; 0: it is no sampler
  collectives: list[dict]
  temp_size: int  # the compiler's own sum of temporaries, which are not all there at once (TPUs)
  compile_s: float
  peak_rss: int  # of this process so far, bytes
  largest: int | None = None  # value of `field` with which it still fits; 0: none does


def measure(stage, cfg, machine, where, name, utilisation=0.4) -> Measured:
  """Compiles one function of a stage, that of steps.Step's `name`, for a topology."""
  made, machine = make(stage, cfg, machine, where)
  step = made[name]
  began, text, temp_size = time.monotonic(), '', 0
  kinds = {kind: steps.held(tree) for kind, tree in step.held.items()}
  cache = steps.held(step.cache)
  try:
    compiled = topology.compile_for(where, step.function, step.args)
    text, memory = compiled.as_text(), compiled.memory_analysis()
    # What a compiler's layouts add to the arguments, or leave out as unused.
    kinds['layout'] = memory.argument_size_in_bytes - sum(kinds.values())
    output = memory.output_size_in_bytes - memory.alias_size_in_bytes
    at_peak = temp_size = memory.temp_size_in_bytes
    if where.platform == 'tpu':  # there that is up to twice what a program is given
      at_peak = max(0, memory.peak_memory_in_bytes - memory.argument_size_in_bytes - output)
    cache = min(cache, at_peak)
    kinds |= dict(cache=cache, temporaries=at_peak - cache, output=output)
  except topology.OutOfMemory as error:
    kinds |= dict(cache=cache)
    kinds['temporaries'] = max(0, error.bytes - sum(kinds.values()))
  kinds |= {f'{kind} beside': steps.held(tree) for kind, tree in step.beside.items()}
  total = sum(kinds.values())
  seconds, token_s = times(step, where.chip, utilisation)
  return Measured(
      stage=stage.out, name=name, topology=where.name, mesh=dict(step.mesh.shape),
      field=step.field, rows=min(getattr(machine, step.field), step.most),
      bytes={kind: size for kind, size in kinds.items() if size}, total=total,
      limit=where.chip.limit, fits=bool(text) and total <= where.chip.limit, flops=step.flops,
      seconds=seconds, token_s=token_s,
      collectives=[x._asdict() for x in hlo.collectives(text, step.mesh)] if text else [],
      temp_size=temp_size, compile_s=time.monotonic() - began,
      peak_rss=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)  # yapf: disable


def make(stage, cfg, machine, where):
  """({name: steps.Step} of a stage's functions for a topology, the machine with nothing left to
  fill in)."""
  machine = sharding.fill(machine, where.platform)
  sharding.check(machine, where.platform, where.devices)
  mesh = sharding.make_mesh(machine, where.devices)
  there = sharding.sampling_mesh(machine, mesh, where.devices)
  return {step.name: step for step in steps.of_stage(stage, cfg, machine, mesh, there)}, machine


def times(step, chip, utilisation):
  """Seconds of a call and of one decoded token of every row.

  Matrix products run at utilisation * the chip's peak. A token takes that, or what it takes to read
  from memory the parameters and the cache, whichever is longer (2211.05102, section 2).
  """
  compute = lambda flops: flops / (step.mesh.size * chip.flops * utilisation)
  if not step.tokens:
    return compute(step.flops), 0.0
  token_s = max(step.token_bytes / chip.bandwidth, compute(step.token_flops))
  return compute(step.flops - step.tokens * step.token_flops) + step.tokens * token_s, token_s


def largest(measured: Measured, most: int, again) -> int:
  """The largest power of two, or `most`, with which again(rows) -> Measured still fits; 0: none.

  Memory is about linear in the rows, so that two compiled sizes tell where the limit is; from there
  it goes up or down until one fits and the next does not.
  """
  sizes = sorted({most, *(2**i for i in range(most.bit_length()) if 2**i < most)})
  known = {}

  def total(i):
    if i not in known:
      known[i] = measured if sizes[i] == measured.rows else again(sizes[i])
    return known[i].total

  i = max((i for i, n in enumerate(sizes) if n <= measured.rows), default=0)
  other = min(i + 1, len(sizes) - 1) if total(i) <= measured.limit else max(0, i - 1)
  if other != i:
    slope = (total(other) - total(i)) / (sizes[other] - sizes[i])
    room = sizes[i] + (measured.limit - total(i)) / max(slope, 1)
    i = max((i for i, n in enumerate(sizes) if n <= room), default=0)
  fits = lambda i: total(i) <= measured.limit and known[i].fits
  while fits(i) and i + 1 < len(sizes) and fits(i + 1):
    i += 1
  while i >= 0 and not fits(i):
    i -= 1
  return sizes[i] if i >= 0 else 0


# -- the command -----------------------------------------------------------------------------------


def parse(argv):
  """(what the command line says, the fields of the experiment that it sets)."""
  parser = argparse.ArgumentParser(prog='r1jax plan', allow_abbrev=False,
                                   epilog='All else sets fields of the experiment, as in run.')
  parser.add_argument('experiment', help='an experiment file')
  parser.add_argument(
      '--topology', help=f'CHIP:SHAPE, as v5p:8x8x8 or h100:64, of '
      f'{", ".join(topology.CHIPS)}; else the stage\'s machine.topology')
  parser.add_argument('--chip', help='with --devices, the same in two words')
  parser.add_argument('--devices', type=int)
  parser.add_argument('--stage', help='one stage, by its folder\'s name; else all')
  parser.add_argument('--function', help='one function of the stages, as update; else all')
  parser.add_argument(
      '--model', help='a preset of model/presets.py, in place of what the stage '
      'starts from')
  parser.add_argument('--utilisation', type=float, default=0.4,
                      help='share of the peak at which matrix products run')
  parser.add_argument('--quick', action='store_true', help='do not look for the largest batch')
  parser.add_argument('--json', help='a file for all numbers')
  args, fields = parser.parse_known_args(argv)
  if bool(args.chip) != bool(args.devices):
    raise UserError('--chip and --devices go together, as in --chip h100 --devices 64')
  if args.chip:
    args.topology = f'{args.chip}:{args.devices}'
  return args, fields


def run(args, stages, parents):
  """Plans the stages: prints each function's numbers, raises UserError where one does not fit.

  `parents`: {folder: stage} of the stages that these may start from.
  """
  jax.config.update('jax_platforms', 'cpu')  # devices that are here are left alone
  chosen = [stage for stage in stages if args.stage in (None, pathlib.Path(stage.out).name)]
  if not chosen:
    names = ', '.join(pathlib.Path(stage.out).name for stage in stages)
    raise UserError(f'{args.experiment} has no stage {args.stage!r}: it has {names}')
  rows = []
  for stage in chosen:
    for row in plan(args, stage, parents):
      rows.append(row)
      print('\n'.join(describe(row, args.utilisation)), flush=True)
      if args.json:
        metrics.write_aside(pathlib.Path(args.json),
                            json.dumps([row._asdict() for row in rows], indent=1))
  if not rows:
    raise UserError(f'no stage of {args.experiment} that was asked for runs {args.function!r}')
  bad = [row for row in rows if not row.fits]
  if bad:
    raise UserError(
        '; '.join(f'{row.name} of {row.stage} needs {row.total / GIB:.2f} GiB a device and '
                  f'{row.topology} has {row.limit / GIB:.2f}' for row in bad)
        + ': take more devices, cut more (machine.fsdp, tensor, context, expert), or give it fewer '
        'rows at once (machine.micro_rows, sample_rows)')  # yapf: disable


def plan(args, stage, parents):
  """Each function of one stage, Measured."""
  machine = stage.config.machine
  name = args.topology or machine.topology
  if not name:
    raise UserError(f'{stage.out} names no topology: give --topology, as v5p:8x8x8')
  where, cfg = topology.describe(name), steps.architecture(stage, parents, args.model)
  for step in make(stage, cfg, machine, where)[0].values():
    if args.function not in (None, step.name):
      continue
    at = lambda machine, name=step.name: measure(stage, cfg, machine, where, name,
                                                 args.utilisation)  # yapf: disable
    row = at(machine)
    if not args.quick:
      again = lambda rows, field=step.field: at(dataclasses.replace(machine, **{field: rows}))
      row = row._replace(largest=largest(row, step.most, again))
    yield row


def describe(row: Measured, utilisation) -> list[str]:
  """One function's numbers, as lines."""
  mesh = ' x '.join(f'{axis} {n}' for axis, n in row.mesh.items() if n > 1) or 'one device'
  unit, scale = ('GiB', GIB) if row.total > 0.1 * GIB else ('MiB', 2**20)
  kinds = ', '.join(f'{kind} {size / scale:.2f}' for kind, size in row.bytes.items()
                    if abs(size) >= 0.005 * scale)  # yapf: disable
  more = f', and {row.largest} would fit' if row.largest is not None else ''
  token = f', {1e3 * row.token_s:.3g} ms a token' if row.token_s else ''
  lines = [
      f'{row.stage}  {row.name}  on {row.topology} ({mesh})',
      f'  {row.total / scale:.2f} {unit} a device of {row.limit / GIB:.2f} GiB: '
      f'{"fits" if row.fits else "DOES NOT FIT"}  ({kinds})',
      f'  machine.{row.field} is {row.rows}{more}',
      f'  {row.flops:.3g} FLOP, {row.seconds:.3g} s at {utilisation:.0%} of the peak{token}',
  ]
  for x in row.collectives:
    turn = ' a turn' if x['per_turn'] else ''
    lines.append(f'  {x["kind"]} over {" x ".join(x["axes"]) or "nothing"}: {x["count"]}{turn}, '
                 f'{x["bytes"] / GIB:.3g} GiB{turn}')
  return [*lines, f'  compiled in {row.compile_s:.0f} s with {row.peak_rss / GIB:.1f} GiB']
