"""The order of resort: a named query that surely fits; else what a model chooses, SQL included; where the model cannot be
had, a named query that fits well enough; else a plain "cannot answer".

The model chooses, the service runs: with the asker's key, under the same guard, row policies, limits, cache and audit log as
what a person asks. No row goes to the model, and no message that may quote one; the sentence of an answer is `wording`'s.
"""

from __future__ import annotations

import asyncio
import unicodedata
from collections.abc import Collection
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import takewhile
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import orjson

from .. import __version__
from ..catalogue import NamedQuery
from ..errors import (
    BadRequest,
    Forbidden,
    NotFound,
    Overloaded,
    ProblemError,
    QueryCancelled,
    QueryTimeout,
    RateLimited,
    SqlRefused,
)
from ..flights import Flight, Flights
from ..formats import Limits
from ..metrics import AD_HOC, Metrics
from ..query_service import QueryService, Result
from ..settings import Settings
from ..snapshot import SnapshotStore
from . import prompt, wording
from .asked import Asked, Together
from .budget import Tokens
from .matcher import Match, Matcher
from .memory import PlanMemory
from .prompt import Question
from .reply import Choice, RunQuery, RunSql
from .wishes import Wish

if TYPE_CHECKING:
    from .model import LanguageModel

_LIMITS = Limits(200, 256 * 1024)  # what a person reads; as MCP's
_MOST_CORRECTIONS = 2
_NEAREST = 3
_MOST_TURN_CHARACTERS = 500  # of an earlier question, read again for its values
_END_SECONDS = 1.0
_CORRECTABLE = (SqlRefused, BadRequest, NotFound, Forbidden)
_NO_MODEL = ("model_unavailable", "token_budget_spent")


@dataclass(frozen=True)
class Outcome:
    """What ran, or that nothing did (`result` None)."""

    query: NamedQuery | None = None
    sql: str | None = None
    values: dict[str, object] | None = None
    result: Result | None = None
    is_refused: bool = False
    """The model chose something, and nothing of it could be run."""


@dataclass(frozen=True)
class Answered:
    """An answer's document, and the result in it."""

    document: dict[str, Any]
    result: Result | None


class ChatService:
    """Answers questions in words."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        service: QueryService,
        store: SnapshotStore,
        model: LanguageModel | None,
        plans: PlanMemory,
    ) -> None:
        self._service, self._store, self._metrics, self._model = service, store, metrics, model
        self._queries = service.catalogue.queries
        self._matcher = Matcher(service.catalogue)
        self._least_of_all = settings.chat_min_confidence
        self._least = settings.chat_sure_confidence if model else self._least_of_all
        self._tools = prompt.tools(self._queries.values())
        self._lineage = lineage(self._queries.values())
        self._plans = plans
        self._flights: Flights[Outcome] = Flights()
        self._together: WeakKeyDictionary[Flight[Outcome], Together] = WeakKeyDictionary()

    async def answer(self, question: Question, asked: Asked) -> Answered:
        """The answer. Raises what `QueryService` raises; `Overloaded`, `RateLimited` when the model cannot be asked."""
        asked.step("matching")
        matches = await asyncio.to_thread(self._matches, question)
        best = matches[0] if matches else None
        by = "matcher"
        outcome: Outcome | None = None
        try:
            if best is not None and best.confidence >= self._least:
                outcome = await self._allowed(RunQuery(best.query.name, best.values), asked)
                if outcome is None:
                    best, matches = None, matches[1:]
            if outcome is None and self._model is not None:
                by = "model"
                try:
                    outcome = await self._by_model(self._model, question, asked)
                except (Overloaded, RateLimited) as problem:
                    outcome = await self._instead(best, problem, asked)
                    by = "stand_in"
            outcome = outcome or Outcome()
        except ProblemError as problem:
            if not isinstance(problem, QueryCancelled):
                self._metrics.chat_answers.labels(by, "error").inc()
            raise
        self._metrics.chat_answers.labels(by, _name(outcome)).inc()
        confidence = None if by == "model" else best.confidence if best else 0.0
        return Answered(self._document(question, outcome, matches, confidence, asked.tokens), outcome.result)

    async def _instead(self, best: Match | None, problem: ProblemError, asked: Asked) -> Outcome:
        """The best match for a model that cannot be had, as without one. Raises `problem` where it is none to go by."""
        if problem.code not in _NO_MODEL or best is None or best.confidence < self._least_of_all:
            raise problem
        outcome = await self._allowed(RunQuery(best.query.name, best.values), asked)
        if outcome is None:
            raise problem
        return outcome

    def _meant(self, match: Match, question: Question) -> Match:
        """The match with the values that its query takes a question to mean that does not name them."""
        named = dict(match.values)
        assumed = self._matcher.assumed(match.query, self._texts(match.query, question))
        return replace(match, values=(*match.values, *((name, value) for name, value in assumed if name not in named)))

    @staticmethod
    def _texts(query: NamedQuery, question: Question) -> list[str]:
        """The question and, newest first, those before it that the same query answered."""
        same = takewhile(lambda turn: turn.query == query.name, reversed(question.turns))
        return [question.text, *(turn.question[:_MOST_TURN_CHARACTERS] for turn in same)]

    def _wish(self, query: NamedQuery | None, question: Question) -> Wish:
        """What of the result the question asks for, or the one that it follows when it does not say."""
        if query is None:
            return Wish()
        wishes = [self._matcher.wish(query, text) for text in self._texts(query, question)]
        return next((wish for wish in wishes if not wish.is_empty), wishes[0])

    def _matches(self, question: Question) -> list[Match]:
        return [self._meant(match, question) for match in self._nearest(question)]

    def _nearest(self, question: Question) -> list[Match]:
        matches = self._matcher.matches(question.text, _NEAREST)
        followed = self._followed(question) if question.turns else None
        if followed is None:
            return matches
        best = matches[0].confidence if matches else 0.0
        if followed.is_values_alone or best < min(self._least, followed.confidence):
            return [followed, *[match for match in matches if match.query is not followed.query]][:_NEAREST]
        return matches

    def _followed(self, question: Question) -> Match | None:
        """A question like "and in March?": the query of the turn before, the new values over the old ones."""
        query = self._queries.get(question.turns[-1].query or "")
        if query is None:
            return None
        of_the_title = self._matcher.match(query, query.title).values
        match = self._named_by(query, of_the_title, question.text)
        if not match.values:
            return None
        same = list(takewhile(lambda turn: turn.query == query.name, reversed(question.turns)))
        values: dict[str, str] = {}
        for turn in reversed(same):
            values |= dict(self._named_by(query, of_the_title, turn.question[:_MOST_TURN_CHARACTERS]).values)
        return replace(match, values=tuple((values | dict(match.values)).items()))

    def _named_by(self, query: NamedQuery, of_the_title: Collection[tuple[str, str]], text: str) -> Match:
        """`text` as it fits `query` by itself or, if better, as if it named it; the values of its own title left out."""
        by_itself = self._matcher.match(query, text)
        named = self._matcher.match(query, f"{query.title}: {text}")
        if by_itself.confidence >= named.confidence:
            return by_itself
        values = tuple(pair for pair in named.values if pair not in of_the_title)
        return Match(query, values, named.confidence, by_itself.is_values_alone)

    async def _by_model(self, model: LanguageModel, question: Question, asked: Asked) -> Outcome:
        """What the model chooses, or chose when it was asked the same of the same data."""
        key = _digest(
            self._store.current.id, self._lineage, model.name, asked.principal.scope, normalised(question.text),
            *[f"{normalised(turn.question)}\0{turn.query}\0{turn.sql}" for turn in question.turns],
        )  # fmt: skip
        choice = None if asked.is_fresh else await self._plans.get(key)
        if choice is not None:
            try:
                outcome = await self._run(choice, asked)
            except _CORRECTABLE:  # only what ran on these data is kept: this was spoilt, or put there by another
                await self._plans.forget(key)
                asked.found = {}
            else:
                self._metrics.chat_plan_hits.inc()
                return outcome
        return await self._asked_once(model, question, asked, key)

    async def _asked_once(self, model: LanguageModel, question: Question, asked: Asked, key: str) -> Outcome:
        """The same question, asked by many at once, is put to the model once, on the budget of who was first."""
        name = f"{key}-fresh" if asked.is_fresh else key
        while True:
            flight = self._flights.get(name)
            is_first = flight is None
            if flight is None:
                together = Together(asked, model.question_seconds)
                flight = self._flights.launch(name, self._asked(model, question, together, key))
                self._together[flight] = together
            else:
                together = self._together[flight]
                together.waiting.append(asked)
            try:
                return await self._flights.join(flight)
            except RateLimited:
                if is_first:
                    raise
                # Another key's tokens are spent; this one's may not be.
            except asyncio.CancelledError:
                if not flight.waiters:  # the tokens it has used belong on this request's line
                    await asyncio.wait({flight.task}, timeout=_END_SECONDS)
                raise
            finally:
                together.leave(asked)

    async def _asked(self, model: LanguageModel, question: Question, together: Together, key: str) -> Outcome:
        asked, asking = together.asked, together.asking
        tables = self._service.relations(asked.principal)
        messages = prompt.messages(question, self._queries.values(), tables)
        for correction in range(_MOST_CORRECTIONS + 1):
            asked.step("asking_model")
            reply = await model.choose(messages, self._tools, asking)
            try:
                async with asyncio.timeout(asking.seconds_left):
                    outcome = await self._run(reply.choice, asked)
            except TimeoutError as error:
                text = f"of the {model.question_seconds:g} s that a question has, the model and its query used all"
                raise QueryTimeout("query_timeout", f"{text}; ask for less, or write the SQL yourself") from error
            except _CORRECTABLE as problem:
                if correction < _MOST_CORRECTIONS:
                    self._metrics.chat_sql_retries.inc()
                    messages = [*messages, *reply.with_error(prompt.error_text(problem))]
                continue
            if not reply.is_refusal:  # who just talks may choose the next time
                await self._plans.put(key, reply.choice)
            return outcome
        return Outcome(is_refused=True)

    async def _allowed(self, choice: RunQuery, asked: Asked) -> Outcome | None:
        """Run what the matcher chose, unless the asker's row policy refuses it (None)."""
        try:
            return await self._run(choice, asked)
        except Forbidden:
            asked.found = {}
            return None

    async def _run(self, choice: Choice, asked: Asked) -> Outcome:
        """Run what was chosen, as its asker."""
        if isinstance(choice, RunSql):
            asked.step("running_sql")
            asked.found = {"query": AD_HOC, "sql": choice.sql, "params": {}}
            result = await self._service.ad_hoc(
                choice.sql, {}, "json", asked.principal, bypass=asked.is_fresh, limits=_LIMITS
            )
            return Outcome(None, choice.sql, {}, result)
        if not isinstance(choice, RunQuery):
            return Outcome()
        asked.step("running_query")
        asked.found = {"query": choice.name[:80]}
        bound = self._service.bind(choice.name, choice.parameters)
        asked.found = {"query": bound.query.name, "params": bound.text}
        result = await self._service.named(bound, "json", asked.principal, bypass=asked.is_fresh, limits=_LIMITS)
        return Outcome(bound.query, bound.query.sql, dict(bound.values), result)

    def _document(
        self, question: Question, outcome: Outcome, matches: list[Match], confidence: float | None, tokens: Tokens
    ) -> dict[str, Any]:
        language = wording.language_of(question.text)
        result = outcome.result
        shown = None if result is None else orjson.loads(result.served.entry.raw())
        if shown is None:
            answer = wording.cannot_answer(language, [match.query for match in matches])
            nearest = [{"name": match.query.name, "title": match.query.title} for match in matches]
        else:
            wish = self._wish(outcome.query, question)
            answer = wording.answered(language, outcome.query, outcome.values or {}, shown, wish)
            nearest = None
        document = {
            "answer": answer,
            "query": outcome.query.name if outcome.query else None,
            "sql": outcome.sql,
            "params": outcome.values,
            "confidence": None if confidence is None else round(confidence, 3),
            "result": shown,
            "data_version": self._store.current.id if result is None else result.snapshot_id,
            "tokens": tokens.document(),
        }
        return document if nearest is None else {**document, "nearest": nearest}


def _name(outcome: Outcome) -> str:
    if outcome.result is not None:
        return "sql" if outcome.query is None else "named"
    return "refused" if outcome.is_refused else "cannot_answer"


def normalised(text: str) -> str:
    """Equal for questions that differ only in case, blanks, spelling of characters and the stops at the end."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).rstrip(" ?!.")


def lineage(queries: Collection[NamedQuery]) -> str:
    """Equal where a model is told the same of these queries: another release may tell it, and read it, otherwise."""
    told = [__version__, prompt.RULES, orjson.dumps(prompt.tools(queries)).decode()]
    return _digest(*told, *[f"{query.name} {query.digest}" for query in queries])


def _digest(*parts: str) -> str:
    return blake2b(orjson.dumps(parts), digest_size=20).hexdigest()
