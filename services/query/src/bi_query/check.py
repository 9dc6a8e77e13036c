"""`bi-query check`: does every named query run on the snapshot, with its defaults and its examples?"""

from __future__ import annotations

import orjson

from .catalogue import Catalogue, NamedQuery, Problem
from .engine import Engine
from .engine_call import Job
from .engine_errors import QueryFailed
from .errors import BiQueryError
from .metrics import Metrics
from .parameters import Value
from .says import column_faults
from .settings import Settings
from .snapshot import Snapshot, SnapshotStore


async def check_queries(settings: Settings, catalogue: Catalogue) -> list[Problem]:
    """Run each query of the catalogue; what failed, with file and line."""
    metrics = Metrics()
    store, engine = SnapshotStore(settings, metrics), Engine(settings, metrics)
    try:
        await store.refresh()
        if store.failure:
            raise BiQueryError(f"{store.failure}; run `bi-query publish`")
        snapshot = store.current
        problems: dict[tuple[str, int], Problem] = {}  # one a line: other values fail there the same way
        for query in catalogue.queries.values():
            for values in _bindings(query):
                for problem in await _run(engine, snapshot, query, values):
                    problems.setdefault((query.name, problem.line), problem)
        return list(problems.values())
    finally:
        await engine.close(0)
        store.close()


async def _run(engine: Engine, snapshot: Snapshot, query: NamedQuery, values: dict[str, Value]) -> list[Problem]:
    try:
        answer = await engine.run(snapshot, Job(query.name, query.sql, values, "json", query.timeout_seconds))
    except BiQueryError as error:
        given = ", ".join(f"{name}={value}" for name, value in values.items())
        position = error.position if isinstance(error, QueryFailed) and error.position is not None else 0
        line = query.sql_line + query.sql[:position].count("\n")
        return [Problem(query.path, line, f"{error} (with {given or 'no parameters'})")]
    known = [column["name"] for column in orjson.loads(answer.encoded.body)["columns"]]
    return [Problem(query.path, line, text) for line, text in column_faults(query.says, query.says_lines, known)]


def _bindings(query: NamedQuery) -> list[dict[str, Value]]:
    """One binding of defaults (examples or bounds where there is none), and one per example."""
    base: dict[str, Value] = {}
    for parameter in query.parameters.values():
        if not parameter.required:
            base[parameter.name] = parameter.default
        elif parameter.examples:
            base[parameter.name] = parameter.examples[0]
        else:
            base[parameter.name] = parameter.minimum if parameter.minimum is not None else (*parameter.choices, "x")[0]
    bindings = [base]
    for parameter in query.parameters.values():
        bindings += [{**base, parameter.name: example} for example in parameter.examples]
    return bindings
