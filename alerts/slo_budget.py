"""Objectives with an error budget: SLIs, budgets, multi-window burn-rate alerts, named as sloth does."""

from __future__ import annotations

from decimal import Decimal

from slo_common import (
    Rule,
    Spec,
    api,
    at_least_some,
    bucket_matcher,
    failed_rate,
    notes,
    plain,
    ratio,
    seconds,
    selector,
)

# The groups' own evaluation interval: sums of rates are multiplied by it, so it is fixed and not inherited.
STEP_SECONDS = 60
# Where the burn rates over the windows of a severity are drawn.
PANELS = {"critical": "/d/bi-slo?viewPanel=panel-20", "warning": "/d/bi-slo?viewPanel=panel-21"}
BAD, TOTAL = "slo:sli_bad_requests:rate5m", "slo:sli_requests:rate5m"


class Objective:
    """One objective with a budget; `total` and `bad` are queries of requests per second over 5m."""

    def __init__(self, spec: Spec, name: str, total: str, bad: str) -> None:
        self.name, self.total, self.bad = name, total, bad
        self.objective = ratio(spec[name]["objective_percent"])
        self.budget = 1 - self.objective
        self.window_days = int(spec["window_days"])
        self.labels = {
            "sloth_id": f"{spec['service']}-{name}",
            "sloth_service": spec["service"],
            "sloth_slo": name,
        }

    def series(self, name: str) -> str:
        """The selector of one of this objective's recorded series."""
        return selector(name, **self.labels)

    def summed(self, name: str, window: str) -> str:
        """A recorded series, added up over a window."""
        return f"sum_over_time({self.series(name)}[{window}])"

    def record(self, name: str, expr: str, **labels: str) -> Rule:
        """A recording rule that carries this objective's labels."""
        return {"record": name, "expr": expr, "labels": self.labels | labels}


def objectives(spec: Spec) -> list[Objective]:
    """The objectives that have an error budget."""
    rate = "sum(rate({}[5m]))"
    timed = rate.format(api(spec, "http_request_duration_seconds_count"))
    le = f"~{bucket_matcher(spec['latency']['threshold_seconds'])}"
    in_time = rate.format(api(spec, "http_request_duration_seconds_bucket", le=le))
    counted = rate.format(api(spec, "http_requests_total"))
    # rate() extrapolates each series by itself, so count minus bucket can come out a hair below zero. And
    # without that bucket everything counts as slow: a histogram that cannot tell must not look healthy.
    slow = f"clamp_min(\n  {timed}\n  - ({in_time} or vector(0)),\n  0\n)"
    return [
        Objective(spec, "availability", counted, failed_rate(spec, "5m")),
        Objective(spec, "latency", timed, slow),
    ]


def sli_rules(spec: Spec, item: Objective) -> list[Rule]:
    """Bad and total requests per second, and the error ratio over every window that anything reads."""
    rules = [item.record(TOTAL, f"{item.total}\nor vector(0)"), item.record(BAD, f"{item.bad}\nor vector(0)")]
    windows = {pair[size] for pair in spec["burn_rates"] for size in ("short", "long")}
    for window in [*sorted(windows, key=seconds), f"{item.window_days}d"]:
        if window == "5m":
            bad, total = item.series(BAD), item.series(TOTAL)
        else:
            bad, total = item.summed(BAD, window), item.summed(TOTAL, window)
        expr = f"{bad}\n/ {at_least_some(total)}"
        rules.append(item.record(f"slo:sli_error:ratio_rate{window}", expr, sloth_window=window))
    return rules


def meta_rules(item: Objective) -> list[Rule]:
    """Objective, budget and burn rates: what SLO dashboards show."""
    days = f"{item.window_days}d"
    on = "on(sloth_id, sloth_slo, sloth_service) group_left"
    budget, spent = item.series("slo:error_budget:ratio"), item.series("slo:period_burn_rate:ratio")
    current, period = (item.series(f"slo:sli_error:ratio_rate{window}") for window in ("5m", days))
    info = {
        "sloth_mode": "render.py",
        "sloth_objective": plain(item.objective * 100),
        "sloth_spec": "prometheus/v1",
        "sloth_version": "none",
    }
    return [
        item.record("slo:objective:ratio", f"vector({plain(item.objective)})"),
        item.record("slo:error_budget:ratio", f"vector({plain(item.budget)})"),
        item.record("slo:time_period:days", f"vector({item.window_days})"),
        item.record("slo:current_burn_rate:ratio", f"{current}\n/ {on} {budget}"),
        item.record("slo:period_burn_rate:ratio", f"{period}\n/ {on} {budget}"),
        item.record("slo:period_error_budget_remaining:ratio", f"1 - {spent}"),
        item.record("sloth_slo_info", "vector(1)", **info),
    ]


def burning(item: Objective, pair: Spec, minimum: int) -> str:
    """Both windows above `burn_rate` times the budget, and enough failures in the long one to matter."""
    limit = plain(Decimal(str(pair["burn_rate"])) * item.budget)
    over = [
        f"max({item.series(f'slo:sli_error:ratio_rate{pair[size]}')} > {limit}) without (sloth_window)"
        for size in ("short", "long")
    ]
    enough = f"{item.summed(BAD, pair['long'])} * {STEP_SECONDS} >= {minimum}"
    return "(\n  " + "\n  and ".join([*over, enough]) + "\n)"


def burn_rule(spec: Spec, item: Objective, severity: str) -> Rule:
    """The alert of one severity: its window pairs joined by `or`."""
    alert = f"Api{item.name.capitalize()}BudgetBurn"
    pairs = [pair for pair in spec["burn_rates"] if pair["severity"] == severity]
    shorts = " or ".join(pair["short"] for pair in pairs)
    gone = plain(Decimal(item.window_days) / min(Decimal(str(pair["burn_rate"])) for pair in pairs))
    description = (
        f"{{{{ $value | humanizePercentage }}}} of API requests miss the {item.name} objective of "
        f"{plain(item.objective * 100)} % (last {shorts}). "
        f"At this pace the {item.window_days}-day error budget is gone within {gone} days."
    )
    summary = f"The API burns its {item.name} error budget too fast."
    return {
        "alert": alert,
        "expr": "\nor\n".join(burning(item, pair, spec["minimum"]["bad_requests"]) for pair in pairs),
        "labels": {"severity": severity, "sloth_severity": pairs[0]["sloth_severity"], "slo": item.name},
        "annotations": notes(spec, alert, summary, description, PANELS[severity]),
    }


def budget_group(spec: Spec, item: Objective) -> Rule:
    """All rules of one objective. One group, for a group runs in order: alerts see what was recorded just before."""
    severities = dict.fromkeys(pair["severity"] for pair in spec["burn_rates"])
    alerts = [burn_rule(spec, item, severity) for severity in severities]
    rules = sli_rules(spec, item) + meta_rules(item) + alerts
    return {"name": f"slo-{item.name}", "interval": f"{STEP_SECONDS}s", "rules": rules}
