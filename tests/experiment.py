"""The smallest pipeline: a base model that has read some sums, and R1-Zero from it, in seconds."""
from r1jax import evals, grpo, model, optim, sample, sharding, tokenizer
from r1jax.prompts import TAGS
from r1jax.stages import rl, sft
from r1jax.types import Document, Problem, Reward, Stage

MACHINE = sharding.Machine(data=1, cpu_devices=1)


def sums(split):
  """The sums of two digits; every fifth one is a test."""
  pairs = [(a, b) for a in range(10) for b in range(10)]
  keep = lambda i: (i % 5 == 0) == (split == 'test')
  return [Problem(f'{a}+{b}=', str(a + b)) for i, (a, b) in enumerate(pairs) if keep(i)]


def texts():
  """The sums for training, in R1-Zero's format."""
  return [
      Document(p.prompt, f'<think>{p.prompt}</think><answer>{p.answer}</answer>')
      for p in sums('train')
  ]


def train_tokenizer(corpus, size):
  """A tokenizer of the texts."""
  return tokenizer.train(corpus, size, TAGS)


def brevity(problem, completion):
  """1 for an empty completion, less for each token: something that a few updates change."""
  del problem
  return 1 - completion.num_tokens / 16


def experiment():
  """Both stages."""
  judge = evals.Evaluation(sums, num_problems=4, k=2, sampling=sample.Sampling(max_tokens=16))
  base = sft.Config(documents=texts, scratch=model.Config(V=275, L=1, D=32, H=2, K=1, W=16, F=32),
                    tokenizer=train_tokenizer, evaluation=judge, steps=6, batch=4, row_tokens=64,
                    optimizer=optim.Optimizer(lr=1e-2), save_every=2, machine=MACHINE)
  zero = rl.Config(init='runs/base', problems=sums, evaluation=judge,
                   rewards=(Reward('accuracy', brevity), Reward('brevity', brevity,
                                                                0.5)), steps=8, batch=2, group=4,
                   minibatches=2, max_prompt_tokens=8, sampling=sample.Sampling(max_tokens=16),
                   objective=grpo.Objective(beta=0.01), optimizer=optim.Optimizer(lr=1e-3),
                   refresh_every=4, save_every=2, samples_every=2, machine=MACHINE)
  return Stage(sft.run, base, 'runs/base'), Stage(rl.run, zero, 'runs/zero')
