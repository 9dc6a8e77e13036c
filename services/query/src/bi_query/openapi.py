"""The OpenAPI document: written from the catalogue, so every named query shows its own typed parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from . import __version__
from .catalogue import NamedQuery
from .formats import FORMATS, MEDIA_TYPES

_PROBLEMS = {
    "400": "A parameter or body does not fit its declaration.",
    "401": "No key was sent, or one that is not accepted.",
    "403": "The key's role or row policy does not allow it.",
    "404": "No such query.",
    "405": "The route exists, the method does not.",
    "406": "None of the accepted formats can be had.",
    "413": "The body is too large.",
    "415": "The body is not application/json, or is packed (Content-Encoding).",
    "422": "The SQL is refused or cannot run; `position` is a character offset.",
    "429": "The client's quota is spent; see `Retry-After`.",
    "500": "The query failed for a reason of ours.",
    "503": "The queue is full, nothing is published, or the language model does not answer; see `Retry-After`.",
    "504": "The query ran longer than its limit and was stopped.",
}
_WITHOUT_KEY = frozenset({"live", "ready", "metrics"})
_VALUE: dict[str, Any] = {"description": "A value; what JSON cannot hold exactly is text (docs/api.md)."}
_CHAT_EXAMPLE = {"question": "Which products sell best?"}
_TEXT = r"^[^\u0000]*[^\s\u0000][^\u0000]*$"
_QUESTION: dict[str, Any] = {"type": "string", "minLength": 1, "maxLength": 2000, "pattern": _TEXT}
_SCHEMAS: dict[str, Any] = {
    "Result": {
        "type": "object",
        "required": ["columns", "rows", "row_count", "truncated"],
        "properties": {
            "columns": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["name", "type"],
                    "properties": {"name": {"type": "string"}, "type": {"type": "string"}},
                },
            },
            "rows": {"type": "array", "items": {"type": "array", "items": _VALUE}},
            "row_count": {"type": "integer", "minimum": 0},
            "truncated": {"type": "boolean", "description": "True when rows beyond the limit were cut."},
        },
    },
    "Problem": {
        "type": "object",
        "required": ["type", "title", "status", "code", "detail", "request_id"],
        "properties": {
            "type": {"type": "string"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "code": {"type": "string"},
            "detail": {"type": "string"},
            "request_id": {"type": "string"},
            "position": {"type": "integer"},
        },
    },
    "ChatRequest": {
        "type": "object",
        "required": ["question"],
        "additionalProperties": False,
        "properties": {
            "question": {**_QUESTION, "description": "In words, in Portuguese or English."},
            "conversation": {
                "type": ["array", "null"],
                "maxItems": 10,
                "description": "Earlier questions and what answered them, oldest first.",
                "items": {
                    "type": "object",
                    "required": ["question"],
                    "additionalProperties": False,
                    "properties": {
                        "question": _QUESTION,
                        "query": {"type": ["string", "null"], "pattern": _TEXT, "minLength": 1, "maxLength": 200},
                        "sql": {"type": ["string", "null"], "pattern": _TEXT, "minLength": 1, "maxLength": 20_000},
                    },
                },
            },
        },
    },
    "ChatAnswer": {
        "type": "object",
        "required": ["answer", "query", "sql", "params", "confidence", "result", "data_version", "tokens"],
        "properties": {
            "answer": {"type": "string"},
            "query": {"type": ["string", "null"], "description": "The named query that answered; null for SQL."},
            "sql": {"type": ["string", "null"], "description": "What ran; null when nothing did."},
            "params": {"type": ["object", "null"]},
            "confidence": {"type": ["number", "null"], "description": "0 to 1; null when a model chose."},
            "result": {"anyOf": [{"$ref": "#/components/schemas/Result"}, {"type": "null"}]},
            "data_version": {"type": "string"},
            "tokens": {
                "type": "object",
                "required": ["prompt", "completion"],
                "properties": {
                    "prompt": {"type": "integer", "minimum": 0},
                    "completion": {"type": "integer", "minimum": 0},
                    "estimated": {"const": True},
                },
            },
            "nearest": {
                "type": "array",
                "description": "Where nothing answered: the nearest named queries.",
                "items": {"type": "object", "required": ["name", "title"]},
            },
        },
    },
    "SqlRequest": {
        "type": "object",
        "required": ["sql"],
        "additionalProperties": False,
        "properties": {
            "sql": {"type": "string", "description": "One SELECT in DuckDB's dialect; `$name` marks a parameter."},
            "params": {
                "type": "object",
                "additionalProperties": {"type": ["string", "number", "boolean", "null"]},
            },
        },
    },
}


def document(queries: Iterable[NamedQuery]) -> dict[str, Any]:
    """The whole document (OpenAPI 3.1)."""
    paths: dict[str, Any] = {
        "/api/v1/queries": {"get": _operation("List named queries", "listQueries", _json_answer(_listing()), ("429",))},
        "/api/v1/tables": {"get": _operation("List tables", "listTables", _json_answer(_tables()), ("429", "503"))},
        "/api/v1/query": {"post": _ad_hoc()},
        "/api/v1/chat": _chat(),
        "/api/v1/cache": {"delete": _invalidation()},
        "/api/v1/publish": {
            "get": _operation("How did publishing go?", "publishStatus", _json_answer(_publish()), ("429",))
        },
        "/health/live": {"get": _operation("Is the process alive?", "live", _json_answer(_health()), ())},
        "/health/ready": {"get": _operation("Is a snapshot served?", "ready", _json_answer(_health()), ("503",))},
        "/metrics": {
            "get": _operation(
                "Prometheus metrics", "metrics", {"description": "Exposition.", "content": {"text/plain": {}}}, ()
            )
        },
    }
    for query in queries:
        paths[f"/api/v1/queries/{query.name}"] = {"get": _named(query)}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "BI Solution query API",
            "version": __version__,
            "description": "Governed, cached SQL over Parquet. Agents: POST /mcp speaks the Model Context Protocol.",
        },
        "paths": paths,
        "components": {
            "schemas": _SCHEMAS,
            "securitySchemes": {
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
                "bearer": {"type": "http", "scheme": "bearer"},
            },
        },
        # The empty one: a service without a key file asks for none.
        "security": [{"key": []}, {"bearer": []}, {}],
    }


def _named(query: NamedQuery) -> dict[str, Any]:
    parameters = []
    for parameter in query.parameters.values():
        entry: dict[str, Any] = {
            "name": parameter.name,
            "in": "query",
            "required": parameter.required,
            "description": parameter.description,
            "schema": parameter.json_schema(),
        }
        if parameter.examples:
            entry["example"] = str(parameter.examples[0]) if parameter.type == "date" else parameter.examples[0]
        parameters.append(entry)
    operation = _operation(query.title, query.name, _result(), ("400", "406", "429", "500", "503", "504"))
    text = f"{query.description}\n\nFresh for {query.freshness.fresh_seconds:g} s (class `{query.freshness_class}`)."
    return {
        **operation,
        "description": text,
        "parameters": [*parameters, _format_parameter()],
        "tags": ["named queries"],
    }


def _ad_hoc() -> dict[str, Any]:
    codes = ("400", "406", "413", "415", "422", "429", "503", "504")
    example = {"sql": "SELECT 1 AS one WHERE 1 = $x", "params": {"x": 1}}
    body = {"application/json": {"schema": {"$ref": "#/components/schemas/SqlRequest"}, "example": example}}
    return {
        **_operation("Run a SELECT", "runSql", _result(), codes),
        "requestBody": {"required": True, "content": body},
        "parameters": [_format_parameter()],
    }


def _chat() -> dict[str, Any]:
    codes = ("400", "422", "429", "500", "503", "504")
    events = {"text/event-stream": {"schema": {"type": "string"}}}
    document = {"application/json": {"schema": {"$ref": "#/components/schemas/ChatAnswer"}}}
    answer = {"description": "The answer, or that there is none.", "content": {**document, **events}}
    body = {"application/json": {"schema": {"$ref": "#/components/schemas/ChatRequest"}, "example": _CHAT_EXAMPLE}}
    asked = {"name": "q", "in": "query", "required": True, "schema": _QUESTION, "description": "The question."}
    return {
        "get": {**_operation("Ask in words", "askByGet", answer, codes), "parameters": [asked]},
        "post": {
            **_operation("Ask in words", "ask", answer, (*codes, "413", "415")),
            "requestBody": {"required": True, "content": body},
        },
    }


def _invalidation() -> dict[str, Any]:
    parameters = [
        {"name": "query", "in": "query", "schema": {"type": "string"}, "description": "A query's name, or `ad_hoc`."},
        {
            "name": "pattern",
            "in": "query",
            "schema": {"type": "string", "minLength": 1, "maxLength": 500},
            "description": "A glob (`*`, `?`) over `query/parameters/format`, e.g. `top_products/*department=GROCERY*`.",
        },
    ]
    schema = {
        "type": "object",
        "required": ["invalidated", "redis"],
        "properties": {"redis": {"enum": ["off", "done", "pending"]}},
    }
    operation = _operation("Forget cached answers", "invalidateCache", _json_answer(schema), ("400", "404", "429"))
    return {**operation, "description": "Give exactly one of `query` and `pattern`.", "parameters": parameters}


def _operation(summary: str, name: str, answer: Mapping[str, Any], problems: Iterable[str]) -> dict[str, Any]:
    if name not in _WITHOUT_KEY:
        problems = sorted({*problems, "401", "403"})
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    refusals = {code: {"description": _PROBLEMS[code], "content": content} for code in problems}
    return {"summary": summary, "operationId": name, "responses": {"200": answer, **refusals}}


def _result() -> dict[str, Any]:
    content: dict[str, Any] = {media.partition(";")[0]: {} for media in MEDIA_TYPES.values()}
    content["application/json"] = {"schema": {"$ref": "#/components/schemas/Result"}}
    headers = {
        name: {"schema": {"type": "string"}} for name in ("X-Cache", "Age", "ETag", "X-Data-Version", "Server-Timing")
    }
    return {"description": "The rows.", "headers": headers, "content": content}


def _json_answer(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"description": "As asked.", "content": {"application/json": {"schema": schema}}}


def _format_parameter() -> dict[str, Any]:
    schema = {"type": "string", "enum": list(FORMATS)}
    return {"name": "format", "in": "query", "schema": schema, "description": "Instead of `Accept`."}


def _listing() -> dict[str, Any]:
    item = {"type": "object", "required": ["name", "title", "parameters", "freshness"]}
    return {"type": "object", "required": ["queries"], "properties": {"queries": {"type": "array", "items": item}}}


def _tables() -> dict[str, Any]:
    item = {"type": "object", "required": ["name", "kind", "rows", "columns"]}
    members = {
        "snapshot_id": {"type": "string"},
        "published_at": {"type": "string"},
        "tables": {"type": "array", "items": item},
    }
    return {"type": "object", "required": list(members), "properties": members}


def _publish() -> dict[str, Any]:
    members = {name: {"type": ["object", "null"]} for name in ("serving", "last_publish")}
    members["load_failure"] = {"type": ["string", "null"]}
    return {"type": "object", "required": list(members), "properties": members}


def _health() -> dict[str, Any]:
    return {"type": "object", "required": ["status"], "properties": {"status": {"const": "ok"}}}
