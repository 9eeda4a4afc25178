"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1).

Keys and values of all heads are read from one latent of Z numbers a position, and one rotated key
of J numbers serves every head. These X = Z + J numbers are all that a cache holds. H heads of
W = A + J; a head's values have O. See types.py and transformer.py for the other letters.
"""
import dataclasses

import jax.numpy as jnp

from r1jax.model.parts import rotate_neighbours
from r1jax.sharding import constrain
from r1jax.types import KV


@dataclasses.dataclass(frozen=True)
class MLA:
  """Sizes by axis letter."""
  Q: int | None  # rank of the queries; None: projected at once
  Z: int  # rank of keys and values, the cache's latent
  A: int  # width of a head that carries no position
  J: int  # width that is rotated, its key shared by all heads
  O: int  # width of a head's values  # noqa: E741

  X = property(lambda self: self.Z + self.J)
  Y = property(lambda self: self.A + self.O)


def attend(cfg, weight, norm, see, h_BTD, rotation, past):
  """The attention's result [B, T, D] and its KV: the latents as k [B, 1, X, T], no v.

  Two ways to the same numbers. A single query a row (decoding) reads the latents as they are, as
  one key-value head for all: kv_up is applied to the query and to the result instead, and a cached
  position costs X + Z products a head. Several at once (prefill, training) first make each head's
  keys and values, past ones too, which costs less where many queries share them: W + O a position.
  In bfloat16 the two differ by as much as rounding does: stages/rl.py asks for importance weights.
  """
  Z, A, J = cfg.mla.Z, cfg.mla.A, cfg.mla.J
  h_BTD = constrain(h_BTD, 'BTD')
  if cfg.mla.Q:
    down = norm('q_down_norm', 'Q', jnp.einsum('BTD,DQ->BTQ', h_BTD, weight('q_down', 'DQ')))
    q_BTHW = jnp.einsum('BTQ,QHW->BTHW', down, weight('q_up', 'QHW'))
  else:
    q_BTHW = jnp.einsum('BTD,DHW->BTHW', h_BTD, weight('q', 'DHW'))
  q_BTHW = constrain(q_BTHW, 'BTHW')
  q_rotated = rotate_neighbours(q_BTHW[..., None, A:], rotation)[..., 0, :]

  kv_BTX = jnp.einsum('BTD,DX->BTX', h_BTD, weight('kv_down', 'DX'))
  k_rotated = rotate_neighbours(kv_BTX[:, :, None, None, Z:], rotation)[:, :, 0, 0]
  latent_BTZ = norm('kv_down_norm', 'Z', kv_BTX[..., :Z])
  latent_B1XT = jnp.concatenate([latent_BTZ, k_rotated], axis=-1).transpose(0, 2, 1)[:, None]
  kv = KV(latent_B1XT, jnp.zeros((*latent_B1XT.shape[:2], latent_B1XT.shape[-1], 0), h_BTD.dtype))

  up_ZHY = weight('kv_up', 'ZHY')
  up_ZHA, up_ZHO = up_ZHY[..., :A], up_ZHY[..., A:]
  if h_BTD.shape[1] == 1:
    q_BTHZ = jnp.einsum('BTHA,ZHA->BTHZ', q_BTHW[..., :A], up_ZHA)
    q_BT1HX = jnp.concatenate([q_BTHZ, q_rotated], axis=-1)[:, :, None]
    # The whole latent serves as the value, J numbers too many: cutting them off copies the cache.
    read = lambda k_B1XS: KV(k_B1XS, k_B1XS.swapaxes(-1, -2))
    latent_BT1HX = see(q_BT1HX, read(latent_B1XT), past=_as_heads(read, past))
    out_BTHO = jnp.einsum('BTHZ,ZHO->BTHO', latent_BT1HX[:, :, 0, :, :Z], up_ZHO)
  else:
    q_BTH1W = jnp.concatenate([q_BTHW[..., :A], q_rotated], axis=-1)[:, :, :, None]

    def heads(latent_P1XS):
      latent_PXS = latent_P1XS[:, 0]
      k_PHAS = jnp.einsum('PZS,ZHA->PHAS', latent_PXS[:, :Z], up_ZHA)
      v_PHSO = jnp.einsum('PZS,ZHO->PHSO', latent_PXS[:, :Z], up_ZHO)
      k_PHJS = jnp.broadcast_to(latent_P1XS[:, :, Z:], (*k_PHAS.shape[:2], J, k_PHAS.shape[-1]))
      return KV(jnp.concatenate([k_PHAS, k_PHJS], axis=2), v_PHSO)

    out_BTHO = see(q_BTH1W, heads(latent_B1XT), past=_as_heads(heads, past))[..., 0, :]
  out_BTHO = constrain(out_BTHO, 'BTHO')
  return jnp.einsum('BTHO,HOD->BTD', out_BTHO, weight('o', 'HOD', narrow=True)), kv


def _as_heads(read, past):
  return [p._replace(kv=read(p.kv.k)) for p in past]
