"""The evaluation of all stages: table 3, as far as answers can be compared here (D.1, J).

  bash launch/local.sh experiments/r1/evaluation.py

Machine as in common.py. Expected (table 3):

                 R1-Zero   Dev1   Dev2   Dev3     R1
  AIME 2024         77.9   59.0   74.0   78.1   79.8      majority vote of R1: 86.7 (appendix E)
  MATH-500          95.9   94.2   95.9   95.4   97.3
  GPQA Diamond      75.8   66.1   70.7   71.2   71.5

Not yet run.

At most 32,768 tokens, temperature 0.6, top-p 0.95 (v1, section 3; D.1); 64 samples a question of
AIME and GPQA, 16 of MATH (and Codeforces), 8 of LiveCodeBench (D.1); these two are not asked.
R1-Zero is asked with its own template and must answer in its tags, hence a table of its own.
"""
from experiments.r1 import all_scenarios, cold_start, common, r1_zero, reasoning_rl, rejection
from r1jax import prompts
from r1jax.stages import evaluate
from r1jax.types import Reward, Stage

OUT_ZERO = 'runs/r1/table_zero'
OUT = 'runs/r1/table'

K = {'aime24': 64, 'gpqa': 64, 'math500': 16, 'codeforces': 16, 'livecodebench': 8}  # D.1

# Appendix J; the question holds the options.
OPTION = prompts.R1.replace(
    '{question}', 'Answer the following multiple choice question. The last line of your response '
    'should be of the following format: \'ANSWER: $LETTER\' (without quotes) where LETTER is one '
    'of ABCD. Think step by step before answering.\n\n{question}')


def letter(text):
  """The letter that the summary ends in, after ANSWER:; None where there is none."""
  _, said, tail = (prompts.summary(text) or '').rpartition('ANSWER:')
  return tail.strip()[:1] or None if said else None


def option(problem, completion):
  """1 if the letter is the reference's."""
  return float(letter(completion.text) == problem.answer.strip())


def tasks(zero=False):
  """AIME 2024, MATH-500 and GPQA Diamond, asked as R1 is or as R1-Zero is."""

  def task(name, label, problems, template, answer, reward):
    if zero:
      template, answer, reward = prompts.R1_ZERO, prompts.last_answer, common.RIGHT_ZERO
    vote = f'cons_at_{K[name]}'
    columns = {number: evaluate.Column(f'{name}_{number}', f'{label} {said}')
               for number, said in (('pass_at_1', 'pass@1'), (vote, f'cons@{K[name]}'),
                                    ('length', 'length'))}  # yapf: disable
    return evaluate.Task(name, common.sampled(f'data/{name}', K[name], template, answer, problems),
                         (reward,), columns)

  maths = common.BOXED, common.answer, common.RIGHT
  return (
      task('aime24', 'AIME 2024', 30, *maths),
      task('math500', 'MATH-500', 500, *maths),
      task('gpqa', 'GPQA Diamond', 198, OPTION, letter, Reward('accuracy', option)),
  )


def experiment():
  """Two tables: R1-Zero beside the base that it comes from, and every later model."""
  zero = evaluate.Config({'base': common.BASE, 'R1-Zero': r1_zero.OUT}, tasks(zero=True),
                         max_prompt_tokens=common.PROMPT, machine=common.ONLY_SAMPLES)
  later = {'Dev1': cold_start.OUT, 'Dev2': reasoning_rl.OUT, 'Dev3': rejection.OUT,
           'R1': all_scenarios.OUT}  # yapf: disable
  every = evaluate.Config(later, tasks(), max_prompt_tokens=common.PROMPT,
                          machine=common.ONLY_SAMPLES)  # yapf: disable
  return Stage(evaluate.run, zero, OUT_ZERO), Stage(evaluate.run, every, OUT)
