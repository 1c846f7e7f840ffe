#!/usr/bin/env bash
# Builds images by buildah, on a machine without a Docker engine and a registry: on a base that
# debootstrap makes, Debian 12 with its Python. With a Docker engine, docker build does as well.
#
#   build.sh [TARGET...]      localhost/ratchet/TARGET with its size; without a name, the services that
#                             need no torch. Inference and training: by name, 30 GB of disk
#   ML_REQUIREMENTS=ml-cuda.txt build.sh inference training    for hosts with a GPU
#
# Needs root, and what "deploy/local/setup.sh images" installs. What is there is not made again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

readonly SUITE=bookworm
readonly LIGHT=(router feedback rollout aggregator cli)

fail() {
  printf 'images: ERROR: %s\n       %s\n' "$1" "$2" >&2
  exit 1
}

make_base() {
  local folder container
  folder=$(mktemp -d)
  trap 'rm -rf "$folder"' RETURN
  debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv "$SUITE" "$folder"
  # Slim images go without these, too.
  rm -rf "$folder"/usr/share/{doc,info,locale,man}/* "$folder"/var/cache/apt/* "$folder"/var/lib/apt/lists/*
  container=$(buildah from scratch)
  buildah add --quiet "$container" "$folder" /
  buildah config --cmd python3 "$container"
  buildah commit --quiet --rm "$container" "$BASE"
}

# Another way of making it is another base.
BASE=localhost/ratchet/base:$SUITE-$(declare -f make_base | sha256sum | cut -c1-16)
readonly BASE

((EUID == 0)) || fail "debootstrap and buildah's chroot need root" "sudo $0 $*"
for program in debootstrap buildah; do
  command -v "$program" >/dev/null || fail "$program is missing" "deploy/local/setup.sh images"
done

exec 9>/run/lock/ratchet-images
flock 9
buildah inspect --type image "$BASE" >/dev/null 2>&1 || make_base

# The index and the certificates that pip uses here.
volumes=(--volume /etc/ssl/certs:/etc/ssl/certs:ro)
if [[ -f /etc/pip.conf ]]; then volumes+=(--volume /etc/pip.conf:/etc/pip.conf:ro); fi
for target in "${@:-${LIGHT[@]}}"; do
  buildah bud --quiet --isolation chroot --format docker --layers "${volumes[@]}" \
    --ignorefile deploy/docker/Dockerfile.dockerignore \
    --build-arg "BASE=$BASE" --build-arg "REVISION=$(git rev-parse --short HEAD 2>/dev/null || echo unknown)" \
    ${ML_REQUIREMENTS:+--build-arg "ML_REQUIREMENTS=$ML_REQUIREMENTS"} \
    --target "$target" --tag "localhost/ratchet/$target" --file deploy/docker/Dockerfile . >/dev/null
  buildah images --noheading --format '{{.Name}}  {{.Size}}' "localhost/ratchet/$target:latest"
done
