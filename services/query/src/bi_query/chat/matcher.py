"""A question in Portuguese or English matched to a named query of the catalogue with its parameters. Pure, no model."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from ..catalogue import Catalogue, NamedQuery

MAX_QUESTION_CHARACTERS = 2_000
_WORD = re.compile(r"[a-z0-9]+")


@dataclass(frozen=True)
class Match:
    """A named query that may answer a question.

    `values` are parameter texts as a query string would bring them; what is not there keeps its default.
    `confidence` is from 0 to 1.
    """

    query: NamedQuery
    values: tuple[tuple[str, str], ...]
    confidence: float


class Matcher:
    """Matches questions to the named queries of one catalogue; made once, used by any number of threads."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._queries = [
            (query, frozenset(_words(f"{query.name} {query.title}".replace("_", " "))))
            for query in catalogue.queries.values()
        ]

    def matches(self, question: str, most: int = 3) -> list[Match]:
        """The `most` likeliest named queries, best first; empty when nothing fits at all.

        Any text will do; what is beyond 2,000 characters is not read.
        """
        asked = frozenset(_words(question[:MAX_QUESTION_CHARACTERS]))
        found = []
        for query, words in self._queries:
            shared = len(asked & words)
            if shared:
                found.append(Match(query, (), shared / len(asked | words)))
        found.sort(key=lambda match: (-match.confidence, match.query.name))
        return found[:most]


def _words(text: str) -> list[str]:
    plain = unicodedata.normalize("NFKD", text.lower())
    return _WORD.findall("".join(character for character in plain if not unicodedata.combining(character)))
