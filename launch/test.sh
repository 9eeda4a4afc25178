#!/usr/bin/env bash
# What has to pass before a change lands: the formatter has nothing to change, flake8 and shellcheck
# have nothing to say, and the tests pass. The arguments go to pytest:
#
#   bash launch/test.sh tests/test_grpo.py -k advantages
#
# All of them run, whichever fails. Environment: PYTHON and R1JAX_EXTRA, as for local.sh.
set -euo pipefail
# shellcheck source=launch/setup.sh
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

install test

code=()
for folder in r1jax experiments benchmarks launch tests; do
  if [[ -d $folder ]]; then code+=("$folder"); fi
done
failed=''

say "yapf: ${code[*]}"
if ! .venv/bin/python -m yapf --diff --recursive "${code[@]}"; then
  failed+=' yapf'
  say "to format: .venv/bin/yapf --in-place --recursive ${code[*]}"
fi

say "flake8"
.venv/bin/python -m flake8 "${code[@]}" || failed+=' flake8'

if [[ -x .venv/bin/shellcheck ]]; then
  say "shellcheck"
  .venv/bin/shellcheck -x launch/*.sh launch/slurm.sbatch .ci/run || failed+=' shellcheck'
else
  say "shellcheck is not there for this machine: the scripts go unchecked."
fi

say "pytest $*"
.venv/bin/python -m pytest "$@" || failed+=' pytest'

if [[ -n $failed ]]; then die "failed:$failed."; fi
say "all passed."
