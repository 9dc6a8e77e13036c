"""The question set: what is asked, and what has to come back. The file says what its keys mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

Language = Literal["pt", "en"]
Kind = Literal["named", "cannot_answer", "sql"]
QUESTIONS = Path(__file__).with_name("questions.yaml")
_KEY_OF_KIND: dict[Kind, str] = {"named": "query", "cannot_answer": "cannot_answer", "sql": "result"}
_CHOICE_KEYS = {"query", "params", "may"}
_KEYS = _CHOICE_KEYS | {"id", "language", "question", "or", "cannot_answer", "result", "ordered", "sql", "says"}


@dataclass(frozen=True)
class Choice:
    """A named query that answers a question: `params` must be chosen, `may` holds other values of parameters left open."""

    query: str
    params: Mapping[str, Any]
    may: Mapping[str, Sequence[Any]]

    def __str__(self) -> str:
        return shown(self.query, self.params)


@dataclass(frozen=True)
class Question:
    """`choices` are of a named question, `result` (rows) and `sql` (which gives them) of one that only SQL answers.

    `says` are the texts that the answer's sentence must hold; of most questions it is not graded.
    """

    id: str
    language: Language
    text: str
    kind: Kind
    choices: tuple[Choice, ...] = ()
    result: tuple[tuple[Any, ...], ...] = ()
    ordered: bool = False
    sql: str = ""
    says: tuple[str, ...] = ()


def shown(query: str, params: Mapping[str, Any]) -> str:
    """`query(name=value, …)`, without parameters that are not set."""
    return f"{query}({', '.join(f'{name}={value}' for name, value in sorted(params.items()) if value is not None)})"


def load_questions(path: Path = QUESTIONS) -> list[Question]:
    """The set. Raises OSError, yaml.YAMLError, or ValueError naming the question that is at fault."""
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    questions = [_question(entry) for entry in document["questions"]]
    ids = [question.id for question in questions]
    if repeated := {name for name in ids if ids.count(name) > 1}:
        raise ValueError(f"questions named alike: {', '.join(sorted(repeated))}")
    return questions


def _question(entry: Mapping[str, Any]) -> Question:
    name = str(entry.get("id"))
    if unknown := set(entry) - _KEYS:
        raise ValueError(f"{name}: unknown keys {sorted(unknown)}")
    if entry["language"] not in get_args(Language):
        raise ValueError(f"{name}: language is one of {', '.join(get_args(Language))}")
    kinds = [kind for kind, key in _KEY_OF_KIND.items() if key in entry]
    if len(kinds) != 1:
        raise ValueError(f"{name}: needs exactly one of query, cannot_answer, result")
    if (kinds[0] == "sql") != ("sql" in entry):
        raise ValueError(f"{name}: a result needs the SQL that gives it, and only a result does")
    says = entry.get("says", [])
    are_texts = isinstance(says, list) and all(isinstance(text, str) and text for text in says)
    if not are_texts or (says and kinds[0] != "named"):
        raise ValueError(f"{name}: says is a list of texts, of a question that a named query answers")
    return Question(
        id=name,
        language=entry["language"],
        text=entry["question"],
        kind=kinds[0],
        choices=tuple(_choice(name, choice) for choice in (entry, *entry.get("or", ()))) if "query" in entry else (),
        result=tuple(tuple(row) for row in entry.get("result", ())),
        ordered=entry.get("ordered", False),
        sql=entry.get("sql", ""),
        says=tuple(says),
    )


def _choice(name: str, entry: Mapping[str, Any]) -> Choice:
    choice = Choice(entry["query"], entry.get("params", {}), entry.get("may", {}))
    if both := set(choice.params) & set(choice.may):
        raise ValueError(f"{name}: {', '.join(sorted(both))} cannot be both stated and left open")
    return choice
