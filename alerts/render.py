"""Render `alerts/rules/slo.rules.yaml` from `slo.yaml`, and the runbook addresses of every rule file.

    python alerts/render.py           write
    python alerts/render.py --check   write nothing, exit 1 when a file differs from what would be written

Ratios are 0..1, times are seconds, windows are Prometheus durations. Series are named and labelled as sloth
does, so dashboards made for sloth work. Two things differ on purpose: without traffic the error ratio is 0,
not NaN; and long windows weigh requests, not minutes (they add up recorded 5m rates, which is cheap).
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from pathlib import Path

import yaml
from slo_budget import budget_group, objectives
from slo_common import Spec
from slo_measures import target_group, threshold_group, uptime_group

ROOT = Path(__file__).resolve().parent.parent
SLO_FILE = ROOT / "slo.yaml"
RULES_DIR = ROOT / "alerts" / "rules"
OUTPUT = RULES_DIR / "slo.rules.yaml"

HEADER = "# Rendered by alerts/render.py from slo.yaml: change that file and run `make rules`.\n"
RUNBOOK_LINE = re.compile(r"^(\s*runbook_url:\s*)\S*#(\w+)[ \t]*$", re.MULTILINE)


class Literal(yaml.SafeDumper):
    """YAML as a person would write it: expressions of several lines as blocks."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


Literal.add_representer(str, _text)


def render(spec: Spec) -> str:
    """The text of slo.rules.yaml; KeyError or ValueError when slo.yaml lacks something or makes no sense."""
    groups = [target_group(spec), threshold_group(spec)]
    groups += [budget_group(spec, item) for item in objectives(spec)]
    groups.append(uptime_group(spec))
    return HEADER + yaml.dump({"groups": groups}, Dumper=Literal, sort_keys=False, width=400)


def outputs(spec: Spec) -> dict[Path, str]:
    """Every file this program answers for, with the text it should hold."""
    base = spec["alerting"]["runbook_base"]
    files = {
        path: RUNBOOK_LINE.sub(rf"\g<1>{base}#\g<2>", path.read_text())
        for path in sorted(RULES_DIR.glob("*.yaml"))
        if path != OUTPUT
    }
    return files | {OUTPUT: render(spec)}


def main(arguments: list[str] | None = None) -> int:
    """0 when all is as rendered; 1 with a diff on stderr when `--check` finds drift."""
    parser = argparse.ArgumentParser(description="Render the SLO rules from slo.yaml.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a file differs")
    check = parser.parse_args(arguments).check
    drift = 0
    for path, wanted in outputs(yaml.safe_load(SLO_FILE.read_text())).items():
        found = path.read_text() if path.exists() else ""
        if found == wanted:
            continue
        if not check:
            path.write_text(wanted)
            continue
        drift = 1
        name = str(path.relative_to(ROOT))
        sys.stderr.writelines(
            difflib.unified_diff(found.splitlines(True), wanted.splitlines(True), name, f"{name} (rendered)")
        )
    return drift


if __name__ == "__main__":
    sys.exit(main())
