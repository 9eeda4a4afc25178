"""DeepSeek-R1-Distill-Llama-8B: SFT of Llama-3.1-8B on R1's data (v1, section 2.4; B.4.3 of v2).

  bash launch/local.sh experiments/distill/llama_8b.py

Expected (table 15): AIME 2024 pass@1 50.4, cons@64 80.0, MATH-500 89.1, GPQA Diamond 49.0,
LiveCodeBench 39.6, Codeforces 1205. 8 chips of v5p; not yet run.
"""
from experiments.distill import common


def experiment():
  """One stage, with the learning rate of table 6."""
  return common.student('llama_8b', 'Llama-3.1-8B', lr=5e-5, topology='v5p:2x2x2', fsdp=8)
