#!/usr/bin/env bash
# Plain manifests for kubectl, rendered from the Helm chart: deploy/k8s/render.sh [values.yaml]
# Writes deploy/k8s/manifests/ratchet.yaml.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

readonly KUBE_VERSION=1.32
readonly helm=.tools/bin/helm
if [[ ! -x $helm ]]; then
  echo "$helm is missing: run make setup" >&2
  exit 1
fi

mkdir -p deploy/k8s/manifests
"$helm" lint --strict --quiet --kube-version "$KUBE_VERSION" deploy/k8s/helm/ratchet
"$helm" template ratchet deploy/k8s/helm/ratchet --kube-version "$KUBE_VERSION" ${1:+--values "$1"} >deploy/k8s/manifests/ratchet.yaml
echo "manifests: deploy/k8s/manifests/ratchet.yaml"
