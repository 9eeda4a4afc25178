"""IFEval's instructions: each kind followed and not followed, hostile texts, the whole real set."""
import json
import os
from pathlib import Path
import time

import pytest

from r1jax.grading import instructions, languages
from r1jax.types import Completion, Problem

DATA = Path(os.environ.get('R1JAX_DATA', Path(__file__).parents[2] / 'shared/data'))


def answer(*asked):
  names, kwargs = zip(*asked)
  return json.dumps({'instruction_id_list': names, 'kwargs': kwargs})


def follows(name, kwargs, text):
  verdict, = instructions.checks(answer((name, kwargs)), text)
  assert isinstance(verdict, bool)
  return verdict


CASES = [  # kind, kwargs, texts that follow it, texts that do not
    ('keywords:existence', {'keywords': ['cat', 'Dog']}, ['A CAT, a dog', 'cats dogs'], ['a cat']),
    ('keywords:frequency', {'keyword': 'war', 'frequency': 2, 'relation': 'at least'},
     ['War and warm'], ['war and peace']),
    ('keywords:frequency', {'keyword': 'c++', 'frequency': 2, 'relation': 'less than'},
     ['C++ here', 'ccc'], ['c++ C++']),
    ('keywords:forbidden_words', {'forbidden_words': ['rock', 'can']}, ['rocks, cannot'],
     ['on the ROCK.', 'can']),
    ('keywords:letter_frequency', {'letter': 'q', 'let_frequency': 2, 'let_relation': 'at least'},
     ['Quick q'], ['Quick']),
    ('keywords:letter_frequency', {'letter': '!', 'let_frequency': 1, 'let_relation': 'less than'},
     ['no'], ['no!']),
    ('language:response_language', {'language': 'de'}, ['Das ist nicht der Weg, den wir gehen.'],
     ['This is not the way that we go.', 'Ce n’est pas la route que nous prenons.', '12']),
    ('language:response_language', {'language': 'mr'}, ['माझी आई म्हणाली की हवामान चांगले आहे.'],
     ['मेरी माँ ने कहा कि मौसम अच्छा है।', 'मेरो आमाले मौसम राम्रो छ भन्नुभयो।']),
    ('length_constraints:number_sentences', {'num_sentences': 3, 'relation': 'at least'},
     ['One. Two! Three?', '1. One here. And\nno end'], ['One. Dr. Who at 3.14 p.m. came', 'a, b']),
    ('length_constraints:number_sentences', {'num_sentences': 3, 'relation': 'less than'},
     ['One. Two', 'See e.g. this etc. and more.'], ['"One." (Two.) three.']),
    ('length_constraints:number_words', {'num_words': 3, 'relation': 'at least'},
     ["it's me", 'a b c'], ['two words']),
    ('length_constraints:number_paragraphs', {'num_paragraphs': 2},
     ['one\n***\ntwo', '***\none\n***\ntwo ***'], ['one\n\ntwo', 'one *** *** two', 'a***b***c']),
    ('length_constraints:nth_paragraph_first_word',
     {'num_paragraphs': 2, 'nth_paragraph': 2, 'first_word': 'weekend'},
     ['one\n\n"Weekend," they say', 'one\n\n weekend\n'],
     ['weekend\n\none', 'one\n\nthe weekend', 'weekend', 'a\n\nweekend\n\nc', 'a\n\nweekends']),
    ('detectable_content:number_placeholders', {'num_placeholders': 2},
     ['[name] [a\n[b c]', '[][]'],
     ['[name] name]', '[a\nb] [c]']),
    ('detectable_content:postscript', {'postscript_marker': 'P.P.S'}, ['x\np. p.s. more', 'P.P.S'],
     ['P.S. more']),
    ('detectable_content:postscript', {'postscript_marker': 'P.S.'},
     ['so. P. S. more'], ['PS more']),
    ('detectable_format:number_bullet_lists', {'num_bullets': 2}, ['* a\n* b', 'x\n  - a\n\n*b'],
     ['* a', '* a\n* b\n* c', '* a\n** b **', 'a * b\nc - d']),
    ('detectable_format:constrained_response', {}, ['So: My answer is no. Really'],
     ['no', 'My answer']),
    ('detectable_format:number_highlighted_sections', {'num_highlights': 2}, ['*a* and **b c**'],
     ['*a*', '** ** *a*', '*a\nb* *c*', 'a*b']),
    ('detectable_format:multiple_sections', {'section_spliter': 'SECTION', 'num_sections': 2},
     ['SECTION 1\na\nSECTION 2\nb'],
     ['SECTION 1\na', 'Section 1 Section 2', 'SECTION A SECTION B']),
    ('detectable_format:json_format', {}, ['{"a": [1]}', '```json\n[1]\n```', '1' * 9000],
     ['{a: 1}', 'Here: {}', '[' * 100000]),
    ('detectable_format:title', {}, ['<<A title>>\nx', 'x <<<t>>>'],
     ['<<>>', '<< >>', '<<a\nb>>', '<t>']),
    ('combination:two_responses', {}, ['one ****** two', '******one******two'],
     ['one', 'one******one', 'a******b******c', 'a************b']),
    ('combination:repeat_prompt', {'prompt_to_repeat': 'Say hi. '},
     [' say Hi. Hi'], ['Hi. Say hi.']),
    ('startend:end_checker', {'end_phrase': 'Peace!'}, ['So be it: "peace!" '], ['Peace! Yes']),
    ('startend:quotation', {}, [' "quoted" '], ['"', '"open', "'single'", 'a "b"']),
    ('punctuation:no_comma', {}, ['no comma'], ['a, b']),
    ('change_case:capital_word_frequency', {'capital_frequency': 3, 'capital_relation': 'at least'},
     ['NASA and I, TO-DO', '**BOLD** I DO', "DON'T A"], ['NASA and I', 'Nasa Is Big', '1 2 3 4']),
    ('change_case:capital_word_frequency',
     {'capital_frequency': 2, 'capital_relation': 'less than'}, ['OK then'], ['OK THEN']),
    ('change_case:english_capital', {},
     ['THIS IS THE WAY, 1.'],
     ['This IS', '123', 'DAS IST NICHT DER WEG']),
    ('change_case:english_lowercase', {}, ['this is the way, 1.'],
     ['This is', '123', 'das ist nicht der weg']),
]  # yapf: disable


@pytest.mark.parametrize('name, kwargs, good, bad', CASES, ids=[case[0] for case in CASES])
def test_each_kind(name, kwargs, good, bad):
  for text in good:
    assert follows(name, kwargs, text), text
  for text in ['', ' \n', *bad]:
    assert not follows(name, kwargs, text), text


def test_every_kind_has_a_case():
  assert {case[0] for case in CASES} == set(instructions.KINDS) and len(instructions.KINDS) == 25


def test_all_must_be_followed_and_loosely_in_any_of_eight_readings():
  problem = Problem(
      '',
      answer(('punctuation:no_comma', {}), ('startend:quotation', {}),
             ('keywords:existence', {'keywords': ['yes'], 'letter': None})))
  strict = lambda text: instructions.check(problem, Completion(text, 1, True))
  loose = lambda text: instructions.loose(problem, Completion(text, 1, True))
  assert strict('"yes"') == loose('"yes"') == 1.0
  for text in ('Sure, here:\n"yes"', '"yes"\nBye, bye', 'Sure,\n*"yes"*\nBye'):
    assert (strict(text), loose(text)) == (0.0, 1.0)
  assert loose('yes,') == loose('') == 0.0
  assert instructions.checks(problem.answer, '"no, no"') == [False, True, False]


@pytest.mark.parametrize('name, kwargs', [
    ('keywords:rhymes', {}), ('language:response_language', {'language': 'eo'}),
    ('length_constraints:number_words', {'num_words': 3, 'relation': 'about'})
])  # yapf: disable
def test_what_is_not_known_is_an_error_and_not_a_wrong_answer(name, kwargs):
  with pytest.raises(ValueError, match='no instruction|nothing here tells|no relation'):
    follows(name, kwargs, 'text')


SAID = {  # went to the market, or the weather is fine
    'hi': 'मेरी माँ ने कहा कि मौसम अच्छा है।',
    'ne': 'म आज बजार जान्छु र केही तरकारी किन्छु।',
    'ar': 'قالت أمي إن الطقس جميل في هذا الصباح.',
    'fa': 'مادرم گفت که هوا خوب است و باید برگردم.',
    'ur': 'میری ماں نے کہا کہ موسم اچھا ہے۔',
    'ru': 'Мама сказала, что погода хорошая.',
    'bg': 'Днес отивам на пазара, за да купя зеленчуци.',
    'uk': 'Сьогодні я йду на ринок, щоб купити овочі.',
    'fr': 'Ma mère a dit que le temps est beau.',
    'es': 'Mi madre dijo que el tiempo está muy bueno.',
    'pt': 'A minha mãe disse que o tempo está muito bom.',
    'it': 'Oggi vado al mercato per delle verdure.',
    'nl': 'Mijn moeder zei dat het weer mooi is.',
    'sv': 'Idag går jag till marknaden för att köpa fisk.',
    'fi': 'Äitini sanoi, että sää on kaunis.',
    'vi': 'Mẹ tôi nói rằng thời tiết rất đẹp.',
    'sw': 'Mama yangu alisema kwamba hali ya hewa ni nzuri sana.',
    'ja': '今日は市場へ野菜を買いに行きます。',
    'zh': '今天我去市场买菜。',
    'ko': '오늘은 시장에 가요.',
    'th': 'วันนี้ฉันจะไปตลาด',
    'ta': 'இன்று நான் செல்கிறேன்.',
    'te': 'నేను వెళ్తున్నాను.',
    'kn': 'ನಾನು ಹೋಗುತ್ತಿದ್ದೇನೆ.',
    'gu': 'હું બજારમાં જાઉં છું.',
    'bn': 'আমি বাজারে যাচ্ছি।',
    'pa': 'ਮੈਂ ਬਾਜ਼ਾਰ ਜਾ ਰਿਹਾ ਹਾਂ।',
    'en': 'My mother said that the weather is fine.',
    '': '123 ()',
}  # yapf: disable


@pytest.mark.parametrize('code', SAID)
def test_languages_are_told_apart(code):
  assert languages.of(SAID[code]) == languages.of(SAID[code].upper()) == code


M = 10**6
HOSTILE = {
    'spaces': ' ' * M, 'lines': '\n' * M, 'parentheses': '(' * 100_000, 'brackets': '[' * M,
    'stars': '*' * M, 'bullets': '* a\n' * (M // 4), 'titles': '<<' * (M // 2),
    'quotes': '."' * (M // 2), 'stops': '. ' * (M // 2), 'initials': 'p. ' * (M // 3),
    'digits': '1' * M, 'objects': '{"a":' * 100_000, 'surrogates': '\ud800' * M,
    'binary': bytes(range(256)).decode('latin1') * 4000
}  # yapf: disable


@pytest.mark.parametrize('name', HOSTILE)
def test_hostile_texts_take_no_time(name):
  asked = answer(*((kind, kwargs) for kind, kwargs, *_ in CASES))
  start = time.process_time()
  assert len(instructions.checks(asked, HOSTILE[name])) == len(CASES)
  assert time.process_time() - start < 5  # for all kinds together, on a slow machine


def test_every_row_of_ifeval_can_be_checked():
  path = DATA / 'ifeval/test.jsonl'
  if not path.exists():
    pytest.skip(f'{path} is not there: set R1JAX_DATA to the folder of the data sets')
  rows = [json.loads(line) for line in path.read_text(encoding='utf-8').split('\n') if line]
  seen = set()
  for row in rows:
    verdicts = instructions.checks(json.dumps(row), 'So. It is *so*.')
    assert len(verdicts) == len(row['instruction_id_list'])
    seen.update(row['instruction_id_list'])
  assert len(rows) == 541 and seen == set(instructions.KINDS)
