"""Every metric name of the service, in one registry per application.

A leaf: nothing here imports the rest of the package. Labels are bounded: `endpoint` is a route template, `query` a
catalogue name or `ad_hoc`; paths, parameters and clients never become label values.
"""

from __future__ import annotations

import platform
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
)

REQUEST_SECONDS_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
ENGINE_SECONDS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
LLM_SECONDS_BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0)
ACTIVE_USER_WINDOW_SECONDS = 300.0
MAX_TRACKED_USERS = 100_000
UNMATCHED_ENDPOINT = "unmatched"
AD_HOC = "ad_hoc"

CACHE_RESULTS = ("hit", "miss", "stale", "coalesced", "bypass")
ENGINE_OUTCOMES = ("ok", "timeout", "cancelled", "refused", "error")
REJECTION_REASONS = ("queue_full", "queue_timeout", "out_of_memory", "shutdown")
AUTH_FAILURES = ("unauthorized", "bad_key", "role_too_low", "policy_unusable")
REDIS_OPERATIONS = ("get", "set", "delete", "lock", "listen", "rate_limit", "llm_budget")
LLM_DIRECTIONS = ("prompt", "completion")
LLM_OUTCOMES = ("ok", "timeout", "unavailable", "rate_limited", "malformed", "cut_short", "refused", "cancelled")
LLM_RETRY_REASONS = ("timeout", "unavailable", "rate_limited", "malformed")
BUDGET_SCOPES = ("key", "all")
CHAT_CHOOSERS = ("matcher", "model", "stand_in")
CHAT_OUTCOMES = ("named", "sql", "cannot_answer", "refused", "error")


class ActiveUsers:
    """Distinct clients seen within a sliding window; bounded in number, so a flood of addresses cannot eat memory."""

    def __init__(
        self, window_seconds: float = ACTIVE_USER_WINDOW_SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._window_seconds = window_seconds
        self._clock = clock
        self._last_seen: OrderedDict[str, float] = OrderedDict()

    def saw(self, client: str) -> None:
        """Note one request of `client`."""
        self._last_seen[client] = self._clock()
        self._last_seen.move_to_end(client)
        if len(self._last_seen) > MAX_TRACKED_USERS:
            self._last_seen.popitem(last=False)

    def count(self) -> int:
        """Clients seen within the window."""
        horizon = self._clock() - self._window_seconds
        while self._last_seen and next(iter(self._last_seen.values())) < horizon:
            self._last_seen.popitem(last=False)
        return len(self._last_seen)


class Metrics:
    """The service's metrics. Attribute names follow the exported names without the `bi_` prefix."""

    def __init__(self, *, version: str = "", duckdb_version: str = "") -> None:
        self.registry = CollectorRegistry()
        self.users = ActiveUsers()
        self._request_children: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        self._cache_children: dict[tuple[str, str, str], tuple[Counter, Counter]] = {}
        disable_created_metrics()  # type: ignore[no-untyped-call]  # half the series, and nothing reads them
        ProcessCollector(registry=self.registry)
        self._http()
        self._cache()
        self._engine()
        self._snapshot()
        self._chat()
        Info("bi_query_build", "Versions of the service and its engine.", registry=self.registry).info(
            {"version": version, "python_version": platform.python_version(), "duckdb_version": duckdb_version}
        )

    def _counter(self, name: str, text: str, labels: Iterable[str] = ()) -> Counter:
        return Counter(name, text, tuple(labels), registry=self.registry)

    def _gauge(self, name: str, text: str, labels: Iterable[str] = ()) -> Gauge:
        return Gauge(name, text, tuple(labels), registry=self.registry)

    def _http(self) -> None:
        self.http_requests = self._counter("http_requests_total", "HTTP requests.", ("method", "endpoint", "status"))
        self.http_duration = Histogram(
            "http_request_duration_seconds",
            "Seconds from the first byte in to the last byte out, failed requests included.",
            ("endpoint",),
            buckets=REQUEST_SECONDS_BUCKETS,
            registry=self.registry,
        )
        self.in_progress = 0
        """Requests being answered now: a plain number, read at each scrape, since every request changes it twice."""
        in_progress = self._gauge("http_requests_in_progress", "Requests being answered now.")
        in_progress.set_function(lambda: self.in_progress)
        self.memory_limit = self._gauge(
            "bi_memory_limit_bytes", "Memory this process may use: the container's, else the host's."
        )
        active = self._gauge("active_users", "Distinct clients (API key, else address) seen in the last 5 minutes.")
        active.set_function(self.users.count)
        self.unsent_bytes = self._gauge(
            "bi_unsent_bytes", "Large answers in memory: being made, or not yet read by their clients."
        )
        self.unsent_max_bytes = self._gauge("bi_unsent_max_bytes", "Bytes that large answers may take.")
        self.unsent_refusals = self._counter(
            "bi_unsent_refusals_total", "Large answers refused with 503 because they did not fit beside the others."
        )
        self.send_cuts = self._counter(
            "bi_send_cuts_total", "Connections cut because their client read nothing of its answer for too long."
        )
        self.rate_limit_rejections = self._counter(
            "bi_rate_limit_rejections_total", "Requests refused with 429.", ("endpoint",)
        )
        self.guard_refusals = self._counter("bi_guard_refusals_total", "SQL refused by the guard.", ("code",))
        self.auth_failures = self._counter("bi_auth_failures_total", "Requests refused with 401 or 403.", ("reason",))
        self.keys_accepted = self._gauge("bi_keys_accepted", "API keys in force.")
        self.keys_load_failures = self._counter(
            "bi_keys_load_failures_total", "Times the key file changed and could not be used."
        )
        self.audit_lines_lost = self._counter("bi_audit_lines_lost_total", "Audit lines that could not be written.")
        for reason in AUTH_FAILURES:
            self.auth_failures.labels(reason)

    def _cache(self) -> None:
        self.cache_requests = self._counter(
            "bi_cache_requests_total", "Cache look-ups by result and tier.", ("query", "result", "tier")
        )
        self.cache_bytes = self._gauge("bi_cache_bytes", "Bytes held by the memory tier.")
        self.cache_max_bytes = self._gauge("bi_cache_max_bytes", "Bytes the memory tier may hold.")
        self.cache_entries = self._gauge("bi_cache_entries", "Entries held by the memory tier.")
        self.cache_evictions = self._counter("bi_cache_evictions_total", "Entries evicted from the memory tier.")
        self.cache_invalidations = self._counter("bi_cache_invalidations_total", "Invalidations by scope.", ("scope",))
        self.cache_rejected_entries = self._counter("bi_cache_rejected_entries_total", "Results too large to cache.")
        self.cache_redis_errors = self._counter(
            "bi_cache_redis_errors_total",
            "Redis operations that failed, timed out or answered rubbish.",
            ("operation",),
        )
        self.cache_redis_circuit_open = self._gauge("bi_cache_redis_circuit_open", "1 while Redis is not being asked.")
        self.cache_redis_configured = self._gauge("bi_cache_redis_configured", "1 when a Redis tier is configured.")
        self.cache_saved_seconds = self._counter(
            "bi_cache_saved_seconds_total", "Engine seconds that cached answers did not spend.", ("query",)
        )
        for operation in REDIS_OPERATIONS:
            self.cache_redis_errors.labels(operation)
        for scope in ("query", "pattern", "remote"):
            self.cache_invalidations.labels(scope)

    def _engine(self) -> None:
        self.engine_running = self._gauge("bi_engine_running_queries", "Queries executing now.", ("lane",))
        self.engine_waiting = self._gauge(
            "bi_engine_waiting_queries", "Admitted queries waiting for their turn.", ("lane",)
        )
        self.engine_max_running = self._gauge(
            "bi_engine_max_running_queries", "Queries that may execute at once.", ("lane",)
        )
        self.engine_max_connections = self._gauge("bi_engine_max_connections", "Queries admitted at once.", ("lane",))
        self.engine_wait = Histogram(
            "bi_engine_wait_seconds",
            "Seconds an admitted query waited for its turn.",
            buckets=ENGINE_SECONDS_BUCKETS,
            registry=self.registry,
        )
        self.engine_execution = Histogram(
            "bi_engine_execution_seconds",
            "Seconds DuckDB and the encoder spent on a query.",
            ("query",),
            buckets=ENGINE_SECONDS_BUCKETS,
            registry=self.registry,
        )
        self.engine_queries = self._counter("bi_engine_queries_total", "Queries by outcome.", ("query", "outcome"))
        self.engine_rejections = self._counter("bi_engine_rejections_total", "Queries not admitted.", ("reason",))
        self.engine_rows = self._counter("bi_engine_rows_total", "Rows returned by the engine.", ("query",))
        self.engine_result_bytes = self._counter("bi_engine_result_bytes_total", "Encoded result bytes.", ("format",))
        self.engine_truncated = self._counter(
            "bi_engine_truncated_results_total", "Results cut at the row or byte limit.", ("query",)
        )
        for reason in REJECTION_REASONS:
            self.engine_rejections.labels(reason)

    def _snapshot(self) -> None:
        self.snapshot_info = self._gauge("bi_snapshot_info", "1 for the snapshot being served.", ("snapshot_id",))
        self.snapshot_published = self._gauge("bi_snapshot_published_timestamp_seconds", "When it was published.")
        self.snapshot_loaded = self._gauge("bi_snapshot_loaded_timestamp_seconds", "When this process opened it.")
        self.snapshot_bytes = self._gauge("bi_snapshot_bytes", "Size of the snapshot's file.")
        self.snapshot_swaps = self._counter("bi_snapshot_swaps_total", "Live swaps to a newly published snapshot.")
        self.snapshot_load_failures = self._counter(
            "bi_snapshot_load_failures_total", "Published snapshots that could not be opened."
        )
        self.publish_last_success = self._gauge("bi_publish_last_success", "1 if the last publish succeeded.")
        self.publish_last_attempt = self._gauge("bi_publish_last_attempt_timestamp_seconds", "When it last ran.")
        self.publish_last_success_at = self._gauge(
            "bi_publish_last_success_timestamp_seconds", "When it last succeeded."
        )
        self.publish_duration = self._gauge("bi_publish_duration_seconds", "How long the last publish took.")
        self.publish_failures = self._gauge(
            "bi_publish_failures", "Publishes that failed since the last that succeeded."
        )
        self.publisher_heartbeat = self._gauge(
            "bi_publisher_heartbeat_timestamp_seconds", "When the publisher was last alive; 0 without one."
        )

    def _chat(self) -> None:
        self.llm_tokens = self._counter(
            "llm_tokens_total", "Tokens used by the language model.", ("model", "direction")
        )
        self.llm_requests = self._counter(
            "bi_llm_requests_total", "Requests to the language model, retries included.", ("model", "outcome")
        )
        self.llm_seconds = Histogram(
            "bi_llm_request_seconds",
            "Seconds of one request to the language model, failed ones included.",
            ("model",),
            buckets=LLM_SECONDS_BUCKETS,
            registry=self.registry,
        )
        self.llm_retries = self._counter(
            "bi_llm_retries_total", "Requests to the language model made again.", ("model", "reason")
        )
        self.llm_circuit_open = self._gauge("bi_llm_circuit_open", "1 while the language model is not being asked.")
        self.llm_configured = self._gauge("bi_llm_configured", "1 when a language model is configured.")
        self.llm_budget = self._gauge(
            "bi_llm_budget_tokens", "Tokens that all keys together may use per day (UTC); 0 means no limit."
        )
        self.llm_budget_used = self._gauge(
            "bi_llm_budget_used_tokens", "Tokens used today (UTC) by all replicas, as far as this one knows."
        )
        self.llm_budget_refusals = self._counter(
            "bi_llm_budget_refusals_total",
            "Times the language model was not asked because the tokens of the asker's key, or of all, were spent.",
            ("scope",),
        )
        self.llm_budget_key_used = self._gauge(
            "bi_llm_budget_key_used_ratio",
            "Highest share of a key's tokens per day (UTC) that is used, as far as this replica knows; 0 without a limit.",
        )
        self.chat_answers = self._counter(
            "bi_chat_answers_total",
            "Questions by who chose the answer; stand_in is the matcher for a model that could not be had.",
            ("by", "outcome"),
        )
        self.chat_sql_retries = self._counter(
            "bi_chat_sql_retries_total", "Times the language model was shown an error and asked again."
        )
        self.chat_plan_hits = self._counter(
            "bi_chat_plan_hits_total", "Questions answered from a remembered plan, without the language model."
        )
        for scope in BUDGET_SCOPES:
            self.llm_budget_refusals.labels(scope)
        for by in CHAT_CHOOSERS:
            for outcome in CHAT_OUTCOMES:
                self.chat_answers.labels(by, outcome)

    def prepare_model(self, model: str) -> None:
        """Create the label sets of the configured language model at zero."""
        self.llm_configured.set(1)
        self.llm_seconds.labels(model)
        for direction in LLM_DIRECTIONS:
            self.llm_tokens.labels(model, direction)
        for outcome in LLM_OUTCOMES:
            self.llm_requests.labels(model, outcome)
        for reason in LLM_RETRY_REASONS:
            self.llm_retries.labels(model, reason)

    def observe_request(self, method: str, endpoint: str, status: int, seconds: float) -> None:
        """Count one answered request and its duration."""
        key = (method, endpoint, status)
        children = self._request_children.get(key)
        if children is None:  # labels() costs microseconds, and every request pays it
            children = self.http_requests.labels(method, endpoint, str(status)), self.http_duration.labels(endpoint)
            self._request_children[key] = children
        children[0].inc()
        children[1].observe(seconds)

    def count_cache(self, query: str, result: str, tier: str, saved_seconds: float) -> None:
        """Count one cache look-up and the engine seconds it saved."""
        key = (query, result, tier)
        children = self._cache_children.get(key)
        if children is None:
            children = self.cache_requests.labels(query, result, tier), self.cache_saved_seconds.labels(query)
            self._cache_children[key] = children
        children[0].inc()
        children[1].inc(saved_seconds)

    def prepare(
        self, queries: Iterable[str], endpoints: Iterable[tuple[str, str]], asking: Iterable[tuple[str, str]] = ()
    ) -> None:
        """Create the bounded label sets at zero: `rate()` sees a step up from 0, and nothing of a series' first value.

        `queries` are catalogue names; `endpoints` are (method, route template) pairs, `asking` those that run a query and
        can end with 504 too. Every 5xx of `errors` is so visible from its first; other statuses only from their second.
        """
        for query in (*queries, AD_HOC):
            for result in CACHE_RESULTS:
                for tier in ("memory", "redis") if result in ("hit", "stale") else ("none",):
                    self.cache_requests.labels(query, result, tier)
            for outcome in ENGINE_OUTCOMES:
                self.engine_queries.labels(query, outcome)
            self.cache_saved_seconds.labels(query)
            self.engine_execution.labels(query)
            self.engine_rows.labels(query)
            self.engine_truncated.labels(query)
        statuses: dict[tuple[str, str], tuple[str, ...]] = dict.fromkeys(endpoints, ("200", "500", "503"))
        statuses |= dict.fromkeys(asking, ("200", "500", "503", "504"))
        for (method, endpoint), expected in statuses.items():
            self.http_duration.labels(endpoint)
            self.rate_limit_rejections.labels(endpoint)
            for status in expected:
                self.http_requests.labels(method, endpoint, status)


def metric_names() -> frozenset[str]:
    """Sample names that `/metrics` can expose (with `_total`, `_bucket`, `_sum`, `_count`, `_info` as exported)."""
    metrics = Metrics()
    names: set[str] = set()
    for family in metrics.registry.collect():
        suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "info": ("_info",)}
        names.update(family.name + suffix for suffix in suffixes.get(family.type, ("",)))
    return frozenset(names)
