"""DeepSeek-R1-Distill-Qwen-32B: SFT of Qwen2.5-32B on R1's data (v1, section 2.4; B.4.3 of v2).

  bash launch/local.sh experiments/distill/qwen_32b.py

Expected (table 15): AIME 2024 pass@1 72.6, cons@64 83.3, MATH-500 94.3, GPQA Diamond 62.1,
LiveCodeBench 57.2, Codeforces 1691. 32 chips of v5p; not yet run.
"""
from experiments.distill import common


def experiment():
  """One stage, with the learning rate of table 6."""
  return common.student('qwen_32b', 'Qwen2.5-32B', lr=6e-5, topology='v5p:2x4x4', fsdp=32,
                        sample_tensor=4)
