#!/usr/bin/env bash
# Prints the path of helm; builds it once, in about two minutes, where it is missing and Go is there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

readonly HELM_VERSION=v3.19.0
if command -v helm; then
  exit 0
fi
readonly helm=$PWD/.tools/bin/helm
if [[ ! -x $helm ]]; then
  if ! command -v go >/dev/null; then
    echo "helm is missing, and so is Go 1.24 or newer to build it: install either, then try again" >&2
    exit 1
  fi
  echo "building helm $HELM_VERSION (once, about two minutes) …" >&2
  GOBIN="$PWD/.tools/bin" go install "helm.sh/helm/v3/cmd/helm@$HELM_VERSION"
fi
echo "$helm"
