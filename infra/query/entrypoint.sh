#!/bin/sh
# Starts a replica.
set -eu

# Replicas share the spill volume, each with a folder of its own that it holds a lock on as long as it lives; what a killed
# one left is removed by the next that starts. (A volume per container would stay behind at each `down`.)
BI_AUDIT_LOG=/var/lib/bi/audit/$(cat /etc/hostname).jsonl
export BI_AUDIT_LOG
spill=/var/lib/bi/spill
exec 8>"$spill/.starting"
flock 8
for left in "$spill"/*/; do
    if [ -d "$left" ] && flock -n "$left.lock" true; then rm -rf "$left"; fi
done
BI_SPILL_DIR=$spill/$(cat /etc/hostname)
export BI_SPILL_DIR
mkdir -p "$BI_SPILL_DIR"
exec 9>"$BI_SPILL_DIR/.lock"
flock 9
exec 8>&-
exec bi-query "$@"
