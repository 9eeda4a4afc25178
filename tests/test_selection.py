"""What becomes of completions: gates in order and never a fallback, judged pairs, labels, votes."""
from fractions import Fraction

import pytest

from r1jax import evals, prompts, rewards, selection
from r1jax.types import Completion, Problem, Reward

ASK = Problem('Q:', '7', 'reasoning', 'en', 'Q')


def completions(*texts):
  return [Completion(text, len(text), True) for text in texts]


def right(problem, completion):
  return problem.answer in completion.text


def slow(problem, completion):
  if 'slow' in completion.text:
    raise TimeoutError('no verdict in 3 s')
  return 1.0


def select(selected, problems, *groups):
  return selected.load(None, None, None)(problems, [completions(*group) for group in groups])


def test_gates_in_order_and_no_fallback():
  gates = (Reward('correct', right), Reward('judge', slow),
           Reward('talk only', lambda *_: 0.0, kinds=('helpful',)),
           Reward('code', rewards.no_code))  # yapf: disable
  chosen = selection.Documents(gates, keep=2, rewrite=lambda p, c: c.text.upper())
  texts = ['7', '6', '7 slow', '7 ```', '7', 'a 7', 'b 7', '6 slow']
  (rows, reasons), nothing = select(chosen, [ASK, ASK], texts, ['1', '2'])
  assert reasons == ['', 'correct', 'judge: TimeoutError', 'code', 'the same again', '', 'enough',
                     'correct']  # yapf: disable
  assert rows == [dict(prompt='Q:', response=r, kind='reasoning') for r in ('7', 'A 7')]
  assert nothing == ([], ['correct', 'correct'])


def test_a_rewrite_that_fails_drops_the_sample():
  rewrite = lambda problem, completion: {'a': 'A', 'b': None}[completion.text]
  chosen = selection.Documents((Reward('any', lambda *_: 1.0),), rewrite=rewrite)
  rows, reasons = select(chosen, [ASK], ['a', 'b', 'c'])[0]
  assert [row['response'] for row in rows] == ['A']
  assert reasons == ['', 'rewrite', 'rewrite: KeyError']


def test_documents_once():
  row = lambda prompt, response: dict(prompt=prompt, response=response, kind='x')
  rows = [row('p', 'a'), row('p', 'b'), row('p', 'a'), row('q', 'a')]
  kept, removed = selection.Documents(()).finish(rows)
  assert kept == [rows[0], rows[1], rows[3]] and removed == {'duplicate': 1}


def pairs(judge, **settings):
  """Pairs with a judge (problem, a, b, draw) -> verdict or Exception, and the list of its calls."""
  calls = []

  def load(*_):

    def many(items):
      calls.extend(items)
      return [judge(*item) for item in items]

    return many

  return selection.Pairs(load, **settings), calls


def longer_is_better(problem, a, b, draw):
  return 'A>>B' if len(a) > len(b) else 'B>>A'


def test_pairs_are_judged_four_times_in_random_order():
  chosen, calls = pairs(longer_is_better)
  texts = ['<think>x</think> good one', '<think>long thoughts</think> bad']
  rows, reasons = select(chosen, [ASK], texts)[0]
  assert reasons == ['', ''] and [draw for *_, draw in calls] == [0, 1, 2, 3]
  orders = [(a, b) for _, a, b, _ in calls]
  assert set(orders) == {('good one', 'bad'), ('bad', 'good one')}  # and the summaries alone
  assert rows[0]['responses'] == texts and rows[0]['lengths'] == [8, 3]
  # Four different pairs have four different orders: it is random, not a fixed swap.
  texts = [f'{i} {"x" * (i % 2 * 3)}' for i in range(16)]
  select(chosen, [ASK], texts)
  swaps = [tuple(len(a) > len(b) for _, a, b, _ in calls[i:i + 4]) for i in range(4, 36, 4)]
  assert len(set(swaps)) > 3


@pytest.mark.parametrize(
    'verdicts, reason',
    [
        (['A>>B', 'A>>B', 'A=B', 'A>>B'], ''),  # 1.5
        (['A>B', 'A>B', 'A>B', 'A>B'], 'too close'),  # 1 is not above 1
        (['A>>B', 'A>>B', 'B>>A', 'B>>A'], 'too close'),
        (['A>>B', ValueError('nonsense'), 'A>>B', 'A>>B'], 'judge: ValueError'),
    ])
def test_pairs_are_kept_where_the_mean_is_beyond_the_threshold(verdicts, reason):
  mirror = {'A>>B': 'B>>A', 'A>B': 'B>A', 'A=B': 'A=B', 'B>A': 'A>B', 'B>>A': 'A>>B'}

  def judge(problem, a, b, draw):  # `verdicts` are about ('one', 'two') in that order
    return mirror.get(verdicts[draw], verdicts[draw]) if a == 'two' else verdicts[draw]

  rows, reasons = select(pairs(judge)[0], [ASK], ['one', 'two'])[0]
  assert reasons == [reason] * 2 and len(rows) == (not reason)


def test_pairs_that_cannot_be_judged():
  chosen, calls = pairs(longer_is_better)
  _, reasons = select(chosen, [ASK], ['same', 'same', '<think>open', 'b', 'alone'])[0]
  assert reasons == ['both the same'] * 2 + ['half a pair'] * 3 and not calls


def test_lengths_are_balanced():
  common = dict(prompt='p', responses=['', ''], label=1.0, kind='x')
  row = lambda better, worse: dict(common, lengths=[better, worse])
  rows = [row(12, 8)] * 20 + [row(8, 12)] * 5 + [row(30, 30)]
  kept, removed = selection.Pairs(None).finish(rows)
  assert removed == {'unbalanced length': 15} and len(kept) == 11  # five longer, five shorter
  assert set(kept[0]) == {'prompt', 'responses', 'label', 'kind'}
  kept, removed = selection.Pairs(None).finish([row(12, 8)])
  assert not kept and removed == {'unbalanced length': 1}


def test_labels():
  chosen = selection.Labels(Reward('safe', lambda p, c: {'a': 1.0, 'b': 0.0, 'c': 0.5}[c.text]))
  rows, reasons = select(chosen, [ASK], ['a', 'b', 'c', 'd'])[0]
  assert [(row['responses'], row['label']) for row in rows] == [(['a'], 1.0), (['b'], 0.0)]
  assert reasons == ['', '', 'no label', 'judge: KeyError']
  assert chosen.finish(rows + rows[:1]) == (rows, {'duplicate': 1})


def test_the_views_that_judges_have():
  assert selection.Pairs(None).view is prompts.summary


@pytest.mark.parametrize('answers, winner', [
    (['1/2', '0.5', '3', '3', '.5'], 0),
    (['3', None, None, None], 0),
    ([None], None),
    (['1', '2', '2'], 1),
    (['2', '1', '1', '2'], 0),
])
def test_the_majority_is_over_equivalent_answers(answers, winner):
  assert evals.majority(answers, lambda a, b: Fraction(a) == Fraction(b)) == winner
