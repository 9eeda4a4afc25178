#!/usr/bin/env bash
# Runs an experiment on the hosts of a Cloud TPU slice, which it asks for as a queued resource.
set -euo pipefail
# shellcheck source=launch/setup.sh
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

FAILURES=3  # between two orderly ends; one more, and it gives up

usage() {
  cat <<'USAGE'
bash launch/tpu_vm.sh --name NAME --project PROJECT --zone ZONE --type TYPE --runtime VERSION
  --nfs HOST:/SHARE [--spot] [--dry-run] EXPERIMENT.py [--field value ...]
bash launch/tpu_vm.sh --name NAME --project PROJECT --zone ZONE --delete

Asks for the slice, waits for it, installs this checkout's last commit on all of its hosts, starts
the experiment there and watches it: a run that was asked to stop, or lost a process, is started
again, and a slice that was taken away is asked for again. Interrupt it as you like: the run goes
on, and the same command watches again. The slice is yours, and is paid for, until --delete.

  --type      as v5p-128 (64 chips) or v6e-32: see gcloud compute tpus accelerator-types list --zone ZONE
  --runtime   as v2-alpha-tpuv5: see gcloud compute tpus versions list --zone ZONE
  --nfs       a file system that every host of the network sees, Filestore for one. It is mounted
              at /mnt/r1jax, where the run starts: runs/ and the models' folders lie there
  --spot      cheaper, and may be taken away at any time
  --dry-run   prints the commands and runs none

It needs gcloud, logged in, with an ssh key that the project knows.
USAGE
}

NAME='' PROJECT='' ZONE='' TYPE='' RUNTIME='' NFS='' SPOT='' DELETE='' DRY_RUN=''
while [[ ${1:-} == -* ]]; do
  case $1 in
    -h | --help)
      usage
      exit
      ;;
    --name | --project | --zone | --type | --runtime | --nfs)
      if (($# < 2)) || [[ $2 == -* ]]; then mistake "$1 takes a value (see --help)."; fi
      option=${1#--}
      printf -v "$(tr '[:lower:]' '[:upper:]' <<<"$option")" '%s' "$2"
      shift
      ;;
    --spot) SPOT=yes ;;
    --delete) DELETE=yes ;;
    --dry-run) DRY_RUN=yes ;;
    *) mistake "there is no option $1 (see --help; an experiment's fields come after its file)." ;;
  esac
  shift
done

needed=(NAME PROJECT ZONE)
if [[ -z $DELETE ]]; then needed+=(TYPE RUNTIME NFS); fi
for name in "${needed[@]}"; do
  if [[ -z ${!name} ]]; then
    mistake "--$(tr '[:upper:]' '[:lower:]' <<<"$name") is missing (see --help)."
  fi
done
WHERE=(--project="$PROJECT" --zone="$ZONE")

# Runs a command, or prints it.
call() { if [[ -n $DRY_RUN ]]; then quoted "$@"; else "$@"; fi; }

queued() { call gcloud compute tpus queued-resources "$1" "$NAME" "${WHERE[@]}" "${@:2}"; }

delete() { queued delete --force --quiet; }

if [[ -n $DELETE ]]; then
  delete
  exit
fi
if (($# == 0)); then
  usage >&2
  exit 2
fi
if [[ " $* " == *' --dry-run '* && -z $DRY_RUN ]]; then
  mistake "--dry-run stands before the experiment."
fi
EXPERIMENT=$1
if ! git cat-file -e "HEAD:$EXPERIMENT" 2>/dev/null; then
  mistake "the last commit, which is what the hosts get, has no file $EXPERIMENT:" \
    "commit it, and name it from the top of the checkout."
fi
if [[ -n $(git status --porcelain) ]]; then
  say "what is not committed stays behind: the hosts get $(git log -1 --format='%h (%s)')."
fi

# The files of a run are named after its command: another one on the same slice is another run.
RUN=$(basename "$EXPERIMENT" .py)-$(cksum <<<"$*" | cut -d ' ' -f 1)

# -- what runs on the hosts, sent there as text ----------------------------------------------------

# Mounts the shared folder and makes the checkout the commit that was sent, installed. Done before
# every start, since a host may have been restarted; what is there already is left as it is.
prepare() {
  set -eu
  if ! mountpoint -q /mnt/r1jax; then
    sudo apt-get -qq update
    sudo apt-get -qq install -y nfs-common bubblewrap
    sudo mkdir -p /mnt/r1jax
    sudo mount -t nfs "$1" /mnt/r1jax
    sudo chown "$(id -u)" /mnt/r1jax
  fi
  PYTHON=$(command -v python3.13 python3.12 python3.11 | head -n 1 || true)
  if [ -z "$PYTHON" ]; then  # the runtime images of 2024 have 3.10
    python3 -m pip install -q --user uv
    ~/.local/bin/uv python install -q 3.12
    PYTHON=$(~/.local/bin/uv python find 3.12)
  fi
  git init -q r1jax
  git -C r1jax fetch -q ~/r1jax.bundle HEAD
  git -C r1jax checkout -qf FETCH_HEAD
  cd r1jax
  R1JAX_EXTRA=tpu PYTHON=$PYTHON bash -ec '. launch/setup.sh && install'
}

# Starts run $1, detached, when nothing of an earlier one is left there.
start() {
  set -eu
  run=$1
  file=$2
  shift 2
  exec 9>~/r1jax.lock  # held by all that is started here, to its end
  flock --timeout 300 9
  rm -f ~/"$run.status"
  cd /mnt/r1jax
  # Which hosts there are, jax asks the metadata server, once it is told to.
  R1JAX_PROCESSES=auto GIT_DIR=~/r1jax/.git setsid --fork \
    bash ~/r1jax/launch/again.sh --status ~/"$run.status" \
    ~/r1jax/.venv/bin/r1jax run ~/r1jax/"$file" "$@" </dev/null >>~/"$run.log" 2>&1
}

# Says how run $1 is: new, running, lost, or the status that it ended with.
look() {
  if [ ! -e ~/"$1.log" ]; then
    echo new
  elif [ -e ~/"$1.status" ]; then
    cat ~/"$1.status"
  elif flock -n ~/r1jax.lock true; then
    echo lost
  else
    echo running
  fi
}

# -- what runs here --------------------------------------------------------------------------------

READ="gcloud compute tpus tpu-vm ssh $NAME ${WHERE[*]} --command='tail -f $RUN.log'"

# Calls one of these functions on some workers of the slice: all, or a number.
on() {
  call gcloud compute tpus tpu-vm ssh "$NAME" "${WHERE[@]}" --worker="$1" \
    --command="$(declare -f "$2"); $(quoted "${@:2}")"
}

create() {
  queued create --node-id="$NAME" --accelerator-type="$TYPE" --runtime-version="$RUNTIME" \
    ${SPOT:+--spot}
}

# The commit goes with its history, in one file: the hosts need no access to the repository, and the
# run can say which commit it is of.
begin() {
  local bundle folder status=0
  folder=$(mktemp -d)
  bundle=$folder/r1jax.bundle
  call git bundle create --quiet "$bundle" HEAD &&
    call gcloud compute tpus tpu-vm scp "$bundle" "$NAME:" "${WHERE[@]}" --worker=all &&
    on all prepare "$NFS" && on all start "$RUN" "$@" || status=$?
  rm -r "$folder"
  if ((status == 0)); then say "started; to read along: $READ"; fi
  return "$status"
}

# The state of the queued resource, empty where there is none.
state() {
  gcloud compute tpus queued-resources list "${WHERE[@]}" --filter="name~/$NAME\$" \
    --format='value(state.state)' || echo unknown
}

if [[ -n $DRY_RUN ]]; then
  create
  begin "$@"
  on 0 look "$RUN"
  exit
fi

failures=0 before='' ours=''
while :; do
  now=$(state)
  if [[ $now != "$before" ]]; then say "the slice $NAME: ${now:-not there}."; fi
  before=$now
  run=''
  case $now in
    '') create ;;
    ACTIVE) run=$(on 0 look "$RUN" | tail -n 1) || run='' ;;
    SUSPENDED) delete ;;  # taken away; asked for again once it is gone
    FAILED) die "the slice could not be made: see why with gcloud compute tpus queued-resources" \
      "describe $NAME ${WHERE[*]}, and --delete it." ;;
  esac
  # How an earlier start ended is past: whoever starts it again has mended what there was to mend.
  if [[ -z $ours && $run =~ ^[1-9a-z] && $run != running ]]; then run=new; fi
  if [[ -n $run ]]; then ours=yes; fi
  case $run in
    '' | running) ;;
    0)
      say "finished; its results are in the shared folder, and the slice is there until --delete."
      exit
      ;;
    2) mistake "the run has ended with a mistake to mend, at the end of its log: $READ" ;;
    *)
      case $run in
        new) ;;
        75) failures=0 ;;
        *) say "the run has ended with $run: failure $((failures += 1))." ;;
      esac
      if ((failures <= FAILURES)) && ! begin "$@"; then
        say "it could not be started on all hosts: failure $((failures += 1))."
      fi
      if ((failures > FAILURES)); then die "giving up; the run's log: $READ"; fi
      ;;
  esac
  sleep 30
done
