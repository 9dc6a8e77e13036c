"""The catalogue: models and named queries as SQL files with YAML front matter. Load, validate, bind.

Layout of a catalogue folder: `models/NAME.sql`, `queries/NAME.sql`, `freshness.yaml`. A file's first comment is its
front matter, between `/*---` and `---*/`. Problems are collected, not raised one by one, each with file and line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, TypeVar

import duckdb
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import ConfigurationError
from .parameters import Parameter

FRONT_MATTER_OPEN = "/*---"
FRONT_MATTER_CLOSE = "---*/"
NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
AD_HOC_CLASS = "ad_hoc"
_Header = TypeVar("_Header", bound=BaseModel)


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a catalogue, at a 1-based line of a file."""

    path: Path
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.message}"


class CatalogueError(ConfigurationError):
    """A catalogue that cannot be served; `problems` lists everything found."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


class Freshness(BaseModel):
    """A freshness class: an answer is fresh for `fresh_seconds`, then usable while refreshed for `stale_seconds` more."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    fresh_seconds: float = Field(ge=0, le=31_536_000)
    stale_seconds: float = Field(0, ge=0, le=31_536_000)


DEFAULT_AD_HOC_FRESHNESS = Freshness(fresh_seconds=60, stale_seconds=0)


class _QueryHeader(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    title: str = Field(min_length=1, max_length=200)
    description: str = ""
    freshness: str
    timeout_seconds: float | None = Field(None, gt=0)
    parameters: dict[str, dict[str, Any]] = Field(default_factory=dict)


class _ModelHeader(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    description: str = ""
    materialized: Literal["table", "view"] = "table"


@dataclass(frozen=True)
class Model:
    """A SELECT whose result becomes relation `name` of the snapshot at publish time."""

    name: str
    sql: str
    path: Path
    sql_line: int
    description: str = ""
    materialized: Literal["table", "view"] = "table"


@dataclass(frozen=True)
class NamedQuery:
    """A governed SELECT with declared parameters. `digest` changes whenever the file does."""

    name: str
    title: str
    description: str
    freshness_class: str
    freshness: Freshness
    timeout_seconds: float | None
    parameters: Mapping[str, Parameter]
    sql: str
    path: Path
    sql_line: int
    digest: str

    def describe(self) -> dict[str, Any]:
        """The catalogue entry as `GET /api/v1/queries` gives it."""
        return {
            "name": self.name,
            "title": self.title,
            "description": self.description,
            "freshness": {"class": self.freshness_class, **self.freshness.model_dump()},
            "timeout_seconds": self.timeout_seconds,
            "parameters": [parameter.describe() for parameter in self.parameters.values()],
        }


@dataclass(frozen=True)
class Catalogue:
    """What a folder declares; empty when a deployment has none."""

    models: Mapping[str, Model] = field(default_factory=dict)
    queries: Mapping[str, NamedQuery] = field(default_factory=dict)
    freshness: Mapping[str, Freshness] = field(default_factory=dict)

    @property
    def ad_hoc_freshness(self) -> Freshness:
        """How long an ad-hoc answer may be reused."""
        return self.freshness.get(AD_HOC_CLASS, DEFAULT_AD_HOC_FRESHNESS)


@dataclass(frozen=True)
class _File:
    path: Path
    header: Any
    header_node: yaml.Node | None
    header_line: int
    sql: str
    sql_line: int

    def line_of(self, *keys: object) -> int:
        """Line of the innermost front-matter key of `keys` that exists."""
        node, line = self.header_node, self.header_line
        for key in keys:
            if not isinstance(node, yaml.MappingNode):
                break
            for key_node, value_node in node.value:
                if key_node.value == str(key):
                    node, line = value_node, self.header_line + key_node.start_mark.line
                    break
            else:
                break
        return line


def load_catalogue(folder: Path | None) -> Catalogue:
    """Read and validate a catalogue folder (None: an empty catalogue). Raises `CatalogueError` with every problem."""
    if folder is None:
        return Catalogue()
    if not folder.is_dir():
        raise ConfigurationError(
            f"catalogue folder {folder} does not exist; set BI_CATALOGUE_DIR to a folder with queries/*.sql"
        )
    problems: list[Problem] = []
    freshness = _load_freshness(folder / "freshness.yaml", problems)
    models = {}
    for file in _read_files(folder / "models", problems):
        if (model := _model(file, problems)) is not None:
            models[model.name] = model
    queries = {}
    for file in _read_files(folder / "queries", problems):
        if (query := _query(file, freshness, problems)) is not None:
            queries[query.name] = query
    if problems:
        raise CatalogueError(problems)
    return Catalogue(models, queries, freshness)


def _load_freshness(path: Path, problems: list[Problem]) -> dict[str, Freshness]:
    if not path.exists():
        return {}
    try:
        text = path.read_text(encoding="utf-8")
        document = yaml.safe_load(text) or {}
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        problems.append(Problem(path, _yaml_line(error), f"not readable YAML: {error}"))
        return {}
    if not isinstance(document, dict):
        problems.append(Problem(path, 1, "expected a mapping of class name to fresh_seconds and stale_seconds"))
        return {}
    file = _File(path, document, node, 1, "", 1)
    classes = {}
    for name, value in document.items():
        try:
            classes[str(name)] = Freshness.model_validate(value)
        except ValidationError as error:
            problems.extend(_validation_problems(file, error, (name,)))
    return classes


def _read_files(folder: Path, problems: list[Problem]) -> Iterable[_File]:
    for path in sorted(folder.glob("*.sql")):
        if not NAME.fullmatch(path.stem):
            problems.append(Problem(path, 1, "the file name must be lower_snake_case: it becomes the name"))
            continue
        try:
            yield _split(path, path.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            problems.append(Problem(path, 1 + _yaml_line(error), f"front matter is not YAML: {_yaml_text(error)}"))
        except (OSError, UnicodeDecodeError, ValueError) as error:
            problems.append(Problem(path, 1, str(error)))


def _split(path: Path, text: str) -> _File:
    start = len(text) - len(text.lstrip())
    first_line = text.count("\n", 0, start) + 1
    if not text.startswith(FRONT_MATTER_OPEN, start):
        return _File(path, None, None, first_line, text[start:].strip(), first_line)
    end = text.find(FRONT_MATTER_CLOSE, start)
    if end < 0:
        raise ValueError(f"front matter opens with {FRONT_MATTER_OPEN} but never closes with {FRONT_MATTER_CLOSE}")
    header = text[start + len(FRONT_MATTER_OPEN) : end]
    rest = text[end + len(FRONT_MATTER_CLOSE) :]
    sql_start = len(text) - len(rest.lstrip())
    node = yaml.compose(header, Loader=yaml.SafeLoader)
    return _File(
        path,
        yaml.safe_load(header) or {},
        node,
        first_line,
        text[sql_start:].strip(),
        text.count("\n", 0, sql_start) + 1,
    )


def _model(file: _File, problems: list[Problem]) -> Model | None:
    header = _validated(_ModelHeader, file.header or {}, file, problems)
    if header is None or _one_select(file, problems) is None:
        return None
    return Model(file.path.stem, _bare(file.sql), file.path, file.sql_line, header.description, header.materialized)


def _query(file: _File, freshness: Mapping[str, Freshness], problems: list[Problem]) -> NamedQuery | None:
    if file.header is None:
        problems.append(Problem(file.path, 1, f"no front matter: start the file with {FRONT_MATTER_OPEN} and a title"))
        return None
    header = _validated(_QueryHeader, file.header, file, problems)
    used = _one_select(file, problems)
    if header is None or used is None:
        return None
    before = len(problems)
    parameters = {}
    for name, declaration in header.parameters.items():
        if not NAME.fullmatch(str(name)):
            problems.append(
                Problem(file.path, file.line_of("parameters", name), f"parameter {name!r} is not lower_snake_case")
            )
            continue
        try:
            parameters[name] = Parameter.declare(name, declaration)
        except ValueError as error:
            problems.append(Problem(file.path, file.line_of("parameters", name), f"parameter {name!r}: {error}"))
    for name in sorted(used - set(header.parameters)):
        problems.append(
            Problem(file.path, file.sql_line, f"the SQL uses ${name}, which the front matter does not declare")
        )
    for name in sorted(set(header.parameters) - used):
        message = f"parameter {name!r} is declared but the SQL never uses ${name}"
        problems.append(Problem(file.path, file.line_of("parameters", name), message))
    if header.freshness not in freshness:
        known = ", ".join(sorted(freshness)) or "none: add freshness.yaml"
        message = f"unknown freshness class {header.freshness!r} (known: {known})"
        problems.append(Problem(file.path, file.line_of("freshness"), message))
    if len(problems) > before:
        return None
    return NamedQuery(
        file.path.stem,
        header.title,
        header.description.strip(),
        header.freshness,
        freshness[header.freshness],
        header.timeout_seconds,
        parameters,
        _bare(file.sql),
        file.path,
        file.sql_line,
        blake2b(repr((file.header, file.sql)).encode(), digest_size=6).hexdigest(),
    )


def _bare(sql: str) -> str:
    return sql.rstrip().rstrip(";").rstrip()


def _one_select(file: _File, problems: list[Problem]) -> frozenset[str] | None:
    """The parameter names of the file's single SELECT, or None after noting what is wrong."""
    if not file.sql:
        problems.append(Problem(file.path, file.sql_line, "there is no SQL after the front matter"))
        return None
    try:
        with duckdb.connect() as connection:
            statements = connection.extract_statements(file.sql)
    except duckdb.Error as error:
        problems.append(Problem(file.path, file.sql_line + sql_error_line(str(error)), str(error).splitlines()[0]))
        return None
    if len(statements) != 1 or statements[0].type not in (duckdb.StatementType.SELECT, duckdb.StatementType.MULTI):
        problems.append(Problem(file.path, file.sql_line, "expected exactly one SELECT statement"))
        return None
    return frozenset(statements[0].named_parameters)


def sql_error_line(message: str) -> int:
    """0-based line of a DuckDB error message's `LINE n:` marker, 0 without one."""
    match = re.search(r"^LINE (\d+):", message, re.MULTILINE)
    return int(match.group(1)) - 1 if match else 0


def _validated(kind: type[_Header], value: object, file: _File, problems: list[Problem]) -> _Header | None:
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        problems.extend(_validation_problems(file, error, ()))
        return None


def _validation_problems(file: _File, error: ValidationError, prefix: tuple[object, ...]) -> Iterable[Problem]:
    for entry in error.errors():
        keys = (*prefix, *entry["loc"])
        where = ".".join(map(str, keys)) or "front matter"
        yield Problem(file.path, file.line_of(*keys), f"{where}: {entry['msg']}")


def _yaml_line(error: Exception) -> int:
    mark = getattr(error, "problem_mark", None)
    return int(mark.line) if mark is not None else 0


def _yaml_text(error: yaml.YAMLError) -> str:
    return str(getattr(error, "problem", None) or error).splitlines()[0]
