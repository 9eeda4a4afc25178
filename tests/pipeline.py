"""One stage of each kind in a row, on a model that has hardly learnt to speak, in seconds."""
import dataclasses
from functools import partial

from r1jax import judges, losses, optim, prompts, rewards, sample, scoring, selection
from r1jax.stages import evaluate, generate, reward_model, rl, sft
from r1jax.types import Reward, Source, Stage
from tests import experiment as tiny

NAMES = ('base', 'data', 'dev', 'pairs', 'labels', 'helpful', 'safety', 'zero', 'table')
OUT = {name: f'runs/{name}' for name in NAMES}
SAMPLING = sample.Sampling(max_tokens=16)


def even(problem, completion):
  """A gate that half of what is sampled passes."""
  del problem
  return float(completion.num_tokens % 2 == 0)


def early(problem, a, b, draw):
  """A judge that likes what stands first in the dictionary."""
  del problem, draw
  return 'A>>B' if a < b else 'B>>A'


def general(split):
  """The sums, asked as general prompts."""
  return [problem._replace(kind='helpful', language='en') for problem in tiny.sums(split)]


def experiment():
  """The stages."""
  base = dataclasses.replace(tiny.experiment()[0].config, evaluation=None)
  common = dict(max_prompt_tokens=8, machine=tiny.MACHINE)
  made = dict(common, num_problems=20, samples=4, shard=8, sampling=SAMPLING)
  gates = (Reward('even', even), Reward('once', rewards.no_repetition))
  data = generate.Config(OUT['base'], tiny.sums, selection.Documents(gates, keep=2), rounds=2,
                         others=tiny.texts, **made)
  dev = sft.Config(init=OUT['base'], documents=partial(generate.documents, OUT['data']), epochs=1,
                   batch=4, row_tokens=64, save_every=2, machine=tiny.MACHINE)
  judged = selection.Pairs(partial(judges.rule, early), view=prompts.whole)
  pairs = generate.Config(OUT['dev'], general, judged, **made)
  labels = generate.Config(OUT['dev'], general, selection.Labels(Reward('even', even)), **made)
  learn = dict(batch=8, max_tokens=64, save_every=2, optimizer=optim.Optimizer(lr=3e-3),
               machine=tiny.MACHINE)
  helpful = reward_model.Config(OUT['dev'], partial(generate.judged, OUT['pairs']), prompts.whole,
                                **learn)
  safety = reward_model.Config(OUT['dev'], partial(generate.judged, OUT['labels']), prompts.whole,
                               losses.pointwise, **learn)
  terms = (Reward('accuracy', rewards.accuracy, kinds=('reasoning',)),
           Reward('helpful', kinds=('helpful',), start=2,
                  load=partial(scoring.model, OUT['helpful'])),
           Reward('safety', kinds=('helpful',), start=2, load=partial(scoring.model,
                                                                      OUT['safety'])))
  zero = dataclasses.replace(tiny.experiment()[1].config, init=OUT['dev'], rewards=terms, steps=4,
                             more=(Source(general, 1, 2),))
  column = evaluate.Column('right', 'right')
  task = evaluate.Task('sums', zero.evaluation, terms[:1], {'pass_at_1': column})
  curves = evaluate.Curves('reward', 'reward', 'reward', {'zero': OUT['zero']})
  table = evaluate.Config({'base': OUT['base'], 'zero': OUT['zero']}, (task,), curves=(curves,),
                          notes=lambda rows: [f'{len(rows)} rows'], **common)
  configs = base, data, dev, pairs, labels, helpful, safety, zero, table
  runs = (sft.run, generate.run, sft.run, generate.run, generate.run, reward_model.run,
          reward_model.run, rl.run, evaluate.run)
  return tuple(map(Stage, runs, configs, OUT.values()))
