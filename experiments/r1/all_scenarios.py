"""RL for all scenarios, stage 2: Dev3 to R1 (section 3.2.2; v1, section 2.3.4).

  bash launch/local.sh experiments/r1/all_scenarios.py

Machine as in common.py. Expected: AIME 2024 79.8, MATH-500 97.3, GPQA Diamond 71.5, AlpacaEval 2.0
from 62.1 to 87.6, ArenaHard from 75.6 to 92.3 (table 3). Not yet run.

Temperature 0.7, 1,700 updates, general prompts and preference rewards in the last 400 alone
(3.2.2): with longer use of the helpful model its reward rises and Codeforces falls (B.5, figure 6).
1,700 is no multiple of the 16 updates of a rollout: 1,696, the last 400 of which are whole
rollouts. "Most parameters" are stage 1's (3.2.2): learning rate 3e-6, KL 0.001, 32 questions with
16 outputs, rollouts of 8,192, a reference refreshed every 400 updates, 32,768 tokens. The clip is
not restated: chosen, 10 again.

Reasoning prompts get the rules, a general prompt the reward model of its own set and the format's
reward; language consistency is for all; all weights are 1 (eq. 8 to 10). The helpful model sees the
summary only, the safety model the whole response (3.1). How prompts mix in the last 400 updates is
unconfirmed: chosen by table 4's numbers, 80 : 66 : 12 thousand, so 16, 13 and 3 of 32; likewise the
scale of the models' rewards, which is a probability.
"""
from functools import partial

from experiments.r1 import common, rejection, reward_models
from r1jax import optim, prompts, rewards, sample, scoring
from r1jax.stages import rl
from r1jax.types import Reward, Source, Stage

OUT = 'runs/r1/r1'
STEPS = 1696  # 1,700 (3.2.2), in whole rollouts [derived]
START = STEPS - 400  # of general prompts and preference rewards (3.2.2)


def experiment():
  """One stage."""
  general = (common.HELPFUL, common.SAFETY)
  config = rl.Config(
      init=rejection.OUT,
      problems=common.reasoning,
      more=(Source(common.helpful, 13, START), Source(common.safety, 3, START)),
      evaluation=common.aime(),
      rewards=(*common.RULES, Reward('free_format', rewards.free_format, kinds=general,
                                     start=START),
               Reward('helpful', kinds=(common.HELPFUL,), view=prompts.summary, start=START,
                      load=partial(scoring.model, reward_models.HELPFUL)),
               Reward('safety', kinds=(common.SAFETY,), view=prompts.whole, start=START,
                      load=partial(scoring.model, reward_models.SAFETY))),
      steps=STEPS,
      max_prompt_tokens=common.PROMPT,
      sampling=sample.Sampling(max_tokens=32_768, temperature=0.7),  # 3.2.2
      optimizer=optim.Optimizer(lr=3e-6, moments=common.MOMENTS),
      objective=common.LATENT,
      save_every=16,  # ours: after each rollout, which takes hours
      eval_every=400,  # ours
      machine=common.MACHINE,
  )
  return Stage(rl.run, config, OUT)
