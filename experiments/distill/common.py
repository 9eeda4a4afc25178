"""What the six distilled models share: SFT on the rejection-sampled data, no RL (v1, section 2.4;
B.4.3 of v2).

None has been run: the data is R1's (experiments/r1/rejection.py). The students themselves are here:
Qwen2.5 and Llama 3 load from their Hugging Face folders, tests/test_experiments.py traces their
steps in full size, and `r1jax plan FILE` compiles them for the chips that the file names. With
documents of your own, such as partial(lines.documents, FILE, prompts.R1), one can be trained today:

  r1jax run experiments/distill/qwen_1_5b.py --row-tokens 4096 --machine.fsdp 1

The data's prompts hold DeepSeek's <｜User｜> and <｜Assistant｜>. DeepSeek changed the students'
configs and tokenizers a little (its README) so that these are one token each; in a tokenizer as it
was published they are spelled in pieces, which works and costs some tokens.
"""
from functools import partial

from experiments.r1 import common as r1
from experiments.r1 import rejection
from r1jax import optim, sharding
from r1jax.stages import generate, sft
from r1jax.types import Stage


def student(name, base, lr, **machine):
  """SFT of models/{base} into runs/distill/{name}: weights, gradient and moments are 16 bytes a
  parameter over all chips, and a row of 32,768 tokens is on one, or on those that `tensor` says."""
  config = sft.Config(
      init=f'models/{base}',
      documents=partial(generate.documents, rejection.DATA),
      evaluation=r1.aime(k=64),  # D.1
      rewards=r1.RULES,
      epochs=2,  # 2-3 (B.4.3): chosen, v1's for the same data
      batch=64,  # B.4.3, without a unit: chosen, packed rows
      row_tokens=32_768,  # the context (B.4.3)
      max_prompt_tokens=r1.PROMPT,
      # Table 6, cosine to a tenth (B.4.3). Warm-up and AdamW's settings are unconfirmed:
      # chosen, none and optim.Optimizer's defaults.
      optimizer=optim.Optimizer(lr=lr, schedule=optim.cosine, end_lr=lr / 10),
      machine=sharding.Machine(micro_rows=1, dtype='bfloat16', **{'sample_rows': 64, **machine}),
  )
  return Stage(sft.run, config, f'runs/distill/{name}')
