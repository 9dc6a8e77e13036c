"""A language model behind any OpenAI-compatible endpoint, through the official client.

One attempt takes at most `BI_LLM_TIMEOUT_SECONDS`, one question half as long again in all, however many attempts that are
and however long what the model chose runs between them.
Tried again is what may pass by itself (a time-out, a lost connection, 429, 5xx) and a reply that cannot be used,
unless it was cut off at its bound of tokens. Tries are
bounded for each attempt and, by a budget, over all: an endpoint in trouble is not asked three times as often. After a few
failures in a row it is left alone (`circuit`).

Imported only when an endpoint is configured: the client takes a second to import.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Mapping, Sequence
from typing import Any, cast

import openai
import orjson

from ..circuit import CircuitBreaker
from ..errors import Overloaded
from ..metrics import LLM_OUTCOMES, Metrics
from ..settings import Settings
from .budget import Asking, TokenBudget, Tokens
from .reply import CutShort, Malformed, Reply, assembled, estimate, reply_of, tokens_in, tokens_of

logger = logging.getLogger(__name__)

_WHOLE_QUESTION = 1.5  # of the time-out of one attempt
_LEAST_ATTEMPT = 0.1  # of the same; with less time left nothing is asked: it would cost a prompt and bring no answer
_CONNECT_SECONDS = 5.0
_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 0.25, 5.0
_LONGEST_RETRY_AFTER_SECONDS = 3600.0
_RETRIES_AT_FIRST, _RETRIES_EARNED = 10.0, 0.2
_OPEN_SECONDS = (1.0, 30.0)
_REFUSED_SECONDS = 60.0
_RUBBISH = (Malformed, ValueError, TypeError, LookupError, AttributeError)
"""What reading a reply raises that is none: the client hands on what a server sends without looking at it."""


class _Failed(Exception):
    """One attempt's end. `reason` is a retry's label; `again`: whether it may pass by itself."""

    def __init__(self, reason: str, text: str, *, again: bool = True, retry_after_seconds: float | None = None) -> None:
        super().__init__(text)
        self.reason = reason
        self.again = again
        self.retry_after_seconds = retry_after_seconds

    @property
    def is_of_the_line(self) -> bool:
        """Whether the other side seems to be gone; one that refuses us is there."""
        return self.again and self.reason in ("timeout", "unavailable")


class LanguageModel:
    """Asks, and counts what it took."""

    def __init__(self, settings: Settings, metrics: Metrics, budget: TokenBudget) -> None:
        self.name = str(settings.llm_model)
        self._metrics = metrics
        self._budget = budget
        self._timeout_seconds = settings.llm_timeout_seconds
        self.question_seconds = self._timeout_seconds * _WHOLE_QUESTION
        self._max_retries = settings.llm_max_retries
        self._max_completion_tokens = settings.llm_max_completion_tokens
        self._tool_choice = settings.llm_tool_choice
        self._completion_tokens_field = settings.llm_completion_tokens_field
        self._client = openai.AsyncOpenAI(
            base_url=settings.llm_base_url,
            api_key=settings.llm_api_key() or "none",  # the client wants one; local servers ask for none
            max_retries=0,
            timeout=openai.Timeout(self._timeout_seconds, connect=min(_CONNECT_SECONDS, self._timeout_seconds)),
        )
        self._breaker = CircuitBreaker(metrics.llm_circuit_open, what="the language model", open_seconds=_OPEN_SECONDS)
        self._retries_left = _RETRIES_AT_FIRST
        self._attempts: set[asyncio.Timeout] = set()
        self._is_closing = False
        metrics.prepare_model(self.name)
        for library in ("httpx2", "openai"):  # a line for each request, and questions where it says more
            logging.getLogger(library).setLevel(logging.WARNING)

    async def choose(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], asking: Asking
    ) -> Reply:
        """The model's choice. Raises `Overloaded` (`model_unavailable`, `shutdown`), `RateLimited` (budget spent)."""
        if asking.seconds_left < self._timeout_seconds * _LEAST_ATTEMPT:
            raise _unavailable("no time is left to ask the language model again", 1)
        self._retries_left = min(_RETRIES_AT_FIRST, self._retries_left + _RETRIES_EARNED)
        for attempt in range(self._max_retries + 1):
            if self._is_closing:
                raise Overloaded("shutdown", "the service is stopping; ask another replica", retry_after_seconds=1)
            await self._budget.check(asking.who)
            if not self._breaker.allows():
                raise _unavailable("the language model does not answer", self._breaker.wait_seconds)
            try:
                return await self._attempt(messages, tools, asking)
            except _Failed as failure:
                if self._is_closing:
                    continue
                logger.warning("the language model: %s", failure, extra={"fields": {"reason": failure.reason}})
                wait_seconds = _wait_seconds(attempt, failure)
                if attempt == self._max_retries or not self._may_retry(failure, wait_seconds, asking):
                    raise self._given_up(failure) from failure
                self._metrics.llm_retries.labels(self.name, failure.reason).inc()
                await asyncio.sleep(wait_seconds)
        raise Overloaded("shutdown", "the service is stopping; ask another replica", retry_after_seconds=1)

    def _may_retry(self, failure: _Failed, wait_seconds: float, asking: Asking) -> bool:
        needed = wait_seconds + self._timeout_seconds * _LEAST_ATTEMPT
        is_in_time = wait_seconds <= _LONGEST_WAIT_SECONDS and needed < asking.seconds_left
        if not failure.again or not is_in_time or self._retries_left < 1:
            return False
        self._retries_left -= 1
        return True

    def _given_up(self, failure: _Failed) -> Overloaded:
        texts = {
            "timeout": "the language model took too long",
            "rate_limited": "the language model's server lets us ask no more for now",
            "malformed": "the language model's replies cannot be used",
            "cut_short": "the language model used up its tokens before it had chosen anything",
        }
        text = texts.get(failure.reason, "the language model does not answer")
        return _unavailable(text, failure.retry_after_seconds or self._breaker.wait_seconds)

    async def _attempt(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], asking: Asking
    ) -> Reply:
        """One request, counted whatever becomes of it. Raises `_Failed`."""
        asked = orjson.dumps([messages, tools]).decode()
        expected = estimate(asked)
        day = self._budget.add(asking.who, expected)
        used, outcome, is_heard = Tokens(expected, estimated=True), "unavailable", False
        started = time.perf_counter()
        chunks: list[Mapping[str, Any]] = []
        try:
            document = await self._received(messages, tools, asking, chunks)
            used, is_heard = tokens_of(document, asked), True
            self._breaker.succeeded()
            reply = reply_of(document)
            outcome = "refused" if reply.is_refusal else "ok"
            return reply
        except asyncio.CancelledError:
            outcome, used = "cancelled", self._unheard(expected, chunks)
            raise
        except (openai.OpenAIError, OSError, *_RUBBISH) as error:
            failure = _failure(error)
            outcome = failure.reason
            if isinstance(error, openai.APIStatusError) or _never_arrived(error):
                used = Tokens()
            elif chunks or isinstance(error, (TimeoutError, OSError, openai.APIConnectionError)):
                used = used if is_heard else self._unheard(expected, chunks)
            if failure.is_of_the_line:
                self._breaker.failed()
            elif isinstance(error, openai.APIStatusError):
                self._breaker.succeeded()
            raise failure from error
        finally:
            self._budget.add(asking.who, used.prompt + used.completion - expected, day)
            asking.tokens.add(used)
            self._count(used, outcome, time.perf_counter() - started)

    def _unheard(self, prompt: int, chunks: Sequence[Mapping[str, Any]]) -> Tokens:
        """What a reply not heard to its end may have used: the pieces that came; without any, all that it was let use."""
        return Tokens(prompt, tokens_in(chunks) if chunks else self._max_completion_tokens, estimated=True)

    def _count(self, used: Tokens, outcome: str, seconds: float) -> None:
        assert outcome in LLM_OUTCOMES  # noqa: S101 - a label that nothing prepared
        self._metrics.llm_requests.labels(self.name, outcome).inc()
        self._metrics.llm_seconds.labels(self.name).observe(seconds)
        self._metrics.llm_tokens.labels(self.name, "prompt").inc(used.prompt)
        self._metrics.llm_tokens.labels(self.name, "completion").inc(used.completion)

    async def _received(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]],
        asking: Asking,
        chunks: list[Mapping[str, Any]],
    ) -> object:
        """The completion as a document, within the time there is; pieces of it that came go into `chunks`."""
        seconds = min(self._timeout_seconds, asking.seconds_left)
        body: dict[str, Any] = {
            "model": self.name,
            "messages": messages,
            "tools": tools,
            "tool_choice": self._tool_choice,
            self._completion_tokens_field: self._max_completion_tokens,
        }
        create = self._client.chat.completions
        async with asyncio.timeout(seconds) as limit:
            self._attempts.add(limit)
            try:
                if not asking.is_streamed:
                    response = await create.with_raw_response.create(**body)
                    return orjson.loads(response.http_response.content)
                stream = await create.create(**body, stream=True, stream_options={"include_usage": True})
                async with contextlib.aclosing(cast("Any", stream.__aiter__())) as pieces:
                    async for piece in pieces:
                        chunks.append(piece.to_dict(warnings=False))
            finally:
                self._attempts.discard(limit)
        document = assembled(chunks)
        if not _is_whole(document):
            raise ConnectionError("the stream ended in the middle")
        return document

    async def close(self) -> None:
        """Refuse those who wait for an answer, and let the connections go."""
        self._is_closing = True
        for limit in list(self._attempts):
            limit.reschedule(asyncio.get_running_loop().time())
        await asyncio.sleep(0)
        await self._client.close()


def _is_whole(document: Mapping[str, Any]) -> bool:
    """Whether a stream came to its end. Servers that never say why they stopped are believed when a reply came out."""
    if any(choice["finish_reason"] for choice in document["choices"]):
        return True
    try:
        return not reply_of(document).is_refusal
    except Malformed:
        return False


def _failure(error: Exception) -> _Failed:
    if isinstance(error, CutShort):  # the same question would end there again, at the same cost
        text = f"a reply was cut off at its bound of tokens ({error}); a model that thinks first needs more: raise"
        return _Failed(
            "cut_short", f"{text} BI_LLM_MAX_COMPLETION_TOKENS", again=False, retry_after_seconds=_REFUSED_SECONDS
        )
    if isinstance(error, (TimeoutError, openai.APITimeoutError)):
        return _Failed("timeout", "no answer in time")
    if isinstance(error, openai.RateLimitError):
        return _Failed("rate_limited", "429", retry_after_seconds=_retry_after_seconds(error))
    if isinstance(error, openai.APIStatusError):
        text = f"status {error.status_code}: {error.message[:300]}"
        if error.status_code >= 500:
            return _Failed("unavailable", text, retry_after_seconds=_retry_after_seconds(error))
        return _Failed("unavailable", text, again=False, retry_after_seconds=_REFUSED_SECONDS)
    if isinstance(error, (openai.OpenAIError, OSError)) and not isinstance(error, openai.APIResponseValidationError):
        return _Failed("unavailable", f"{type(error).__name__}: {str(error)[:300]}")
    return _Failed("malformed", f"{type(error).__name__}: {str(error)[:300]}")


def _never_arrived(error: Exception) -> bool:
    """Whether a request cannot have been worked on."""
    return isinstance(error, openai.APIConnectionError) and "connect" in type(error.__cause__).__name__.lower()


def _retry_after_seconds(error: openai.APIStatusError) -> float | None:
    """`Retry-After` in seconds; the form with a date is left alone."""
    text = error.response.headers.get("retry-after", "")
    try:
        return min(max(float(text), 0.0), _LONGEST_RETRY_AFTER_SECONDS)
    except ValueError:
        return None


def _wait_seconds(attempt: int, failure: _Failed) -> float:
    if failure.retry_after_seconds is not None:
        return failure.retry_after_seconds
    spread = random.uniform(0.8, 1.2)  # noqa: S311 - spread, not secrecy
    return float(min(_FIRST_WAIT_SECONDS * 2**attempt * spread, _LONGEST_WAIT_SECONDS))


def _unavailable(text: str, retry_after_seconds: float) -> Overloaded:
    seconds = max(1.0, retry_after_seconds)
    return Overloaded("model_unavailable", f"{text}; a named query needs none", retry_after_seconds=seconds)
