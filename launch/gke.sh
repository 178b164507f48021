#!/usr/bin/env bash
# Trains on a TPU slice of a Google Kubernetes Engine cluster: a JobSet with a pod a host, which starts all of them again
# after a preemption or exit code 75, and gives up on what another try would not change (2, 70, 71, 72). The cluster has
# the JobSet controller (jobset.sigs.k8s.io), and kubectl is set to it.
#
#   launch/gke.sh --name=NAME --topology=v5e:8x8 --image=IMAGE -- --config=FILE --workdir=gs://BUCKET/RUN [...]
#
#   --build                make the image of this project (launch/Dockerfile) and push it first
#   --namespace=NAME       of the cluster (default: default)
#   --service-account=NAME of the pods, one that may write the bucket (default: the namespace's)
#   --spot                 on nodes that may be taken away
#   --restarts=N           how often to start again (default 100)
#   --detach               do not follow the log
#   --delete               delete the JobSet when it has ended
#   --dry-run              print every command and the manifest, run none
#
# Exit code: that of training.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=launch/common.sh
source "$root/launch/common.sh"

name="" topology="" image="" namespace=default account="" restarts=100
build=false spot=false detach=false delete=false
while (($#)); do
  case $1 in
    --name=*) name=${1#*=} ;;
    --topology=*) topology=${1#*=} ;;
    --image=*) image=${1#*=} ;;
    --namespace=*) namespace=${1#*=} ;;
    --service-account=*) account=${1#*=} ;;
    --restarts=*) restarts=${1#*=} ;;
    --build) build=true ;;
    --spot) spot=true ;;
    --detach) detach=true ;;
    --delete) delete=true ;;
    --dry-run) dry=true ;;
    --) shift; break ;;
    *) refuse "unknown flag '$1'; the flags of training stand after '--'; see the head of launch/gke.sh" ;;
  esac
  shift
done
for value in "$name" "$namespace" ${account:+"$account"}; do
  [[ $value =~ ^[a-z]([a-z0-9-]*[a-z0-9])?$ ]] ||
    refuse "--name, --namespace or --service-account '$value', wanted small letters, digits and hyphens, as in simclr-1"
done
[[ $restarts =~ ^[0-9]+$ ]] || refuse "--restarts='$restarts', wanted a whole number"
[[ -n $topology ]] || refuse "no --topology given, as in --topology=v5e:8x8"
[[ $image =~ ^[A-Za-z0-9._/:@-]+$ ]] ||
  refuse "--image='$image', wanted a container image, as in --image=us-docker.pkg.dev/PROJECT/REPOSITORY/simclr_jax"
read_topology "$topology"
check_training "$@"

# Labels of GKE's TPU nodes, and chips of a host: cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus.
case $version in
  v3) accelerator=tpu-v3-slice; [[ $shape != 2x2 ]] || accelerator=tpu-v3-device ;;
  v4) accelerator=tpu-v4-podslice ;;
  v5e) accelerator=tpu-v5-lite-podslice ;;
  v5p) accelerator=tpu-v5p-slice ;;
  v6e) accelerator=tpu-v6e-slice ;;
  *) refuse "--topology=$topology: GKE has no TPU $version; take launch/tpu_pod.sh, or v3, v4, v5e, v5p or v6e" ;;
esac
each=$((chips < 4 ? chips : 4))
if [[ $shape == 2x4 ]]; then each=8; fi
hosts=$((chips / each))

# A JSON string, which YAML takes too. Kubernetes reads $(NAME) in commands, and $$ as a dollar.
text() {
  local s=${1//\\/\\\\}
  s=${s//\"/\\\"} s=${s//\$/\$\$} s=${s//$'\n'/\\n} s=${s//$'\t'/\\t}
  printf '"%s"' "$s"
}

manifest() {
  local word
  cat << END
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $name
  namespace: $namespace
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: $restarts
    rules:
    - name: hopeless
      action: FailJobSet
      onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
  - name: slice
    replicas: 1
    template:
      spec:
        parallelism: $hosts
        completions: $hosts
        backoffLimit: 0
        podFailurePolicy:
          rules:
          - action: FailJob
            onExitCodes:
              containerName: train
              operator: In
              values: [2, 70, 71, 72]
        template:
          spec:
            restartPolicy: Never
            terminationGracePeriodSeconds: 120
END
  if [[ -n $account ]]; then echo "            serviceAccountName: $account"; fi
  cat << END
            nodeSelector:
              cloud.google.com/gke-tpu-accelerator: $accelerator
              cloud.google.com/gke-tpu-topology: $shape
END
  if $spot; then echo '              cloud.google.com/gke-spot: "true"'; fi
  cat << END
            containers:
            - name: train
              image: $image
              ports:
              - containerPort: 8471
              - containerPort: 8482
              resources:
                limits:
                  google.com/tpu: $each
              command:
END
  for word in python -m simclr_jax.train "$@"; do echo "              - $(text "$word")"; done
}

kube=(kubectl --namespace="$namespace")
pods=--selector=jobset.sigs.k8s.io/jobset-name=$name

# The JobSet's last state in `found`, empty while it runs. With --dry-run: $1.
ask() {
  local command=("${kube[@]}" get jobset "$name" --output='jsonpath={.status.terminalState}')
  if $dry; then quoted "${command[@]}" && found=$1; else found=$("${command[@]}"); fi
}

# Training's exit code: the first of a pod that is not 0.
exit_code() {
  local codes code path='{.items[*].status.containerStatuses[0].state.terminated.exitCode}'
  codes=$("${kube[@]}" get pods "$pods" --output="jsonpath=$path")
  for code in $codes; do
    if ((code)); then echo "$code"; return; fi
  done
  echo 1
}

if $build; then
  run docker build --file="$root/launch/Dockerfile" --tag="$image" "$root"
  run docker push "$image"
fi
if $dry; then
  printf "%s <<'END'\n%s\nEND\n" "$(quoted "${kube[@]}" apply --filename=-)" "$(manifest "$@")"
else
  manifest "$@" | "${kube[@]}" apply --filename=-
fi
if $detach; then exit; fi

ask ""
while [[ -z $found ]]; do
  # Not ready within a minute: waiting for nodes, or ended at once. Then there is a log, or the state says so.
  run "${kube[@]}" wait pod "$pods" --for=condition=Ready --timeout=60s || true
  run "${kube[@]}" logs "$pods" --follow --prefix --tail=-1 --max-log-requests="$hosts" || true
  ask Completed
  if [[ -z $found ]]; then sleep "${WAIT:-10}"; fi
done
code=0
if [[ $found == Failed ]]; then code=$(exit_code); fi
if $delete; then run "${kube[@]}" delete jobset "$name"; fi
exit "$code"
