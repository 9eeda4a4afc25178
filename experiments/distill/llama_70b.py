"""DeepSeek-R1-Distill-Llama-70B: SFT of Llama-3.3-70B-Instruct on R1's data (v1, section 2.4; B.4.3
of v2).

  bash launch/local.sh experiments/distill/llama_70b.py

Expected (table 15): AIME 2024 pass@1 70.0, cons@64 86.7, MATH-500 94.5, GPQA Diamond 65.2,
LiveCodeBench 57.5, Codeforces 1633. 64 chips of v5p; not yet run.
"""
from experiments.distill import common


def experiment():
  """One stage, with the learning rate of table 6."""
  return common.student('llama_70b', 'Llama-3.3-70B-Instruct', lr=2e-5, topology='v5p:4x4x4',
                        fsdp=16, tensor=4)
