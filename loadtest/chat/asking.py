"""Asking a running service over HTTP, as a client would: one question after the other, at the pace its quota allows."""

from __future__ import annotations

import time
from typing import Any

import httpx

from .grading import Defaults, Reply
from .questions import Question

CHAT, QUERIES = "/api/v1/chat", "/api/v1/queries"
_LONGEST_ANSWER_SECONDS = 180.0
_LONGEST_PAUSE_SECONDS = 120.0


class NotAsked(Exception):
    """The service cannot be measured: it is not there, has no chat, refuses the key, or its token budget is spent."""


class Chat:
    """A service and the key to ask it with."""

    def __init__(self, url: str, key: str = "") -> None:
        headers = {"X-API-Key": key} if key else {}
        self._client = httpx.Client(base_url=url, headers=headers, timeout=_LONGEST_ANSWER_SECONDS)

    def __enter__(self) -> Chat:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def defaults(self) -> Defaults:
        """The named queries' defaults, or what a question means that does not name them. Raises NotAsked."""
        response = self._within_quota("GET", QUERIES)
        if response.status_code != 200:
            raise NotAsked(f"{QUERIES} answered {response.status_code}: {response.text[:200]}")
        return {
            query["name"]: {
                parameter["name"]: parameter.get("if_not_named", parameter.get("default"))
                for parameter in query["parameters"]
            }
            for query in response.json()["queries"]
        }

    def ask(self, question: Question) -> Reply:
        """The answer, a refusal or an error of the service among them. Raises NotAsked."""
        response = self._within_quota("POST", CHAT, {"question": question.text})
        try:
            document = response.json()
        except ValueError:
            document = None
        document = document if isinstance(document, dict) else {}
        if response.status_code in (401, 403, 404, 405) or document.get("code") == "token_budget_spent":
            raise NotAsked(f"{CHAT} answered {response.status_code}: {document.get('detail') or response.text[:200]}")
        return Reply(response.status_code, document, response.elapsed.total_seconds())

    def _within_quota(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        while True:
            try:
                response = self._client.request(method, path, json=body)
            except httpx.HTTPError as error:
                raise NotAsked(f"{self._client.base_url} did not answer: {error}") from error
            if response.status_code != 429 or '"rate_limited"' not in response.text:
                return response
            time.sleep(min(float(response.headers.get("Retry-After", 1)), _LONGEST_PAUSE_SECONDS))
