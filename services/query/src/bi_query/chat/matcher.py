"""A question in Portuguese or English matched to a named query of the catalogue with its parameters. Pure, no model.

What a question says falls into three parts: values of parameters (`slots`), words that only say how one asks
(`stop_words`), and the rest, which must be what some named query is about. Two shares are taken for each named query, both
weighted by how much a word tells the queries apart:

- how much of that rest the query explains: with one of its phrases, or, for less, with another phrase or its description;
- how much of the phrase that fits best the question says.

Their product (the second under a root: a short question may leave out half a phrase) is a score, and the score becomes
`confidence`, the chance that query and parameters are the right ones, by a logistic curve. The curve was fitted to 193
questions (118 that a query of the demo answers, 75 that none does) which had not been used for writing the phrases, before
anything was changed for them: of those near score 0.6 half were right, near 0.8 five of six, near 1 all but one in thirty.

A word that nothing explains, as `margin` or `delete`, weighs as much as the most telling one, so that a question for what
the catalogue has not stays unexplained, however many of its other words fit. A value that a query cannot take (`cheese`, a
number out of range, a period without data) speaks against that query, and against all that would fit worse without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import date

from ..catalogue import Catalogue, NamedQuery
from ..parameters import Parameter
from ..phrases import PLACE
from ..vocabulary import Vocabulary
from .lexicon import Concept, Lexicon
from .slots import LIMIT_NAMES, Filled, Slots, number_phrases_for, period_end, words_for
from .stop_words import CALENDAR_PHRASES, FUTURE_PHRASES, TURNING_PHRASES, TURNING_WORDS
from .wishes import Wish, Wishes
from .words import Word, words_of

_OTHER_PHRASE, _DESCRIPTION = 0.6, 0.3
_LEAST_WEIGHT = 0.25
_STRANGE_WEIGHT = 1.0
_UNKNOWN, _RESTRICTS = 1.3, 2.0  # times the weight of a word that the catalogue has nowhere
_NUMBER = 1.5  # a number that no parameter takes was meant to choose something
_TURNED = 0.4  # for a word that turns the meaning, or asks for what the data do not hold
_UNUSABLE = 0.4
_AT_NOTHING, _PER_SCORE = 4.77, 8.18
_NOTHING_SAID = 0.5  # when a question consists of values alone: `store 367`


@dataclass(frozen=True)
class Match:
    """A named query that may answer a question.

    `values` are parameter texts as a query string would bring them; what is not there keeps its default. They bind without
    error, unless a parameter that must be named was not; then `confidence` is near 0. `confidence` is from 0 to 1.
    """

    query: NamedQuery
    values: tuple[tuple[str, str], ...]
    confidence: float
    is_values_alone: bool = False
    """Whether the question says nothing but these values; known of `Matcher.match` only."""


@dataclass(frozen=True)
class _Profile:
    query: NamedQuery
    slots: Slots
    phrases: tuple[frozenset[str], ...]
    in_phrases: frozenset[str]
    in_description: frozenset[str]


class Matcher:
    """Matches questions to the named queries of one catalogue; made once, used by any number of threads.

    `today` gives the day from which `last month` counts where the named query's period has no default end.
    """

    def __init__(self, catalogue: Catalogue, today: Callable[[], date] = date.today) -> None:
        self._today = today
        vocabulary, queries = catalogue.vocabulary, list(catalogue.queries.values())
        turning = (*vocabulary.absent, *TURNING_PHRASES, *FUTURE_PHRASES, *CALENDAR_PHRASES)
        self._lexicon = Lexicon(
            (*vocabulary.same, *((phrase,) for phrase in turning)), list(_known_words(queries, vocabulary))
        )
        self._wishes = Wishes(vocabulary, queries)
        self._turning = frozenset().union(*map(self._names, (*turning, *TURNING_WORDS)))
        ends = [end for query in queries if (end := period_end(query))]
        self._profiles = [
            self._profile(query, Slots(query, vocabulary, self._lexicon, max(ends, default=None))) for query in queries
        ]
        self._weights = _weights(self._profiles)
        texts = [
            parameter for query in queries for parameter in query.parameters.values() if parameter.type == "string"
        ]
        self._turning |= self._value_words((parameter for parameter in texts if parameter.choices), vocabulary)
        self._of_data = self._value_words((parameter for parameter in texts if not parameter.choices), vocabulary)
        things = [self._names(thing) for query in queries for thing in _things(query)]
        self._things = frozenset().union(*(names for names in things if len(names) == 1))

    def matches(self, question: str, most: int = 3) -> list[Match]:
        """The `most` likeliest named queries, best first; empty when nothing fits at all.

        Any text will do; what is beyond 2,000 characters is not read.
        """
        words = self._lexicon.corrected(words_of(question))
        concepts = self._lexicon.concepts(words)
        today = self._today()
        scored = []
        for profile in self._profiles:
            filled = profile.slots.fill(words, concepts, today)
            fit, score = self._scores(profile, words, concepts, filled)
            if score:
                scored.append((fit, score, profile, filled))
        scored.sort(key=lambda entry: (-entry[0], -entry[1], entry[2].query.name))
        matches, most_sure = [], 1.0
        for _, score, profile, filled in scored[:most]:
            # The next query must not be given for what the one that fits best cannot do.
            most_sure = min(most_sure, _confidence(score))
            matches.append(Match(profile.query, tuple(filled.values.items()), most_sure))
        return matches

    def match(self, query: NamedQuery, question: str) -> Match:
        """How a question fits one named query of the catalogue, however little."""
        words = self._lexicon.corrected(words_of(question))
        concepts = self._lexicon.concepts(words)
        profile = self._of(query)
        filled = profile.slots.fill(words, concepts, self._today())
        says_more = any(filled.free_any(concept.start, concept.end) for concept in concepts)
        confidence = _confidence(self._scores(profile, words, concepts, filled)[1])
        return Match(query, tuple(filled.values.items()), confidence, bool(filled.values) and not says_more)

    def wish(self, query: NamedQuery, question: str) -> Wish:
        """What a question asks of a query's result, for the sentence of the answer."""
        words = self._lexicon.corrected(words_of(question))
        filled = self._of(query).slots.fill(words, self._lexicon.concepts(words), self._today())
        return self._wishes.of(query, words, filled.roles)

    def assumed(self, query: NamedQuery, questions: Iterable[str]) -> list[tuple[str, str]]:
        """What is meant by questions that name neither a value of a parameter nor the parameter itself."""
        said = frozenset().union(*(self._names(question) for question in questions))
        return [
            (name, parameter.if_not_named)
            for name, parameter in query.parameters.items()
            if parameter.if_not_named is not None and not said & self._names(name.replace("_", " "))
        ]

    def _of(self, query: NamedQuery) -> _Profile:
        return next(profile for profile in self._profiles if profile.query is query)

    def _profile(self, query: NamedQuery, slots: Slots) -> _Profile:
        phrases = tuple(
            names
            for phrase in dict.fromkeys((*query.ask, query.title, query.name.replace("_", " ")))
            if (names := self._names(phrase))
        )
        return _Profile(query, slots, phrases, frozenset().union(*phrases), self._names(query.description))

    def _names(self, text: str) -> frozenset[str]:
        places = [_place(name) for name in PLACE.findall(text)]
        return frozenset(places).union(
            concept.name for concept in self._lexicon.concepts(words_of(PLACE.sub(" ", text)))
        )

    def _value_words(self, parameters: Iterable[Parameter], vocabulary: Vocabulary) -> frozenset[str]:
        """The words for the parameters' values, but for those that some query is about."""
        groups = [phrases for parameter in parameters for phrases in words_for(parameter, vocabulary).values()]
        phrases = {phrase for group in groups for phrase in group}
        return frozenset().union(*map(self._names, phrases)) - self._weights.keys()

    def _scores(
        self, profile: _Profile, words: Sequence[Word], concepts: Sequence[Concept], filled: Filled
    ) -> tuple[float, float]:
        """How well a query fits, from 0 to 1: but for values that it cannot take, and all told."""
        fit = score = self._score(profile, words, concepts, filled)
        of_data = [c for c in concepts if c.name in self._of_data and filled.free_any(c.start, c.end)]
        if of_data or filled.doubt or filled.unusable:
            rest = [concept for concept in concepts if concept not in of_data]
            fit = self._score(profile, words, rest, replace(filled, doubt=0.0, unusable=False))
        return fit, score * _TURNED ** len(of_data)

    def _score(self, profile: _Profile, words: Sequence[Word], concepts: Sequence[Concept], filled: Filled) -> float:
        """How well a query fits, from 0 to 1."""
        said = {concept.name: 1 - concept.doubt for concept in concepts}
        places = frozenset(map(_place, filled.values))
        said |= dict.fromkeys(places, 1.0)
        unused = [concept for concept in concepts if filled.free_any(concept.start, concept.end)]
        best = 0.0
        for phrase in profile.phrases:
            covered = self._share(phrase, said)
            if covered:
                explained = self._explained(profile, phrase, unused, places & phrase)
                best = max(best, explained * math.sqrt(covered))
        for concept in unused:
            if concept.name in self._turning and concept.name not in profile.in_phrases:
                best *= _TURNED
        if best and self._wishes.is_superlative(words) and not self._can_compare(profile, words, filled, unused):
            best *= _TURNED
        best *= 1 - filled.doubt
        if filled.unusable:
            best *= _UNUSABLE
        if any(
            (parameter.required or parameter.must_be_named) and name not in filled.values
            for name, parameter in profile.query.parameters.items()
        ):
            best *= 0.1
        return best

    def _can_compare(self, profile: _Profile, words: Sequence[Word], filled: Filled, unused: Sequence[Concept]) -> bool:
        """False when the largest is asked for of a figure that the query has not, or among things it has no rows of.

        It would be answered with the largest of something else.
        """
        wish = self._wishes.of(profile.query, words, filled.roles)
        others = self._things - profile.in_phrases
        return self._wishes.can_be_said(profile.query, wish) and not any(concept.name in others for concept in unused)

    def _share(self, phrase: frozenset[str], said: dict[str, float]) -> float:
        total = sum(self._weight(name) for name in phrase)
        return sum(self._weight(name) * said.get(name, 0) for name in phrase) / total

    def _explained(
        self, profile: _Profile, phrase: frozenset[str], unused: Sequence[Concept], places: Iterable[str]
    ) -> float:
        total = found = sum(map(self._weight, places))
        for concept in unused:
            weight = self._weight(concept.name) * _strangeness(concept)
            total += weight
            if concept.name in phrase:
                found += weight * (1 - concept.doubt)
            elif concept.name in profile.in_phrases:
                found += weight * _OTHER_PHRASE * (1 - concept.doubt)
            elif concept.name in profile.in_description:
                found += weight * _DESCRIPTION * (1 - concept.doubt)
        return found / total if unused else _NOTHING_SAID

    def _weight(self, name: str) -> float:
        return self._weights.get(name, _STRANGE_WEIGHT)


def _strangeness(concept: Concept) -> float:
    if concept.name.isdigit():
        return _NUMBER
    return _RESTRICTS if concept.restricts else _UNKNOWN if concept.is_unknown else 1.0


def _place(parameter: str) -> str:
    return "{" + parameter + "}"


def _weights(profiles: Sequence[_Profile]) -> dict[str, float]:
    """Of each concept: near 1 when one query is about it, least when all are."""
    counts: dict[str, int] = {}
    for profile in profiles:
        for name in profile.in_phrases:
            counts[name] = counts.get(name, 0) + 1
    rarest = math.log(len(profiles) + 1)
    return {
        name: _LEAST_WEIGHT + (1 - _LEAST_WEIGHT) * math.log((len(profiles) + 1) / count) / rarest
        for name, count in counts.items()
    }


def _known_words(queries: Iterable[NamedQuery], vocabulary: Vocabulary) -> Iterable[str]:
    yield from vocabulary.absent
    for query in queries:
        yield from (*(PLACE.sub(" ", phrase) for phrase in query.ask), query.title, query.name.replace("_", " "))
        for parameter in query.parameters.values():
            for phrases in words_for(parameter, vocabulary).values():
                yield from phrases
            yield from number_phrases_for(parameter, vocabulary)


def _things(query: NamedQuery) -> Iterable[str]:
    """What a query has rows of, or is about one of: parameters such as `store_id` by their name, `10 stores`."""
    for name, parameter in query.parameters.items():
        if name.endswith("_id") or (
            parameter.type == "string" and not parameter.choices and not name.endswith("_type")
        ):
            yield name.removesuffix("_id").replace("_", " ")
        if name in LIMIT_NAMES:
            yield from parameter.ask


def _confidence(score: float) -> float:
    return round(1 / (1 + math.exp(_AT_NOTHING - _PER_SCORE * score)), 3)
