"""LoRA (arXiv 2106.09685): the weights stay, and each matrix W learns an addition of low rank.

  W + alpha / rank A B,  A [inputs, rank] random, B [rank, outputs] zero at first

Adapted parameters are {'base': the model's own, 'adapters': {weight: {'a', 'b'}}}, and whatever
stands beside these, such as a reward model's head. Only the base is frozen: it has no gradient, no
moments, no update, and no copy as KL's reference. Adapters are float32 and so is the sum, which is
then rounded to the base's dtype: what learns, what samples and what is saved is one model.

Of a float32 model with N parameters and adapters with n, the train state (parameters, two moments,
reference) takes 4 N + 16 n bytes instead of 16 N, and gradients 4 n instead of 4 N. An update makes
an adapted weight where its layer is computed; with Machine.remat so many weights, and their
gradients, exist at once as one layer has. Sampling has the merged weights besides, 4 N bytes, or of
a bfloat16 base 2 N. For N = 144 million in 12 layers, rank 16, the compiled update holds a state of
592 MiB and temporaries of 121; where all parameters learn, 2192 and 1480.
"""
import dataclasses
from functools import partial
import math
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from r1jax import seeds, sharding
from r1jax.types import Model, UserError

RANK = 'r'  # its axis letter, which no mesh axis cuts
ADAPTED = 'base', 'adapters'  # what stands beside them is a part of neither


@dataclasses.dataclass(frozen=True)
class LoRA:
  """Which matrices learn, and how much."""
  rank: int = 0  # 0: no adapters, everything learns
  alpha: float = 32.0  # the addition is scaled by alpha / rank
  # Names of weights, or capital letters: every matrix that has all of these axes, as 'F' means
  # gate_up and down. (): every matrix of the layers but routers.
  targets: tuple[str, ...] = ()

  def __post_init__(self):
    if self.rank < 0 or self.targets and not self.rank:
      raise UserError(f'lora.rank is {self.rank} and must be at least 0, or 1 where lora.targets '
                      'names something')


def adapt(cfg: LoRA, model: Model, params, seed, mesh):
  """(what is trained, its parameters), on the mesh; `merge` gives those of the model itself.

  With rank 0, the model and its parameters, as they are.
  """
  if not cfg.rank:
    return model, params
  init, key = partial(_init, cfg, model), seeds.key(seed, 'lora')
  where = sharding.shardings(_axes(cfg, model.axes()), jax.eval_shape(init, key), mesh)
  params = {'base': params, 'adapters': jax.jit(init, out_shardings=where)(key)}
  return make(model, cfg), params


def make(trunk: Model, cfg: LoRA) -> Model:
  """The same architecture with adapters, kept apart so that gradients are theirs alone."""
  boxed = partial(_boxed, cfg)
  return trunk._replace(
      init=lambda key: dict(base=trunk.init(key), adapters=_init(cfg, trunk, key)),
      axes=lambda: dict(base=trunk.axes(), adapters=_axes(cfg, trunk.axes())),
      split=partial(_split, trunk, cfg),
      join=partial(_join, trunk),
      apply=lambda params, *args, **more: trunk.apply(boxed(params), *args, **more),
      logits=lambda params, *args, **more: trunk.logits(boxed(params), *args, **more),
      exact=lambda name: True,  # adapters are added to the weight first
  )  # yapf: disable


def merge(cfg: LoRA, params):
  """The parameters of the plain model that computes the same, of the base's dtypes; with rank 0,
  as they are."""
  return nn.unbox(_boxed(cfg, params)) if cfg.rank else params


def learnt(params):
  """The part of the parameters that updates change: all but a frozen base, and but layers for
  further tokens, which nothing computes."""
  return {name: x for name, x in params.items() if name not in ('base', 'mtp')}


def cut(letters: str) -> tuple[int, int]:
  """Where A's letters begin, after those that count weights, and where B's do, among a weight's.

  Leading L and E count weights: layers and experts. What writes into the model (its last letter is
  D) reads all letters before that; any other weight reads its first. So 'LDKNW' maps D to KNW,
  'LKRWD' maps KRW to D and 'LEDUI', for each expert, D to UI. Only the head, 'VD', is kept the
  other way round, as the embedding that it may be: it reads D, which is B's (see _init).
  """
  first = len(letters) - len(letters.lstrip('LE'))
  return first, len(letters) - 1 if letters.endswith('D') else first + 1


def _axes(cfg, axes):
  """Axis letters of the adapters, {} in the place of a weight that has none."""

  def pair(letters, chosen):
    i, j = cut(letters)
    return {'a': letters[:j] + RANK, 'b': letters[:i] + RANK + letters[j:]} if chosen else {}

  return jax.tree.map(pair, axes, _chosen(cfg, axes))


def _init(cfg, trunk, key):
  """Fresh adapters: what reads the inputs is normal, so that it gives outputs of unit variance, and
  what writes the outputs is 0. An input is of unit variance, or of the embedding one of V rows."""
  axes, shapes = trunk.axes(), jax.eval_shape(trunk.init, key)
  leaves, tree = jax.tree.flatten(axes)
  keys = jax.tree.unflatten(tree, list(jax.random.split(key, len(leaves))))

  def pair(path, letters, chosen, x, key):
    if not chosen:
      return {}
    (i, j), name, shape = cut(letters), path[-1].key, x.shape
    a, b = (*shape[:j], cfg.rank), (*shape[:i], cfg.rank, *shape[j:])
    if name == 'head':
      return {'a': jnp.zeros(a), 'b': jax.random.normal(key, b) / shape[j]**0.5}
    terms = 1 if name == 'embed' else math.prod(shape[i:j])  # of the sum that an output of A is
    return {'a': jax.random.normal(key, a) / terms**0.5, 'b': jnp.zeros(b)}

  return jax.tree.map_with_path(pair, axes, _chosen(cfg, axes), shapes, keys)


def _chosen(cfg, axes):
  """Whether each weight has an adapter; UserError for a target that is no matrix of the model."""
  name = lambda path: path[-1].key
  # The weights under mtp are carried along and not computed.
  matrix = lambda path: path[0].key != 'mtp' and not name(path).endswith(('norm', 'bias'))
  known = {name(path): x for path, x in jax.tree.leaves_with_path(axes) if matrix(path)}

  def means(target, name, letters):  # names are lower case
    return set(target) <= set(letters) if target.isupper() else target == name

  for target in cfg.targets:
    if not any(means(target, *weight) for weight in known.items()):
      raise UserError(f'lora.targets has {target!r}, and the model\'s matrices are '
                      f'{", ".join(sorted(known))}: name some of these, or their axis letters')
  by_default = lambda path: len(path) > 1 and name(path) != 'router'
  named = lambda path, letters: any(means(target, name(path), letters) for target in cfg.targets)
  chosen = named if cfg.targets else lambda path, _: by_default(path)
  return jax.tree.map_with_path(lambda path, x: matrix(path) and chosen(path, x), axes)


@partial(jax.tree_util.register_dataclass, data_fields=('w', 'a', 'b'), meta_fields=('scale',))
@dataclasses.dataclass(frozen=True)
class _Adapted(nn.meta.AxisMetadata):
  """A weight in a box that flax opens where a layer asks for the weight: W + scale A B."""
  w: Any
  a: Any
  b: Any
  scale: float

  def unbox(self):
    a, b = self.a, self.b
    n = a.ndim + b.ndim - self.w.ndim - 2  # axes that count weights
    counts = tuple(range(n))
    product = jax.lax.dot_general(a, b, (((a.ndim - 1,), (n,)), (counts, counts)),
                                  precision='highest')
    return (self.w + self.scale * product).astype(self.w.dtype)

  def replace_boxed(self, val):
    raise TypeError('an adapted weight is read, and made or changed only in its parts')

  add_axis = remove_axis = replace_boxed


def _boxed(cfg, params):
  """The base with adapted weights in boxes, and what stands beside it."""
  box = lambda w, adapter: _Adapted(w, **adapter, scale=cfg.alpha / cfg.rank) if adapter else w
  base = jax.tree.map(box, params['base'], params['adapters'])
  return {**base, **{name: x for name, x in params.items() if name not in ADAPTED}}


def _split(trunk, cfg, params):
  """Both parts at once, since `split` wants at least one weight in every stack of layers."""
  split = trunk.split(_boxed(cfg, params))
  base = {name: split.pop(name) for name in params['base']}
  is_box = lambda x: isinstance(x, _Adapted)
  part = lambda f: jax.tree.map(f, base, is_leaf=is_box)
  return dict(split, base=part(lambda x: x.w if is_box(x) else x),
              adapters=part(lambda x: {'a': x.a, 'b': x.b} if is_box(x) else {}))


def _join(trunk, params):
  return {name: trunk.join(x) if name in ADAPTED else x for name, x in params.items()}
