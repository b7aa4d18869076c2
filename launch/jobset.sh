#!/usr/bin/env bash
# A Kubernetes JobSet: one pod a host, restarted together when one of them fails. It needs the JobSet controller.
# Usage: NAME=run IMAGE=image [settings] launch/jobset.sh [--dry-run] CONFIG WORKDIR [--config.key=value ...]
#   HOSTS=4 TPU=tpu-v5-lite-podslice TOPOLOGY=4x4 CHIPS=4    a GKE TPU slice: its hosts, and the chips of each
#   HOSTS=2 GPUS=8                                           boxes with GPUs
#   CLAIM=claim                                              a volume claim that all pods mount at /runs
#   MAX_RESTARTS=10
set -euo pipefail
dry=""
if [ "${1:-}" = --dry-run ]; then dry=yes && shift; fi
if [ $# -lt 2 ] || [ -z "${NAME:-}" ] || [ -z "${IMAGE:-}" ]; then
  echo "usage: NAME=run IMAGE=image launch/jobset.sh [--dry-run] CONFIG WORKDIR [--config.key=value ...]" >&2 && exit 2
fi
config=$1 workdir=$2
shift 2
hosts=${HOSTS:-1}
if [ -n "${TPU:-}" ] && [ -z "${TOPOLOGY:-}" ]; then echo "TPU=$TPU needs its TOPOLOGY, such as 4x4" >&2 && exit 2; fi

# A string as YAML, in which Kubernetes finds no variable of its own.
text() {
  local value=${1//\\/\\\\}
  value=${value//\"/\\\"}
  printf '"%s"' "${value//\$(/\$\$(}"
}

manifest() {
  cat <<YAML
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $(text "$NAME")
spec:
  failurePolicy:
    maxRestarts: ${MAX_RESTARTS:-10}
    rules:  # bad input (exit code 2) is the same the next time
      - action: FailJobSet
        onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
    - name: host
      replicas: 1
      template:
        spec:
          parallelism: $hosts
          completions: $hosts
          completionMode: Indexed
          backoffLimit: 0
          podFailurePolicy:
            rules:
              - action: FailJob
                onExitCodes: {containerName: mixcon, operator: In, values: [2]}
          template:
            spec:
              restartPolicy: Never
              terminationGracePeriodSeconds: 120
              containers:
                - name: mixcon
                  image: $(text "$IMAGE")
                  ports: [{containerPort: 9999}]
                  env:
                    - {name: COORDINATOR, value: $(text "$NAME-host-0-0.$NAME:9999")}
                    - name: PROCESS
                      valueFrom: {fieldRef: {fieldPath: "metadata.annotations['batch.kubernetes.io/job-completion-index']"}}
                  command: [mixcon, train]
                  args:
YAML
  for argument in --config "$config" --workdir "$workdir" --no-progress "$@"; do
    echo "                    - $(text "$argument")"
  done
  if [ "$hosts" -gt 1 ]; then
    # shellcheck disable=SC2016  # Kubernetes fills these in
    printf '                    - %s\n' '"--coordinator=$(COORDINATOR)"' "\"--processes=$hosts\"" '"--process=$(PROCESS)"'
  fi
  if [ -n "${TPU:-}" ]; then
    echo "                  resources: {limits: {google.com/tpu: ${CHIPS:-4}}}"
  elif [ -n "${GPUS:-}" ]; then
    echo "                  resources: {limits: {nvidia.com/gpu: $GPUS}}"
  fi
  if [ -n "${CLAIM:-}" ]; then
    echo "                  volumeMounts: [{name: runs, mountPath: /runs}]"
    echo "              volumes: [{name: runs, persistentVolumeClaim: {claimName: $(text "$CLAIM")}}]"
  fi
  if [ -n "${TPU:-}" ]; then
    echo "              nodeSelector:"
    echo "                cloud.google.com/gke-tpu-accelerator: $(text "$TPU")"
    echo "                cloud.google.com/gke-tpu-topology: $(text "$TOPOLOGY")"
  fi
}

rendered=$(manifest "$@")
if [ -n "$dry" ]; then
  echo "# kubectl apply -f -" && echo "$rendered" && exit
fi
kubectl apply -f - <<<"$rendered"
