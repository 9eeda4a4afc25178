"""Real input, whole: GSM8K, a pretrained model, the grader's workers, an update, an evaluation."""
import json
import math
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get('R1JAX_DATA', ROOT.parent / 'shared/data'))
MODEL = DATA / 'models/stories260K/hf'


def test_grpo_on_gsm8k(start, tmp_path, monkeypatch):
  if not (MODEL / 'model.safetensors').exists() or not (DATA / 'gsm8k').is_dir():
    pytest.skip(f'{DATA} lacks gsm8k or models/stories260K; R1JAX_DATA names another folder')
  monkeypatch.setenv('R1JAX_DATA', str(DATA))
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'tfds'))
  small = dict(steps=2, batch=4, group=4, save_every=2, samples_every=2)
  fields = [f'--{name.replace("_", "-")}={value}' for name, value in small.items()]
  process = start('run', ROOT / 'experiments/gsm8k/laptop.py', '--out', 'out', '--init', MODEL,
                  '--evaluation.num-problems', 8, '--machine.cpu-devices', 2, *fields,
                  cwd=tmp_path)  # yapf: disable
  out, err = process.communicate()
  assert process.returncode == 0, err
  rows = [json.loads(line) for line in (tmp_path / 'out/metrics.jsonl').read_text().splitlines()]
  assert [row['step'] for row in rows] == [0, 1, 2, 2]
  assert all(math.isfinite(x) for row in rows for x in row.values())
  assert all(row.get('reward/errors', 0) == row.get('reward/timeouts', 0) == 0 for row in rows)
  assert rows[1]['gap'] < 1e-5 and json.loads(out.splitlines()[-1].partition(' ')[2])
