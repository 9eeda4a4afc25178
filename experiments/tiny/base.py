"""The tiny world's stand-in for DeepSeek-V3-Base: a 0.6M-parameter model pretrained from nothing.

  bash launch/local.sh experiments/tiny/base.py

It reads 40,000 texts of mixed quality (tasks/chain.py): half of the answers are guesses, a third
are worked out link by link. Two minutes on two CPU cores. Expected: direct answers at most 25%
right, stepwise ones at least 75%. Measured, seeds 0, 1, 2: direct 0.11, 0.13, 0.11; stepwise 0.82,
0.78, 0.83; pass@1 0.35, 0.34, 0.36 (commit 3dc95e2 and before).
"""
from r1jax import evals, model, optim, sample, tokenizer
from r1jax.prompts import TAGS
from r1jax.stages import sft
from r1jax.tasks import chain
from r1jax.types import Stage

OUT = 'runs/tiny/base'
EVALUATION = evals.Evaluation(chain.load, num_problems=512, k=2,
                              sampling=sample.Sampling(max_tokens=128), more=chain.styles)


def train_tokenizer(texts, vocab_size):
  """A sentencepiece tokenizer of the corpus, each of R1-Zero's tags one token."""
  return tokenizer.train(texts, vocab_size, TAGS)


def experiment():
  """One stage: pretraining on the chain corpus."""
  return Stage(
      sft.run,
      sft.Config(
          documents=chain.corpus,
          scratch=model.Config(V=448, L=3, D=128, H=4, K=2, W=32, F=384, init_std=0.08),
          tokenizer=train_tokenizer,
          evaluation=EVALUATION,
          steps=3200,
          batch=16,
          row_tokens=128,
          optimizer=optim.Optimizer(lr=2e-3, schedule=optim.cosine, warmup_steps=40,
                                    weight_decay=0.1, end_lr=1e-4),
      ), OUT)
