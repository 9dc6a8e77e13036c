"""slo.yaml is the only file with an SLO number, and what is rendered from it follows it."""

from __future__ import annotations

import copy
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml
from bi_query.metrics import REQUEST_SECONDS_BUCKETS

from tests.config.monitoring import ROOT, Rule, load
from tests.support.promql import selectors

SLO = load(ROOT / "slo.yaml")
RENDERED = ROOT / "alerts/rules/slo.rules.yaml"
# Rendered from slo.yaml, or showing what follows from it: these hold its numbers rightly.
HOLDERS = ("slo.yaml", "alerts/rules/slo.rules.yaml", "alerts/tests/")
WATCHED = (
    "*.yaml", "*.yml", "*.json", "*.py", "*.md", "*.mk", "*.sh", "*.toml", "*.txt", "*.html", "*Makefile", "*Dockerfile",
)  # fmt: skip
# Series that an objective governs: a rule or a dashboard compares them with a recorded target, never with a number.
GOVERNED = re.compile(r"http_request_duration_seconds|bi:api_(latency|error)|bi:cache_hit|slo:sli_error")
COMPARED = re.compile(r"[<>]=?\s*(?:bool\s+)?(?!0(?![.\d]))\d")


def tool_run(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "alerts/render.py", *arguments], cwd=root, capture_output=True, text=True, check=False
    )


@pytest.fixture
def copy_of_repo(tmp_path: Path) -> Path:
    """The generator, its input and its output, to be changed at will."""
    shutil.copy(ROOT / "slo.yaml", tmp_path)
    shutil.copytree(ROOT / "alerts", tmp_path / "alerts")
    return tmp_path


def groups(path: Path = RENDERED) -> list[Rule]:
    found: list[Rule] = load(path)["groups"]
    return found


def named(name: str, path: Path = RENDERED) -> list[Rule]:
    return [
        rule for group in groups(path) for rule in group["rules"] if name in (rule.get("record"), rule.get("alert"))
    ]


def test_committed_rules_are_what_slo_yaml_renders_to() -> None:
    done = tool_run(ROOT, "--check")
    assert done.returncode == 0, done.stderr


def test_a_rule_changed_by_hand_is_found(copy_of_repo: Path) -> None:
    path = copy_of_repo / "alerts/rules/slo.rules.yaml"
    path.write_text(path.read_text().replace("severity: critical", "severity: info", 1))
    done = tool_run(copy_of_repo, "--check")
    assert done.returncode == 1
    assert "-      severity: info" in done.stderr and "+      severity: critical" in done.stderr


def test_checking_writes_nothing(copy_of_repo: Path) -> None:
    path = copy_of_repo / "alerts/rules/slo.rules.yaml"
    path.write_text("groups: []\n")
    tool_run(copy_of_repo, "--check")
    assert path.read_text() == "groups: []\n"


def test_the_runbooks_address_is_written_into_every_rule_file(copy_of_repo: Path) -> None:
    slo = copy_of_repo / "slo.yaml"
    slo.write_text(slo.read_text().replace(SLO["alerting"]["runbook_base"], "https://wiki.test/runbooks"))
    assert tool_run(copy_of_repo).returncode == 0
    for path in (copy_of_repo / "alerts/rules").glob("*.yaml"):
        urls = re.findall(r"runbook_url: (\S+)", path.read_text())
        assert urls and all(url.startswith("https://wiki.test/runbooks#") for url in urls), path.name
    assert tool_run(copy_of_repo, "--check").returncode == 0


def numbers(node: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Paths of every number in a document."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        if isinstance(value, dict | list):
            yield from numbers(value, (*path, key))
        elif isinstance(value, int | float):
            yield (*path, key)


@pytest.mark.parametrize("path", list(numbers(SLO)), ids=lambda path: ".".join(map(str, path)))
def test_every_number_of_slo_yaml_reaches_the_rules(path: tuple[str | int, ...], copy_of_repo: Path) -> None:
    changed = copy.deepcopy(SLO)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = inner[path[-1]] / 2
    (copy_of_repo / "slo.yaml").write_text(yaml.safe_dump(changed))
    assert tool_run(copy_of_repo, "--check").returncode == 1


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("objective_percent: 99.5", "objective_percent: 100"),
        ("objective_percent: 99.5", "objective_percent: 0"),
        ("short: 5m", "short: 1h30m"),
        ("window: 2m", "window: soon"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(old: str, new: str, copy_of_repo: Path) -> None:
    slo = copy_of_repo / "slo.yaml"
    assert old in slo.read_text()
    slo.write_text(slo.read_text().replace(old, new))
    done = tool_run(copy_of_repo)
    assert done.returncode != 0
    assert "ValueError: not a " in done.stderr


def test_the_latency_threshold_is_a_bucket_of_the_histogram() -> None:
    assert SLO["latency"]["threshold_seconds"] in REQUEST_SECONDS_BUCKETS
    assert SLO["latency"]["p95_seconds"] in REQUEST_SECONDS_BUCKETS


@pytest.mark.parametrize("slo", ["availability", "latency"])
def test_series_are_named_and_labelled_as_sloth_does(slo: str) -> None:
    ids = {"sloth_id": f"bi-query-{slo}", "sloth_service": "bi-query", "sloth_slo": slo}
    windows = ["5m", "30m", "1h", "2h", "6h", "1d", "3d", "30d"]
    for window in windows:
        rule = next(r for r in named(f"slo:sli_error:ratio_rate{window}") if r["labels"]["sloth_slo"] == slo)
        assert rule["labels"] == ids | {"sloth_window": window}
    for name in (
        "slo:objective:ratio",
        "slo:error_budget:ratio",
        "slo:time_period:days",
        "slo:current_burn_rate:ratio",
        "slo:period_burn_rate:ratio",
        "slo:period_error_budget_remaining:ratio",
    ):
        assert ids in [rule["labels"] for rule in named(name)], name
    assert [rule for rule in named("sloth_slo_info") if ids.items() <= rule["labels"].items()]


@pytest.mark.parametrize("slo", ["availability", "latency"])
def test_burn_rates_are_multiples_of_the_budget_over_both_windows(slo: str) -> None:
    budget = 1 - Decimal(str(SLO[slo]["objective_percent"])) / 100
    alerts = {rule["labels"]["severity"]: rule for rule in named(f"Api{slo.capitalize()}BudgetBurn")}
    assert {severity: rule["labels"]["sloth_severity"] for severity, rule in alerts.items()} == {
        "critical": "page",
        "warning": "ticket",
    }
    for pair in SLO["burn_rates"]:
        limit = Decimal(str(pair["burn_rate"])) * budget
        found = re.findall(r"ratio_rate(\w+)\{[^}]*\} > ([\d.]+)", alerts[pair["severity"]]["expr"])
        assert {(pair["short"], limit), (pair["long"], limit)} <= {(window, Decimal(value)) for window, value in found}


# --- nowhere else ----------------------------------------------------------------------------------------------------


def watched_files() -> list[Path]:
    """Files of the repository: committed, or about to be."""
    run = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *WATCHED],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    names = [name for name in run.stdout.splitlines() if not name.startswith(HOLDERS)]
    return sorted({ROOT / name for name in names if (ROOT / name).is_file()})


def telling_numbers() -> list[str]:
    """Numbers that can only mean an objective, as percentage and as ratio."""
    found = {str(SLO["availability"]["objective_percent"])}
    found |= {f"{Decimal(number) / 100:f}" for number in found}
    return [number.replace(".", "[.,]") for number in sorted(found)]


def phrases() -> list[str]:
    """How code and prose would state the other objectives: their number near the word for what it is of."""
    latency, availability, cache = SLO["latency"], SLO["availability"], SLO["cache"]["hit_rate_percent"]
    goal, users = latency["objective_percent"], SLO["users"]
    limit = rf"({'|'.join(sorted({exactly(latency[key]) for key in ('p95_seconds', 'threshold_seconds')}))})"
    rate = exactly(SLO["throughput"]["requests_per_second"])
    beyond = r"(above|over|below|under|within|less than|more than|at least|at most|longer than|[<>]=?)"
    is_ = r"[`'\"\]) ]*[:=<>]+ *"
    per_second = r" ?(req(uest)?s?|answers) ?(/ ?s\b|(per|a|each) second)"
    return [
        rf"(p95|latency|slow)\w*(?![^|\n]*\|)[^.|\n]{{0,20}}?{beyond} ?{limit}(?! ?(m|µ|u)s\b)",
        rf"requests\b[^.|\n]{{0,30}}?{beyond} ?{limit} ?s(econds)?\b",
        rf"slow_?(after_?)?(seconds)?{is_}{limit}",
        rf"(latency|objective|slo)\w*{is_}({exactly(goal)}|{exactly(goal / 100)})(?! ?m?s)",
        rf"\b{share(goal)} of (the |all |our |api )*(requests|answers)",
        rf"(latency|objective)\w*( objective| threshold)? (is |of )?({share(goal)}|{limit} ?s(econds)?\b)",
        rf"hit.?rate\w*[^.|\n]{{0,20}}?({beyond}|[:=]) ?{share(cache)}",
        rf"(hit.?rate|cache.?hit)\w*{is_}({exactly(cache)}|{exactly(cache / 100)})",
        rf"cache\w*[^.|\n]{{0,30}}?{beyond} ?{share(cache)}",
        rf"{beyond} ?{share(cache)} (of )?(the |all )?(look-?ups|hits|requests|cache)",
        rf"\b(throughput|rps|req/s|requests_per_second)\w*( objective)?{is_}{rate}",
        rf"{rate}{per_second}",
        rf"error.?rat(e|io)\w*[^.|\n]{{0,10}}?{beyond} ?{share(availability['alert_error_percent'])}",
        rf"\b{users} (concurrent|simultaneous|parallel) (users|people|clients)",
        rf"\b(concurrent_)?users{is_}{users}\b(?!\.\d)",
    ]


def exactly(value: float) -> str:
    """The number as a word of its own, with or without zeros behind the point."""
    text = f"{value:g}"
    digits = text.replace(".", "[.,]") + ("0*" if "." in text else "([.]0+)?")
    return rf"(?<![\d.,]){digits}(?!\d|[.,]\d)"


def share(percent: float) -> str:
    """The percentage as such, or as a ratio."""
    return rf"({exactly(percent)} ?(%|percent)|{exactly(percent / 100)})"


def offences(text: str) -> list[str]:
    """Lines that state an objective."""
    patterns = [rf"(?<![\d.,]){number}(?![\d])" for number in telling_numbers()] + phrases()
    return [line for line in text.splitlines() if any(re.search(p, line, re.IGNORECASE) for p in patterns)]


def test_no_other_file_states_an_objective() -> None:
    found = {str(path.relative_to(ROOT)): offences(path.read_text(encoding="utf-8")) for path in watched_files()}
    assert {name: lines for name, lines in found.items() if lines and name != "tests/config/test_slo.py"} == {}


@pytest.mark.parametrize(
    "line",
    [
        f"availability {SLO['availability']['objective_percent']} %",
        f"OBJECTIVE = {SLO['availability']['objective_percent'] / 100}",
        f"if p95 > {SLO['latency']['p95_seconds']}:",
        f"p95_seconds < {SLO['latency']['p95_seconds']}.0",
        f"hit_rate >= {SLO['cache']['hit_rate_percent'] / 100}",
        f"error_ratio > {SLO['availability']['alert_error_percent'] / 100}",
        f"more than > {SLO['throughput']['requests_per_second']} req/s",
        f"{SLO['latency']['objective_percent']} % of requests under {SLO['latency']['threshold_seconds']} s",
        f"requests must end within {SLO['latency']['threshold_seconds']} s",
        f"latency_objective: {SLO['latency']['objective_percent'] / 100}",
        f"SLOW_SECONDS = {SLO['latency']['threshold_seconds']}.0",
        f"p95 below {SLO['latency']['p95_seconds']} s",
        f"a latency objective of {SLO['latency']['objective_percent']} %",
        f"the latency threshold is {SLO['latency']['threshold_seconds']} s",
        f"hit_rate_percent: {SLO['cache']['hit_rate_percent']}",
        f"at least {SLO['cache']['hit_rate_percent']} % of lookups are hits",
        f"hit rate above {SLO['cache']['hit_rate_percent']} %",
        f"cache must answer at least {SLO['cache']['hit_rate_percent']} %",
        f"{SLO['users']} concurrent users",
        f"USERS = {SLO['users']}",
        f"throughput objective: {SLO['throughput']['requests_per_second']} requests/s",
    ],
)
def test_a_stated_objective_is_found(line: str) -> None:
    assert offences(f"before\n{line}\nafter") == [line]


def test_numbers_that_only_look_alike_are_left_alone() -> None:
    assert offences("version 1.99.5\nbuckets 0.005 2.0\np95 > 20\n199.5") == []
    # What was measured is no objective, and neither is another limit.
    measured = [
        "p95 below 2 ms",
        "hit rate 96.5 %",
        "met at 30 users with think times",
        "130 concurrent users",
        "USERS = 300",
    ]
    assert offences("\n".join([*measured, "BI_RATE_LIMIT, 100 requests a minute", "1,100 requests a second"])) == []


def expressions(node: Any) -> Iterator[str]:
    """Every PromQL expression in a rule file or a dashboard."""
    if isinstance(node, dict):
        if isinstance(node.get("expr"), str):
            yield node["expr"]
        for value in node.values():
            yield from expressions(value)
    elif isinstance(node, list):
        for value in node:
            yield from expressions(value)


def compares_with_a_number(expr: str) -> bool:
    """Whether a series that an objective governs is compared with a number other than 0."""
    governed = any(GOVERNED.match(selector.metric) for selector in selectors(expr))
    return governed and bool(COMPARED.search(expr))


def test_no_rule_and_no_dashboard_compares_a_governed_series_with_a_number() -> None:
    files = [path for path in (ROOT / "alerts/rules").glob("*.yaml") if path != RENDERED]
    files += (ROOT / "dashboards").rglob("*.json")
    found = [expr for path in files for expr in expressions(load(path)) if compares_with_a_number(expr)]
    assert found == []


def test_a_comparison_with_a_number_is_found_and_one_with_nothing_is_not() -> None:
    assert compares_with_a_number("bi:api_latency_seconds:p95 > 1.5")
    assert compares_with_a_number("sum(rate(http_request_duration_seconds_count[5m])) >= bool 0.5")
    assert not compares_with_a_number("sum(rate(http_request_duration_seconds_count[5m])) > 0")
    assert not compares_with_a_number("bi:api_latency_seconds:p95 > bi:slo_target:value")
    assert not compares_with_a_number("bi_engine_waiting_queries > 40")
