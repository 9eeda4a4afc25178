"""Which language a text is in: by its letters where a script has one language, else by its words.

For checks that ask for one language, on texts of a sentence or more. Where several languages share
a script, the one with most of its everyday words in the text wins: no model, no download, and
nothing known of languages that are not here. A text in one of those is taken for a neighbour.
"""
import bisect
import collections
import re

SCRIPTS = (  # first code point, last code point, script
    (0x41, 0x5a, 'Latin'), (0x61, 0x7a, 'Latin'), (0xc0, 0x24f, 'Latin'), (0x370, 0x3ff, 'Greek'),
    (0x400, 0x52f, 'Cyrillic'), (0x590, 0x5ff, 'Hebrew'), (0x600, 0x77f, 'Arabic'),
    (0x900, 0x97f, 'Devanagari'), (0x980, 0x9ff, 'Bengali'), (0xa00, 0xa7f, 'Gurmukhi'),
    (0xa80, 0xaff, 'Gujarati'), (0xb80, 0xbff, 'Tamil'), (0xc00, 0xc7f, 'Telugu'),
    (0xc80, 0xcff, 'Kannada'), (0xd00, 0xd7f, 'Malayalam'), (0xe00, 0xe7f, 'Thai'),
    (0x1e00, 0x1eff, 'Latin'), (0x3040, 0x30ff, 'Kana'), (0x3400, 0x4dbf, 'Han'),
    (0x4e00, 0x9fff, 'Han'), (0xac00, 0xd7a3, 'Hangul'))  # yapf: disable
STARTS = [first for first, _, _ in SCRIPTS]
ALONE = {
    'Greek': 'el', 'Hebrew': 'he', 'Bengali': 'bn', 'Gurmukhi': 'pa', 'Gujarati': 'gu',
    'Tamil': 'ta', 'Telugu': 'te', 'Kannada': 'kn', 'Malayalam': 'ml', 'Thai': 'th', 'Kana': 'ja',
    'Han': 'zh', 'Hangul': 'ko'}  # yapf: disable
WORDS = {  # some thirty everyday words of each language that shares its script
    'Latin': {
        'en': 'the of and a to in is that it was for you are with as his they be at have '
              'this from or had by not but what all were we when your can said there an '
              'which their if will how my would',
        'de': 'der die das und ist nicht ein eine zu den mit von auf für im dem sich auch '
              'es sie wir ich wird sind werden bei oder aus nach wie einen einer zum zur '
              'über haben kann',
        'fr': 'le la les de des et est une un du dans que qui pour pas sur avec ce il elle '
              'nous vous au aux sont par plus mais ou cette être je ne se son ses',
        'es': 'el la los las de y es una un que en por para con no se del su más lo como '
              'pero sus al este está son muy también todo hay ser mi yo qué',
        'pt': 'o a os as de e é uma um que em por para com não se do da dos das no na nos '
              'nas seu sua mais como mas ao foi são muito também ser está você eu ele',
        'it': 'il lo la gli le di e è una un che in per con non si del della dei delle nel '
              'nella suo sua più come ma al sono anche questo essere ho dal alla ed io mi',
        'nl': 'de het een en van is dat op te zijn met voor niet aan er om ook als maar bij '
              'uit naar wordt hij wij je ik door over deze worden kan heeft',
        'sv': 'och att det som en på är av för med den till inte om ett har de jag var från '
              'men kan så vi ska eller hon han nu när mycket',
        'fi': 'ja on ei se että oli mutta joka hän kun niin myös ovat tai kuin olla minä '
              'voi sen tämä ole jos mitä vain sinä he me kanssa jotka hyvin sekä',
        'vi': 'và của là có được các một những không cho trong người với để này đã từ khi '
              'bạn tôi như về đến nhiều rất thì vào cũng sẽ ra đó',
        'sw': 'na ya wa kwa ni katika la za kuwa hii cha yake kama lakini sana pia au '
              'ambayo hiyo wao huu vya mimi wewe yangu kila moja watu siku yako',
    },
    'Cyrillic': {
        'ru': 'и в не на я что он с это по как но а они мы вы из для от так все его её или '
              'было только который чтобы если уже ты мне очень',
        'bg': 'и в не на се да за от е са че с като по но това ще си или който които има тя '
              'той ние вие към много бъде през със само може',
        'uk': 'і в не на що я з це як та до але він вона ми ви є для від або його її так '
              'також щоб якщо дуже який було',
    },
    'Arabic': {
        'ar': 'في من على إلى أن عن هذا هذه التي الذي مع كان ما لا هو هي كل أو قد بين بعد '
              'كما لم ذلك يمكن عند حيث و ثم هناك',
        'fa': 'و در به از که این را با است برای آن یک می های ما تا بر هم خود شود کرد من شما '
              'او باید هر ها بود دارد نیست اما',
        'ur': 'اور کے میں کی ہے کا کو سے ہیں یہ پر نے کہ ایک بھی تو ہم اس آپ وہ جو لیے تھا '
              'کر ہو نہیں کیا ہوتا گیا اپنے',
    },
    'Devanagari': {
        'hi': 'के में है की और को का से हैं पर यह एक ने भी कि नहीं इस लिए हो था वह तो जो कर '
              'या आप हम मैं होता अपने गया साथ',
        'mr': 'आणि आहे आहेत या च्या ते ही हे एक साठी मध्ये तो ती होते नाही पण मी आपण आम्ही '
              'तुम्ही त्या किंवा असे करून होता म्हणून त्यांनी आपल्या खूप येथे माझी माझे की काही '
              'चांगले करण्यासाठी',
        'ne': 'र छ को मा छन् लाई पनि यो हो भएको गर्न गर्ने हुन्छ छैन थियो तर म हामी तपाईं '
              'त्यो उनी बाट सँग लागि अनि यस एक धेरै गरेको हुन मेरो राम्रो केही आज',
    },
}  # yapf: disable
PROFILES = {script: {code: frozenset(words.split()) for code, words in languages.items()}
            for script, languages in WORDS.items()}  # yapf: disable
KNOWN = frozenset(ALONE.values()).union(*WORDS.values())
BETWEEN = re.compile(r'[\s!-@\[-`{-~।،؛؟。«»“”„…—–’]+')  # words; not \W: vowel signs are not \w


def scripts(text: str) -> dict[str, int]:
  """How many letters of each script a text has."""
  found = collections.Counter()
  for letter, count in collections.Counter(text).items():
    i = bisect.bisect_right(STARTS, ord(letter)) - 1
    if i >= 0 and ord(letter) <= SCRIPTS[i][1]:
      found[SCRIPTS[i][2]] += count
  return found


def of(text: str) -> str:
  """The code of the text's language ('en', 'zh', ...), '' where nothing decides."""
  found = scripts(text)
  if found['Kana'] * 10 > found['Han']:  # Japanese has many Han characters
    found['Kana'] += found.pop('Han', 0)
  script = max(found, key=found.get, default='')
  if script not in PROFILES:
    return ALONE.get(script, '')
  words = collections.Counter(BETWEEN.split(text.lower()))
  scores = sorted(((sum(words[w] for w in profile), code)
                   for code, profile in PROFILES[script].items()), reverse=True)  # yapf: disable
  return scores[0][1] if scores[0][0] > scores[1][0] else ''
