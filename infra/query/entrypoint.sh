#!/bin/sh
# Starts a replica.
set -eu

spill=/var/lib/bi/spill
audit=/var/lib/bi/audit
replica=$(cat /etc/hostname)
BI_AUDIT_LOG=$audit/$replica.jsonl
BI_SPILL_DIR=$spill/$replica
export BI_AUDIT_LOG BI_SPILL_DIR
days=${BI_AUDIT_DAYS_KEPT:-90}
case $days in
    0 | *[!0-9]*) echo "BI_AUDIT_DAYS_KEPT=$days: must be a whole number of days from 1 on" >&2; exit 2 ;;
esac

# Replicas share the spill volume, each with a folder of its own that it holds a lock on as long as it lives; what a killed
# one left is removed by the next that starts. (A volume per container would stay behind at each `down`.)
exec 8>"$spill/.starting"
flock 8
for left in "$spill"/*/; do
    if [ -d "$left" ] && flock -n "$left.lock" true; then rm -rf "$left"; fi
done
mkdir -p "$BI_SPILL_DIR"
exec 9>"$BI_SPILL_DIR/.lock"
flock 9

# The audit log bears a replica's name, which changes with each container: what the service rotates is its own alone. Logs of
# those that live no more (no folder is left of them) go when their last line is older than that many days.
for log in "$audit"/*.jsonl*; do
    name=${log##*/}
    name=${name%%.jsonl*}
    if [ ! -e "$log" ] || [ -d "$spill/$name" ]; then continue; fi
    young=$(find "$audit" -maxdepth 1 -name "$name.jsonl*" -mtime "-$days") || continue
    [ -n "$young" ] || rm -f -- "$audit/$name".jsonl* || true
done
exec 8>&-
exec bi-query "$@"
