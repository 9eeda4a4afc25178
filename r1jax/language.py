"""How much of a text is in a language, word by word.

Scripts are counted, not languages: a Latin word is English, a Han character is Chinese, which is
exact for the pair that R1 was trained on and costs nothing. A run of Latin letters is one word and
a Han character is one word, so a mixed text leans towards Chinese by the ratio of characters to
words, about 1.5. What this cannot see: French counts as English, and kanji as Chinese, while kana,
Cyrillic, Arabic and other scripts count as words of neither.
"""
import re

LANGUAGES = {'en': r'[A-Za-zÀ-ɏ]', 'zh': r'[\u3400-\u9fff\uf900-\ufaff]'}

# Code and formulas are in no language: fenced and inline code, LaTeX, and any ASCII run that has a
# digit or an operator in it (b=7+8, x_1, f(x)=2). Names of a single Latin letter, too.
_MARKED = re.compile(
    r'```.*?(?:```|$)|`[^`\n]*`|\$\$.*?(?:\$\$|$)|\$[^$\n]*\$|\\\[.*?(?:\\\]|$)|\\\(.*?(?:\\\)|$)'
    r'|\\[A-Za-z]+(?:\{[^{}]*\})*', re.DOTALL)
_RUN, _FORMULA = re.compile(r'[!-~]+'), re.compile(r'[0-9=+*/^_<>\\|{}]')
_WORD = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]|[A-Za-zÀ-ɏ]+(?:['’][A-Za-z]+)*"
                   r'|(?:(?![A-Za-zÀ-ɏ\u3400-\u9fff\uf900-\ufaff])[^\W\d_])+')


def words(text: str) -> list[str]:
  """The words of a text, in order; what is code, a formula or a single letter is none."""
  text = _RUN.sub(lambda run: ' ' if _FORMULA.search(run[0]) else run[0], _MARKED.sub(' ', text))
  found = _WORD.findall(text)
  return [w for w in found if len(w) > 1 or not re.match(LANGUAGES['en'], w)]


def consistency(text: str, language: str) -> float:
  """Num(words of the language) / Num(words) (DeepSeek-R1 v2, eq. 7); 0 for a text without words.

  Raises ValueError for a language that is not in LANGUAGES.
  """
  if language not in LANGUAGES:
    raise ValueError(f'no words are known of the language {language!r}: a problem must name one of '
                     f'{sorted(LANGUAGES)}')
  found = words(text)
  return sum(bool(re.match(LANGUAGES[language], w)) for w in found) / max(1, len(found))
