"""The catalogue: models and named queries as SQL files with YAML front matter. Load and validate.

Layout of a catalogue folder: `models/NAME.sql`, `queries/NAME.sql`, `freshness.yaml`, `policies.yaml`,
`vocabulary.yaml`. Problems are collected, not raised one by one, each with file and line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from .errors import ConfigurationError
from .front_matter import (
    FRONT_MATTER_OPEN,
    NAME,
    CatalogueError,
    CatalogueFile,
    Problem,
    SelectParser,
    read_sql_files,
    read_yaml,
    validated,
)
from .parameters import Parameter
from .phrases import PLACE, Language, Phrases
from .policies import Policy
from .policy_files import load_policies
from .says import Says, measure_faults, says_faults
from .vocabulary import Vocabulary, load_vocabulary

__all__ = ["Catalogue", "CatalogueError", "Freshness", "Model", "NamedQuery", "Problem", "load_catalogue"]

AD_HOC_CLASS = "ad_hoc"
_RESERVED_NAMES = frozenset({"ad_hoc"})  # the `query` label of ad-hoc SQL
_RESERVED_PARAMETERS = frozenset({"format"})  # ?format= chooses the answer's format


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
    timeout_seconds: float | None = Field(None, gt=0, allow_inf_nan=False)
    titles: dict[Language, str] = Field(default_factory=dict)
    ask: Phrases = ()
    says: Says = Field(default_factory=Says)
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
    """A governed SELECT with declared parameters. `digest` changes whenever the file does.

    `ask` are phrases in which people ask for it, in any language; `titles` the title in other languages than its own;
    `labels` what its columns and parameters are called in each language, where the vocabulary says so; `says` what of its
    result an answer in words speaks, `says_lines` where each column of that is declared.
    """

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
    ask: tuple[str, ...] = ()
    titles: Mapping[Language, str] = field(default_factory=dict)
    labels: Mapping[Language, Mapping[str, str]] = field(default_factory=dict)
    says: Says = field(default_factory=Says)
    says_lines: Mapping[tuple[object, ...], int] = field(default_factory=dict)

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
    policies: Mapping[str, Policy] = field(default_factory=dict)
    vocabulary: Vocabulary = field(default_factory=Vocabulary)

    @property
    def ad_hoc_freshness(self) -> Freshness:
        """How long an ad-hoc answer may be reused."""
        return self.freshness.get(AD_HOC_CLASS, DEFAULT_AD_HOC_FRESHNESS)


def load_catalogue(folder: Path | None) -> Catalogue:
    """Read and validate a catalogue folder (None: an empty catalogue). Raises `CatalogueError` with every problem."""
    if folder is None:
        return Catalogue()
    if not any((folder / part).exists() for part in ("queries", "models", "freshness.yaml", "policies.yaml")):
        what = "holds no queries/, models/ or freshness.yaml" if folder.is_dir() else "does not exist"
        raise ConfigurationError(
            f"catalogue folder {folder} {what}; set BI_CATALOGUE_DIR to a folder with queries/NAME.sql"
        )
    problems: list[Problem] = []
    freshness = _load_freshness(folder / "freshness.yaml", problems)
    models, queries = {}, {}
    files: list[CatalogueFile] = []
    policies = load_policies(folder / "policies.yaml", problems)
    with SelectParser() as parser:
        for file in read_sql_files(folder / "models", problems):
            if (model := _model(file, parser, problems)) is not None:
                models[model.name] = model
        for file in read_sql_files(folder / "queries", problems):
            if (query := _query(file, parser, freshness, problems)) is not None:
                queries[query.name] = query
                files.append(file)
    vocabulary = load_vocabulary(folder / "vocabulary.yaml", [query.parameters for query in queries.values()], problems)
    if not problems:  # else the words may be missing for another reason
        for file in files:
            problems += measure_faults(file, queries[file.path.stem].says, vocabulary.measures)
    if problems:
        raise CatalogueError(problems)
    queries = {name: replace(query, labels=vocabulary.labels) for name, query in queries.items()}
    return Catalogue(models, queries, freshness, policies, vocabulary)


def _load_freshness(path: Path, problems: list[Problem]) -> dict[str, Freshness]:
    file = read_yaml(path, problems) if path.exists() else None
    classes = {}
    for name in file.header if file is not None else ():
        if file is not None and (freshness := validated(Freshness, file, problems, name)) is not None:
            classes[str(name)] = freshness
    return classes


def _model(file: CatalogueFile, parser: SelectParser, problems: list[Problem]) -> Model | None:
    header = validated(_ModelHeader, file, problems)
    used = parser.parameters(file, problems)
    if header is None or used is None:
        return None
    if used:
        problems.append(Problem(file.path, file.sql_line, f"a model takes no parameters; it uses ${min(used)}"))
        return None
    return Model(
        file.path.stem, _bare(file.sql), file.path, file.sql_line, header.description.strip(), header.materialized
    )


def _query(
    file: CatalogueFile, parser: SelectParser, freshness: Mapping[str, Freshness], problems: list[Problem]
) -> NamedQuery | None:
    if file.header is None:
        problems.append(Problem(file.path, 1, f"no front matter: start the file with {FRONT_MATTER_OPEN} and a title"))
        return None
    before = len(problems)
    if file.path.stem in _RESERVED_NAMES:
        problems.append(Problem(file.path, 1, f"the name {file.path.stem!r} is taken by the service; rename the file"))
    header = validated(_QueryHeader, file, problems)
    used = parser.parameters(file, problems)
    if header is None or used is None:
        return None
    parameters = _parameters(file, header, problems)
    _compare_parameters(file, set(header.parameters), used, problems)
    for place, phrase in enumerate(header.ask):
        for name in set(PLACE.findall(phrase)) - set(header.parameters):
            line = file.line_of("ask", place)
            problems.append(Problem(file.path, line, f"ask: {phrase!r}: there is no parameter {name!r}"))
    problems += says_faults(file, header.says, parameters)
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
        header.ask,
        header.titles,
        says=header.says,
        says_lines={keys: file.line_of("says", *keys) for keys, _ in header.says.names()},
    )


def _parameters(file: CatalogueFile, header: _QueryHeader, problems: list[Problem]) -> dict[str, Parameter]:
    parameters = {}
    for name, declaration in header.parameters.items():
        fault = "" if NAME.fullmatch(name) else "the name is not lower_snake_case"
        if name in _RESERVED_PARAMETERS:
            fault = f"the name is taken: ?{name}= means something else"
        try:
            parameter = Parameter.declare(name, declaration)
            fault = fault or _declaration_fault(parameter)
        except (TypeError, ValueError) as error:
            fault = fault or str(error)
        if fault:
            line = file.line_of("parameters", name)
            problems.append(Problem(file.path, line, f"parameter {name!r}: {fault}"))
        else:
            parameters[name] = parameter
    return parameters


def _declaration_fault(parameter: Parameter) -> str:
    """What a declaration says that can never be met, beyond what `Parameter` refuses itself."""
    low, high = parameter.minimum, parameter.maximum
    if any(isinstance(value, datetime) for value in (low, high, parameter.default, *parameter.examples)):
        return "write dates without a time: 2017-01-31"
    if low is not None and high is not None and low > high:
        return f"minimum {low} is above maximum {high}"
    if not all(isinstance(choice, str) for choice in parameter.choices):
        return "choices must be texts; put quotes around them"
    if not isinstance(parameter.max_length, int) or parameter.max_length < 1:
        return "max_length must be a whole number from 1"
    return ""


def _compare_parameters(file: CatalogueFile, declared: set[str], used: frozenset[str], problems: list[Problem]) -> None:
    for name in sorted(used - declared):
        line = file.sql_line + file.sql[: max(0, file.sql.find(f"${name}"))].count("\n")
        problems.append(Problem(file.path, line, f"the SQL uses ${name}, which the front matter does not declare"))
    for name in sorted(declared - used):
        message = f"parameter {name!r} is declared but the SQL never uses ${name}"
        problems.append(Problem(file.path, file.line_of("parameters", name), message))


def _bare(sql: str) -> str:
    return sql.rstrip().rstrip(";").rstrip()
