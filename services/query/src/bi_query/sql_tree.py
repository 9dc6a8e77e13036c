"""The walk over DuckDB's syntax tree of one SELECT: decided node by node, and what is not known is refused.

The tree is the JSON of `json_serialize_sql`. Expressions carry a `class`; query nodes, table references and
modifiers a `type`; every other object only has keys. Listed below are the classes, types and keys that the
trees of SELECTs have in DuckDB 2.0 (seen in 29,000 of them), less those of INSERT, UPDATE, DELETE and COPY,
which a CTE may hold in a statement that DuckDB itself calls a SELECT, and less DEFAULT.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from .sql_arguments import TYPES, broken_rule, json_path, literal
from .sql_functions import EXPRESSION_FUNCTIONS, TABLE_FUNCTIONS

_EXPRESSION_CLASSES_TEXT = """
BETWEEN CASE CAST COLLATE COLUMN_REF COMPARISON CONJUNCTION CONSTANT FUNCTION LAMBDA OPERATOR PARAMETER
POSITIONAL_REFERENCE STAR SUBQUERY TYPE WINDOW
"""
_NODE_TYPES_TEXT = """
SELECT_NODE SET_OPERATION_NODE RECURSIVE_CTE_NODE BASE_TABLE EMPTY EXPRESSION_LIST JOIN PIVOT SHOW_REF
SUBQUERY TABLE_FUNCTION DISTINCT_MODIFIER LIMIT_MODIFIER ORDER_MODIFIER ASCENDING DESCENDING ORDER_DEFAULT
"""
_KEYS_TEXT = """
aggregate_handling aggregates alias aliases arg_orders arguments at_clause case_checks catalog catalog_name
child children class collation column column_name_alias column_names columns comparison_type condition
cte_map cte_name default_expr delim_flipped distinct distinct_on_targets duplicate_eliminated_columns
else_expr end end_expr entries exclude_clause exclude_list expected_names expected_types export_state expr
expression filter filter_expr from_table function function_name group_expressions group_sets groups
has_ignore_nulls having id identifier ignore_nulls include_nulls index input is_implicit is_null is_operator
is_percentage join_type key key_targets kind left lhs limit limit_type literal lower map materialized method
modifiers name named_param_map nearest_approx nearest_count nearest_order_type node null_order offset
offset_expr order_bys orders partitions path payload_aggregates pivot_enum pivot_expressions pivots
qualified_exclude_list qualified_name qualify query query_location query_location_length query_node
ranking_expression ref_type relation_name rename_list repeatable replace_list right sample sample_rate
sample_size schema schema_name seed select_list setop_all setop_type show_type source star_expr start
start_expr subquery subquery_type syntax_type table table_name text then_expr try_cast type type_expr
type_info type_name union_all unpivot_names upper using_columns value values when_expr where_clause
with_ordinality
"""
EXPRESSION_CLASSES = frozenset(_EXPRESSION_CLASSES_TEXT.split())
NODE_TYPES = frozenset(_NODE_TYPES_TEXT.split())
KEYS = frozenset(_KEYS_TEXT.split())

_NO_LOCATION = 2**64 - 1
# What makes DuckDB look for a file or another database behind a name. No CTE may be called so.
_FILE_CHARACTERS = frozenset("./\\:*?[]")
_SYSTEM_PREFIXES = ("duckdb_", "pg_", "pragma_", "sqlite_")

Node = dict[str, Any]
Scope = frozenset[str]


class TreeError(Exception):
    """A refusal while walking. `offset` counts BYTES of the SQL text in UTF-8, None where there is none."""

    def __init__(self, code: str, detail: str, offset: int | None = None) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.offset = offset


def fold(name: str) -> str:
    """Case folding as DuckDB's catalogue does it: ASCII letters only."""
    return name.encode("utf-8", "surrogatepass").lower().decode("utf-8", "surrogatepass")


class Walk:
    """One pass over a statement's tree; afterwards `tables` and `parameters` hold what it reads.

    `relations` maps folded names to names as the snapshot spells them; `qualified` allows `main.` in front of them.
    """

    def __init__(self, relations: Mapping[str, str], *, qualified: bool) -> None:
        self._relations = relations
        self._qualified = qualified
        self._stack: list[tuple[Any, Scope, int | None]] = []
        self.tables: set[str] = set()
        self.parameters: set[str] = set()

    def run(self, statement: Node) -> None:
        """Raises TreeError at the first thing that is not allowed."""
        self._stack.append((statement, frozenset(), None))
        while self._stack:
            value, scope, offset = self._stack.pop()
            if isinstance(value, dict):
                self._visit(value, scope, offset)
            elif isinstance(value, list):
                self._stack.extend((item, scope, offset) for item in reversed(value) if _is_inner(item))

    def _visit(self, node: Node, scope: Scope, offset: int | None) -> None:
        location = node.get("query_location", _NO_LOCATION)
        offset = offset if location == _NO_LOCATION else location
        kind = _kind(node, offset)
        if "cte_map" in node:
            scope = self._enter_ctes(node, scope, offset)
        skip: tuple[str, ...] = ("cte_map",)
        if kind in ("FUNCTION", "WINDOW"):
            _check_function(node, EXPRESSION_FUNCTIONS, "", offset)
        elif kind == "TYPE":
            _check_type(node, offset)
        elif kind == "LAMBDA":
            _check_arrow(node, offset)
        elif kind == "PARAMETER":
            self.parameters.add(node["identifier"])
        elif kind == "BASE_TABLE":
            self._check_table(node, scope, offset)
        elif kind == "TABLE_FUNCTION":
            self._enter_table_function(node, scope, offset)
            skip = ("cte_map", "function")
        elif kind == "SHOW_REF":
            _check_show(node, offset)
        elif kind == "RECURSIVE_CTE_NODE":
            self._stack.append((node["right"], scope | {fold(node["cte_name"])}, offset))
            skip = ("cte_map", "right")
        elif node.get("pivot_enum"):
            raise TreeError("forbidden_construct", "PIVOT over an ENUM: list its values in IN (...).", offset)
        for key, value in node.items():
            if key not in skip and _is_inner(value):
                self._stack.append((value, scope, offset))

    def _enter_ctes(self, node: Node, scope: Scope, offset: int | None) -> Scope:
        """Each CTE sees those before it, not itself (a recursive one does: see RECURSIVE_CTE_NODE)."""
        for entry in node["cte_map"]["map"]:
            name = fold(entry["key"])
            if _FILE_CHARACTERS.intersection(name):
                raise TreeError("forbidden_table", f"A CTE may not be called {_shown(name)}.", offset)
            self._stack.append((entry["value"], scope, offset))
            scope = scope | {name}
        return scope

    def _enter_table_function(self, node: Node, scope: Scope, offset: int | None) -> None:
        function = node["function"]
        if function.get("class") != "FUNCTION":
            raise TreeError("forbidden_construct", "This is not allowed in FROM.", offset)
        _kind(function, offset)
        _check_function(function, TABLE_FUNCTIONS, " in FROM", offset)
        self._stack.extend((value, scope, offset) for value in function.values() if _is_inner(value))

    def _check_table(self, node: Node, scope: Scope, offset: int | None) -> None:
        path = [fold(part) for part in node["qualified_name"]["path"]]
        name = path[-1] if path else ""
        if name != fold(node["table_name"]):
            raise TreeError("forbidden_construct", "This table reference is not understood.", offset)
        if node["at_clause"] is not None:
            raise TreeError("forbidden_construct", "AT (...) is not allowed.", offset)
        if len(path) == 1 and name in scope:
            return
        if len(path) == 2 and path[0] == "recurring" and name in scope:
            return
        if (len(path) == 1 or (self._qualified and path[:-1] == ["main"])) and name in self._relations:
            self.tables.add(self._relations[name])
            return
        raise self._no_table(path, offset)

    def _no_table(self, path: list[str], offset: int | None) -> TreeError:
        shown = _shown(".".join(path))
        outside = len(path) > 1 and path[:-1] != ["main"]
        if outside or path[-1].startswith(_SYSTEM_PREFIXES) or _FILE_CHARACTERS.intersection(path[-1]):
            detail = f"{shown} is not a table of the snapshot; files and system tables are not readable."
            return TreeError("forbidden_table", detail, offset)
        close = difflib.get_close_matches(path[-1][:64], self._relations, n=1)
        hint = f" Did you mean {self._relations[close[0]]}?" if close else ""
        return TreeError("unknown_table", f"There is no table {shown}.{hint}", offset)


def _kind(node: Node, offset: int | None) -> str | None:
    """The expression class or node type, "" for a plain object; refuses kinds and keys that are not known."""
    unknown = node.keys() - KEYS
    kind = node.get("class")
    if kind is None:
        kind = node.get("type")
        # Values (a sample's size) carry their SQL type here, as an object.
        kind = kind if isinstance(kind, str) else ""
        known = kind in NODE_TYPES or kind == ""
    else:
        known = kind in EXPRESSION_CLASSES
    if not known or unknown:
        what = str(kind) if not known else sorted(unknown)[0]
        words = what.removesuffix("_QUERY_NODE").removesuffix("_NODE").replace("_", " ")
        raise TreeError("forbidden_construct", f"{words} is not allowed in a query.", offset)
    return kind


def _check_function(node: Node, allowed: frozenset[str], where: str, offset: int | None) -> None:
    path = [fold(part) for part in node["qualified_name"]["path"]]
    name = path[-1] if path else ""
    if name != fold(node["function_name"]) or name not in allowed:
        raise TreeError("forbidden_function", f"Function {_shown(name)} is not allowed{where}.", offset)
    if node.get("export_state"):
        raise TreeError("forbidden_construct", "EXPORT_STATE is not allowed.", offset)
    wrong = broken_rule(name, len(path) > 1, node["arguments"]) if allowed is EXPRESSION_FUNCTIONS else None
    if wrong is not None:
        raise TreeError("forbidden_function", wrong, offset)


def _check_type(node: Node, offset: int | None) -> None:
    path = [fold(part) for part in node["qualified_name"]["path"]]
    if len(path) != 1 or path[0] != fold(node["type_name"]) or path[0] not in TYPES:
        raise TreeError("forbidden_construct", f"Type {_shown('.'.join(path))} is not allowed.", offset)


def _check_arrow(node: Node, offset: int | None) -> None:
    """To the parser `x -> y` is a lambda in its old spelling, which DuckDB 2 binds as JSON extraction only."""
    if node["syntax_type"] == "SINGLE_ARROW" and not literal(node["expr"], json_path):
        detail = "After -> a JSON key or path must be written out; a lambda is written lambda x: ..."
        raise TreeError("forbidden_construct", detail, offset)


def _check_show(node: Node, offset: int | None) -> None:
    """DESCRIBE and SUMMARIZE of something the walk checks too; no SHOW, which lists the catalogue."""
    if node["show_type"] not in ("DESCRIBE", "SUMMARY") or not isinstance(node["query"], dict):
        raise TreeError("forbidden_construct", "SHOW is not allowed: ask GET /api/v1/tables.", offset)


def _is_inner(value: object) -> bool:
    return isinstance(value, (dict, list))


def _shown(name: str) -> str:
    return name if len(name) <= 80 else name[:77] + "..."
