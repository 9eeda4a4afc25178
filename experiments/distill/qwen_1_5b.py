"""DeepSeek-R1-Distill-Qwen-1.5B: SFT of Qwen2.5-Math-1.5B on R1's data (v1, section 2.4; B.4.3 of
v2).

  bash launch/local.sh experiments/distill/qwen_1_5b.py

Expected (table 15): AIME 2024 pass@1 28.9, cons@64 52.7, MATH-500 83.9, GPQA Diamond 33.8,
LiveCodeBench 16.9, Codeforces 954. 4 chips of v5p; not yet run.

The base has a context of 4,096 tokens: set max_position_embeddings in its config.json to 131,072
first, as in the config that DeepSeek published.
"""
from experiments.distill import common


def experiment():
  """One stage, with the learning rate of table 6."""
  return common.student('qwen_1_5b', 'Qwen2.5-Math-1.5B', lr=1e-4, topology='v5p:2x2x1', fsdp=4)
