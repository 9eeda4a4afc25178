"""DeepSeek-R1-Distill-Qwen-14B: SFT of Qwen2.5-14B on R1's data (v1, section 2.4; B.4.3 of v2).

  bash launch/local.sh experiments/distill/qwen_14b.py

Expected (table 15): AIME 2024 pass@1 69.7, cons@64 80.0, MATH-500 93.9, GPQA Diamond 59.1,
LiveCodeBench 53.1, Codeforces 1481. 8 chips of v5p; not yet run.
"""
from experiments.distill import common


def experiment():
  """One stage, with the learning rate of table 6."""
  return common.student('qwen_14b', 'Qwen2.5-14B', lr=7e-5, topology='v5p:2x2x2', fsdp=8,
                        sample_tensor=2, sample_rows=32)
