"""What is asked, answered: named query or guarded SQL -> cache -> engine -> encoded result. Knows nothing of HTTP."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple

import orjson

from .access import Principal
from .cache import Cache, Served
from .catalogue import Catalogue, Freshness, NamedQuery
from .engine import Engine
from .engine_call import Answer, Job
from .entries import CacheKey
from .errors import BadRequest, Forbidden, NotFound, SqlRefused
from .formats import Format, Limits
from .metrics import AD_HOC, Metrics
from .parameters import bind, canonical_text
from .policies import RowPolicy
from .snapshot import Snapshot, SnapshotStore
from .sql_guard import GuardedSql, SqlGuard

_MOST_GUARDS = 16
_REMEMBERED_SQL = 2048
_REMEMBERED_SQL_CHARS = 4096
_REMEMBERED_TEXT_CHARS = 512


class Result(NamedTuple):
    """A served answer, with the snapshot it is of and the freshness it is under."""

    served: Served
    snapshot_id: str
    query: str
    fmt: Format
    freshness: Freshness


@dataclass(frozen=True)
class Bound:
    """A named query with its values; `text` is their canonical form."""

    query: NamedQuery
    values: Mapping[str, object]
    text: str


class QueryService:
    """Answers named queries and ad-hoc SQL on the current snapshot."""

    def __init__(
        self, catalogue: Catalogue, store: SnapshotStore, cache: Cache, engine: Engine, metrics: Metrics
    ) -> None:
        self.catalogue = catalogue
        self._store = store
        self._cache = cache
        self._engine = engine
        self._metrics = metrics
        self._guarded: OrderedDict[tuple[str, frozenset[str] | None, str], GuardedSql] = OrderedDict()
        self._guards: OrderedDict[tuple[str, frozenset[str] | None], SqlGuard] = OrderedDict()
        # Parsing is DuckDB's work too: it must not hold up the event loop, nor queue behind queries.
        self._parser_thread = ThreadPoolExecutor(1, thread_name_prefix="guard")

    def query(self, name: str) -> NamedQuery:
        """The named query. Raises `NotFound`."""
        try:
            return self.catalogue.queries[name]
        except KeyError:
            raise NotFound("unknown_query", f"no query named {name[:80]!r}; GET /api/v1/queries lists them") from None

    def bind(self, name: str, pairs: Iterable[tuple[str, str]]) -> Bound:
        """A named query with validated parameters. Raises `NotFound` or `BadRequest`."""
        query = self.query(name)
        values = bind(query.parameters, pairs)
        return Bound(query, values, canonical_text(values))

    def named_if_fresh(self, bound: Bound, fmt: Format, principal: Principal) -> Result | None:
        """The answer, if this process holds a fresh one. Never waits."""
        snapshot = self._store.current
        entry = self._cache.fresh_in_memory(self._named_key(snapshot, bound, fmt, principal.scope))
        if entry is None:
            return None
        served = Served(entry, "hit", "memory")
        return Result(served, snapshot.id, bound.query.name, fmt, bound.query.freshness)

    async def named(
        self, bound: Bound, fmt: Format, principal: Principal, *, bypass: bool, limits: Limits | None = None
    ) -> Result:
        """A named query's answer, within `limits` where given.

        Raises `Forbidden` when the principal's row policy cannot be laid over it.
        """
        query, snapshot = bound.query, self._store.current
        with snapshot.lease():  # open while this request uses it, whatever is published meanwhile
            views = await self._named_views(snapshot, query, principal.rows) if principal.rows else ()
            key = self._named_key(snapshot, bound, fmt, principal.scope, limits)
            job = Job(query.name, query.sql, bound.values, fmt, query.timeout_seconds, views, limits, principal.client)
            return await self._serve(snapshot, key, job, query.freshness, bypass)

    async def _named_views(self, snapshot: Snapshot, query: NamedQuery, rows: RowPolicy) -> tuple[str, ...]:
        try:
            guarded = await self._check(snapshot, query.sql, rows)
        except SqlRefused as refusal:
            detail = f"row policy {rows.name!r} does not allow query {query.name!r}: {refusal.detail}"
            raise Forbidden("policy_refuses_query", detail) from refusal
        return rows.views(snapshot.id, guarded.tables)

    def _named_key(
        self, snapshot: Snapshot, bound: Bound, fmt: Format, scope: str, limits: Limits | None = None
    ) -> CacheKey:
        query = bound.query
        make = _key if len(bound.text) <= _REMEMBERED_TEXT_CHARS else CacheKey
        return make(snapshot.id, scope, query.name, bound.text, fmt, query.digest + _suffix(limits))

    async def ad_hoc(
        self,
        sql: str,
        params: Mapping[str, object],
        fmt: Format,
        principal: Principal,
        *,
        bypass: bool,
        limits: Limits | None = None,
    ) -> Result:
        """A guarded SELECT's answer, within `limits` where given.

        Raises `SqlRefused`, `BadRequest` for parameters that do not match.
        """
        snapshot = self._store.current
        with snapshot.lease():
            guarded = await self._check(snapshot, sql, principal.rows)
            if set(params) != guarded.parameters:
                wanted = ", ".join(sorted(guarded.parameters)) or "none"
                raise BadRequest("bad_parameters", f"'params' must give exactly the SQL's parameters: {wanted}")
            values = orjson.dumps(dict(params), option=orjson.OPT_SORT_KEYS)
            digest = blake2b(guarded.normalised.encode() + b"\0" + values, digest_size=20).hexdigest()
            key = CacheKey(snapshot.id, principal.scope, AD_HOC, digest, fmt, _suffix(limits))
            views = principal.rows.views(snapshot.id, guarded.tables) if principal.rows else ()
            job = Job(AD_HOC, guarded.sql, params, fmt, views=views, limits=limits, client=principal.client)
            return await self._serve(snapshot, key, job, self.catalogue.ad_hoc_freshness, bypass)

    async def _serve(self, snapshot: Snapshot, key: CacheKey, job: Job, freshness: Freshness, bypass: bool) -> Result:
        async def compute() -> Answer:
            return await self._engine.run(snapshot, job)

        served = await self._cache.fetch(key, freshness, compute, bypass=bypass)
        return Result(served, snapshot.id, job.query, job.fmt, freshness)

    def relations(self, principal: Principal) -> list[dict[str, object]]:
        """What a principal may read: name, columns, kind, and rows unless a policy hides some of them."""
        snapshot, rows = self._store.current, principal.rows
        listed: list[dict[str, object]] = []
        for name, relation in snapshot.manifest.relations.items():
            if rows is None or name in rows.visible((name,)):
                hidden = {"rows": None} if rows is not None and rows.restricts(name) else {}
                listed.append({"name": name, **relation, **hidden})
        return listed

    async def _check(self, snapshot: Snapshot, sql: str, rows: RowPolicy | None) -> GuardedSql:
        visible = None if rows is None else rows.visible(snapshot.relations)
        memo = (snapshot.id, visible, sql)
        guarded = self._guarded.get(memo)
        if guarded is None:
            guard = self._guard(snapshot, visible)
            loop = asyncio.get_running_loop()
            try:
                guarded = await loop.run_in_executor(self._parser_thread, guard.check, sql)
            except SqlRefused as refusal:
                self._metrics.guard_refusals.labels(refusal.code).inc()
                raise
            if len(sql) <= _REMEMBERED_SQL_CHARS:
                self._guarded[memo] = guarded
                if len(self._guarded) > _REMEMBERED_SQL:
                    self._guarded.popitem(last=False)
        return guarded

    def _guard(self, snapshot: Snapshot, visible: frozenset[str] | None) -> SqlGuard:
        """The guard over a snapshot's relations, or over those a row policy shows."""
        guard = self._guards.get((snapshot.id, visible))
        if guard is None:
            relations = snapshot.relations if visible is None else visible
            guard = self._guards[snapshot.id, visible] = SqlGuard(relations, qualified=visible is None)
            if len(self._guards) > _MOST_GUARDS:
                self._guards.popitem(last=False)
        return guard

    def close(self) -> None:
        """Let the parser thread go."""
        self._parser_thread.shutdown(wait=False, cancel_futures=True)


@lru_cache(maxsize=8192)
def _key(snapshot_id: str, scope: str, query: str, text: str, fmt: Format, digest: str) -> CacheKey:
    return CacheKey(snapshot_id, scope, query, text, fmt, digest)


def _suffix(limits: Limits | None) -> str:
    """Separates, in a cache key, an answer cut shorter from the whole one."""
    return "" if limits is None else f"-{limits.rows}x{limits.bytes}"
