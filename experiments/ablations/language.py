"""Without the language-consistency reward (arXiv 2501.12948 v2, B.6, figure 7), in the tiny world.

  bash launch/local.sh experiments/ablations/language.py

Reasoning RL from the same Dev1 with and without the reward, and one table and two pictures of both,
in runs/ablations/language/table. It goes on from experiments/tiny/r1.py, whose first stages it runs
if they are not there; on its own it takes three minutes on two CPU cores. Expected, as in the
paper: consistency stays high with the reward and decays without it, at about the same accuracy.
Measured (seed 0, commit 7e89940): consistency 1.000 with, 0.632 without; pass@1 0.999 and 0.992.
"""
from experiments.tiny import r1
from r1jax.stages import evaluate, rl
from r1jax.types import Stage

RUNS = 'runs/ablations/language'


def experiment():
  """Dev2 as it is, and without one of its rewards."""
  measured = (r1.RIGHT, r1.FORMAT, r1.LANGUAGE._replace(weight=0.0))  # seen, not earned
  without = r1.reinforce(r1.DEV1, rewards=measured, objective=r1.DEV2_OBJECTIVE)
  models = {'Dev1': r1.DEV1, 'with language reward': r1.DEV2, 'without': f'{RUNS}/without'}
  runs = {'with language reward': r1.DEV2, 'without': f'{RUNS}/without'}
  curves = (
      evaluate.Curves('consistency', 'reward/language', 'language consistency', runs),
      evaluate.Curves('accuracy', 'reward/accuracy', 'accuracy', runs),
  )
  table = evaluate.Config(models, r1.tasks()[:1], max_prompt_tokens=r1.PROMPT, curves=curves)
  own = [
      Stage(rl.run, without, f'{RUNS}/without'),
      Stage(evaluate.run, table, f'{RUNS}/table'),
  ]
  return (*r1.through(r1.DEV2), *own)
