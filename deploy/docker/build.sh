#!/usr/bin/env bash
# Builds images by buildah, on a machine without a Docker engine and a registry: on a base that
# debootstrap makes, Debian 12 with its Python. With a Docker engine, docker build does as well.
#
#   build.sh [TARGET...]      localhost/ratchet/TARGET with its size; without a name, the services that
#                             need no torch. Inference and training: by name, 30 GB of disk
#   ML_REQUIREMENTS=ml-cuda.txt build.sh inference training    for hosts with a GPU
#
# Needs root, and what "deploy/local/setup.sh images" installs. What is there is not made again; the image
# that a new one takes its name from is removed, with the layers that no other has.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

readonly SUITE=bookworm
readonly LIGHT=(router feedback rollout aggregator cli)
readonly ML_FREE_GB=30 # of the first image with torch: its environment lies there thrice meanwhile

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

# The id of a target's image; nothing where there is none.
built() {
  buildah images --quiet --no-trunc "localhost/ratchet/$1:latest" 2>/dev/null || true
}

# Without the room a build ends after minutes, and whoever else needs the disk with it.
check_room() {
  local root free_gb
  root=$(buildah info --format '{{.store.GraphRoot}}')
  free_gb=$(df --output=avail --block-size=1G "$root" | tail -1)
  ((free_gb >= ML_FREE_GB)) || fail "$root has ${free_gb} GB free; $1 needs $ML_FREE_GB while it is built" \
    "make room, with buildah prune for example"
}

exec 9>/run/lock/ratchet-images
flock 9
buildah inspect --type image "$BASE" >/dev/null 2>&1 || make_base

# The index and the certificates that pip uses here.
volumes=(--volume /etc/ssl/certs:/etc/ssl/certs:ro)
if [[ -f /etc/pip.conf ]]; then volumes+=(--volume /etc/pip.conf:/etc/pip.conf:ro); fi
for target in "${@:-${LIGHT[@]}}"; do
  before=$(built "$target")
  case $target in inference | training) [[ -n $before ]] || check_room "$target" ;; esac
  buildah bud --quiet --isolation chroot --format docker --layers "${volumes[@]}" \
    --ignorefile deploy/docker/Dockerfile.dockerignore \
    --build-arg "BASE=$BASE" --build-arg "REVISION=$(git rev-parse --short HEAD 2>/dev/null || echo unknown)" \
    ${ML_REQUIREMENTS:+--build-arg "ML_REQUIREMENTS=$ML_REQUIREMENTS"} \
    --target "$target" --tag "localhost/ratchet/$target" --file deploy/docker/Dockerfile . >/dev/null
  if [[ -n $before && $before != "$(built "$target")" ]]; then
    buildah rmi "$before" >/dev/null || echo "images: the replaced image $before stays" >&2
  fi
  buildah images --noheading --format '{{.Name}}  {{.Size}}' "localhost/ratchet/$target:latest"
done
