#!/usr/bin/env python3
"""Starts an experiment on Google Kubernetes Engine as a JobSet, on TPUs or on GPUs.

Needs no more than Python: it writes the manifest and hands it to kubectl. With --dry-run it prints
the manifest, or, with --xpk, the command that asks xpk for the same.
"""
import argparse
import json
import math
import pathlib
import shlex
import subprocess
import sys

# A TPU's node label on GKE, and its name for xpk.
TPUS = {
    'v4': ('tpu-v4-podslice', 'v4'),
    'v5e': ('tpu-v5-lite-podslice', 'v5litepod'),
    'v5p': ('tpu-v5p-slice', 'v5p'),
    'v6e': ('tpu-v6e-slice', 'v6e'),
    'tpu7x': ('tpu7x', 'tpu7x'),
}
PORT = 8476  # where process 0 listens for the others
CHECKOUT = '/r1jax'  # in the image: launch/Dockerfile
SHARED = '/shared'  # where the volume is mounted, and the run starts


class Parser(argparse.ArgumentParser):
  """argparse, with its complaints as one sentence of ours and the status of a mistake."""

  def error(self, message):
    self.exit(2, f'r1jax: {message} (see --help).\n')


def arguments(argv):
  """The command line, read. Exits with status 2 where it is wrong."""
  parser = Parser(
      prog='python3 launch/gke.py', description=__doc__.split('\n')[0], epilog=(
          'Everything after the experiment is its own. The volume claim is of a file system that '
          'all hosts see at once (ReadWriteMany, Filestore for one); the run starts in it, so that '
          'runs/ and the models\' folders lie there.'))
  parser.add_argument('--name', required=True, help='of the JobSet, and of its pods')
  parser.add_argument('--image', required=True, help='r1jax in a container: see launch/Dockerfile')
  parser.add_argument('--claim', required=True, help='volume claim; for xpk the attached storage')
  hardware = parser.add_mutually_exclusive_group(required=True)
  hardware.add_argument('--tpu', metavar='KIND:TOPOLOGY', help='as v5p:4x4x4 or v6e:4x4')
  hardware.add_argument('--gpu', metavar='LABEL', help='as nvidia-h100-80gb')
  parser.add_argument('--nodes', type=int, default=1, help='hosts with GPUs')
  parser.add_argument('--devices', type=int, help='of a host: 8 GPUs, or 4 chips where there are')
  parser.add_argument('--restarts', type=int, default=100, help='of the whole, whatever the cause')
  parser.add_argument('--spot', action='store_true', help='hosts that may be taken away')
  parser.add_argument('--xpk', metavar='CLUSTER', help='start it with xpk on this cluster')
  parser.add_argument('--dry-run', action='store_true', help='print, and start nothing')
  parser.add_argument('experiment', help='path in the checkout')
  parser.add_argument('fields', nargs=argparse.REMAINDER, help='--field value ...')
  args = parser.parse_args(argv)
  if '--dry-run' in args.fields:  # behind the experiment it is meant no less
    args.fields.remove('--dry-run')
    args.dry_run = True
  kind, _, topology = (args.tpu or '').partition(':')
  sizes = topology.split('x')
  if args.tpu and (kind not in TPUS or not all(size.isdecimal() and int(size) for size in sizes)):
    parser.error(f'--tpu is one of {", ".join(TPUS)}, a colon and a topology, not {args.tpu!r}')
  chips = math.prod(map(int, sizes)) if args.tpu else 0
  args.devices = args.devices or (min(chips, 4) if args.tpu else 8)
  if chips % args.devices:
    parser.error(f'{chips} chips are not a multiple of the {args.devices} of a host')
  if args.tpu:
    args.nodes = chips // args.devices
  if min(args.nodes, args.devices) < 1 or args.restarts < 0:
    parser.error('--nodes and --devices are at least 1, and --restarts at least 0')
  if args.xpk and not args.tpu:
    parser.error('--xpk is for TPUs')
  if args.xpk and args.spot:
    parser.error('with --xpk, whether hosts are spot is the cluster\'s matter: leave out --spot')
  if not (pathlib.Path(__file__).parents[1] / args.experiment).is_file():
    parser.error(f'the checkout has no file {args.experiment}')
  return args


def command(args) -> list[str]:
  """What every container runs: the run, with a status that says whether to start it again."""
  run = ['r1jax', 'run', f'{CHECKOUT}/{args.experiment}', *args.fields]
  return ['bash', f'{CHECKOUT}/launch/again.sh', *run]


def jobset(args) -> dict:
  """The manifest: one Job whose pods, one a host, start and end together."""
  policy = {  # a mistake that a person has to mend ends it, everything else starts it again
      'maxRestarts': args.restarts,
      'rules': [{
          'name': 'mistake', 'action': 'FailJobSet', 'onJobFailureReasons': ['PodFailurePolicy']}],
  }  # yapf: disable
  job = {
      'parallelism': args.nodes,
      'completions': args.nodes,
      'completionMode': 'Indexed',
      'backoffLimit': 0,  # one pod lost is all lost
      'podFailurePolicy': {
          'rules': [{
              'action': 'FailJob',
              'onExitCodes': {'containerName': 'r1jax', 'operator': 'In', 'values': [2]}}]},
      'template': {'spec': pod(args)},
  }  # yapf: disable
  out = {
      'apiVersion': 'jobset.x-k8s.io/v1alpha2',
      'kind': 'JobSet',
      'metadata': {'name': args.name},
      'spec': {
          'failurePolicy': policy,
          'replicatedJobs': [{'name': 'host', 'replicas': 1, 'template': {'spec': job}}]},
  }  # yapf: disable
  if args.tpu:  # all hosts of one slice, and nothing else on them
    out['metadata']['annotations'] = {
        'alpha.jobset.sigs.k8s.io/exclusive-topology': 'cloud.google.com/gke-nodepool'
    }
  return out


def pod(args) -> dict:
  """A host's pod: its devices, the shared volume, and how it finds the others."""
  if args.tpu:
    kind, topology = args.tpu.split(':')
    resource, environment = 'google.com/tpu', []  # GKE tells a slice's hosts of one another
    nodes = {'cloud.google.com/gke-tpu-accelerator': TPUS[kind][0],
             'cloud.google.com/gke-tpu-topology': topology}  # yapf: disable
  else:
    resource, environment = 'nvidia.com/gpu', gpu_environment(args)
    nodes = {'cloud.google.com/gke-accelerator': args.gpu}
  if args.spot:
    nodes['cloud.google.com/gke-spot'] = 'true'
  container = {
      'name': 'r1jax',
      'image': args.image,
      'command': command(args),
      'workingDir': SHARED,
      'env': environment,
      'resources': {'limits': {resource: args.devices}},
      'volumeMounts': [{'name': 'shared', 'mountPath': SHARED},
                       {'name': 'memory', 'mountPath': '/dev/shm'}],
  }  # yapf: disable
  return {
      'restartPolicy': 'Never',
      'terminationGracePeriodSeconds': 120,  # an update is finished, and the state saved
      'nodeSelector': nodes,
      'containers': [container],
      'volumes': [{'name': 'shared', 'persistentVolumeClaim': {'claimName': args.claim}},
                  {'name': 'memory', 'emptyDir': {'medium': 'Memory'}}],
  }  # yapf: disable


def gpu_environment(args) -> list[dict]:
  """How the processes of GPU hosts meet: at pod 0, by the name that the JobSet's service gives."""
  index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
  values = {
      'LD_LIBRARY_PATH': '/usr/local/nvidia/lib64',  # where GKE puts the driver
      'JAX_COORDINATOR_ADDRESS': f'{args.name}-host-0-0.{args.name}:{PORT}',
      'JAX_NUM_PROCESSES': str(args.nodes),
      'JAX_LOCAL_DEVICE_IDS': ','.join(map(str, range(args.devices))),
  }
  out = [{'name': name, 'value': value} for name, value in values.items()]
  out.append({'name': 'JAX_PROCESS_ID', 'valueFrom': {'fieldRef': {'fieldPath': index}}})
  return out if args.nodes > 1 else out[:1]


def xpk(args) -> list[str]:
  """xpk's command for the same. Its pods start again on any status but 2, as ours do."""
  kind, topology = args.tpu.split(':')
  return [
      'xpk', 'workload', 'create', f'--cluster={args.xpk}', f'--workload={args.name}',
      f'--tpu-type={TPUS[kind][1]}-{topology}', f'--docker-image={args.image}',
      f'--storage={args.claim}', f'--max-restarts={args.restarts}',
      '--restart-on-exit-codes=1,3-126', '--termination-grace-period-seconds=120',
      f'--command=cd {SHARED} && exec {shlex.join(command(args))}']  # yapf: disable


def yaml(value, indent=0) -> list[str]:
  """The lines of a manifest: keys in their order, scalars as in JSON, which is YAML too."""
  pad, inner = ' ' * indent, indent + 2
  if isinstance(value, dict) and value:
    out = []
    for key, x in value.items():
      nested = isinstance(x, (dict, list)) and x
      out += [f'{pad}{key}:', *yaml(x, inner)] if nested else [f'{pad}{key}: {json.dumps(x)}']
    return out
  if isinstance(value, list) and value:
    items = (yaml(x, inner) for x in value)
    return [line for first, *rest in items for line in (f'{pad}- {first[inner:]}', *rest)]
  return [pad + json.dumps(value)]


def main(argv=None) -> int:
  """Starts the experiment, or prints what would: the status of kubectl or xpk."""
  args = arguments(argv)
  manifest = '\n'.join(yaml(jobset(args))) + '\n'
  run = xpk(args) if args.xpk else ['kubectl', 'create', '-f', '-']
  if args.dry_run:
    print(shlex.join(run) + '\n' if args.xpk else manifest, end='')
    return 0
  try:
    return subprocess.run(run, input=manifest, text=True, check=False).returncode
  except FileNotFoundError:
    print(f'r1jax: {run[0]} is not installed here.', file=sys.stderr)
    return 2


if __name__ == '__main__':
  sys.exit(main())
