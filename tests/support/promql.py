"""Just enough of PromQL's syntax to lint queries: which series an expression reads, and how.

Whether an expression parses at all is asked of promtool; this only looks at expressions that do.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|\$\{?\w+(?::\w+)?\}?|[a-zA-Z_:][\w:]*|\d[\w.]*|[=!]~|[!=<>]=|\S')
NAME = re.compile(r"[a-zA-Z_:][\w:]*")
GROUPINGS = {"by", "without", "on", "ignoring", "group_left", "group_right"}
KEYWORDS = GROUPINGS | {"and", "or", "unless", "bool", "offset", "inf", "nan"}
AGGREGATIONS = {"sum", "max", "min", "avg", "count", "group", "topk", "bottomk", "quantile", "stddev", "stdvar"}


@dataclass(frozen=True)
class Selector:
    """One series selector. `inside` lists the functions and aggregations around it, the innermost last."""

    metric: str
    matchers: dict[str, str] = field(default_factory=dict)  # label -> operator and value, as in `=~"$job"`
    window: str = ""  # the text between the brackets of a range selector
    inside: tuple[str, ...] = ()


def selectors(expr: str) -> list[Selector]:
    """Every series selector of `expr`, Grafana variables still in it."""
    return list(_walk(TOKEN.findall(expr)))


def numbers(expr: str) -> list[str]:
    """Number literals outside strings, ranges and the quantile of `histogram_quantile`."""
    tokens = TOKEN.findall(expr)
    found = []
    for at, token in enumerate(tokens):
        before = tokens[max(0, at - 2) : at]
        if token[0].isdigit() and before[-1:] != ["["] and before != ["histogram_quantile", "("]:
            found.append(token)
    return found


def quantiles(expr: str) -> list[str]:
    """The quantiles asked of `histogram_quantile`."""
    return re.findall(r"histogram_quantile\((\d[\d.]*)", expr)


def parse_errors(exprs: list[str], folder: Path) -> list[str]:
    """What promtool says against `exprs`; empty when all of them parse. `folder` holds a scratch file."""
    rules = "".join(f"  - record: q{at}\n    expr: {_quoted(expr)}\n" for at, expr in enumerate(exprs))
    path = folder / "dashboards.rules.yaml"
    path.write_text(f"groups:\n- name: dashboards\n  rules:\n{rules}", encoding="utf-8")
    command = ["promtool", "check", "rules", "--lint=none", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode == 0:
        return []
    return [line.strip() for line in done.stderr.splitlines() if line.strip()]


def _quoted(expr: str) -> str:
    return "'" + expr.replace("'", "''") + "'"


def _walk(tokens: list[str]) -> Iterator[Selector]:
    inside: list[str] = []  # one entry per open parenthesis: the function before it, or ""
    pending = ""
    at = 0
    while at < len(tokens):
        token = tokens[at]
        following = tokens[at + 1] if at + 1 < len(tokens) else ""
        if token in GROUPINGS and following == "(":
            at = tokens.index(")", at)  # label lists are not selectors
        elif token == "(":
            inside.append(pending)
            pending = ""
        elif token == ")":
            inside.pop()
        elif NAME.fullmatch(token) and token not in KEYWORDS:
            if following == "(" or token in AGGREGATIONS:
                pending = token
            else:
                selector, at = _selector(tokens, at, tuple(name for name in inside if name))
                yield selector
        elif token == "[":  # a subquery's range
            at = tokens.index("]", at)
        at += 1


def _selector(tokens: list[str], at: int, inside: tuple[str, ...]) -> tuple[Selector, int]:
    """The selector that starts at token `at`, and the position of its last token."""
    metric, matchers, window = tokens[at], {}, ""
    if tokens[at + 1 : at + 2] == ["{"]:
        end = tokens.index("}", at)
        body = [token for token in tokens[at + 2 : end] if token != ","]
        matchers = {body[i]: body[i + 1] + body[i + 2] for i in range(0, len(body), 3)}
        at = end
    if tokens[at + 1 : at + 2] == ["["]:
        end = tokens.index("]", at)
        window = "".join(tokens[at + 2 : end])
        at = end
    return Selector(metric, matchers, window, inside), at
