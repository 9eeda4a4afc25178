"""Templates, and what a completion in their format contains."""
import re

# DeepSeek-R1, arXiv 2501.12948 v1, table 1, to the letter.
R1_ZERO = (
    'A conversation between User and Assistant. The user asks a question, and the Assistant solves '
    'it. The assistant first thinks about the reasoning process in the mind and then provides the '
    'user with the answer. The reasoning process and answer are enclosed within <think> </think> '
    'and <answer> </answer> tags, respectively, i.e., <think> reasoning process here </think> '
    '<answer> answer here </answer>. User: {question}. Assistant:')

# DeepSeek-R1's chat template from the cold start on; the think block is the completion's. Its BOS
# is the tokenizer's own.
R1 = '<｜User｜>{question}<｜Assistant｜>'

# The same with the think block opened in the prompt, as DeepSeek's later template has it: no
# completion goes without thinking, and none has the opening tag; `opened` puts it back.
THINK = '<think>\n'
R1_THINK = R1 + THINK

# The same tags for models with a context of a hundred tokens.
SHORT = 'User: {question}\nAssistant:'

TAGS = ('<think>', '</think>', '<answer>', '</answer>')
_FORMAT = re.compile(r'\s*<think>(.*)</think>\s*<answer>(.*)</answer>\s*', re.DOTALL)


def split(text):
  """(thinking, answer) of a completion in R1-Zero's format, or None if it is not in it.

  The format: one think block, then one answer block, each tag exactly once, nothing around them.
  """
  once = all(text.count(tag) == 1 for tag in TAGS)  # else the pattern would take quadratic time
  match = _FORMAT.fullmatch(text) if once else None
  return (match[1].strip(), match[2].strip()) if match else None


def last_answer(text):
  """What the last answer block holds, stripped; None where there is none. Forgives the rest."""
  head, opened, tail = text.rpartition('<answer>')
  answer, closed, _ = tail.partition('</answer>')
  return answer.strip() if opened and closed else None


def boxed(text):
  """What the last \\boxed{...} holds, braces balanced, stripped; None where there is none."""
  start = text.rfind('\\boxed{')
  depth = 0
  for i in range(start + 6, len(text)) if start >= 0 else ():
    depth += (text[i] == '{') - (text[i] == '}')
    if not depth:
      return text[start + 7:i].strip()
  return None


# -- views: what a reward sees of a completion -----------------------------------------------------


def whole(text):
  """Everything."""
  return text


def thinking(text):
  """The thinking, stripped: up to </think> and without <think>; the whole text where no think block
  opens or closes, so that there is no way to leave it out of sight."""
  head = text.partition('</think>')[0]
  return head.replace('<think>', '').strip()


def summary(text):
  """What follows the thinking, stripped, R1-Zero's answer tags left out; the whole text where there
  is no think block; None where one never closes."""
  if '<think>' in text and '</think>' not in text:
    return None
  tail = text.rpartition('</think>')[2]
  return tail.replace('<answer>', '').replace('</answer>', '').strip()


def opened(text):
  """The completion of a prompt that ends with THINK, its opening put back. All that judges such a
  completion needs this view: else a thought that never closes would pass for an answer."""
  return THINK + text


def opened_summary(text):
  """The same completion's summary; None where its thinking never closes."""
  return summary(opened(text))


def in_format(text):
  """Whether the text is one think block and then a summary, neither of them empty: R1's format from
  the cold start on (v2, listings 3 and 5 to 7). R1-Zero's own format is one such."""
  head, closed, tail = text.partition('</think>')
  before, opened, inside = head.partition('<think>')
  once = all(text.count(tag) <= 1 for tag in TAGS)
  return bool(opened and closed and once and not before.strip() and inside.strip() and tail.strip())
