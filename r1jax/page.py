"""How a report looks: the page, its colours in light and dark, and text that can do no harm.

The page loads nothing and runs nothing, and says so to the browser in its security policy.
"""
import html
import json
import re
import unicodedata

LIGHT = '''
--paper:#fdfdfb; --panel:#f6f6f2; --ink:#23272b; --muted:#666b70; --rule:#e2e2dc; --line:#a3a8a8;
--accent:#23619f; --bar:#b9d0e6; --c0:#2b6cab; --c1:#c4532f; --c2:#36866a; --c3:#8059ab;
--c4:#a67a10; --c5:#2d8f9c; --c6:#ad4f7d; --c7:#6d747c;
'''
DARK = '''
--paper:#14171a; --panel:#1b1f23; --ink:#e3e5e6; --muted:#9aa2a9; --rule:#2f353a; --line:#5f676e;
--accent:#8cbdec; --bar:#35506b; --c0:#79b0e6; --c1:#ee8f6d; --c2:#77c3a1; --c3:#bd9fe3;
--c4:#d8b455; --c5:#74c7d1; --c6:#de91b6; --c7:#a2aab2;
'''
COLOURS = f':root{{{LIGHT}}}\n@media (prefers-color-scheme:dark) {{:root{{{DARK}}}}}\n'
SANS = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'
MONO = 'ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace'
FIGURES = f'''
svg {{ display:block; max-width:100%; height:auto; font:11px {SANS};
  font-variant-numeric:tabular-nums }}
svg text {{ fill:var(--muted) }}
svg .title {{ fill:var(--ink); font-size:12.5px; font-weight:600 }}
svg .grid {{ stroke:var(--rule); fill:none }}
svg .base {{ stroke:var(--line) }}
svg .line {{ fill:none; stroke-width:1.6; stroke-linejoin:round; stroke-linecap:round }}
svg .band {{ opacity:.18 }}
svg .bar {{ stroke-width:1.4 }}
svg .spot {{ stroke:var(--paper); stroke-width:1.2 }}
svg .strip {{ fill:var(--ink); opacity:0 }}
svg .strip:hover {{ opacity:.08 }}
svg .edge {{ fill:none; stroke:var(--line); stroke-width:1.3 }}
svg .data {{ stroke-dasharray:3.5 3 }}
svg .tip {{ fill:var(--line) }}
svg .node {{ stroke-width:2 }}
'''
STYLE = COLOURS + FIGURES + f'''
* {{ box-sizing:border-box }}
html {{ -webkit-text-size-adjust:100% }}
body {{ margin:0; background:var(--paper); color:var(--ink); font:16px/1.55 {SANS};
  font-variant-numeric:tabular-nums; overflow-wrap:anywhere }}
header, main {{ max-width:1080px; margin:0 auto; padding:0 24px }}
header {{ padding-top:56px }}
main {{ padding-bottom:96px }}
section {{ margin-top:48px; padding-top:24px; border-top:1px solid var(--rule) }}
h1 {{ font-size:38px; line-height:1.15; letter-spacing:-.02em; margin:0 0 12px }}
h2 {{ font-size:22px; letter-spacing:-.01em; margin:0 0 6px }}
h3 {{ font-size:17px; margin:32px 0 10px }}
h4 {{ font-size:14px; margin:16px 0 6px }}
h5 {{ font-size:13px; margin:0; color:var(--accent) }}
h3 small, h4 small {{ font-size:13px; font-weight:400; margin-left:6px }}
small {{ font-size:.8em; color:var(--muted) }}
i {{ font-style:normal; color:var(--muted) }}
a {{ color:var(--accent); text-decoration:none }}
nav {{ display:flex; flex-wrap:wrap; gap:4px 20px; margin-top:20px; font-size:14px }}
nav a:hover {{ text-decoration:underline }}
.over, .facts {{ margin:0; color:var(--muted); font-size:14px }}
.about, .note {{ max-width:68ch; color:var(--muted); font-size:14px; margin:0 0 20px }}
.note {{ margin-top:10px }}
main > section > ul {{ font-size:14px; padding-left:20px }}

.flow {{ position:relative; padding-left:var(--lanes) }}
.flow svg {{ position:absolute; left:0; top:0; max-width:none }}
.flow ol {{ list-style:none; margin:0; padding:0 }}
.flow li {{ height:62px; padding:4px 0 4px 6px }}
.narrow {{ display:none }}
.box {{ display:grid; grid-template:"name fact time" "kind from from" / 220px 1fr auto; height:100%;
  align-items:baseline; column-gap:16px; padding:5px 14px; font-size:14px; line-height:1.4;
  color:inherit; background:var(--panel); border:1px solid var(--rule); border-radius:7px }}
.box:hover {{ border-color:var(--line) }}
.box b, .box span {{ overflow:hidden; text-overflow:ellipsis; white-space:nowrap }}
.box b {{ grid-area:name; font-weight:600 }}
.box .kind {{ grid-area:kind; font-size:12.5px }}
.box .from {{ grid-area:from; font-size:12.5px; color:var(--muted) }}
.box .fact {{ grid-area:fact }}
.box .time {{ grid-area:time; font-size:12.5px; color:var(--muted) }}
.box em {{ font-style:normal; color:var(--c1) }}

.scroll {{ overflow-x:auto }}
table {{ border-collapse:collapse; font-size:14px; min-width:100% }}
th, td {{ padding:9px 0 9px 22px; text-align:right; white-space:nowrap; font-weight:400;
  border-bottom:1px solid var(--rule) }}
th:first-child {{ text-align:left; padding-left:0; position:sticky; left:0;
  background:var(--paper) }}
thead th {{ color:var(--muted); font-size:13px; vertical-align:bottom }}
tbody th {{ font-weight:600 }}
td {{ background:linear-gradient(var(--bar), var(--bar)) no-repeat 22px 100% /
  calc((100% - 22px) * var(--v, 0)) 3px }}
td.best {{ font-weight:700; color:var(--accent) }}
td small {{ font-weight:400 }}
.none {{ color:var(--muted) }}

.grid {{ display:grid; grid-template-columns:repeat(auto-fill, minmax(min(296px, 100%), 1fr));
  gap:26px 32px; margin-bottom:20px }}
.grid svg {{ width:100% }}

details {{ border-top:1px solid var(--rule); font-size:14px }}
details[open] {{ padding-bottom:20px }}
summary {{ cursor:pointer; padding:8px 0 }}
summary:hover {{ color:var(--accent) }}
.part {{ border:0; font-size:13.5px }}
.part summary, p.part {{ display:grid; grid-template-columns:172px 1fr; gap:12px; padding:2px 0;
  margin:0; align-items:center }}
.part .label {{ text-align:right; color:var(--muted) }}
summary .label {{ text-decoration:underline dotted var(--line); text-underline-offset:3px }}
.part .share {{ display:flex; align-items:center; gap:8px; white-space:nowrap }}
.part i {{ height:14px; width:calc(80% * var(--v)); min-width:2px; border-radius:1px;
  background:var(--c1); opacity:.55 }}
.part .kept {{ background:var(--c2); opacity:.9 }}
.prompt {{ border-left:2px solid var(--rule); padding-left:12px; margin:8px 0 12px }}
.cards {{ display:grid; grid-template-columns:repeat(auto-fit, minmax(min(250px, 100%), 1fr));
  gap:12px; margin-bottom:24px }}
article {{ background:var(--panel); border-radius:7px; padding:12px 14px; min-width:0 }}
.marks {{ margin:0 0 6px; font-size:12.5px; color:var(--muted) }}
.text {{ font:12.5px/1.6 {MONO}; white-space:pre-wrap; overflow-wrap:anywhere;
  unicode-bidi:plaintext; max-height:420px; overflow:auto; margin-bottom:6px }}
.text span {{ color:var(--muted) }}
.tree {{ list-style:none; margin:0; padding:0 0 0 16px; font:12.5px/1.7 {MONO};
  border-left:1px solid var(--rule) }}
.tree b {{ font-weight:400; color:var(--muted); margin-right:6px }}

@media (max-width:640px) {{
  body {{ font-size:15px }}
  header, main {{ padding-left:16px; padding-right:16px }}
  header {{ padding-top:32px }}
  h1 {{ font-size:29px }}
  .narrow {{ display:block }}
  .wide {{ display:none }}
  .flow li {{ height:100px }}
  .box {{ grid-template:"name kind kind" "fact fact fact" "from from time" / 1fr auto auto;
    padding:6px 11px; column-gap:10px; font-size:13.5px }}
  .box .kind {{ text-align:right }}
  .box .fact {{ white-space:normal; max-height:2.8em }}
  .box .fact small {{ display:none }}
  th, td {{ padding-left:14px; background-position:14px 100% }}
  tbody th {{ white-space:normal; min-width:96px }}
  td small {{ display:block; font-size:11px }}
  .part summary, p.part {{ grid-template-columns:124px 1fr }}
}}
'''

PAGE = '''<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline';
 base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title} · r1jax</title>
<style>{style}</style>
</head>
<body>
<header>
<p class="over">r1jax report</p>
<h1>{title}</h1>
<p class="facts">{facts}</p>
<nav>{links}</nav>
</header>
<main>
{body}
</main>
</body>
</html>
'''


def document(title, facts, sections) -> str:
  """The whole page; a section is (anchor, title, HTML), left out where its HTML is empty."""
  sections = [section for section in sections if section[2]]
  links = ''.join(f'<a href="#{name}">{heading}</a>' for name, heading, _ in sections)
  body = '\n'.join(f'<section id="{name}"><h2>{heading}</h2>{content}</section>'
                   for name, heading, content in sections)
  return PAGE.format(title=text(title, 80), style=STYLE, facts=facts, links=links, body=body)


def fit(blocks, most, about='') -> str:
  """The first blocks of HTML, at most `most` bytes of them, after a paragraph about them; '' where
  there is none. What does not fit is said."""
  out, size, whole = [], 0, True
  for block in blocks:
    size += len(block.encode())
    whole = size <= most
    if not whole:
      break
    out.append(block)
  if not out and whole:
    return ''
  more = '' if whole else '<p class="note">There is more than this page can show; the files of ' \
                          'the run hold all of it.</p>'
  return (f'<p class="about">{about}</p>' if about else '') + ''.join(out) + more


def fold(summary, content, opened=False) -> str:
  """Something to open; both are HTML."""
  return f'<details{" open" if opened else ""}><summary>{summary}</summary>{content}</details>'


def cell(value, error, marked) -> str:
  """A number of the table, with a line for a share."""
  if finite(value) is None:
    return '<td class="none">–</td>'
  share = f' style="--v:{value:.3f}"' if finite(error) is not None and 0 <= value <= 1 else ''
  return f'<td{" class=best" if marked else ""}{share}>{measure(value, error)}</td>'


def bar(label, share, n, content) -> str:
  """A bar for some of the samples, which opens if there are some to read."""
  row = f'<span class="label">{text(label, 40)}</span><span class="share">' \
        f'<i{" class=kept" if label == "kept" else ""} style="--v:{share:.4f}"></i>' \
        f'{number(n)} <small>{100 * share:.1f}%</small></span>'
  if content:
    return fold(row, content).replace('<details', '<details class="part"', 1)
  return f'<p class="part">{row}</p>'


def prose(value) -> str:
  """A text that a model read or wrote, its thinking in a softer colour."""
  thinking = '(?s)&lt;think&gt;.*?(?:&lt;/think&gt;|$)'
  shown = re.sub(thinking, r'<span>\g<0></span>', text(value, 1500))
  return f'<div class="text">{shown}</div>'


def tree(value, depth=0) -> str:
  """A nested value as nested lists, without what is empty."""
  if isinstance(value, list) and any(isinstance(x, (dict, list)) for x in value):
    value = {i + 1: x for i, x in enumerate(value)}
  if isinstance(value, dict) and depth < 8:
    items = [(k, v) for k, v in value.items() if v is not None and v not in ('', [], {})][:100]
    return '<ul class="tree">' + ''.join(
        f'<li><b>{text(k, 40)}</b> {tree(v, depth + 1)}</li>' for k, v in items) + '</ul>'
  return text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), 300)


def text(value, most=200) -> str:
  """Untrusted text for HTML and SVG, in attributes too: at most `most` characters of it, escaped.

  Characters that are not seen, or that change the order of others, are shown by their codes:
  controls, lone surrogates, overrides of direction.
  """
  value = str(value)
  show = lambda c: c in '\n\t' or unicodedata.category(c)[0] != 'C' and c not in '\u2028\u2029'
  seen = ''.join(c if show(c) else f'⟨U+{ord(c):04X}⟩' for c in value[:most])
  more = f' … and {len(value) - most:,} more characters' if len(value) > most else ''
  return html.escape(seen + more)


def finite(x) -> float | None:
  """A number that can be shown, else None: not NaN, not infinite, no text, not absurdly large."""
  if isinstance(x, bool) or not isinstance(x, (int, float)) or not abs(x) < 1e15:
    return None
  return float(x)


def number(x: float) -> str:
  """A number for reading: about three digits that say something."""
  if x == int(x):
    return f'{x:,.0f}'
  digits = 0 if abs(x) >= 1000 else 1 if abs(x) >= 100 else 2 if abs(x) >= 10 else 3
  return f'{x:,.{digits}f}' if abs(x) >= 0.001 else f'{x:.1e}'.replace('e-0', 'e-')


def measure(x: float, error=None) -> str:
  """A number to three decimals, HTML, with its standard error where one is known."""
  digits = 3 if abs(x) < 10 else 1 if abs(x) < 1000 else 0
  more = '' if finite(error) is None else f' <small>± {error:,.{digits}f}</small>'
  return f'{x:,.{digits}f}{more}'


def plural(n, noun) -> str:
  """How many of something."""
  return f'{number(n)} {noun}{"" if n == 1 else "s"}'


def span(seconds) -> str:
  """A length of time for reading."""
  minutes, hours = seconds / 60, seconds / 3600
  return f'{seconds:.0f} s' if seconds < 120 else f'{minutes:.0f} min' if minutes < 120 else \
      f'{hours:.1f} h'
