"""Row policies: bound values are text of SQL, never SQL; what a catalogue declares is checked with its line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import pytest
from bi_query.errors import ConfigurationError
from bi_query.front_matter import Problem
from bi_query.policies import Policy
from bi_query.policy_files import load_policies


def rows(policy: Policy, given: dict[str, Any]) -> list[Any]:
    """The values of column `a` of ("it's", "b", "") that the policy lets through."""
    with duckdb.connect() as connection:
        connection.execute("create table t as select * from (values ('it''s'), ('b'), (''), ('$x')) v(a)")
        for view in policy.bind("p", given).views("memory", ["t"]):
            connection.execute(view)
        return [row[0] for row in connection.execute("select a from t order by a").fetchall()]


@pytest.mark.parametrize("value", ["it's", "b", "", "$x", "' or true --", "\\' or 1=1 --", "b'\n--", "{}", "%", "x\\"])
def test_a_text_is_compared_whatever_stands_in_it(value: str) -> None:
    policy = Policy(attributes={"x": "text"}, rows={"t": "a = $x"})
    assert rows(policy, {"x": value}) == [found for found in ("", "$x", "b", "it's") if found == value]


def test_a_list_is_a_list_and_an_empty_one_shows_nothing() -> None:
    policy = Policy(attributes={"x": "texts"}, rows={"t": "list_contains($x, a)"})
    assert rows(policy, {"x": ["b", "it's"]}) == ["b", "it's"]
    assert rows(policy, {"x": []}) == []


def test_a_comment_at_the_end_of_a_predicate_hides_nothing_of_the_view() -> None:
    assert rows(Policy(rows={"t": "a = 'b' -- only b"}), {}) == ["b"]


def test_a_predicate_with_or_stays_one_condition() -> None:
    assert rows(Policy(rows={"t": "a = 'b' or a = ''"}), {}) == ["", "b"]


@pytest.mark.parametrize(
    ("kind", "value"),
    [("integer", "1"), ("integer", True), ("integer", 2**63), ("text", 1), ("text", "a\0"),
     ("integers", 1), ("integers", ["1"]), ("texts", "abc"), ("texts", [1])],
)  # fmt: skip
def test_a_value_of_another_type_is_refused(kind: Any, value: object) -> None:
    with pytest.raises(ConfigurationError, match="attribute 'x' must be"):
        Policy(attributes={"x": kind}, rows={"t": "a = $x"}).bind("p", {"x": value})


@pytest.mark.parametrize("given", [{}, {"y": 1}, {"x": 1, "y": 2}])
def test_attributes_must_be_exactly_the_declared_ones(given: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match="takes the attributes x"):
        Policy(attributes={"x": "integer"}).bind("p", given)


def test_answers_are_shared_by_equal_rights_only() -> None:
    policy = Policy(attributes={"x": "integer"}, rows={"t": "a = $x"}, shared=("u",))
    one = policy.bind("p", {"x": 1})
    assert one.scope == policy.bind("p", {"x": 1}).scope
    others = [
        policy.bind("p", {"x": 2}),
        policy.bind("q", {"x": 1}),
        policy.model_copy(update={"rows": {"t": "a <= $x"}}).bind("p", {"x": 1}),
        policy.model_copy(update={"shared": ()}).bind("p", {"x": 1}),
    ]
    assert len({one.scope, *(other.scope for other in others)}) == 5


def test_a_relation_that_is_not_listed_cannot_be_named() -> None:
    bound = Policy(rows={"t": "true"}, shared=("u",)).bind("p", {})
    assert bound.visible(["t", "u", "secret"]) == {"t", "u"}


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("p:\n  rows:\n    t: a = $x\n", 3, "no attribute $x"),
        ("p:\n  attributes: {x: integer}\n  rows:\n    t: a = '$x'\n", 4, "write '$' for attributes only"),
        ("p:\n  rows:\n    t: 'true) or (true'\n", 3, "p.rows.t"),
        ("p:\n  rows:\n    t: (select true from read_csv('/etc/passwd'))\n", 3, "read_csv"),
        ("p:\n  rows:\n    t: a = 1; drop table t\n", 3, "p.rows.t"),
        ("p:\n  rows: {t: 'true'}\n  shared: [t]\n", 3, "both shared and in rows"),
        ("p:\n  attributes: {x: float}\n", 2, "p.attributes.x"),
        ("p:\n  row: {}\n", 2, "p.row"),
        ("P-1:\n  rows: {}\n", 1, "lower_snake_case"),
        ("- p\n", 1, "expected a mapping"),
    ],
)
def test_a_wrong_declaration_is_said_with_its_line(tmp_path: Path, text: str, line: int, said: str) -> None:
    problems: list[Problem] = []
    path = tmp_path / "policies.yaml"
    path.write_text(text)
    load_policies(path, problems)
    assert [problem.line for problem in problems] == [line], problems
    assert said in problems[0].message
