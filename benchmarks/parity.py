"""How far our logits are from those of transformers, family by family, as a table.

  python benchmarks/parity.py [--models FOLDER]

Reads the tiny random models of tests/fixtures, with the logits that transformers gives them in
float32, and in FOLDER stories260K/hf and babyllama105/hf, if they are there. Columns: the greatest
difference with right-padded rows in one pass; with a cache, prompt and then token by token; whether
greedy continuations are the same; and, where torch and transformers are installed, the greatest
difference of what transformers computes from our export.
"""
import argparse
import importlib.util
from pathlib import Path
import tempfile
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from r1jax import sample
from r1jax.model import hf, make
from r1jax.sharding import Machine
from r1jax.types import Past

FIXTURES = Path(__file__).parents[1] / 'tests/fixtures'
FAMILIES = {  # folder in FIXTURES -> what it stands for
    'linear': 'Llama 2, rope stretched linearly', 'llama3': 'Llama 3.1, 3.2, 3.3',
    'yarn': 'Llama with YaRN', 'mistral': 'Mistral, sliding window',
    'qwen2': 'Qwen2, Qwen2.5 and Math', 'qwen3': 'Qwen3', 'qwen3_moe': 'Qwen3 MoE',
    'gemma2': 'Gemma 2', 'gemma3': 'Gemma 3, text', 'olmo2': 'OLMo 2', 'olmo3': 'OLMo 3',
    'smollm3': 'SmolLM 3', 'deepseek_v2': 'DeepSeek-V2-Lite', 'deepseek_v2_groups': 'DeepSeek-V2',
    'deepseek_v3': 'DeepSeek-V3', 'deepseek_v3_plain': 'DeepSeek-V3 without query rank and YaRN',
    'deepseek_r1': 'DeepSeek-R1 as released: float8, a layer for multi-token prediction',
}  # yapf: disable
MODELS = ('stories260K', 'babyllama105')
FORCED = 8  # tokens of each row that are decoded through the cache before the greedy ones


class Parity(NamedTuple):
  """What was measured of a model."""
  padded: float  # greatest difference of a logit
  cached: float
  greedy: bool


def measure(folder, reference, unroll=False) -> Parity:
  """Our logits of the folder's model against a reference of tests/fixtures/make.py, float32."""
  cfg, ref = hf.read_config(folder), np.load(reference)
  model = make(cfg, Machine(unroll=unroll, remat=False))
  params = model.split(hf.load_params(folder, cfg))
  ids, lengths, want = ref['ids'], ref['lengths'], ref['logits']
  (B, T), C = ids.shape, ref['greedy'].shape[1]
  start = lengths - FORCED
  seen, rows = np.arange(T) < lengths[:, None], np.arange(B)

  @jax.jit
  def prefill(params):
    hidden, kv = model.apply(params, ids, jnp.broadcast_to(jnp.arange(T), (B, T)))
    prompt = Past(kv, np.arange(T) < start[:, None], np.arange(T)[None])
    return model.logits(params, hidden), prompt

  @jax.jit
  def decode(params, prompt, cache, tokens_B, slot):
    slots = jnp.arange(FORCED + C)
    past = prompt, Past(cache, slots[None] < slot, start[:, None] + slots[None])
    hidden, fresh = model.apply(params, tokens_B[:, None], start[:, None] + slot, None, past)
    return model.logits(params, hidden)[:, 0], sample.write(cache, fresh, slot)

  whole, prompt = prefill(params)
  cache, cached, greedy = model.init_cache(B, FORCED + C), [], []
  for slot in range(FORCED + C - 1):
    forced = slot < FORCED
    tokens_B = ids[rows, start + slot] if forced else greedy[-1]
    logits, cache = decode(params, prompt, cache, tokens_B, slot)
    if forced:
      cached.append(np.abs(logits - want[rows, start + slot]).max())
    if slot >= FORCED - 1:
      greedy.append(np.asarray(logits.argmax(-1), np.int32))
  same = np.array_equal(np.stack(greedy, axis=1), ref['greedy'])
  return Parity(float(np.abs(whole - want)[seen].max()), float(max(cached)), same)


def after_export(folder, reference) -> float:
  """The greatest difference of the logits that transformers computes from our export."""
  import torch  # pylint: disable=import-outside-toplevel
  import transformers
  cfg, ref = hf.read_config(folder), np.load(reference)
  with tempfile.TemporaryDirectory() as out:
    hf.write_config(cfg, out, {1})
    hf.save_params(out, cfg, hf.load_params(folder, cfg), max_shard_bytes=60e3)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out, attn_implementation='eager')
    seen = np.arange(ref['ids'].shape[1]) < ref['lengths'][:, None]
    with torch.no_grad():
      got = theirs(torch.tensor(ref['ids']), attention_mask=torch.tensor(seen)).logits.numpy()
  return float(np.abs(got - ref['logits'])[seen].max())


def main():
  """Prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n', maxsplit=1)[0])
  parser.add_argument('--models', type=Path, help='the folder of stories260K and babyllama105')
  models = parser.parse_args().models
  rows = [(stands_for, FIXTURES / name, FIXTURES / name / 'ref.npz')
          for name, stands_for in FAMILIES.items()]  # yapf: disable
  rows += [(name, models / name / 'hf', FIXTURES / f'{name}.npz')
           for name in MODELS if models and (models / name).exists()]  # yapf: disable
  export = importlib.util.find_spec('torch') and importlib.util.find_spec('transformers')
  print('| model | padded | cached | greedy | exported |\n|---|---|---|---|---|')
  for stands_for, folder, reference in rows:
    got = measure(folder, reference)
    exported = f'{after_export(folder, reference):.1e}' if export else ''
    greedy = 'the same' if got.greedy else 'DIFFERENT'
    print(f'| {stands_for} | {got.padded:.1e} | {got.cached:.1e} | {greedy} | {exported} |',
          flush=True)  # yapf: disable


if __name__ == '__main__':
  main()
