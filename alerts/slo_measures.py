"""Targets and measures as series, and the alerts on a plain threshold of slo.yaml."""

from __future__ import annotations

from slo_common import Rule, Spec, api, at_least_some, failed_rate, notes, plain, ratio, seconds, selector


def target_group(spec: Spec) -> Rule:
    """Every number of slo.yaml as a series: dashboards draw their lines from it and repeat no number."""
    percent = {
        "availability_ratio": spec["availability"]["objective_percent"],
        "error_alert_ratio": spec["availability"]["alert_error_percent"],
        "latency_ratio": spec["latency"]["objective_percent"],
        "cache_hit_ratio": spec["cache"]["hit_rate_percent"],
    }
    targets = {name: plain(ratio(value)) for name, value in percent.items()} | {
        "latency_threshold_seconds": str(spec["latency"]["threshold_seconds"]),
        "latency_p95_seconds": str(spec["latency"]["p95_seconds"]),
        "throughput_requests_per_second": str(spec["throughput"]["requests_per_second"]),
        "concurrent_users": str(spec["users"]),
        "snapshot_max_age_seconds": str(spec["data"]["snapshot_max_age_hours"] * 3600),
    }
    rules = [
        {"record": "bi:slo_target:value", "expr": f"vector({value})", "labels": {"target": name}}
        for name, value in targets.items()
    ]
    return {"name": "slo-targets", "rules": rules}


def measure_rules(spec: Spec) -> list[Rule]:
    """The service's indicators as people read them; absent, never NaN, where there is nothing to measure."""
    window, cache_window = spec["alerting"]["window"], spec["alerting"]["cache_window"]
    buckets = api(spec, "http_request_duration_seconds_bucket")
    timed = f"sum(rate({api(spec, 'http_request_duration_seconds_count')}[{window}]))"
    failed = f"({failed_rate(spec, window)} or vector(0))"
    job, cache = spec["scope"]["job"], spec["cache"]
    lookups, hits = (
        f"sum(increase({selector('bi_cache_requests_total', job=job, result=result)}[{cache_window}]))"
        for result in ("!~" + "|".join(cache["ignored_results"]), "~" + "|".join(cache["hit_results"]))
    )
    series = {
        "bi:api_requests:rate": f"sum(rate({api(spec, 'http_requests_total')}[{window}]))",
        "bi:api_error:ratio": f"{failed}\n/ {at_least_some('bi:api_requests:rate')}",
    }
    for name, quantile in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
        value = f"histogram_quantile({quantile}, sum by (le) (rate({buckets}[{window}])))"
        series[f"bi:api_latency_seconds:{name}"] = f"{value}\nand on() ({timed} > 0)"
    series["bi:cache_lookups:increase"] = lookups
    series["bi:cache_hit:ratio"] = f"{hits}\n/ (bi:cache_lookups:increase > 0)"
    return [{"record": name, "expr": expr} for name, expr in series.items()]


def threshold(
    spec: Spec,
    name: str,
    expr: str,
    hold: str,
    labels: dict[str, str],
    dashboard: str,
    texts: tuple[str, str],
) -> Rule:
    """An alert on a number of slo.yaml; `texts` are its summary and its description."""
    return {
        "alert": name,
        "expr": expr,
        "for": hold,
        "labels": labels,
        "annotations": notes(spec, name, *texts, dashboard),
    }


def request_thresholds(spec: Spec) -> list[Rule]:
    """The brief's two alerts: errors and the 95th percentile, as long as there is traffic to speak of."""
    alerting, p95 = spec["alerting"], spec["latency"]["p95_seconds"]
    window, error = alerting["window"], spec["availability"]["alert_error_percent"]
    traffic = f"and on() bi:api_requests:rate * {seconds(window)} >= {spec['minimum']['requests']}"
    failing = (
        "Too many API requests fail.",
        f"{{{{ $value | humanizePercentage }}}} of API requests failed in {window} (limit {error} %).",
    )
    slow = (
        "The API answers slowly.",
        f"The 95th percentile of API request times of the last {window} is "
        f"{{{{ $value | humanizeDuration }}}} (limit {p95} s).",
    )
    # Both critical: as a warning, the percentile would be muted by the latency budget's critical alert and never arrive.
    errors, latency = ({"severity": "critical", "slo": name} for name in ("availability", "latency"))
    too_many = f"bi:api_error:ratio > {plain(ratio(error))}\n{traffic}"
    too_slow = f"bi:api_latency_seconds:p95 > {p95}\n{traffic}"
    return [
        threshold(
            spec, "ApiErrorRateHigh", too_many, alerting["for"], errors, "/d/bi-service?viewPanel=panel-3", failing
        ),
        threshold(spec, "ApiLatencyHigh", too_slow, alerting["for"], latency, "/d/bi-service?viewPanel=panel-30", slow),
    ]


def data_thresholds(spec: Spec) -> list[Rule]:
    """Hit rate and age of the data."""
    window, hours = spec["alerting"]["cache_window"], spec["data"]["snapshot_max_age_hours"]
    rate, hold = spec["cache"]["hit_rate_percent"], spec["alerting"]["cache_for"]
    missing = (
        "The cache answers too few requests.",
        f"{{{{ $value | humanizePercentage }}}} of lookups in {window} were hits (objective {rate} %).",
    )
    old = (
        "The data being served is too old.",
        f"The newest snapshot was published {{{{ $value | humanizeDuration }}}} ago (limit {hours} h).",
    )
    enough = f"and on() bi:cache_lookups:increase >= {spec['minimum']['cache_lookups']}"
    low = f"bi:cache_hit:ratio < {plain(ratio(rate))}\n{enough}"
    published = selector("bi_snapshot_published_timestamp_seconds", job=spec["scope"]["job"])
    age = f"time() - max({published} > 0) > {hours * 3600}"
    cache, data = {"severity": "warning", "slo": "cache"}, {"severity": "warning", "slo": "data"}
    return [
        threshold(spec, "CacheHitRateLow", low, hold, cache, "/d/bi-cache?viewPanel=panel-10", missing),
        threshold(spec, "SnapshotTooOld", age, "5m", data, "/d/bi-engine?viewPanel=panel-5", old),
    ]


def threshold_group(spec: Spec) -> Rule:
    """Measures, then every alert that compares one with a number of slo.yaml."""
    rules = measure_rules(spec) + request_thresholds(spec) + data_thresholds(spec)
    return {"name": "slo-thresholds", "rules": rules}


def uptime_group(spec: Spec) -> Rule:
    """What the replicas cannot count: the period's share of probes through the edge that succeeded, and its budget left.

    Each probe weighs the same, each request does in the objectives: the two budgets are compared, never added.
    """
    part, days = spec["availability"], int(spec["window_days"])
    budget = plain(1 - ratio(part["objective_percent"]))
    uptime = f"bi:uptime:ratio_{days}d"
    probes = selector("probe_success", job=part["probe_job"])
    rules = [
        {"record": uptime, "expr": f"avg_over_time({probes}[{days}d])"},
        {"record": "bi:uptime_error_budget_remaining:ratio", "expr": f"1 - (1 - {uptime}) / {budget}"},
    ]
    # Every minute is often enough for a month's samples.
    return {"name": "slo-uptime", "interval": "60s", "rules": rules}
