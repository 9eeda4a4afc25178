"""All of DeepSeek-R1 in the tiny world: every stage of the paper, on a laptop CPU, from one command.

  bash launch/local.sh experiments/tiny/r1.py

  base --RL--> R1-Zero --sample, filter, rewrite--> cold-start data
  base --SFT--> Dev1 --RL--> Dev2 --rejection sampling--> data + general data --SFT of the base--> Dev3
  Dev3 --sample, judge--> pairs, labels --> reward models;  Dev3 --RL for all scenarios--> R1
  the data --SFT--> a smaller student, and RL of the same student beside it; the stage table

Sections of arXiv 2501.12948 v2 are named at each stage. The world is small (tasks/chain.py,
tasks/talk.py) and so are the numbers; experiments/r1/ has the paper's. Where the paper is silent
the choice is a field: what a word is (language.py), the scale of the verdicts and the gates
(selection.py, rewards.READABLE), a reward model's scale (stages/reward_model.py).
"""
from functools import partial

from experiments.tiny import base as tiny
from r1jax import evals, grpo, judges, losses, model, optim, prompts, rewards, sample, scoring
from r1jax import selection
from r1jax.stages import evaluate, generate, reward_model, rl, sft
from r1jax.tasks import chain, talk
from r1jax.types import Reward, Source, Stage

RUNS = 'runs/tiny/r1'
BASE, ZERO, COLD_START, DEV1, DEV2, REJECTION, DEV3, PAIRS, LABELS, HELPFUL, SAFETY, R1 = (
    f'{RUNS}/{name}' for name in ('base', 'zero', 'cold_start', 'dev1', 'dev2', 'rejection', 'dev3',
                                  'pairs', 'labels', 'helpful', 'safety', 'r1'))
STUDENT, DISTILLED, STUDENT_ZERO, TABLE = (
    f'{RUNS}/{name}' for name in ('student', 'distilled', 'student_zero', 'table'))

SAMPLING = sample.Sampling(max_tokens=112)
PROMPT = 64  # tokens
CHECK = evals.Evaluation(chain.load, num_problems=256, sampling=SAMPLING)  # in passing
helpful = partial(talk.load, kind='helpful')
safety = partial(talk.load, kind='safety')

# -- what the stages learn -------------------------------------------------------------------------


def texts():
  """The base's reading: chains of sums, and talk of which a third is any good."""
  return chain.corpus(36_000) + talk.documents(9_000, good=0.3, plain=0.7)


def general():
  """General data as another model writes it, not all of it well: 60% (section 3.2, B.3.3)."""
  return talk.documents(1500, good=0.6, seed='general data')


def both(split):
  """Helpful and harmful requests."""
  return helpful(split) + safety(split)


RIGHT = Reward('accuracy', chain.accuracy)
LANGUAGE = Reward('language', rewards.consistency)
FORMAT = Reward('format', rewards.think_format)
DEV2_OBJECTIVE = grpo.Objective(clip_low=10, clip_high=10, beta=0.001)  # section 3.2.1

# -- the stages ------------------------------------------------------------------------------------


def pretrain(**sizes):
  """A base model of some size from nothing."""
  sizes = dict(V=640, L=3, D=128, H=4, K=2, W=32, F=384, init_std=0.08) | sizes
  return sft.Config(documents=texts, scratch=model.Config(**sizes), tokenizer=tiny.train_tokenizer,
                    evaluation=CHECK, rewards=(RIGHT, LANGUAGE), steps=3200, batch=16,
                    row_tokens=128, max_prompt_tokens=PROMPT,
                    optimizer=optim.Optimizer(lr=2e-3, schedule=optim.cosine, warmup_steps=40,
                                              weight_decay=0.1, end_lr=1e-4))


def reinforce(init, **changes):
  """GRPO as in section 2.1 with numbers for a small model."""
  settings = dict(init=init, problems=chain.load, evaluation=CHECK, rewards=(RIGHT, FORMAT, LANGUAGE),
                  steps=40, batch=32, group=16, minibatches=1, max_prompt_tokens=PROMPT,
                  sampling=SAMPLING, objective=grpo.Objective(beta=0.001),
                  optimizer=optim.Optimizer(lr=6e-4, warmup_steps=5), refresh_every=20,
                  save_every=20, samples_every=10)
  return rl.Config(**settings | changes)


def fine_tune(init, data, **changes):
  """SFT on what a stage of generate made; cosine to a tenth (B.4.2)."""
  settings = dict(init=init, documents=partial(generate.documents, data), evaluation=CHECK,
                  rewards=(RIGHT, LANGUAGE), epochs=3, batch=16, row_tokens=128,
                  max_prompt_tokens=PROMPT,
                  optimizer=optim.Optimizer(lr=1e-3, schedule=optim.cosine, warmup_steps=5,
                                            end_lr=1e-4))
  return sft.Config(**settings | changes)


def rejection(init, gates, keep=2, rewrite=None, others=None):
  """Sampling that keeps what is right and readable."""
  return generate.Config(init, chain.load, selection.Documents(gates, keep, rewrite), others,
                         num_problems=1024, samples=8, rounds=2, max_prompt_tokens=PROMPT,
                         sampling=SAMPLING)


def experiment():
  """Every stage, in the order of the paper."""
  zero = reinforce(BASE, rewards=(RIGHT, Reward('format', rewards.format)), steps=40)
  gates = (RIGHT, *rewards.READABLE)
  # Cold start (B.3.2): samples at temperature 1, filtered and rewritten in the question's language.
  cold_start = rejection(ZERO, (*gates, Reward('mixed', rewards.unmixed)), keep=1,
                         rewrite=chain.rewrite)
  dev2 = reinforce(DEV1, objective=DEV2_OBJECTIVE)
  mixture = rejection(DEV2, (*gates, Reward('language', rewards.one_language)), others=general)
  # Reward models (section 3.1): pairs judged four times in random order, and labels.
  pairs = generate.Config(DEV3, helpful, selection.Pairs(partial(judges.rule, talk.prefer)),
                          samples=16, max_prompt_tokens=PROMPT, sampling=SAMPLING)
  labels = generate.Config(DEV3, both, selection.Labels(Reward('safe', talk.safe)), samples=8,
                           max_prompt_tokens=PROMPT, sampling=SAMPLING)
  judge = dict(batch=32, max_tokens=160,
               optimizer=optim.Optimizer(lr=3e-4, schedule=optim.cosine, end_lr=3e-5))
  likes = reward_model.Config(DEV3, partial(generate.judged, PAIRS), prompts.summary, epochs=2,
                              **judge)
  guards = reward_model.Config(DEV3, partial(generate.judged, LABELS), prompts.whole,
                               losses.pointwise, **judge)
  distilled = fine_tune(STUDENT, REJECTION)
  return (Stage(sft.run, pretrain(), BASE), Stage(rl.run, zero, ZERO),
          Stage(generate.run, cold_start, COLD_START),
          Stage(sft.run, fine_tune(BASE, COLD_START), DEV1), Stage(rl.run, dev2, DEV2),
          Stage(generate.run, mixture, REJECTION),
          Stage(sft.run, fine_tune(BASE, REJECTION), DEV3), Stage(generate.run, pairs, PAIRS),
          Stage(generate.run, labels, LABELS), Stage(reward_model.run, likes, HELPFUL),
          Stage(reward_model.run, guards, SAFETY), Stage(rl.run, all_scenarios(), R1),
          Stage(sft.run, pretrain(L=2, D=96, H=3, K=1, F=256), STUDENT),
          Stage(sft.run, distilled, DISTILLED),
          Stage(rl.run, reinforce(STUDENT, rewards=zero.rewards, steps=50), STUDENT_ZERO),
          Stage(evaluate.run, table(), TABLE))


def through(out):
  """The stages up to the one that makes the folder `out`, for experiments that go on from there."""
  stages = experiment()
  return stages[:[stage.out for stage in stages].index(out) + 1]


def all_scenarios(steps=40, last=20, truth=None, **changes):
  """RL for all scenarios (section 3.2.2): temperature 0.7, rules for reasoning; general prompts and
  preference rewards only in the last updates. The helpful model sees the summary only, the safety
  model the whole response; language consistency is for all."""
  start, talks = steps - last, ('helpful', 'safety')
  terms = (RIGHT._replace(kinds=('reasoning',)), FORMAT._replace(kinds=('reasoning',)),
           Reward('free_format', rewards.free_format, kinds=talks, start=start),
           Reward('helpful', kinds=('helpful',), view=prompts.summary, start=start,
                  load=partial(scoring.model, HELPFUL)),
           Reward('safety', kinds=('safety',), view=prompts.whole, start=start,
                  load=partial(scoring.model, SAFETY)), LANGUAGE, *([truth] if truth else []))
  settings = dict(steps=steps, rewards=terms,
                  more=(Source(helpful, 10, start), Source(safety, 6, start)),
                  sampling=sample.Sampling(max_tokens=112, temperature=0.7))
  return reinforce(DEV3, **settings | changes)


# -- the stage table -------------------------------------------------------------------------------


def tasks(k=16, problems=192):
  """Evaluation as in D.1: temperature 0.6, top-p 0.95, k samples a problem."""
  ask = lambda load, k, **more: evals.Evaluation(
      load, num_problems=problems, k=k, sampling=sample.Sampling(112, 0.6, 0.95), **more)
  column = evaluate.Column
  cons, best = f'cons_at_{k}', f'pass_at_{k}'
  return (
      evaluate.Task('reasoning', ask(chain.load, k, answer=chain.answer), (RIGHT, FORMAT, LANGUAGE),
                    {'pass_at_1': column('pass_at_1', 'pass@1'), cons: column(cons, f'cons@{k}'),
                     best: column(best, f'pass@{k}'), 'language': column('language', 'language'),
                     'format': column('format', 'format'), 'length': column('length', 'length')}),
      evaluate.Task('helpful', ask(helpful, 8), (Reward('helpful', talk.helpful),),
                    {'helpful': column('helpful', 'helpful')}),
      evaluate.Task('harmful', ask(safety, 8), (Reward('refused', talk.refused),),
                    {'refused': column('refused', 'refused')}),
  )  # yapf: disable


def table():
  """Every model of the pipeline, asked the same."""
  models = {'base': BASE, 'R1-Zero': ZERO, 'Dev1': DEV1, 'Dev2': DEV2, 'Dev3': DEV3, 'R1': R1,
            'student base': STUDENT, 'student distilled': DISTILLED, 'student RL': STUDENT_ZERO}
  return evaluate.Config(models, tasks(), max_prompt_tokens=PROMPT, notes=findings)


def findings(rows):
  """The paper's findings, and whether the table has them."""
  x = lambda row, name: rows[row][name]
  gain = lambda name: x('R1', name) - x('Dev3', name)
  claims = [
      ('R1-Zero is more often right than the base', x('R1-Zero', 'pass_at_1') - x('base', 'pass_at_1'),
       0.2), ('R1-Zero mixes languages: 0.8 less its consistency', 0.8 - x('R1-Zero', 'language'), 0),
      ('Dev1 is more readable: consistency against R1-Zero',
       x('Dev1', 'language') - x('R1-Zero', 'language'), 0),
      ('Dev2 keeps to one language: consistency', x('Dev2', 'language'), 0.95),
      ('Dev2\'s accuracy against R1-Zero', x('Dev2', 'pass_at_1') - x('R1-Zero', 'pass_at_1'), -0.05),
      ('R1\'s accuracy against Dev3', gain('pass_at_1'), -0.03),
      ('R1\'s helpfulness against Dev3', gain('helpful'), 0.2),
      ('R1\'s refusals against Dev3', gain('refused'), 0.2),
      ('cons@16 against pass@1, in the worst row',
       min(r['cons_at_16'] - r['pass_at_1'] for r in rows.values()), 0),
      ('distilled against RL of the same student',
       x('student distilled', 'pass_at_1') - x('student RL', 'pass_at_1'), 0),
  ]  # yapf: disable
  return [f'{"yes" if value >= bar else "NO"}: {name} {value:.3f}, to be at least {bar:g}'
          for name, value, bar in claims]
