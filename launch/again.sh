#!/usr/bin/env bash
# Says by its status whether a command has to be started again. A run that was asked to stop has
# saved its state, prints the last line `again {...}` and exits 0, as a finished one does; what
# restarts programs on a cluster reads the status alone.
set -uo pipefail

usage() {
  cat <<'USAGE'
bash launch/again.sh [--status FILE] COMMAND ...

Runs the command, its output unchanged, and exits with its status, except with 75 where that is 0
and the last line of its stdout begins with "again ". SIGTERM is passed on. FILE gets the status
when the command has ended.
USAGE
}

status_file=''
case ${1:-} in
  -h | --help)
    usage
    exit
    ;;
  --status)
    status_file=${2:-}
    shift $(($# < 2 ? $# : 2))
    ;;
esac
if (($# == 0)); then
  usage >&2
  exit 2
fi

exec 3< <(exec "$@")
child=$!
trap 'kill -TERM "$child" 2>/dev/null' TERM INT
last=''
while IFS= read -r line <&3 || [[ -n $line ]]; do
  printf '%s\n' "$line"
  last=$line
done
# A signal ends the wait, but not the command.
until
  wait "$child"
  status=$?
  ! kill -0 "$child" 2>/dev/null
do :; done
if ((status == 0)) && [[ $last == 'again '* ]]; then status=75; fi
if [[ -n $status_file ]]; then echo "$status" >"$status_file"; fi
exit "$status"
