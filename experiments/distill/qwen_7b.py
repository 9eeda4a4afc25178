"""DeepSeek-R1-Distill-Qwen-7B: SFT of Qwen2.5-Math-7B on R1's data (v1, section 2.4; B.4.3 of v2).

  bash launch/local.sh experiments/distill/qwen_7b.py

Expected (table 15): AIME 2024 pass@1 55.5, cons@64 83.3, MATH-500 92.8, GPQA Diamond 49.1,
LiveCodeBench 37.6, Codeforces 1189. 8 chips of v5p; not yet run.

The base has a context of 4,096 tokens: set max_position_embeddings in its config.json to 131,072
first, as in the config that DeepSeek published.
"""
from experiments.distill import common


def experiment():
  """One stage, with the learning rate of table 6."""
  return common.student('qwen_7b', 'Qwen2.5-Math-7B', lr=8e-5, topology='v5p:2x2x2', fsdp=8)
