"""Remembered plans: one parse for many runs, and never an answer of other data, other values or other types."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import duckdb
import orjson
import pytest
from bi_query import plans as plans_module
from bi_query.formats import Format, Limits, Plan, encode
from bi_query.plans import Plans
from bi_query.snapshot import Snapshot
from bi_query.snapshot_files import read_pointer, snapshot_path

from tests.support.small import Small, make_small

SQL = "select $x as x, count(*) as n, (select version from versions) as version from sales where amount < $x"
LIMITS = Limits(1000, 2**20)


@pytest.fixture
def small(tmp_path: Path) -> Small:
    return make_small(tmp_path)


def opened(small: Small, version: int) -> Snapshot:
    small.publish(version)
    pointer = read_pointer(small.snapshots)
    assert pointer is not None
    return Snapshot(snapshot_path(small.snapshots, pointer.snapshot_id), pointer, small.settings())


def plan_of(
    plans: Plans, snapshot: Snapshot, params: Mapping[str, object], sql: str = SQL, fmt: Format = "json"
) -> Plan:
    with snapshot.instance(private=False) as database:
        return plans.get(snapshot.id, database.new_cursor(), sql, params, fmt)


def rows(snapshot: Snapshot, plan: Plan, params: Mapping[str, object]) -> Any:
    with snapshot.instance(private=False) as database:
        body = encode(database.new_cursor(), plan, params, "json", LIMITS).body
    return orjson.loads(body)["rows"]


def test_a_new_snapshot_is_asked_with_a_plan_of_its_own_and_answers_its_own_data(small: Small) -> None:
    plans, first = Plans(), opened(small, 1)
    old = plan_of(plans, first, {"x": 10})
    second = opened(small, 3)
    new = plan_of(plans, second, {"x": 10})
    assert old.statement is not None
    assert new.statement is not old.statement
    assert rows(first, old, {"x": 10}) == [[10, 10, 1]]
    assert rows(second, new, {"x": 10}) == [[10, 4, 3]]
    assert plan_of(plans, first, {"x": 10}) is old
    # Nothing of a snapshot is in a parsed statement: even one that went astray would read the data of its cursor.
    assert rows(second, old, {"x": 10}) == [[10, 4, 3]]
    first.retire()
    assert rows(second, plan_of(plans, second, {"x": 7}), {"x": 7}) == [[7, 3, 3]]
    second.retire()


def test_one_plan_serves_all_values_of_its_types_and_other_types_have_another(small: Small) -> None:
    plans, snapshot = Plans(), opened(small, 1)
    plan = plan_of(plans, snapshot, {"x": 10})
    assert plan_of(plans, snapshot, {"x": 20}) is plan
    assert [rows(snapshot, plan, {"x": x}) for x in (10, 20, 0)] == [[[10, 10, 1]], [[20, 20, 1]], [[0, 0, 1]]]
    other = plan_of(plans, snapshot, {"x": 10.5})
    assert other is not plan
    assert rows(snapshot, other, {"x": 10.5}) == [[10.5, 11, 1]]
    assert plan_of(plans, snapshot, {"x": 10}, fmt="csv") is not plan
    snapshot.retire()


def test_threads_share_one_plan_and_get_each_their_own_values(small: Small) -> None:
    plans, snapshot = Plans(), opened(small, 1)
    wrong: list[object] = []

    def ask(first: int) -> None:
        for x in range(first, first + 150):
            found = rows(snapshot, plan_of(plans, snapshot, {"x": x}), {"x": x})
            if found != [[x, x, 1]]:
                wrong.append((x, found))

    threads = [threading.Thread(target=ask, args=(100 * number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(plans._plans) == 1
    snapshot.retire()


def test_what_is_remembered_is_bounded_by_its_text_and_the_least_used_go_first(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plans_module, "_MAX_REMEMBERED_CHARS", 4 * len(SQL) + 3)
    plans, snapshot = Plans(), opened(small, 1)
    popular = plan_of(plans, snapshot, {"x": 1})
    for number in range(20):
        plan_of(plans, snapshot, {"x": 1}, sql=f"{SQL} and {number} >= 0")
        assert plan_of(plans, snapshot, {"x": 1}) is popular
        assert plans._chars == sum(len(plan.sql) for plan in plans._plans.values()) <= 4 * len(SQL) + 3
    assert 1 < len(plans._plans) < 4
    snapshot.retire()


def test_sql_that_is_too_long_is_answered_and_not_remembered(small: Small) -> None:
    plans, snapshot = Plans(), opened(small, 1)
    long = f"{SQL} /* {'x' * 40_000} */"
    assert rows(snapshot, plan_of(plans, snapshot, {"x": 5}, sql=long), {"x": 5}) == [[5, 5, 1]]
    assert len(plans._plans) == 0
    snapshot.retire()


def test_sql_that_cannot_bind_is_not_remembered(small: Small) -> None:
    plans, snapshot = Plans(), opened(small, 1)
    with pytest.raises(duckdb.BinderException):
        plan_of(plans, snapshot, {}, sql="select nope from sales")
    assert len(plans._plans) == 0
    snapshot.retire()


def test_an_integer_is_shown_as_of_the_type_it_is_bound_as(small: Small) -> None:
    """DuckDB chooses by the value; a plan made for a small one must not name a large one's column."""
    plans, snapshot = Plans(), opened(small, 1)
    types = [plan_of(plans, snapshot, {"x": x}, "select $x as x").columns[0] for x in (1, 2**40, 2**64 - 1, -5)]
    assert [kind for _, kind in types] == ["INTEGER", "BIGINT", "UBIGINT", "INTEGER"]
