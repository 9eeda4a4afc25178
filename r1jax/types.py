"""The nouns everyone passes. Data only: no logic, no jax.

Shape letters, the same in every file: B rows, P problems, G completions a problem (B = P * G),
T positions, C completion positions, S cached positions, D model, H query heads, K key-value heads,
R = H / K, W head width, F ffn, V vocabulary, L layers.
"""
import dataclasses
from typing import Any, Callable, NamedTuple


class UserError(Exception):
  """Something a person can mend. Its text is one sentence: what is wrong, where, what to do."""


class Stopped(Exception):
  """The work in folder `out` was asked to stop and has saved its state after `step` updates,
  problems or rows of a table; the same command goes on from there."""

  def __init__(self, out, step: int):
    super().__init__(f'{out} was stopped after {step}')
    self.out, self.step = out, step


class Together(NamedTuple):
  """Marks a function that runs on the whole mesh: where there are several processes, all call it
  with the same arguments at the same time, instead of each with its share of the rows."""
  function: Callable

  def __call__(self, *args):
    return self.function(*args)


class Problem(NamedTuple):
  """One question and what is needed to check an answer to it."""
  prompt: str  # as the model reads it, template included
  answer: str  # the reference, for the rewards
  kind: str = 'reasoning'  # rewards, gates and counts go by it
  language: str = ''  # of the question: 'en' or 'zh'; '': unknown
  question: str = ''  # without the template, for a judge
  id: str = ''  # of the row of a data set, as 'gsm8k/test/7'


class Completion(NamedTuple):
  """One sampled answer."""
  text: str
  num_tokens: int  # EOS included
  finished: bool  # an EOS was sampled within the budget


class Source(NamedTuple):
  """Problems that take the place of some of each update's own, in some updates."""
  problems: Callable[[str], list[Problem]]  # split -> problems; 'train' is trained on
  share: int  # problems of an update
  start: int = 0  # the updates start .. stop - 1
  stop: int | None = None  # None: to the end


class Document(NamedTuple):
  """A text to learn from: the response is learnt, and that it ends there."""
  prompt: str  # read, not learnt; may be empty
  response: str
  kind: str = 'reasoning'


class Judged(NamedTuple):
  """What a reward model learns from: two responses, the better one first, or one and its label."""
  prompt: str
  responses: tuple[str, ...]
  label: float = 1.0  # of a single response: 1 good, 0 bad


class Reward(NamedTuple):
  """One term of the reward; the terms are added with their weights and reported one by one.

  Which completions it scores, what it sees of them and when it counts is data, not code. A gate of
  a data set is the same with scores of 0 and 1.
  """
  name: str
  function: Callable[[Problem, Completion], float] | None = None
  weight: float = 1.0
  kinds: tuple[str, ...] = ()  # of the problems that it scores; (): all
  view: Callable[[str], str | None] | None = None  # text -> the part that it sees; None: everything
  start: int = 0  # it counts in the updates start .. stop - 1
  stop: int | None = None  # None: to the end
  # Instead of a function, what needs a model or a server: load(machine, mesh, tokenizer) gives
  # many(problems, completions) -> for each a float, or the Exception that kept it from one; as a
  # Together where it uses the mesh.
  load: Callable | None = None
  many: Callable | None = None  # what load gave


class Benchmark(NamedTuple):
  """How a set of problems is evaluated. tasks/ has several a file, in its dict BENCHMARKS."""
  problems: Callable  # (split, template) -> list[Problem]; the template has one {question}
  reward: Reward  # says what is right
  split: str = 'test'
  answer: Callable[[str], Any] | None = None  # text -> the answer that cons@k votes with, or None
  same: Callable = lambda a, b: a == b  # whether two such answers mean the same
  k: int = 1  # samples a problem, in the paper's protocol
  max_tokens: int = 32_768  # of a completion


@dataclasses.dataclass(frozen=True)
class Stage:
  """One stage of a pipeline: which loop runs, with which settings, and where its result lies."""
  run: Callable  # config, out folder -> result dict
  config: Any  # frozen dataclass
  out: str  # folder of the stage's results, relative to the working directory


class Model(NamedTuple):
  """An architecture as a value. Parameters are a plain nested dict with layers stacked."""
  config: Any
  init: Callable  # key -> params
  axes: Callable  # () -> axis letters of every parameter, the same tree as params
  split: Callable  # params -> the form `apply` reads (layers apart where they are unrolled)
  join: Callable  # the inverse of split
  init_cache: Callable  # B, S -> KV of S empty slots
  apply: Callable  # split params, tokens_BT, positions_BT, segments_BT, past -> hidden_BTD, KV
  logits: Callable  # split params, hidden_BTD -> logits_BTV, float32; part: sharding.vocabulary's
  exact: Callable  # name of a weight -> whether it is read in float32 whatever the dtype


class KV(NamedTuple):
  """Keys and values of S positions, laid out as decoding reads them: tuples of unrolled layers or
  of stacks of scanned ones, so count axes from the end: S is axis -1 of k and axis -2 of v."""
  k: Any  # each [B, K, W, S] or [L, B, K, W, S]
  v: Any  # each [B, K, S, W] or [L, B, K, S, W]


class Past(NamedTuple):
  """Positions that every query of a row may look back on. With fewer rows P than the queries' B,
  each serves B / P consecutive rows: the completions of one prompt share its keys and values."""
  kv: KV
  mask_PS: Any  # bool, true where a slot holds something to see; P may be 1
  positions_PS: Any = None  # int32, of the slots, for models with windowed layers; P may be 1


class Rollout(NamedTuple):
  """What sampling returns for P problems with G completions each. Host arrays."""
  prompts_PT: Any  # int32, right-padded
  prompt_lengths_P: Any  # int32
  tokens_PGC: Any  # int32, EOS included, zeros after it
  lengths_PG: Any  # int32, EOS counted
  finished_PG: Any  # bool, false where the budget ended the completion
  logp_PGC: Any  # float32, of each token under the policy that sampled it


class Batch(NamedTuple):
  """What one policy update reads. Leading axis P throughout, so that rows can be sharded and
  split by problem; weights are those of the whole minibatch, so that partial sums add exactly."""
  prompts_PT: Any
  prompt_lengths_P: Any
  tokens_PGC: Any
  lengths_PG: Any
  logp_old_PGC: Any
  logp_ref_PGC: Any
  advantages_PGC: Any
  weights_PGC: Any


class Rows(NamedTuple):
  """Packed training rows for supervised learning."""
  tokens_BT: Any  # int32
  segments_BT: Any  # int32, documents numbered from 1 within a row, 0 is padding
  weights_BT: Any  # float32, of predicting the token at t + 1 from position t


class TrainState(NamedTuple):
  """Everything an update changes. `reference` is what was learnt of the policy that KL is measured
  against (optim.reference), or () where a stage needs none."""
  step: Any  # int32 [], policy updates done
  params: Any
  opt: Any
  reference: Any
