#!/usr/bin/env bash
# Runs an experiment on this machine, in a .venv that it makes and keeps up to date.
set -euo pipefail
# shellcheck source=launch/setup.sh
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

GRACE=60  # seconds that the others get to end by themselves when one process has failed

usage() {
  cat <<'USAGE'
bash launch/local.sh [option ...] EXPERIMENT.py [--field value ...]

Runs an experiment on this machine, from any directory. The first start makes .venv in the checkout
and installs r1jax there, which takes some minutes and the network; later ones take neither.

  bash launch/local.sh experiments/tiny/zero.py              as the file says
  bash launch/local.sh experiments/tiny/zero.py --zero.steps 20   with a field changed
  bash launch/local.sh experiments/tiny/zero.py --help       the fields it has
  bash launch/local.sh --processes 2 --devices 4 experiments/tiny/zero.py

Options, before the experiment:
  --processes N   N processes that train together, as on a cluster; they share the GPUs evenly,
                  or have virtual devices
  --devices M     M virtual devices a process, on the CPU
  --dry-run       prints what it would run, and neither installs nor runs it

Environment:
  PYTHON        the interpreter to make .venv with (3.11, 3.12 or 3.13); the default is the newest
                of these on the PATH
  R1JAX_EXTRA   cuda or tpu: jax for that accelerator, which is installed as well; plan: libtpu
USAGE
}

# Sets EXPERIMENT. A path is the caller's, or else the checkout's; inside the checkout it is
# written from its root.
find_experiment() {
  EXPERIMENT=$1
  case $EXPERIMENT in
    /*) ;;
    *) if [[ -f $CALLED_FROM/$EXPERIMENT ]]; then
      EXPERIMENT=$(cd "$CALLED_FROM/$(dirname "$EXPERIMENT")" && pwd -P)/$(basename "$EXPERIMENT")
    fi ;;
  esac
  EXPERIMENT=${EXPERIMENT#"$ROOT"/}
  if [[ ! -f $EXPERIMENT ]]; then
    mistake "there is no experiment file $EXPERIMENT (looked in $CALLED_FROM and in $ROOT)."
  fi
}

count_gpus() {
  if [[ -n ${CUDA_VISIBLE_DEVICES:-} ]]; then
    tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | wc -l
  elif command -v nvidia-smi >/dev/null; then
    nvidia-smi -L | grep -c '^GPU ' || true
  else
    echo 0
  fi
}

# Sets COMMAND: what process $1 of PROCESSES runs. They meet on the loopback alone.
command_of() {
  local number=$1 address=127.0.0.1:$PORT first
  COMMAND=(env)
  if ((PROCESSES > 1)); then
    COMMAND+=("JAX_COORDINATOR_ADDRESS=$address" "JAX_COORDINATOR_BIND_ADDRESS=$address"
      "JAX_NUM_PROCESSES=$PROCESSES" "JAX_PROCESS_ID=$number")
  fi
  if [[ -n $DEVICES ]]; then
    COMMAND+=(JAX_PLATFORMS=cpu "JAX_NUM_CPU_DEVICES=$DEVICES")
  elif ((PROCESSES > 1)); then
    first=$((number * GPUS / PROCESSES))
    COMMAND+=("JAX_LOCAL_DEVICE_IDS=$(seq -s, $first $((first + GPUS / PROCESSES - 1)))")
  fi
  COMMAND+=(.venv/bin/r1jax run "${ARGUMENTS[@]}")
}

# Passes a signal on to every process; the second one ends them at once.
pass() {
  SIGNALS=$((SIGNALS + 1))
  if ((SIGNALS == 1)); then
    say "asking the $PROCESSES processes to stop; a second signal ends them at once." 2>&4
    kill -s "$1" "${PIDS[@]}" 2>/dev/null || true
  else
    end_all
  fi
}

# Their children with them: each process leads a group of its own.
end_all() {
  local pid
  for pid in "${PIDS[@]}"; do kill -KILL -- "-$pid" 2>/dev/null || true; done
}

# Starts the processes, the first one's stdout on ours, and waits until all have ended. Returns the
# status of the one that failed first, or 0.
run_processes() {
  local number status failed=0 deadline=0 running over=' ' how
  PIDS=() SIGNALS=0
  exec 4>&2
  trap 'pass INT' INT
  trap 'pass TERM' TERM HUP
  # In groups of their own a Ctrl-C reaches them once, from here, and with its usual meaning.
  set -m
  for ((number = 0; number < PROCESSES; number++)); do
    command_of "$number"
    if ((number == 0)); then
      "${COMMAND[@]}" </dev/null &
    else
      "${COMMAND[@]}" </dev/null >&2 &
    fi
    PIDS+=($!)
  done
  set +m
  exec 2>/dev/null  # where bash would say what was killed

  while (($(wc -w <<<"$over") < PROCESSES)); do
    sleep 0.2
    running=" $(jobs -rp | tr '\n' ' ')"
    for ((number = 0; number < PROCESSES; number++)); do
      if [[ $running == *" ${PIDS[number]} "* || $over == *" $number "* ]]; then continue; fi
      over+="$number "
      status=0
      wait "${PIDS[number]}" 2>/dev/null || status=$?
      if ((status != 0 && failed == 0)); then
        failed=$status deadline=$((SECONDS + GRACE))
        how="status $status"
        if ((status > 128)); then how="the signal $(kill -l "$status")"; fi
        say "process $number of $PROCESSES ended with $how; the others have $GRACE s to end." 2>&4
      fi
    done
    if ((deadline && SECONDS >= deadline)); then end_all; fi
  done
  end_all  # what a killed process has left behind
  return "$failed"
}

PROCESSES=1 DEVICES='' DRY_RUN='' PORT=PORT GPUS=0
while [[ ${1:-} == -* ]]; do
  case $1 in
    -h | --help)
      usage
      exit
      ;;
    --dry-run) DRY_RUN=yes ;;
    --processes | --devices)
      if [[ ! ${2:-} =~ ^[1-9][0-9]*$ ]]; then mistake "$1 takes a number of at least 1."; fi
      if [[ $1 == --processes ]]; then PROCESSES=$2; else DEVICES=$2; fi
      shift
      ;;
    *) mistake "there is no option $1 (see --help; an experiment's fields come after its file)." ;;
  esac
  shift
done
if (($# == 0)); then
  usage >&2
  exit 2
fi
find_experiment "$1"
ARGUMENTS=("$EXPERIMENT" "${@:2}")
if ((PROCESSES > 1)) && [[ -z $DEVICES ]]; then
  GPUS=$(count_gpus)
  if ((GPUS == 0 || GPUS % PROCESSES)); then
    mistake "$PROCESSES processes cannot share $GPUS GPUs evenly: choose another number, or give" \
      "each virtual devices with --devices."
  fi
fi

if [[ -n $DRY_RUN ]]; then
  for ((number = 0; number < PROCESSES; number++)); do
    command_of "$number"
    quoted "${COMMAND[@]}"
  done
  exit
fi
install
if ((PROCESSES == 1)); then
  command_of 0
  exec "${COMMAND[@]}"
fi
free_port='import socket; print(socket.create_server(("127.0.0.1", 0)).getsockname()[1])'
PORT=$(.venv/bin/python -c "$free_port")
run_processes
