# shellcheck shell=bash
# Makes .venv in the checkout and installs r1jax in it. Sourced by local.sh and test.sh, which call
#
#   install [test]    returns at once, without the network, where all that is there already
#
# R1JAX_EXTRA=cuda or tpu installs jax for that accelerator too, plan what r1jax plan needs; PYTHON
# names the interpreter.
#
# What it keeps in .venv:
#   installed     two lines, what the install was made from and its extras, written at its end
#   unfinished    there while an install runs: where one was interrupted it is left behind, and the
#                 next start trusts nothing and makes .venv again
#   install.log   what pip said
set -euo pipefail

CALLED_FROM=$PWD
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
cd "$ROOT"
case ${PYTHON:-} in
  '' | /*) ;;
  */*) PYTHON=$CALLED_FROM/$PYTHON ;;
esac

say() { echo "r1jax: $*" >&2; }

die() {
  say "$*"
  exit 1
}

# As die, for what the caller has to change: status 2 is never tried again.
mistake() {
  say "$*"
  exit 2
}

# A command as it can be pasted into a shell.
quoted() {
  local word words=() quote="'\\''"
  for word; do
    case $word in
      '' | *[!a-zA-Z0-9_./:=,@%+-]*) word="'${word//\'/$quote}'" ;;
    esac
    words+=("$word")
  done
  echo "${words[*]}"
}

# 3.12, say; nothing for an interpreter that does not run (pyenv leaves such names on the PATH).
version_of() {
  "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true
}

fits() { [[ $1 == 3.11 || $1 == 3.12 || $1 == 3.13 ]]; }

# Sets BASE to the interpreter that .venv is made with.
find_python() {
  local name version seen='' bare='' names=(python3.13 python3.12 python3.11 python3)
  if [[ -n ${PYTHON:-} ]]; then names=("$PYTHON"); fi
  for name in "${names[@]}"; do
    if ! command -v "$name" >/dev/null; then continue; fi
    version=$(version_of "$name")
    if ! fits "$version"; then
      seen+="${seen:+, }$name (${version:-does not run})"
    elif ! "$name" -c 'import ensurepip, venv' 2>/dev/null; then
      bare=${bare:-$name $version}
    else
      BASE=$name
      return
    fi
  done
  if [[ -n $bare ]]; then
    die "${bare% *} (Python ${bare##* }) has no venv module: install it" \
      "(on Debian and Ubuntu: sudo apt install python${bare##* }-venv) and start again."
  fi
  die "r1jax needs Python 3.11, 3.12 or 3.13," \
    "and found ${seen:-none under the names ${names[*]}}:" \
    "install one, or name it: PYTHON=/path/to/python3.12."
}

# Does .venv hold an interpreter of a fitting version (the one asked for, if one was) and pip?
usable() {
  local version
  version=$(version_of .venv/bin/python)
  [[ ! -e .venv/unfinished && -e .venv/bin/pip ]] && fits "$version" &&
    [[ -z ${PYTHON:-} || $(version_of "$PYTHON") == "$version" ]]
}

# What an install depends on; the path is part of it because an editable install points there.
key() { echo "$(version_of .venv/bin/python) $(cat setup.cfg pyproject.toml | cksum) $ROOT"; }

# Are these extras installed, from these very files?
current() {
  local extra made_from='' extras=''
  if [[ ! -f .venv/installed ]] || ! usable; then return 1; fi
  { read -r made_from && read -r extras; } <.venv/installed || return 1
  if [[ $made_from != "$(key)" ]]; then return 1; fi
  for extra in $1; do
    if [[ " $extras " != *" $extra "* ]]; then return 1; fi
  done
}

# The room an install takes at its peak, in MB: .venv itself and the packages pip has fetched.
check_disk() {
  local need=1500 free
  if [[ " $1 " == *" tpu "* || " $1 " == *" plan "* ]]; then need=$((need + 1200)); fi
  if [[ " $1 " == *" cuda "* ]]; then need=$((need + 8000)); fi
  if [[ -d .venv ]]; then need=$((need - $(du -sm .venv | cut -f1))); fi
  free=$(df -Pk . | awk 'NR == 2 {print int($4 / 1024)}')
  if ((free < need)); then
    die "the disk is too full: the install takes about $need MB, and $ROOT has $free MB free."
  fi
}

pip_failed() {
  local log=.venv/install.log reason='pip could not install the packages'
  tail -n 12 "$log" | sed 's/^/  | /' >&2
  if grep -q 'No space left on device' "$log"; then
    reason='the disk filled up during the install'
  elif grep -qiE '^ *(WARNING|ERROR):.*(connect|timed out|proxy|unreachable)' "$log"; then
    reason='pip could not reach the package index (is there a network?)'
  fi
  die "$reason; all that pip said is in $ROOT/$log."
}

make_venv() {
  local extra extras='' made='' log=.venv/install.log
  if ! usable; then
    find_python
    if [[ -e .venv ]]; then
      say "removing .venv, which is unfinished, broken or of another Python."
      rm -rf .venv
    fi
  fi
  if [[ -f .venv/installed ]]; then made=$(sed -n 2p .venv/installed); fi
  for extra in $1 $made; do  # what was there before is kept up to date as well
    if [[ " $extras " != *" $extra "* ]]; then extras+="${extras:+ }$extra"; fi
  done
  check_disk "$extras"
  if [[ ! -e .venv ]]; then
    say "making .venv with $(command -v "$BASE") (Python $(version_of "$BASE"))."
    mkdir .venv
    touch .venv/unfinished
    "$BASE" -m venv .venv >$log 2>&1 || pip_failed
  fi
  touch .venv/unfinished
  say "installing r1jax${extras:+ and what it takes for $extras} into .venv;" \
    "a first install takes some minutes (pip writes to $log)."
  if ! .venv/bin/python -m pip install -e ".${extras:+[${extras// /,}]}" >$log 2>&1; then
    # Up to here pip has only fetched: .venv is what it was, and what it served it still serves.
    if ! grep -q '^Installing collected packages' $log; then rm .venv/unfinished; fi
    pip_failed
  fi
  printf '%s\n%s\n' "$(key)" "$extras" >.venv/installed
  rm .venv/unfinished
  say "installed; the next start is immediate."
}

install() {
  local extras="${1:-} ${R1JAX_EXTRA:-}"
  case ${R1JAX_EXTRA:-} in
    '' | cuda | tpu | plan) ;;
    *) die "R1JAX_EXTRA is cuda, tpu, plan or nothing, not '$R1JAX_EXTRA'." ;;
  esac
  if current "$extras"; then return; fi
  (
    # Two starts at once must not install into each other; macOS has no flock and goes without.
    if command -v flock >/dev/null && ! flock -n 9; then
      say "another start is installing: waiting for it."
      flock 9
    fi
    current "$extras" || make_venv "$extras"
  ) 9>.venv.lock
}
