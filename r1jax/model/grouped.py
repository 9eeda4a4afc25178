"""Rows sorted by group, each multiplied by its group's matrix, forwards and backwards.

jax.lax.ragged_dot has a kernel for TPUs; for its gradient by the matrices XLA has none, and would
multiply every row for every group. There jax's own kernel of grouped products (megablox) steps in.
"""
import jax
from jax.experimental.pallas.ops.tpu.megablox.gmm import tgmm
import jax.numpy as jnp
from jax.sharding import PartitionSpec

TILE, LANES = 512, 128  # of the kernel: so much of each axis at most; rows a multiple of the latter


@jax.custom_vjp
def product(rows_ND, w_EDI, sizes_E):
  """[N, I]: the first sizes_E[0] rows times w_EDI[0], the next times w_EDI[1], ... In rows beyond
  all groups may stand anything, and so in their gradients."""
  return jax.lax.ragged_dot(rows_ND, w_EDI, sizes_E)


def _forwards(rows_ND, w_EDI, sizes_E):
  return product(rows_ND, w_EDI, sizes_E), (rows_ND, w_EDI, sizes_E)


def _backwards(saved, grad_NI):
  rows_ND, w_EDI, sizes_E = saved
  of_rows = jax.lax.ragged_dot(grad_NI, w_EDI.swapaxes(1, 2), sizes_E)
  return of_rows, outer(rows_ND, grad_NI, sizes_E, w_EDI.dtype), None


product.defvjp(_forwards, _backwards)


def outer(rows_ND, grad_NI, sizes_E, dtype):
  """[E, D, I]: of each group, the sum of the outer products of its rows and their gradients."""
  args = rows_ND, grad_NI, sizes_E
  return jax.lax.platform_dependent(*args, tpu=lambda *x: by_kernel(*x, dtype),
                                    default=lambda *x: by_ragged_dot(*x, dtype))  # yapf: disable


def by_ragged_dot(rows_ND, grad_NI, sizes_E, dtype):
  """`outer` as XLA differentiates the product."""
  w_EDI = jnp.zeros((len(sizes_E), rows_ND.shape[1], grad_NI.shape[1]), dtype)
  return jax.vjp(lambda w: jax.lax.ragged_dot(rows_ND, w, sizes_E), w_EDI)[1](grad_NI)[0]


def by_kernel(rows_ND, grad_NI, sizes_E, dtype, interpret=False):
  """`outer` by the kernel, on TPUs; `interpret` runs it elsewhere."""
  pad = lambda x: jnp.pad(x, [(0, -len(x) % LANES), (0, 0)])
  rows_ND, grad_NI = pad(rows_ND), pad(grad_NI)
  tile = next(tile for tile in (TILE, TILE // 2, LANES) if len(rows_ND) % tile == 0)

  def kernel(rows_ND, grad_NI, sizes_E):
    return tgmm(rows_ND.T, grad_NI, sizes_E, dtype, (tile, TILE, TILE), interpret=interpret)

  # What is left of the mesh has one device, and XLA must not be asked to cut a kernel along it.
  mesh = jax.sharding.get_abstract_mesh()
  left = set(mesh.axis_names) - set(mesh.manual_axes)
  if left:
    kernel = jax.shard_map(kernel, in_specs=PartitionSpec(), out_specs=PartitionSpec(),
                           axis_names=left, check_vma=False)
  return kernel(rows_ND, grad_NI, sizes_E)
