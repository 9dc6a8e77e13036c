"""What a model's server sent, read with suspicion: a choice of one tool, a refusal, or rubbish."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..http_io import is_clean, is_scalar
from ..parameters import texts
from .budget import Tokens

RUN_QUERY, RUN_SQL, CANNOT_ANSWER = "run_query", "run_sql", "cannot_answer"
_BYTES_PER_TOKEN = 4  # of English and SQL; only where a server does not count


class Malformed(Exception):
    """A reply that cannot be used; the text says why."""


class CutShort(Malformed):
    """A reply that used up its tokens before it called a tool: a model that thinks first may, and would again."""


@dataclass(frozen=True)
class RunQuery:
    """Run a named query, with parameters as a query string would bring them."""

    name: str
    parameters: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class RunSql:
    """Run one SELECT."""

    sql: str


@dataclass(frozen=True)
class CannotAnswer:
    """The tables do not hold the answer, or the model declined."""


Choice = RunQuery | RunSql | CannotAnswer


@dataclass(frozen=True)
class Reply:
    """What the model chose. `is_refusal`: it used no tool to say so."""

    choice: Choice
    call_id: str = ""
    arguments: str = ""
    is_refusal: bool = False

    def with_error(self, text: str) -> list[dict[str, Any]]:
        """The messages that tell the model what became of its call."""
        name = RUN_QUERY if isinstance(self.choice, RunQuery) else RUN_SQL
        call = {"id": self.call_id, "type": "function", "function": {"name": name, "arguments": self.arguments}}
        return [
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": self.call_id, "content": text},
        ]


def reply_of(document: object) -> Reply:
    """The choice in a chat completion. Raises `Malformed`, `CutShort`."""
    choices = _member(document, "choices", list)
    if not choices:
        raise Malformed("no choices")
    is_cut = _mapping(choices[0]).get("finish_reason") == "length"
    try:
        reply = _reply(choices)
    except Malformed as error:
        if is_cut:
            raise CutShort(str(error)) from error
        raise
    if reply.is_refusal and is_cut:
        raise CutShort("its text was no tool call yet")
    return reply


def _reply(choices: Sequence[object]) -> Reply:
    message = _member(choices[0], "message", dict)
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list) or not calls:
        if isinstance(message.get("refusal") or message.get("content"), str):
            return Reply(CannotAnswer(), is_refusal=True)
        if _mapping(choices[0]).get("finish_reason") == "content_filter":
            return Reply(CannotAnswer(), is_refusal=True)
        raise Malformed("neither a tool call nor text")
    call = _member(calls[0], "function", dict)
    arguments = call.get("arguments")
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)  # some servers send the object itself
    call_id = _mapping(calls[0]).get("id")
    choice = _choice(call.get("name"), text)
    return Reply(choice, call_id if isinstance(call_id, str) and call_id else "call_0", text)


def _choice(name: object, text: str) -> Choice:
    try:
        arguments = _mapping(json.loads(text or "{}"))
    except (ValueError, RecursionError) as error:
        raise Malformed("the tool's arguments are not JSON") from error
    if name == CANNOT_ANSWER:
        return CannotAnswer()
    if name == RUN_SQL:
        return RunSql(_clean(_member(arguments, "sql", str)))
    if name == RUN_QUERY:
        parameters = arguments.get("parameters")
        parameters = {} if parameters is None else parameters
        if not isinstance(parameters, dict) or not all(is_scalar(value) for value in parameters.values()):
            raise Malformed("the query's parameters are no object of texts, numbers and booleans")
        return RunQuery(_clean(_member(arguments, "name", str)), tuple(texts(parameters)))
    raise Malformed(f"there is no tool {str(name)[:60]!r}")


def choice_text(choice: Choice) -> str:
    """A choice as text that `choice_from` reads again."""
    if isinstance(choice, RunSql):
        return json.dumps({"tool": RUN_SQL, "arguments": {"sql": choice.sql}})
    if isinstance(choice, RunQuery):
        arguments = {"name": choice.name, "parameters": dict(choice.parameters)}
        return json.dumps({"tool": RUN_QUERY, "arguments": arguments})
    return json.dumps({"tool": CANNOT_ANSWER, "arguments": {}})


def choice_from(text: str) -> Choice:
    """Inverse of `choice_text`. Raises `Malformed`."""
    try:
        document = _mapping(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise Malformed("not JSON") from error
    return _choice(document.get("tool"), json.dumps(document.get("arguments")))


def _member(document: object, name: str, kind: type[Any]) -> Any:
    value = _mapping(document).get(name)
    if not isinstance(value, kind):
        raise Malformed(f"{name!r} is missing or something else")
    return value


def _mapping(document: object) -> Mapping[str, Any]:
    if not isinstance(document, Mapping):
        raise Malformed("no JSON object where one belongs")
    return document


def _clean(text: str) -> str:
    if not is_clean(text):
        raise Malformed("a text with a NUL character or half of a surrogate pair")
    return text


def tokens_of(document: object, asked: str) -> Tokens:
    """What a completion used: as the server says, else estimated from the bytes of `asked` and of the reply."""
    usage = document.get("usage") if isinstance(document, Mapping) else None
    prompt, completion = (_count(usage, name) for name in ("prompt_tokens", "completion_tokens"))
    if prompt is not None and completion is not None:
        return Tokens(prompt, completion)
    choices = document.get("choices") if isinstance(document, Mapping) else None
    said = json.dumps(choices, default=str) if choices else ""
    return Tokens(
        estimate(asked) if prompt is None else prompt, estimate(said) if completion is None else completion, True
    )


def tokens_in(chunks: Sequence[Mapping[str, Any]]) -> int:
    """Tokens that the pieces of an unfinished stream may have: servers send one in each, or more."""
    try:
        said = json.dumps(assembled(chunks)["choices"], default=str)
    except (Malformed, ValueError, TypeError, LookupError, AttributeError):
        said = ""
    return max(len(chunks), estimate(said))


def estimate(text: str) -> int:
    """Tokens that a text may have."""
    return -(-len(text.encode(errors="replace")) // _BYTES_PER_TOKEN)


def _count(usage: object, name: str) -> int | None:
    value = usage.get(name) if isinstance(usage, Mapping) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31 else None


def assembled(chunks: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The pieces of a streamed completion as the completion they make up. Raises `Malformed`."""
    content, refusal, finish = "", "", None
    calls: dict[int, dict[str, Any]] = {}
    usage: object = None
    for chunk in chunks:
        usage = chunk.get("usage") or usage
        for choice in (chunk.get("choices") or [])[:1]:
            finish = _mapping(choice).get("finish_reason") or finish
            delta = _mapping(_mapping(choice).get("delta") or {})
            content += str(delta.get("content") or "")
            refusal += str(delta.get("refusal") or "")
            for piece in delta.get("tool_calls") or []:
                _add_piece(calls, _mapping(piece))
    message = {
        "content": content or None,
        "refusal": refusal or None,
        "tool_calls": [calls[at] for at in sorted(calls)],
    }
    choices = [{"message": message, "finish_reason": finish}] if finish or calls or content or refusal else []
    return {"choices": choices, "usage": usage}


def _add_piece(calls: dict[int, dict[str, Any]], piece: Mapping[str, Any]) -> None:
    index = piece.get("index")
    call = calls.setdefault(
        index if isinstance(index, int) else 0, {"id": "", "function": {"name": "", "arguments": ""}}
    )
    call["id"] = piece.get("id") or call["id"]
    function = _mapping(piece.get("function") or {})
    call["function"]["name"] = function.get("name") or call["function"]["name"]
    call["function"]["arguments"] += str(function.get("arguments") or "")
