"""A trained reward model as a reward: text in, a number between 0 and 1 out."""
import jax
import numpy as np

from r1jax import checkpoint, losses, optim, processes, sharding
from r1jax import tokenizer as tokenizer_lib
from r1jax.model import scalar
from r1jax.types import Together, UserError


def model(folder: str, machine, mesh, tokenizer):
  """The `load` of a Reward, as functools.partial(scoring.model, folder): gives
  many(problems, completions) -> sigmoid(score) of each, or the Exception instead of it, which all
  processes call together.

  What it reads is the prompt and as much of the completion as the Reward's `view` shows, which must
  be what the model was trained on. Raises UserError where its tokenizer is not the policy's: then
  the two were not made from one base, and the prompts' template means nothing to it.
  """
  lm, params, own = checkpoint.load_model(folder, machine, mesh, wrap=scalar.make)
  if not tokenizer_lib.same(own, tokenizer):
    raise UserError(f'the reward model in {folder} has another tokenizer than the policy: train '
                    'one from the policy\'s own base')
  score = make_score(lm, machine, mesh)
  limit = lm.config.max_tokens

  def many(problems, completions):
    texts = [encode(own, p.prompt, c.text) for p, c in zip(problems, completions)]
    long = ValueError(f'the text exceeds the reward model\'s context of {limit} tokens')
    fits = [i for i, ids in enumerate(texts) if len(ids) <= limit]
    out = [long] * len(texts)
    for i, x in zip(fits, score(params, [texts[i] for i in fits])):
      out[i] = float(x)
    return out

  return Together(many)


def encode(tokenizer, prompt, response) -> list[int]:
  """What a reward model reads: prompt, response, EOS. Its last token is the one that is scored."""
  return (tokenizer.encode(prompt) + tokenizer_lib.encode_rest(tokenizer, response)
          + [min(tokenizer.eos_ids)])  # yapf: disable


def make_scorer(lm, machine, mesh):
  """The jitted (params, (tokens_BT, lengths_B)) -> sigmoid(score), float32, and the rows B of a
  call."""
  f = lambda params, batch: jax.nn.sigmoid(losses.sequence_score(lm, params, *batch))
  jitted = optim.make_map(f, lm, mesh, machine.micro_rows)
  rows = max(1, machine.sample_rows // 4)
  return jitted, rows + -rows % (machine.micro_rows * sharding.rows(mesh))


def make_score(lm, machine, mesh):
  """(params, texts as token ids) -> sigmoid(score), float32, in calls of one of a few shapes."""
  jitted, rows = make_scorer(lm, machine, mesh)

  def score(params, texts):
    processes.check_together('a reward model')
    out = []
    for start in range(0, len(texts), rows):
      part = texts[start:start + rows]
      batch = sharding.pad_rows(pad(part), rows)
      out.append(sharding.fetch(jitted(params, sharding.put_rows(batch, mesh)))[:len(part)])
    return np.concatenate(out) if out else np.zeros(0, np.float32)

  return score


def pad(texts, multiple=64):
  """Right-padded tokens [B, T] and lengths [B], with T a multiple: few shapes, few programs."""
  T = max(map(len, texts))
  T += -T % multiple
  tokens_BT = np.zeros((len(texts), T), np.int32)
  for row, ids in zip(tokens_BT, texts):
    row[:len(ids)] = ids
  return tokens_BT, np.asarray([len(ids) for ids in texts], np.int32)
