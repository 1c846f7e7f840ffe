#!/usr/bin/env bash
# Plain manifests for kubectl, rendered from the Helm chart: deploy/k8s/render.sh [values.yaml]
# Writes deploy/k8s/manifests/ratchet.yaml.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

readonly HELM_VERSION=v3.19.0
readonly KUBE_VERSION=1.32
helm=$(command -v helm || true)
if [[ -z $helm ]]; then
  helm=.tools/bin/helm
  if [[ ! -x $helm ]]; then
    if ! command -v go >/dev/null; then
      echo "manifests: helm is missing, and so is Go 1.24 or newer to build it: install either, then run make manifests again" >&2
      exit 1
    fi
    echo "manifests: building helm $HELM_VERSION (once, about a minute) …"
    GOBIN="$PWD/.tools/bin" go install "helm.sh/helm/v3/cmd/helm@$HELM_VERSION"
  fi
fi

mkdir -p deploy/k8s/manifests
"$helm" lint --strict --quiet --kube-version "$KUBE_VERSION" deploy/k8s/helm/ratchet
"$helm" template ratchet deploy/k8s/helm/ratchet --kube-version "$KUBE_VERSION" ${1:+--values "$1"} >deploy/k8s/manifests/ratchet.yaml
echo "manifests: deploy/k8s/manifests/ratchet.yaml"
