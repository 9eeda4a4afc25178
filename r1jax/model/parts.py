"""What layers are made of: norms, activations, rotation. Float32 inside, whatever the dtype."""
from flax import linen as nn
import jax
import jax.numpy as jnp

from r1jax import sharding


def silu(x):
  """x sigmoid(x), arXiv 1606.08415."""
  return nn.silu(x)


def gelu_tanh(x):
  """x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), arXiv 1606.08415."""
  return nn.gelu(x, approximate=True)


def rms_norm(x, scale, eps):
  """x / sqrt(mean(x^2) + eps) * scale over the last axis, in float32 (arXiv 1910.07467)."""
  x32 = x.astype(jnp.float32)
  x32 *= jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
  return (x32 * jnp.expand_dims(scale, range(x.ndim - 1))).astype(x.dtype)


def rotate(x_BTKRW, rotation):
  """Turns the pairs (i, i + W / 2) of each vector by its position's angles."""
  a, b = jnp.split(x_BTKRW.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate(_turn(a, b, rotation), axis=-1).astype(x_BTKRW.dtype)


def rotate_neighbours(x_BTKRW, rotation):
  """The same of the pairs (2 i, 2 i + 1), as DeepSeek stores its weights."""
  pairs = x_BTKRW.astype(jnp.float32).reshape(*x_BTKRW.shape[:-1], -1, 2)
  turned = jnp.stack(_turn(pairs[..., 0], pairs[..., 1], rotation), axis=-1)
  return turned.reshape(x_BTKRW.shape).astype(x_BTKRW.dtype)


def _turn(a, b, rotation):
  cos, sin = rotation
  return a * cos - b * sin, b * cos + a * sin


def look_up(table_VD, tokens_BT, dtype):
  """The tokens' rows of a table, [B, T, D] in dtype, where this device may hold only a share of it.

  Instead of the table it is the tokens that travel, to all shares of D, and the rows' shares come
  back; of the shares of V, one has each row and the others add 0. Rows are rounded, not the table,
  so that the gradients of a token's many places are added up in the table's own dtype.
  """
  over_v, over_d = sharding.cutting('VD')
  if not over_d + over_v:
    return table_VD[tokens_BT].astype(dtype)

  def look(table_vd, tokens_BT):
    asked = jax.lax.all_gather(tokens_BT, over_d) if over_d else tokens_BT[None]
    if over_v:
      asked -= jax.lax.axis_index('tensor') * len(table_vd)
      here = (0 <= asked) & (asked < len(table_vd))
      rows = jnp.where(here[..., None], table_vd[jnp.where(here, asked, 0)], 0)
    else:
      rows = table_vd[asked]
    rows = rows.astype(dtype)
    if over_d:
      rows = jax.lax.all_to_all(rows, over_d, 0, 0)  # each share of my tokens' rows
    rows_BTD = jnp.moveaxis(rows, 0, -2).reshape(*tokens_BT.shape, -1)
    if spread:  # each sums up some of the positions
      return jax.lax.psum_scatter(rows_BTD, 'tensor', scatter_dimension=1, tiled=True)
    return jax.lax.psum(rows_BTD, over_v) if over_v else rows_BTD

  stored = sharding.auto_spec('VD', table_VD.shape, sharding.RULES)
  tokens = sharding.auto_spec('BT', tokens_BT.shape, sharding.ACTIVATIONS)
  both = sharding.auto_spec('BT', tokens_BT.shape, {'T': ('context', 'tensor')})
  spread = over_v and both[1] and both != tokens
  return sharding.by_hand(look, (stored, tokens), both if spread else tokens)(table_VD, tokens_BT)
