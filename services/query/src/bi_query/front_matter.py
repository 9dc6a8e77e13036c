"""SQL files with YAML front matter: split, parsed, and every problem found with its file and line.

A file's first comment is its front matter, between `/*---` and `---*/`; the rest is one SELECT.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import yaml
from pydantic import BaseModel, ValidationError

from .errors import ConfigurationError
from .lines import shown
from .regular_files import read_small
from .sql_guard import too_deep

FRONT_MATTER_OPEN = "/*---"
FRONT_MATTER_CLOSE = "---*/"
NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
_NAME_RULE = "lower_snake_case (a letter, then letters, digits and _, 63 in all)"
_MAX_FILE_BYTES = 262_144
_MAX_YAML_DEPTH = 20
_MOST_FAULTS = 20
_Header = TypeVar("_Header", bound=BaseModel)


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a catalogue, at a 1-based line of a file."""

    path: Path
    line: int
    message: str

    def __str__(self) -> str:
        return shown(f"{self.path}:{self.line}: {self.message}")


class CatalogueError(ConfigurationError):
    """A catalogue that cannot be served; `problems` lists everything found."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


@dataclass(frozen=True)
class CatalogueFile:
    """A file taken apart. `header` is None without front matter; lines are 1-based."""

    path: Path
    header: Any
    header_node: yaml.Node | None
    header_line: int
    sql: str
    sql_line: int

    def line_of(self, *keys: object) -> int:
        """Line of the innermost front-matter key (or place in a list) of `keys` that exists."""
        node, line = self.header_node, self.header_line
        for key in keys:
            if isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
                node = node.value[key]
                line = self.header_line + node.start_mark.line
                continue
            if not isinstance(node, yaml.MappingNode):
                break
            for key_node, value_node in node.value:
                if key_node.value == str(key):
                    node, line = value_node, self.header_line + key_node.start_mark.line
                    break
            else:
                break
        return line


def read_yaml(path: Path, problems: list[Problem]) -> CatalogueFile | None:
    """A plain YAML mapping as a file that is all header; None after noting what is wrong."""
    try:
        node, document = _parsed(_text(path, path.parent))
    except yaml.YAMLError as error:
        problems.append(Problem(path, 1 + _yaml_line(error), f"not YAML: {_yaml_text(error)}"))
        return None
    except (OSError, ValueError) as error:
        problems.append(Problem(path, 1, f"cannot be read: {error}"))
        return None
    document = document or {}
    if not isinstance(document, dict):
        problems.append(Problem(path, 1, "expected a mapping of names to their settings"))
        return None
    file = CatalogueFile(path, document, node, 1, "", 1)
    problems.extend(_repeated_keys(file))
    return file


def read_sql_files(folder: Path, problems: list[Problem]) -> Iterator[CatalogueFile]:
    """The `*.sql` files of a folder that can be taken apart, by name; the others are noted."""
    for path in sorted(folder.glob("*.sql")):
        if not NAME.fullmatch(path.stem):
            problems.append(Problem(path, 1, f"the file name becomes the name: make it {_NAME_RULE}"))
            continue
        try:
            file = _split(path, _text(path, folder.parent))
        except yaml.YAMLError as error:
            problems.append(Problem(path, 1 + _yaml_line(error), f"front matter is not YAML: {_yaml_text(error)}"))
            continue
        except (OSError, ValueError) as error:
            problems.append(Problem(path, 1, str(error)))
            continue
        problems.extend(_repeated_keys(file))
        yield file


def _text(path: Path, catalogue: Path) -> str:
    """A file of a catalogue. Raises `OSError`, `ValueError` for what is no small text file of this very folder."""
    if not Path(os.path.realpath(path)).is_relative_to(catalogue.resolve()):  # resolve() raises on a link to itself
        raise ValueError("a symbolic link out of the catalogue folder, which is not followed; put the file there")
    return read_small(path, _MAX_FILE_BYTES).decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")


def _parsed(text: str) -> tuple[yaml.Node | None, Any]:
    """YAML's nodes, and what they stand for. Raises `yaml.YAMLError`, `ValueError`.

    Aliases are refused: a few lines of them stand for a document of gigabytes, or for one without end.
    """
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent) or depth > _MAX_YAML_DEPTH:
            fault = "nested too deeply" if depth > _MAX_YAML_DEPTH else "'*' and '&' are not read here; write it out"
            error = yaml.MarkedYAMLError(problem=fault)
            error.problem_mark = event.start_mark  # type: ignore[assignment]  # this loader's marks are the plain ones
            raise error
    return yaml.compose(text, Loader=yaml.SafeLoader), yaml.safe_load(text)


def _split(path: Path, text: str) -> CatalogueFile:
    start = len(text) - len(text.lstrip())
    first_line = text.count("\n", 0, start) + 1
    if not text.startswith(FRONT_MATTER_OPEN, start):
        return CatalogueFile(path, None, None, first_line, text[start:].strip(), first_line)
    end = text.find(FRONT_MATTER_CLOSE, start)
    if end < 0:
        raise ValueError(f"front matter opens with {FRONT_MATTER_OPEN} but never closes with {FRONT_MATTER_CLOSE}")
    # Blank lines in front keep YAML's line numbers those of the file.
    header = "\n" * (first_line - 1) + text[start + len(FRONT_MATTER_OPEN) : end]
    rest = text[end + len(FRONT_MATTER_CLOSE) :]
    sql_start = len(text) - len(rest.lstrip())
    node, document = _parsed(header)
    sql_line = text.count("\n", 0, sql_start) + 1
    return CatalogueFile(path, {} if document is None else document, node, 1, text[sql_start:].strip(), sql_line)


def validated(kind: type[_Header], file: CatalogueFile, problems: list[Problem], *keys: object) -> _Header | None:
    """The header (or its member at `keys`) as `kind`; None after noting each fault at its line."""
    value = file.header
    for key in keys:
        value = value[key]
    try:
        return kind.model_validate({} if value is None else value)
    except ValidationError as error:
        faults = error.errors()
        for entry in faults[:_MOST_FAULTS]:
            where = (*keys, *entry["loc"])
            text = ".".join(map(str, where)) or "front matter"
            problems.append(Problem(file.path, file.line_of(*where), f"{text}: {entry['msg']}"))
        if len(faults) > _MOST_FAULTS:
            problems.append(Problem(file.path, file.header_line, f"and {len(faults) - _MOST_FAULTS:,} faults more"))
        return None


class SelectParser:
    """Finds out, without any table, whether a file holds exactly one SELECT and which `$parameters` it uses."""

    def __init__(self) -> None:
        self._connection = duckdb.connect()

    def __enter__(self) -> SelectParser:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def parameters(self, file: CatalogueFile, problems: list[Problem]) -> frozenset[str] | None:
        """The parameter names of the file's SELECT, or None after noting what is wrong."""
        if not file.sql:
            problems.append(Problem(file.path, file.sql_line, "there is no SQL after the front matter"))
            return None
        if (position := too_deep(file.sql)) is not None:
            line = file.sql_line + file.sql[:position].count("\n")
            problems.append(Problem(file.path, line, "the SQL is nested too deeply"))
            return None
        try:
            statements = self._connection.extract_statements(file.sql)
        except duckdb.Error as error:
            line = file.sql_line + error_line(str(error))
            problems.append(Problem(file.path, line, str(error).splitlines()[0]))
            return None
        if len(statements) > 1:
            line = file.sql_line + file.sql[: _second_statement(file.sql, statements)].count("\n")
            problems.append(Problem(file.path, line, f"expected one SELECT, found {len(statements)} statements"))
            return None
        if not statements or statements[0].type not in (duckdb.StatementType.SELECT, duckdb.StatementType.MULTI):
            problems.append(Problem(file.path, file.sql_line, "expected exactly one SELECT statement"))
            return None
        return frozenset(statements[0].named_parameters)


def _second_statement(sql: str, statements: list[duckdb.Statement]) -> int:
    text = statements[1].query.strip()
    return max(0, sql.find(text, len(statements[0].query.rstrip(" \n;"))))


def error_line(message: str) -> int:
    """0-based line of a DuckDB error message's `LINE n:` marker, 0 without one."""
    match = re.search(r"^LINE (\d+):", message, re.MULTILINE)
    return int(match.group(1)) - 1 if match else 0


def _repeated_keys(file: CatalogueFile) -> Iterator[Problem]:
    """YAML lets the last of two equal keys win silently."""
    nodes = [file.header_node]
    while nodes:
        node = nodes.pop()
        if isinstance(node, yaml.SequenceNode):
            nodes.extend(node.value)
        elif isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in node.value:
                if str(key.value) in seen:
                    yield Problem(file.path, file.header_line + key.start_mark.line, f"{key.value!r} stands here twice")
                seen.add(str(key.value))
                nodes.append(value)


def _yaml_line(error: Exception) -> int:
    mark = getattr(error, "problem_mark", None)
    return int(mark.line) if mark is not None else 0


def _yaml_text(error: yaml.YAMLError) -> str:
    return str(getattr(error, "problem", None) or error).splitlines()[0]
