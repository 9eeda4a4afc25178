"""Published architectures by name, as their config.json says. Weights come from hf.load_params.

The numbers are those of the hub's folders, DeepSeek-V3's also those of 2412.19437, section 4.2.
"""
from r1jax.model import hf_experts
from r1jax.model import moe as moe_lib
from r1jax.model import rope
from r1jax.model.mla import MLA
from r1jax.model.moe import MoE
from r1jax.model.transformer import Config, head_norm


def _deepseek(mla, mscale, **fields):
  made = rope.Yarn(rope_theta=1e4, factor=40.0, original_max_position_embeddings=4096,
                   mscale=mscale, mscale_all_dim=mscale)  # yapf: disable
  return Config(K=fields['H'], W=mla.A + mla.J, mla=mla, rope=made, max_tokens=163_840, tied=False,
                attn_scale=hf_experts.latent_scale(mla, made), **fields)  # yapf: disable


DEEPSEEK_V3 = _deepseek(  # and R1, R1-Zero
    MLA(Q=1536, Z=512, A=128, J=64, O=128), 1.0, V=129_280, L=61, D=7168, H=128, F=18_432,
    moe=MoE(E=256, I=2048, top=8, M=2048, dense=3, score=moe_lib.sigmoid, bias=True, groups=8,
            top_groups=4, group_score=moe_lib.best_two, normalise=True, scale=2.5),
    mtp=1)  # yapf: disable
DEEPSEEK_V2_LITE = _deepseek(
    MLA(Q=None, Z=512, A=128, J=64, O=128), 0.707, V=102_400, L=27, D=2048, H=16, F=10_944,
    moe=MoE(E=64, I=1408, top=6, M=2816, dense=1))  # yapf: disable

_QWEN_2_5 = dict(W=128, max_tokens=131_072, rope=rope.Default(1e6), qkv_bias=True)
_QWEN_2_5_MATH = dict(W=128, max_tokens=4096, rope=rope.Default(1e4), qkv_bias=True)
QWEN_2_5_0_5B = Config(**{**_QWEN_2_5, 'W': 64, 'max_tokens': 32_768}, V=151_936, L=24, D=896, H=14,
                       K=2, F=4864)  # yapf: disable
QWEN_2_5_1_5B = Config(**_QWEN_2_5, V=151_936, L=28, D=1536, H=12, K=2, F=8960)
QWEN_2_5_7B = Config(**_QWEN_2_5, V=152_064, L=28, D=3584, H=28, K=4, F=18_944, tied=False)
QWEN_2_5_MATH_1_5B = Config(**_QWEN_2_5_MATH, V=151_936, L=28, D=1536, H=12, K=2, F=8960)
QWEN_2_5_MATH_7B = Config(**_QWEN_2_5_MATH, V=152_064, L=28, D=3584, H=28, K=4, F=18_944,
                          tied=False)  # yapf: disable
QWEN_2_5_14B = Config(**_QWEN_2_5, V=152_064, L=48, D=5120, H=40, K=8, F=13_824, norm_eps=1e-5,
                      tied=False)  # yapf: disable
QWEN_2_5_32B = Config(**_QWEN_2_5, V=152_064, L=64, D=5120, H=40, K=8, F=27_648, norm_eps=1e-5,
                      tied=False)  # yapf: disable
QWEN_3_0_6B = Config(V=151_936, L=28, D=1024, H=16, K=8, W=128, F=3072, max_tokens=40_960,
                     rope=rope.Default(1e6), qk_norm=head_norm)  # yapf: disable


def _llama(factor, **sizes):
  stretched = rope.Llama3(rope_theta=5e5, factor=factor, low_freq_factor=1.0, high_freq_factor=4.0,
                          original_max_position_embeddings=8192)  # yapf: disable
  return Config(V=128_256, K=8, max_tokens=131_072, norm_eps=1e-5, rope=stretched, **sizes)


LLAMA_3_1_8B = _llama(8.0, L=32, D=4096, H=32, W=128, F=14_336, tied=False)
LLAMA_3_3_70B = _llama(8.0, L=80, D=8192, H=64, W=128, F=28_672, tied=False)
LLAMA_3_2_1B = _llama(32.0, L=16, D=2048, H=32, W=64, F=8192)

PUBLISHED = {  # by the names of the hub
    'DeepSeek-V3-Base': DEEPSEEK_V3, 'DeepSeek-V2-Lite': DEEPSEEK_V2_LITE,
    'Qwen2.5-0.5B': QWEN_2_5_0_5B, 'Qwen2.5-1.5B': QWEN_2_5_1_5B, 'Qwen2.5-7B': QWEN_2_5_7B,
    'Qwen2.5-Math-1.5B': QWEN_2_5_MATH_1_5B, 'Qwen2.5-Math-7B': QWEN_2_5_MATH_7B,
    'Qwen2.5-14B': QWEN_2_5_14B, 'Qwen2.5-32B': QWEN_2_5_32B, 'Qwen3-0.6B': QWEN_3_0_6B,
    'Llama-3.1-8B': LLAMA_3_1_8B, 'Llama-3.3-70B-Instruct': LLAMA_3_3_70B,
    'Llama-3.2-1B': LLAMA_3_2_1B,
}  # yapf: disable
