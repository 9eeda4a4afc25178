#!/usr/bin/env bash
# Runs an experiment on this machine, in a .venv that it makes and keeps up to date.
set -euo pipefail
# shellcheck source=launch/setup.sh
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

usage() {
  cat <<'USAGE'
bash launch/local.sh EXPERIMENT.py [--field value ...]

Runs an experiment on this machine, from any directory. The first start makes .venv in the checkout
and installs r1jax there, which takes some minutes and the network; later ones take neither.

  bash launch/local.sh experiments/tiny/zero.py              as the file says
  bash launch/local.sh experiments/tiny/zero.py --steps 10   with a field changed
  bash launch/local.sh experiments/tiny/zero.py --help       the fields it has

Environment:
  PYTHON        the interpreter to make .venv with (3.11, 3.12 or 3.13); the default is the newest
                of these on the PATH
  R1JAX_EXTRA   cuda or tpu: jax for that accelerator, which is installed as well
USAGE
}

case ${1:-} in
  -h | --help)
    usage
    exit
    ;;
  '')
    usage >&2
    exit 2
    ;;
esac

# A path is the caller's, or else the checkout's; inside the checkout it is written from its root.
experiment=$1
shift
case $experiment in
  /*) ;;
  *) if [[ -f $CALLED_FROM/$experiment ]]; then
    experiment=$(cd "$CALLED_FROM/$(dirname "$experiment")" && pwd -P)/$(basename "$experiment")
  fi ;;
esac
experiment=${experiment#"$ROOT"/}
if [[ ! -f $experiment ]]; then
  die "there is no experiment file $experiment (looked in $CALLED_FROM and in $ROOT)."
fi

install
exec .venv/bin/r1jax run "$experiment" "$@"
