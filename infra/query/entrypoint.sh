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
exec bi-query "$@"
