#!/usr/bin/env bash
# Plain manifests for kubectl, rendered from the Helm chart: deploy/k8s/render.sh [values.yaml]
# Writes deploy/k8s/manifests/ratchet.yaml.
set -euo pipefail
values=${1:+$(realpath -e "$1")}
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

readonly KUBE_VERSION=1.32
readonly helm=.tools/bin/helm
if [[ ! -x $helm ]]; then
  echo "$helm is missing: run make setup" >&2
  exit 1
fi

mkdir -p deploy/k8s/manifests
"$helm" lint --strict --quiet --kube-version "$KUBE_VERSION" deploy/k8s/helm/ratchet
# Into a file of its own first: values that the chart refuses leave the manifests as they are.
readonly manifests=deploy/k8s/manifests/ratchet.yaml
trap 'rm -f "$manifests.new"' EXIT
"$helm" template ratchet deploy/k8s/helm/ratchet --kube-version "$KUBE_VERSION" ${values:+--values "$values"} >"$manifests.new"
mv "$manifests.new" "$manifests"
echo "manifests: $manifests"
