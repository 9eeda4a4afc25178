"""Documents -> rows of segments, with the weights that keep every sum exact."""
import bisect

import numpy as np

from r1jax.types import Rows


def best_fit(lengths, size: int) -> list[list[int]]:
  """Places documents in rows of `size` positions: longest first, each where least room is left.

  Returns the documents' indices by row. Best-fit decreasing needs at most 11/9 of the optimum's
  rows, plus one (Johnson, 1973). A longer document than a row is an error of the caller's.
  """
  rows, room = [], []  # room: sorted (space left, row)
  for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
    assert lengths[i] <= size, f'document {i} has {lengths[i]} tokens, a row {size}'
    at = bisect.bisect_left(room, (lengths[i], -1))
    space, row = room.pop(at) if at < len(room) else (size, len(rows))
    if row == len(rows):
      rows.append([])
    rows[row].append(i)
    bisect.insort(room, (space - lengths[i], row))
  return rows


def pack(documents, size: int) -> Rows:
  """Packed rows of documents given as (token ids, index of the first token that is learnt).

  Segments number the documents of a row from 1; padding is 0. weights_BT[:, t] is 1 where the
  token at t + 1 is learnt: it belongs to the same document and to its learnt part.
  """
  plan = best_fit([len(ids) for ids, _ in documents], size)
  rows = Rows(*(np.zeros((len(plan), size), dtype) for dtype in (np.int32, np.int32, np.float32)))
  for tokens_T, segments_T, weights_T, indices in zip(*rows, plan):
    start = 0
    for segment, i in enumerate(indices, 1):
      ids, learnt = documents[i]
      end = start + len(ids)
      tokens_T[start:end], segments_T[start:end] = ids, segment
      weights_T[start + max(learnt, 1) - 1:end - 1] = 1
      start = end
  return rows
