#!/bin/sh
# What the stack serves: your Parquet when the data folder holds any, else the demo. The demo's models and queries go with
# the demo's data; with your data they are used only when BI_CATALOGUE_FOLDER names a catalogue (compose.yaml).
set -eu

if [ -n "$(find -L /data -type f -name '*.parquet' 2>/dev/null | head -n 1)" ]; then
    export BI_DATA_DIR=/data
    [ -z "${BI_OWN_CATALOGUE:-}" ] || export BI_CATALOGUE_DIR=/etc/bi/catalogue
else
    export BI_CATALOGUE_DIR=/etc/bi/catalogue
fi
unset BI_OWN_CATALOGUE

# Replicas share the spill volume, each with a folder of its own that it holds a lock on as long as it lives; what a killed
# one left is removed by the next that starts. (A volume per container would stay behind at each `down`.)
if [ "$1" = serve ]; then
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
fi
exec bi-query "$@"
