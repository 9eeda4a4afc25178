"""Distillation or RL for a small model (arXiv 2501.12948 v1, table 6), in the tiny world.

  bash launch/local.sh experiments/ablations/distil_or_rl.py

The student of experiments/tiny/r1.py, distilled and trained by RL there, and here by RL for twice
as many updates, and by RL on top of distillation, which the paper leaves open. It goes on
from experiments/tiny/r1.py, which it runs if it is not there; on its own it takes four minutes on
two CPU cores. Expected, as in the paper: distillation beats RL of the small model. Measured
(seed 0, commit 7e89940, 183 s): pass@1 0.939 by RL, 0.977 by more of it, 0.994 distilled, 0.984
with RL after that.
"""
from experiments.tiny import r1
from r1jax import rewards
from r1jax.stages import evaluate, rl
from r1jax.types import Reward, Stage

RUNS = 'runs/ablations/distil_or_rl'


def experiment():
  """More RL of the student, and RL of the distilled student."""
  format_ = Reward('format', rewards.format)
  longer = r1.reinforce(r1.STUDENT, rewards=(r1.RIGHT, format_), steps=80, refresh_every=40,
                        save_every=40)
  further = r1.reinforce(r1.DISTILLED)
  models = {
      'student base': r1.STUDENT, 'RL': r1.STUDENT_ZERO, 'RL, longer': f'{RUNS}/longer',
      'distilled': r1.DISTILLED, 'distilled, then RL': f'{RUNS}/further'
  }
  runs = {'RL': f'{RUNS}/longer', 'distilled, then RL': f'{RUNS}/further'}
  curves = (evaluate.Curves('accuracy', 'reward/accuracy', 'accuracy', runs),)
  table = evaluate.Config(models, r1.tasks()[:1], max_prompt_tokens=r1.PROMPT, curves=curves)
  own = [
      Stage(rl.run, longer, f'{RUNS}/longer'),
      Stage(rl.run, further, f'{RUNS}/further'),
      Stage(evaluate.run, table, f'{RUNS}/table'),
  ]
  return (*r1.through(r1.STUDENT_ZERO), *own)
