"""Templates, and what a completion in their format contains."""
import re

# DeepSeek-R1, arXiv 2501.12948 v1, table 1, to the letter.
R1_ZERO = (
    'A conversation between User and Assistant. The user asks a question, and the Assistant solves '
    'it. The assistant first thinks about the reasoning process in the mind and then provides the '
    'user with the answer. The reasoning process and answer are enclosed within <think> </think> '
    'and <answer> </answer> tags, respectively, i.e., <think> reasoning process here </think> '
    '<answer> answer here </answer>. User: {question}. Assistant:')

# The same tags for models with a context of a hundred tokens.
SHORT = 'User: {question}\nAssistant:'

TAGS = ('<think>', '</think>', '<answer>', '</answer>')
_FORMAT = re.compile(r'\s*<think>(.*)</think>\s*<answer>(.*)</answer>\s*', re.DOTALL)


def split(text):
  """(thinking, answer) of a completion in R1-Zero's format, or None if it is not in it.

  The format: one think block, then one answer block, each tag exactly once, nothing around them.
  """
  match = _FORMAT.fullmatch(text)
  if not match or any(text.count(tag) != 1 for tag in TAGS):
    return None
  return match[1].strip(), match[2].strip()


def last_answer(text):
  """What the last answer block holds, stripped; None where there is none. Forgives the rest."""
  head, opened, tail = text.rpartition('<answer>')
  answer, closed, _ = tail.partition('</answer>')
  return answer.strip() if opened and closed else None
