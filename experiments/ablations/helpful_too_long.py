"""The helpful reward model for too long (arXiv 2501.12948 v2, B.5, figure 6), in the tiny world.

  bash launch/local.sh experiments/ablations/helpful_too_long.py

RL for all scenarios in which the preference rewards count from the first update on, for 80 updates
where R1 has 30. `truth` is what the reward model stands for: it is measured and not
earned (weight 0). It goes on from experiments/tiny/r1.py, whose first stages it runs if they are
not there; on its own it takes six minutes on two CPU cores. Expected, as in the paper: the
model's reward keeps rising while what it stands for stops or falls. Measured (seed 0, commit
7e89940, 284 s): the model's score is 0.52, 0.74, 0.75 and 0.75 at updates 1, 24, 40 and 80, the
truth 0.46, 0.96, 0.76 and 0.46; on test prompts 0.965 for R1 and 0.738 here, at the same accuracy.
"""
from experiments.tiny import r1
from r1jax.stages import evaluate, rl
from r1jax.tasks import talk
from r1jax.types import Reward, Stage

RUNS = 'runs/ablations/helpful_too_long'


def experiment():
  """R1 as it is, and with preference rewards throughout."""
  truth = Reward('truth', talk.helpful, weight=0.0, kinds=('helpful',))
  long = r1.all_scenarios(steps=80, last=80, truth=truth)
  models = {'Dev3': r1.DEV3, 'R1': r1.R1, 'for too long': f'{RUNS}/long'}
  runs = {'for too long': f'{RUNS}/long'}
  curves = (
      evaluate.Curves('reward_model', 'reward/helpful', 'score of the reward model', runs),
      evaluate.Curves('truth', 'reward/truth', 'helpful in truth', runs),
      evaluate.Curves('accuracy', 'reward/accuracy', 'accuracy', runs),
      evaluate.Curves('length', 'length', 'tokens', runs),
  )
  table = evaluate.Config(models, r1.tasks(), max_prompt_tokens=r1.PROMPT, curves=curves)
  own = [
      Stage(rl.run, long, f'{RUNS}/long'),
      Stage(evaluate.run, table, f'{RUNS}/table'),
  ]
  return (*r1.through(r1.R1), *own)
