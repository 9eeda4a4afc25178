"""Cold start or not (arXiv 2501.12948 v1, section 2.3.1), in the tiny world.

  bash launch/local.sh experiments/ablations/cold_start.py

Reasoning RL with the same rewards and as many updates, from the base and from Dev1. It goes on from
experiments/tiny/r1.py, whose first stages it runs if they are not there; on its own it takes three
minutes on two CPU cores. Expected, as in the paper: from Dev1 the early phase is stable and the
thinking readable from the start. Measured (seed 0, commit 7e89940): after the first update accuracy
0.96 from Dev1, 0.33 from the base; at the end pass@1 0.999 and 1.000, consistency 1.000 and 0.841.
"""
from experiments.tiny import r1
from r1jax.stages import evaluate, rl
from r1jax.types import Stage

RUNS = 'runs/ablations/cold_start'


def experiment():
  """Dev2 as it is, and the same from the base."""
  without = r1.reinforce(r1.BASE, objective=r1.DEV2_OBJECTIVE)
  models = {
      'base': r1.BASE, 'RL from the base': f'{RUNS}/without', 'Dev1': r1.DEV1,
      'RL from Dev1': r1.DEV2
  }
  runs = {'from Dev1': r1.DEV2, 'from the base': f'{RUNS}/without'}
  curves = (
      evaluate.Curves('reward', 'reward', 'reward', runs),
      evaluate.Curves('accuracy', 'reward/accuracy', 'accuracy', runs),
      evaluate.Curves('consistency', 'reward/language', 'language consistency', runs),
  )
  table = evaluate.Config(models, r1.tasks()[:1], max_prompt_tokens=r1.PROMPT, curves=curves)
  own = [
      Stage(rl.run, without, f'{RUNS}/without'),
      Stage(evaluate.run, table, f'{RUNS}/table'),
  ]
  return (*r1.through(r1.DEV2), *own)
