#!/usr/bin/env bash
# Flink's SQL client with a mini-cluster in its own process, as deploy/local/setup.sh flink brings it:
#   deploy/flink/sql-client.sh -i deploy/flink/tables.sql -f deploy/flink/quality.sql
set -euo pipefail
home=$(dirname "${BASH_SOURCE[0]}")
root=$home/../..
flink=$(echo "$root"/.venv-flink/lib/python3*/site-packages/pyflink)
if [[ ! -d $flink/lib ]]; then
  echo "$root/.venv-flink is missing: run make flink" >&2
  exit 1
fi

opens=()
for package in io lang lang.reflect net nio text time util util.concurrent; do
  opens+=("--add-opens=java.base/java.$package=ALL-UNNAMED")
done
export FLINK_CONF_DIR=${FLINK_CONF_DIR:-$home}
exec java "${opens[@]}" --add-opens=java.base/sun.nio.ch=ALL-UNNAMED ${FLINK_JAVA_OPTS:--Xmx1g} \
  -cp "$flink/lib/*:$flink/opt/*:$root/.venv-flink/jars/*" org.apache.flink.table.client.SqlClient "$@"
