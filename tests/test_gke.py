"""gke.py: its JobSet against what the API knows, and how it calls kubectl and xpk.

Both are small scripts here, which write down how they were called: nothing saw a real cluster.
"""
import os
import re
import subprocess
import sys

import pytest
from scripts import calls, Checkout, mistake, RECORD, ROOT
import yaml

# What of a JobSet (jobset.x-k8s.io/v1alpha2) and of a Job (batch/v1) the generator may use, and no
# other keys: a type, the one value, {'*': of any key}, [of each item]; 'key?' may be missing.
NAME = re.compile('[a-z]([-a-z0-9]{0,40}[a-z0-9])?')
MOUNT = {'name': NAME, 'mountPath': str}
CONTAINER = {
    'name': NAME, 'image': str, 'command': [str], 'workingDir': str,
    'env': [{'name': str, 'value?': str, 'valueFrom?': {'fieldRef': {'fieldPath': str}}}],
    'resources': {'limits': {'*': int}}, 'volumeMounts': [MOUNT]}  # yapf: disable
POD = {
    'restartPolicy': 'Never', 'terminationGracePeriodSeconds': int, 'nodeSelector': {'*': str},
    'containers': [CONTAINER],
    'volumes': [{'name': NAME, 'persistentVolumeClaim?': {'claimName': str},
                 'emptyDir?': {'medium': 'Memory'}}]}  # yapf: disable
ON_EXIT = {'containerName': NAME, 'operator': 'In', 'values': [int]}
JOB = {
    'parallelism': int, 'completions': int, 'completionMode': 'Indexed', 'backoffLimit': int,
    'podFailurePolicy': {'rules': [{'action': 'FailJob', 'onExitCodes': ON_EXIT}]},
    'template': {'spec': POD}}  # yapf: disable
RULE = {'name': re.compile('[A-Za-z][A-Za-z0-9_]*'), 'action': 'FailJobSet',
        'onJobFailureReasons': ['PodFailurePolicy']}  # yapf: disable
JOBSET = {
    'apiVersion': 'jobset.x-k8s.io/v1alpha2', 'kind': 'JobSet',
    'metadata': {'name': NAME, 'annotations?': {'*': str}},
    'spec': {'failurePolicy': {'maxRestarts': int, 'rules': [RULE]},
             'replicatedJobs': [{'name': NAME, 'replicas': int,
                                 'template': {'spec': JOB}}]}}  # yapf: disable


def check(value, schema, where='it'):
  """Raises AssertionError where a value is not as the schema says."""
  if isinstance(schema, dict):
    assert isinstance(value, dict), where
    required = {key for key in schema if key[-1] not in '*?'}
    known = {key.rstrip('?'): x for key, x in schema.items()}
    assert required <= value.keys(), f'{where} lacks {required - value.keys()}'
    for key, x in value.items():
      assert key in known or '*' in known, f'{where} has {key}'
      check(x, known.get(key, known.get('*')), f'{where}.{key}')
  elif isinstance(schema, list):
    assert isinstance(value, list), where
    for x in value:
      check(x, schema[0], f'{where}[]')
  elif isinstance(schema, type):
    assert type(value) is schema, where
  else:
    matches = schema.fullmatch(value) if isinstance(schema, re.Pattern) else value == schema
    assert matches, f'{where}: {value}'


def gke(*args, env=None):
  """gke.py to its end."""
  command = [
      sys.executable, '-I', ROOT / 'launch/gke.py', '--name', 'r1', '--image', 'images/r1',
      '--claim', 'disk', *args, 'experiments/tiny/zero.py', '--note', 'two words'
  ]
  return subprocess.run(command, capture_output=True, text=True, check=False, env=env)


def manifest(*args):
  """The JobSet that gke.py prints, checked: it, its Job's and its pod's spec, and the container."""
  done = gke(*args, '--dry-run')
  assert done.returncode == 0, done.stderr
  jobset = yaml.safe_load(done.stdout)
  check(jobset, JOBSET)
  (job,) = jobset['spec']['replicatedJobs']
  job = job['template']['spec']
  pod = job['template']['spec']
  (container,) = pod['containers']
  assert job['parallelism'] == job['completions'] and job['backoffLimit'] == 0
  (mend,) = job['podFailurePolicy']['rules']
  assert (mend['onExitCodes']['containerName'], mend['onExitCodes']['values']) == ('r1jax', [2])
  assert {m['name'] for m in container['volumeMounts']} == {v['name'] for v in pod['volumes']}
  assert container['command'] == [
      'bash', '/r1jax/launch/again.sh', 'r1jax', 'run', '/r1jax/experiments/tiny/zero.py', '--note',
      'two words'
  ]
  return jobset, job, pod, container


@pytest.mark.parametrize('tpu, label, hosts, chips', [
    ('v5p:4x4x4', 'tpu-v5p-slice', 16, 4), ('v5e:2x2', 'tpu-v5-lite-podslice', 1, 4),
    ('v6e:1x1', 'tpu-v6e-slice', 1, 1), ('tpu7x:4x4x8', 'tpu7x', 32, 4)])  # yapf: disable
def test_jobset_for_tpus(tpu, label, hosts, chips):
  jobset, job, pod, container = manifest('--tpu', tpu, '--restarts', '7')
  assert jobset['metadata']['annotations'] == {
      'alpha.jobset.sigs.k8s.io/exclusive-topology': 'cloud.google.com/gke-nodepool'
  }
  assert jobset['spec']['failurePolicy']['maxRestarts'] == 7
  assert pod['nodeSelector'] == {
      'cloud.google.com/gke-tpu-accelerator': label,
      'cloud.google.com/gke-tpu-topology': tpu.split(':')[1]
  }
  assert (job['completions'], container['resources']['limits']) == (hosts,
                                                                    {'google.com/tpu': chips})
  assert pod['volumes'][0]['persistentVolumeClaim'] == {'claimName': 'disk'}


def test_jobset_for_gpus():
  _, job, pod, container = manifest('--gpu', 'nvidia-h100-80gb', '--nodes', '2', '--spot')
  assert pod['nodeSelector'] == {
      'cloud.google.com/gke-accelerator': 'nvidia-h100-80gb', 'cloud.google.com/gke-spot': 'true'
  }
  assert (job['completions'], container['resources']['limits']) == (2, {'nvidia.com/gpu': 8})
  env = {row['name']: row.get('value') or row['valueFrom'] for row in container['env']}
  assert env.items() >= {
      'JAX_COORDINATOR_ADDRESS': 'r1-host-0-0.r1:8476', 'JAX_NUM_PROCESSES': '2',
      'JAX_LOCAL_DEVICE_IDS': '0,1,2,3,4,5,6,7'}.items()  # yapf: disable
  index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
  assert env['JAX_PROCESS_ID'] == {'fieldRef': {'fieldPath': index}}
  alone = manifest('--gpu', 'nvidia-h100-80gb')[3]['env']
  assert [row['name'] for row in alone] == ['LD_LIBRARY_PATH']


@pytest.mark.parametrize('old, new', [
    ('parallelism', 'paralelism'), ('backoffLimit: 0', 'backoffLimit: "0"'),
    ('"FailJobSet"', '"FailJob"'), ('"Indexed"', '"NonIndexed"'), ('name: "r1"', 'name: "R1"'),
    ('      maxRestarts: 100\n', '')])  # yapf: disable
def test_a_wrong_jobset_is_caught(old, new):
  text = gke('--tpu', 'v5p:4x4x4', '--dry-run').stdout
  assert old.strip() in text
  with pytest.raises(AssertionError):
    check(yaml.safe_load(text.replace(old.strip('\n '), new)), JOBSET)


def test_kubectl_and_xpk_are_called(tmp_path):
  checkout = Checkout(tmp_path)
  checkout.script('bin/kubectl', f'{RECORD}cat >manifest\nexit 5\n')
  checkout.script('bin/xpk', RECORD)
  # It looks for them where it runs, and writes there.
  env = dict(os.environ, PATH=f"{checkout.root / 'bin'}:{os.environ['PATH']}")
  run = lambda *args: subprocess.run([
      sys.executable, ROOT / 'launch/gke.py', '--name', 'r1', '--image', 'i', '--claim', 'disk',
      *args, 'experiments/tiny/zero.py'
  ], cwd=checkout.root, env=env, check=False).returncode
  assert run('--tpu', 'v5e:4x4') == 5
  assert calls(checkout) == ['kubectl create -f -']
  check(yaml.safe_load((checkout.root / 'manifest').read_text()), JOBSET)
  assert run('--tpu', 'v5e:4x4', '--xpk', 'mine') == 0
  (call,) = calls(checkout)
  assert {'--cluster=mine', '--workload=r1', '--tpu-type=v5litepod-4x4', '--docker-image=i',
          '--storage=disk', '--restart-on-exit-codes=1,3-126'} < set(call.split())  # yapf: disable
  assert call.endswith('--command=cd /shared && exec bash /r1jax/launch/again.sh r1jax run '
                       '/r1jax/experiments/tiny/zero.py')


@pytest.mark.parametrize('args, words', [
    (('--tpu', 'v5q:4x4'), "not 'v5q:4x4'"), (('--tpu', 'v5p'), 'a topology'),
    (('--tpu', 'v5p:3x3x1'), '9 chips are not a multiple of the 4'), ((), '--tpu --gpu'),
    (('--gpu', 'l4', '--nodes', '0'), '--nodes and --devices are at least 1'),
    (('--gpu', 'l4', '--xpk', 'c'), '--xpk is for TPUs'),
    (('--tpu', 'v5e:4x4', '--xpk', 'c', '--spot'), 'leave out --spot')])  # yapf: disable
def test_gke_words(args, words):
  mistake(gke(*args), words, 'r1jax: ')


def test_gke_without_kubectl():
  mistake(gke('--tpu', 'v5e:4x4', env=dict(PATH='/nowhere')), 'kubectl is not installed')


def test_a_dry_run_may_stand_last():
  command = [sys.executable, '-I', ROOT / 'launch/gke.py', '--name', 'r1', '--image', 'images/r1',
             '--claim', 'disk', '--tpu', 'v5p:4x4x4', 'experiments/tiny/zero.py', '--note',
             'two words', '--dry-run']  # yapf: disable
  last = subprocess.run(command, capture_output=True, text=True, check=True)
  assert last.stdout == gke('--tpu', 'v5p:4x4x4', '--dry-run').stdout != ''
