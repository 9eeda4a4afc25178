"""Packing: every token once, no more rows than best-fit needs, weights on what is learnt."""
import numpy as np
import pytest

from r1jax import packing


def test_best_fit_by_hand():
  # 7 opens a row with 1 left, 5 one with 3, 4 one with 4; 3 goes where 3 is left, 2 where 4 is.
  assert packing.best_fit([5, 3, 7, 2, 4], 8) == [[2], [0, 1], [4, 3]]
  assert packing.best_fit([8, 8], 8) == [[0], [1]]
  assert packing.best_fit([], 8) == []


def test_best_fit_places_each_document_once_and_wastes_little():
  rng = np.random.default_rng(0)
  for _ in range(20):
    lengths = rng.integers(1, 65, rng.integers(1, 200))
    rows = packing.best_fit(lengths.tolist(), 64)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert max(lengths[row].sum() for row in rows) <= 64
    assert len(rows) <= 11 / 9 * np.ceil(lengths.sum() / 64) + 1


def test_a_document_longer_than_a_row_is_refused():
  with pytest.raises(AssertionError, match='document 1 has 9 tokens, a row 8'):
    packing.best_fit([3, 9], 8)


def test_pack_by_hand():
  # (tokens, index of the first that is learnt): nothing predicts the first token of a document.
  documents = [([11, 12, 13], 0), ([21, 22, 23, 24], 2), ([31, 32], 2)]
  rows = packing.pack(documents, 8)
  np.testing.assert_array_equal(rows.tokens_BT,
                                [[21, 22, 23, 24, 11, 12, 13, 0], [31, 32, 0, 0, 0, 0, 0, 0]])
  np.testing.assert_array_equal(rows.segments_BT,
                                [[1, 1, 1, 1, 2, 2, 2, 0], [1, 1, 0, 0, 0, 0, 0, 0]])
  np.testing.assert_array_equal(rows.weights_BT,
                                [[0, 1, 1, 0, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0, 0, 0]])
  assert [x.dtype for x in rows] == [np.int32, np.int32, np.float32]
