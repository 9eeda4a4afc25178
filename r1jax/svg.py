"""Figures as SVG text, drawn without a library; they take the colours of the page around them.

`chart` draws lines, and points with error bars; `lines` is the text of a file of its own, for the
figure of an ablation; `flow` draws which stage was made from which.
"""
import bisect
import math

from r1jax import page
from r1jax.page import finite, number, text


def chart(title, series, points=None, xlabel='update', ylim=None, ylabel='',
          size=(320, 200)) -> str:
  """An SVG of lines, and of points with error bars, for a page with page.STYLE.

  Args:
    title: above the figure
    series: name -> [(x, y)], a line; a long one is drawn by `thin`
    points: name -> [(x, y)] or [(x, y, standard error)], in the colour of the line of that name
    xlabel: what x counts
    ylim: a range that the y axis holds at least
    ylabel: what y is, where the title does not say it
    size: width and height

  Returns:
    SVG text; '' where there is nothing to draw.
  """
  drawing = draw(title, series, points or {}, xlabel, ylim, ylabel, size)
  return drawing and f'<svg viewBox="0 0 {size[0]} {size[1]}" width="{size[0]}" role="img" ' \
                     f'aria-label="{text(title, 80)}">{drawing}</svg>'


def lines(series, xlabel, ylabel, title) -> str:
  """The text of an .svg file with a line for each name of `series`: name -> [(x, y)]."""
  W, H = 640, 380
  drawing = draw(title, series, {}, xlabel, None, ylabel, (W, H))
  if not drawing:
    raise ValueError(f'no series of {title!r} has a finite point: there is nothing to draw')
  style = page.COLOURS + page.FIGURES + 'svg { background:var(--paper) }'
  return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-16 -12 {W + 32} {H + 24}" '
          f'width="{W + 32}" height="{H + 24}" role="img"><title>{text(title)}</title>'
          f'<style>{style}</style>{drawing}</svg>\n')


def draw(title, series, points, xlabel, ylim, ylabel, size) -> str:
  """What stands inside the svg element of a chart."""
  W, H = size
  series = {name: rows for name, row in series.items() if (rows := clean(row))}
  points = {name: rows for name, row in points.items() if (rows := clean(row))}
  colour = {name: i % 8 for i, name in enumerate(dict.fromkeys([*series, *points]))}
  if not colour:
    return ''
  x_all = [row[0] for rows in (*series.values(), *points.values()) for row in rows]
  series = {name: thin(rows) for name, rows in series.items()}
  y_all = [y for rows in series.values() for row in rows for y in row[2:]]
  y_all += [y + d for rows in points.values() for _, y, e in rows for d in (-(e or 0), e or 0)]
  left, right = min(x_all), max(x_all)
  left = 0.0 if 0 < left < 0.1 * right else left
  right = right if right > left else left + 1
  x_ticks, left, right = scale(left, right, max(4, W // 100), 0)
  y_ticks, low, high = scale(*extent(y_all, ylim), 4)
  legend, top = key(colour, series, W) if len(colour) > 1 else ('', 26)
  top, bottom, end = top + (14 if ylabel else 0), H - 30, W - 8
  start = 9 + 6.4 * max(len(tick(t)) for t in y_ticks)
  X = lambda x: start + (x - left) / (right - left) * (end - 2 - start)
  Y = lambda y: bottom - (y - low) / (high - low) * (bottom - top)

  out = [f'<text class="title" x="0" y="12">{text(title, 80)}</text>', legend]
  out += [f'<text x="0" y="{top - 10}">{text(ylabel, 80)}</text>'] if ylabel else []
  for t in y_ticks:
    out.append(f'<path class="grid{" base" if t == y_ticks[0] else ""}" '
               f'd="M{start:.1f} {Y(t):.1f}H{end}"/><text x="{start - 5:.1f}" '
               f'y="{Y(t) + 4:.1f}" text-anchor="end">{tick(t)}</text>')
  for t in x_ticks:
    out.append(f'<text x="{X(t):.1f}" y="{H - 16}" text-anchor="middle">{tick(t)}</text>')
  out.append(f'<text x="{end}" y="{H - 3}" text-anchor="end">{text(xlabel, 60)}</text>')
  out += [line(rows, X, Y, colour[name]) for name, rows in series.items()]
  out += strips(series, xlabel, X, top, bottom)
  for name, rows in points.items():
    out += [
        spot(f'{xlabel} {number(row[0])}: {name}', row, X, Y, colour[name]) for row in rows[:400]
    ]
  return ''.join(out)


def clean(rows) -> list:
  """The rows (x, y, error or None) whose x and y can be drawn, in the order of x."""
  rows = [(*map(finite, row), None)[:3] for row in rows]
  return sorted((row for row in rows if None not in row[:2]), key=lambda row: row[0])


def thin(rows, most=200) -> list:
  """At most `most` rows (x, mean, low, high), of equal runs of rows (x, y, ...).

  low to high holds all of a run of fewer than ten, else the middle 80% of it.
  """
  size, out = max(1, -(-len(rows) // most)), []
  for i in range(0, len(rows), size):
    xs, ys = [row[0] for row in rows[i:i + size]], sorted(row[1] for row in rows[i:i + size])
    n, cut = len(ys), len(ys) // 10
    out.append((sum(xs) / n, sum(ys) / n, ys[cut], ys[n - 1 - cut]))
  return out


def extent(values, ylim) -> tuple[float, float]:
  """The range of an axis: from zero, unless the values lie far from it."""
  low, high = min(values), max(values)
  flat = high - low <= 1e-9 * max(abs(low), abs(high), 1e-30)
  if ylim or flat or 0 < low < 0.7 * high or 0 > high > 0.7 * low:
    low, high = min(low, (ylim or (0, 0))[0]), max(high, (ylim or (0, 0))[1])
  return low, high if high > low else low + 1


def scale(low, high, most, more=0.15) -> tuple[list[float], float, float]:
  """About `most` round numbers from low to high, and the ends of the axis: low and high, or round
  numbers that are beyond them by no more than this share of the range."""
  raw = (high - low) / most
  unit = 10**math.floor(math.log10(raw))
  step = next(unit * m for m in (1, 2, 2.5, 5, 10, 20) if unit * m >= raw * (1 - 1e-9))
  room = more * (high - low) / step + 1e-9
  first, last = math.ceil(low / step - room), math.floor(high / step + room)
  return [i * step for i in range(first, last + 1)], min(low, first * step), max(high, last * step)


def tick(x) -> str:
  """A round number, short."""
  return f'{x:,.6g}'.replace('e-0', 'e-').replace('e+0', 'e')


def key(colour, series, W) -> tuple[str, int]:
  """The legend, in as many lines as it needs, and where the figure below it begins."""
  x, y, out = 0, 28, []
  for name, c in colour.items():
    width = 28 + 6 * min(len(name), 40)
    if x and x + width > W:
      x, y = 0, y + 15
    mark = f'<path d="M{x} {y - 4}h12" stroke="var(--c{c})" stroke-width="2.5"/>' \
        if name in series else f'<circle cx="{x + 7}" cy="{y - 4}" r="3.6" fill="var(--c{c})"/>'
    out.append(f'{mark}<text x="{x + 16}" y="{y}">{text(name, 40)}</text>')
    x += width
  return ''.join(out), y + 16


def line(rows, X, Y, colour) -> str:
  """A line, with a band where a row stands for several values."""
  path = lambda pairs: 'L'.join(f'{X(x):.1f} {Y(y):.1f}' for x, y in pairs)
  out = f'<path class="line" stroke="var(--c{colour})" d="M{path([r[:2] for r in rows])}"/>'
  if any(low != high for _, _, low, high in rows):
    edge = [(x, high) for x, _, _, high in rows] + [(x, low) for x, _, low, _ in rows[::-1]]
    out = f'<path class="band" fill="var(--c{colour})" d="M{path(edge)}Z"/>' + out
  return out


def spot(said, row, X, Y, colour) -> str:
  """A point with its error bar, and a title for both."""
  x, y, error = row
  said, bar = f'{said} {number(y)}', ''
  if error:
    said += f' ± {number(error)}'
    bar = f'<path class="bar" stroke="var(--c{colour})" ' \
          f'd="M{X(x):.1f} {Y(y - error):.1f}V{Y(y + error):.1f}"/>'
  return f'<g><title>{text(said)}</title>{bar}<circle class="spot" cx="{X(x):.1f}" ' \
         f'cy="{Y(y):.1f}" r="3.6" fill="var(--c{colour})"/></g>'


def strips(series, xlabel, X, top, bottom, most=40):
  """Upright strips that are not seen; their titles say the value of each line there."""
  xs = sorted({row[0] for rows in series.values() for row in rows})
  xs = [xs[i] for i in range(0, len(xs), max(1, -(-len(xs) // most)))]
  edges = [X(x) for x in (*xs[:1], *((a + b) / 2 for a, b in zip(xs, xs[1:])), *xs[-1:])]
  for x, a, b in zip(xs, edges, edges[1:]):
    said = [f'{xlabel} {number(round(x))}']
    for name, rows in series.items():
      i = min(bisect.bisect_left(rows, (x,)), len(rows) - 1)
      said.append(f'{name[:40]} {number(rows[i][1])}')
    yield f'<rect class="strip" x="{a:.1f}" y="{top}" width="{b - a:.1f}" ' \
          f'height="{bottom - top}"><title>{text(chr(10).join(said), 600)}</title></rect>'


def flow(nodes, height, gap=10) -> tuple[str, int]:
  """The lines beside a column of rows that say which row was made from which, and their width.

  Args:
    nodes: of each row (parents, colour, full, dashed): the numbers of the rows above that it was
      made from, the colour of its spot, whether that is full, and whether its lines are dashed
    height: of a row; its spot is in the middle
    gap: between the lanes at the left, which lead past rows in between
  """
  far = [(p, i) for i, (parents, *_) in enumerate(nodes) for p in parents if p < i - 1]
  joins = {i for _, i in far if sum(child == i for _, child in far) > 2}
  trunks = {}  # lines to a row with many parents share a lane, else those from the same parent
  for p, i in far:
    trunks.setdefault((i, 'to') if i in joins else (p, 'from'), []).append((p, i))
  lanes = []  # the edges in each
  for edges in sorted(trunks.values(), key=lambda edges: edges[-1][1] - edges[0][0]):
    low, high = min(p for p, _ in edges), max(i for _, i in edges)
    free = (lane for lane in lanes if all(i <= low or high <= p for p, i in lane))
    lane = next(free, lanes[-1] if len(lanes) > 7 else [])
    lane.extend(edges)
    lanes += [lane] if len(lane) == len(edges) else []
  W = 20 + gap * len(lanes) + 4 * bool(lanes)
  x, Y = W - 9, lambda i: (i + .5) * height
  edge = lambda p: f'<path class="edge{" data" if nodes[p][3] else ""}" d="M'
  out = []
  for i, (parents, *_) in enumerate(nodes):
    if i - 1 in parents:
      out.append(f'{edge(i - 1)}{x} {Y(i - 1) + 7}V{Y(i) - 12}"/>'
                 f'<path class="tip" d="M{x} {Y(i) - 7}l-3.5 -6.5h7z"/>')
  for n, lane in enumerate(lanes):
    at = x - 13 - gap * n
    for p, i in lane:
      out.append(f'{edge(p)}{x - 5} {Y(p) + 4}H{at + 6}q-6 0 -6 6V{Y(i) - 10}q0 6 6 6H{x - 12}"/>'
                 f'<path class="tip" d="M{x - 7} {Y(i) - 4}l-6.5 -3.5v7z"/>')
  for i, (_, colour, full, _) in enumerate(nodes):
    out.append(f'<circle class="node" cx="{x}" cy="{Y(i)}" r="5" stroke="{colour}" '
               f'fill="{colour if full else "var(--paper)"}"/>')
  H = height * len(nodes)
  return f'<svg viewBox="0 0 {W} {H}" width="{W}" height="{H}" aria-hidden="true">' \
         f'{"".join(out)}</svg>', W
