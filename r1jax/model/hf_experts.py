"""Parts of config.json, as in hf_parts: experts, latent attention, layers for further tokens."""
import math

from r1jax.model import moe as moe_lib
from r1jax.model.hf_parts import Part, need
from r1jax.model.mla import MLA
from r1jax.model.moe import MoE
from r1jax.types import UserError


def _read_qwen_experts(keys, fields):
  # transformers 5 writes num_local_experts.
  experts = keys.pop('num_experts', None) or need(keys, 'num_local_experts')
  dense = keys.pop('mlp_only_layers', None) or []
  if dense != list(range(len(dense))):
    raise UserError(f'mlp_only_layers is {dense}, and only the first layers can be without experts '
                    'here: choose another model')
  return {'moe': MoE(E=experts, I=need(keys, 'moe_intermediate_size'), dense=len(dense),
                     top=need(keys, 'num_experts_per_tok'),
                     normalise=bool(keys.pop('norm_topk_prob', False)))}  # yapf: disable


def _write_qwen_experts(cfg):
  return {'num_experts': cfg.moe.E, 'moe_intermediate_size': cfg.moe.I,
          'num_experts_per_tok': cfg.moe.top, 'norm_topk_prob': cfg.moe.normalise,
          'mlp_only_layers': list(range(cfg.moe.dense))}  # yapf: disable


def _read_experts(keys, normalise):
  """What DeepSeek-V2 and V3 have in common."""
  width = need(keys, 'moe_intermediate_size')
  return dict(E=need(keys, 'n_routed_experts'), I=width, top=need(keys, 'num_experts_per_tok'),
              M=width * need(keys, 'n_shared_experts'), dense=need(keys, 'first_k_dense_replace'),
              scale=need(keys, 'routed_scaling_factor'), normalise=normalise)  # yapf: disable


def _write_experts(cfg):
  moe = cfg.moe
  return {'n_routed_experts': moe.E, 'moe_intermediate_size': moe.I, 'num_experts_per_tok': moe.top,
          'n_shared_experts': moe.M // moe.I, 'first_k_dense_replace': moe.dense,
          'routed_scaling_factor': moe.scale, 'norm_topk_prob': moe.normalise,
          'n_group': moe.groups, 'topk_group': moe.top_groups}  # yapf: disable


def _read_v2_experts(keys, fields):
  del fields
  method = keys.pop('topk_method', 'greedy')
  if method not in ('greedy', 'group_limited_greedy'):
    raise UserError(f'topk_method {method!r} is not written here: choose a model without it')
  if method == 'greedy':
    keys.update(n_group=1, topk_group=1)  # whatever they are
  groups, top_groups = need(keys, 'n_group'), need(keys, 'topk_group')
  return {'moe': MoE(groups=groups, top_groups=top_groups, **_read_experts(keys, False))}


def _write_v2_experts(cfg):
  method = 'group_limited_greedy' if cfg.moe.groups > 1 else 'greedy'
  return {**_write_experts(cfg), 'topk_method': method}


def _read_v3_experts(keys, fields):
  del fields
  normalise = need(keys, 'norm_topk_prob')
  return {'moe': MoE(score=moe_lib.sigmoid, bias=True, group_score=moe_lib.best_two,
                     groups=need(keys, 'n_group'), top_groups=need(keys, 'topk_group'),
                     **_read_experts(keys, normalise))}  # yapf: disable


def latent_scale(mla, made):
  """Config.attn_scale of latent attention with a rope: of a Yarn one that has an mscale_all_dim m,
  (0.1 m ln factor + 1)^2 (A + J)^-1/2, as in DeepSeek's inference/model.py; else None."""
  m = getattr(made, 'mscale_all_dim', None)
  if not m or made.factor <= 1:
    return None
  return (mla.A + mla.J)**-0.5 * (0.1 * m * math.log(made.factor) + 1)**2


def _read_mla(keys, fields):
  mla = MLA(Q=keys.pop('q_lora_rank', 1536), Z=need(keys, 'kv_lora_rank'),
            A=need(keys, 'qk_nope_head_dim'), J=need(keys, 'qk_rope_head_dim'),
            O=need(keys, 'v_head_dim'))  # yapf: disable
  if fields['K'] != fields['H']:
    raise UserError(f'num_key_value_heads is {fields["K"]}, and latent attention has as many as '
                    f'num_attention_heads, {fields["H"]}: correct the file')
  scale = latent_scale(mla, fields['rope'])
  return {'mla': mla, 'W': mla.A + mla.J, 'attn_scale': scale}


def _write_mla(cfg):
  mla = cfg.mla
  return {'q_lora_rank': mla.Q, 'kv_lora_rank': mla.Z, 'qk_nope_head_dim': mla.A,
          'qk_rope_head_dim': mla.J, 'v_head_dim': mla.O, 'head_dim': mla.J}  # yapf: disable


def _read_ahead(keys, fields):
  del fields
  keys.pop('num_mtp_layers', None)  # another name for it
  return {'mtp': keys.pop('num_nextn_predict_layers', None) or 0}


QWEN_EXPERTS = Part(_read_qwen_experts, _write_qwen_experts)
V2_EXPERTS = Part(_read_v2_experts, _write_v2_experts)
V3_EXPERTS = Part(_read_v3_experts, _write_experts)
LATENT = Part(_read_mla, _write_mla)  # after the rope
AHEAD = Part(_read_ahead,
             lambda cfg: {'num_nextn_predict_layers': cfg.mtp, 'num_mtp_layers': cfg.mtp})
