"""What of a result a question asks for: the largest of a figure, a row by its name, a figure added up.

It only reads words that the catalogue declares (`says` of a query, `measures` of the vocabulary) and the superlatives of the
two languages. Phrases are compared word by word, endings apart, the longest first.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ..catalogue import NamedQuery
from ..vocabulary import Vocabulary
from .stop_words import STOP_WORDS
from .words import Word, folded, stem, stems_of

# As they are written: by its stem, `maio` is `mais`.
_SUPERLATIVES = frozenset(
    folded(
        "most top best highest biggest largest greatest strongest deepest busiest fastest peak record leading leader"
        " ranking rank ranked mais maior maiores melhor melhores campeão campeões pico recorde líder máximo"
    ).split()
)
_BY = frozenset({"by", "per", "in", "for", "por", "em", "para"})
_BETWEEN = frozenset(
    folded(
        "the of a o as os de da dos das number número quantidade total has had is was were foi foram tem teve"
    ).split()
)
_MOST_BETWEEN = 4
_MORE = "mais"  # `most`, and `more` in `mais do que`, `mais de 100`, `a mais`
_AFTER_MORE = frozenset({"do", "de", "que"})

Phrase = tuple[str, ...]


@dataclass(frozen=True)
class Wish:
    """What a question asks of a query's result.

    `best`: the figures that its superlative is about, the surest first, each as the columns that may hold it. `named`: those
    of all figures that it names. `rows`: values of the column that names rows. `each`: columns to add up by.
    """

    is_best: bool = False
    best: tuple[tuple[str, ...], ...] = ()
    named: tuple[tuple[str, ...], ...] = ()
    rows: tuple[str, ...] = ()
    each: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether the question says nothing about what of a result it wants."""
        return not (self.is_best or self.named or self.rows)


@dataclass(frozen=True)
class _Span:
    start: int
    end: int
    means: tuple[str, ...]


class Wishes:
    """Reads questions for the queries of one catalogue; made once, used by any number of threads."""

    def __init__(self, vocabulary: Vocabulary, queries: Iterable[NamedQuery]) -> None:
        self._measures = _index(vocabulary.measures)
        self._rows, self._each = {}, {}
        for query in queries:
            self._rows[query.name] = _index(next(iter(query.says.rows.values()), {}))
            self._each[query.name] = _index(query.says.each)

    def of(self, query: NamedQuery, words: Sequence[Word], taken: Collection[int]) -> Wish:
        """What the words ask of a query's result; those at the places `taken` serve for something else."""
        read, texts = tuple(word.stem for word in words), tuple(word.text for word in words)
        spans = _spans(read, self._measures, taken)
        is_best = self.is_superlative(words)
        best = [(place, span) for span in spans if (place := _place(texts, span, taken)) is not None]
        return Wish(
            is_best,
            tuple(span.means for _, span in sorted(best, key=lambda entry: entry[0])),
            tuple(span.means for span in spans),
            _meant(_spans(read, self._rows[query.name], taken)),
            _meant(_spans(read, self._each[query.name], taken)),
        )

    @staticmethod
    def is_superlative(words: Sequence[Word]) -> bool:
        """Whether a question asks for the most of something."""
        texts = tuple(word.text for word in words)
        return any(_is_superlative(texts, index) for index in range(len(texts)))

    @staticmethod
    def can_be_said(query: NamedQuery, wish: Wish) -> bool:
        """False when a superlative is about a figure by which the query's rows cannot be compared."""
        can = set(query.says.measures)
        if not wish.is_best or not (can or query.says.rows):
            return True
        return all(can.intersection(columns) for columns in wish.best)


def _index(declared: Mapping[str, Iterable[str]]) -> dict[Phrase, tuple[str, ...]]:
    """Phrase -> all that it is declared for, in the order of declaration."""
    found: dict[Phrase, tuple[str, ...]] = {}
    for name, phrases in declared.items():
        for phrase in phrases:
            key = stems_of(phrase)
            if name not in found.get(key, ()):
                found[key] = (*found.get(key, ()), name)
    return found


def _spans(read: Phrase, index: Mapping[Phrase, tuple[str, ...]], taken: Collection[int]) -> list[_Span]:
    """The declared phrases in a question, none over another, in their order."""
    longest = max(map(len, index), default=0)
    used, found = set(taken), []
    for length in range(min(longest, len(read)), 0, -1):
        for start in range(len(read) - length + 1):
            means = index.get(read[start : start + length])
            if means and used.isdisjoint(range(start, start + length)):
                used.update(range(start, start + length))
                found.append(_Span(start, start + length, means))
    return sorted(found, key=lambda span: span.start)


def _meant(spans: Iterable[_Span]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for span in spans for name in span.means))


def _is_superlative(texts: Phrase, index: int) -> bool:
    if texts[index] != _MORE:
        return texts[index] in _SUPERLATIVES
    after = texts[index + 1 :]
    is_more = ("do", "que") in pairwise(after) or not _AFTER_MORE.isdisjoint(after[:1])
    return not is_more and "a" not in texts[max(0, index - 1) : index]


def _place(texts: Phrase, span: _Span, taken: Collection[int]) -> int | None:
    """How surely a superlative is about a figure, the surest least; None when it is not.

    `most units`, `grew the most` and `by units` name the figure; the customers of `what customers buy most` do not.
    """
    if any(_is_superlative(texts, index) for index in range(span.start, span.end)):
        return 0
    is_by = False
    for index in range(span.start - 1, max(-1, span.start - 2 - _MOST_BETWEEN), -1):
        if _is_superlative(texts, index):
            return 2 if is_by else 0
        is_by = is_by or texts[index] in _BY
        if texts[index] not in _BY and texts[index] not in _BETWEEN:
            break
    after = next((index for index in range(span.end, len(texts)) if texts[index] not in _BETWEEN), len(texts))
    if after < len(texts) and _is_superlative(texts, after):
        rest = texts[after + 1 : after + 2]
        if not rest or stem(rest[0]) in STOP_WORDS or after + 1 in taken:
            return 1
    return 2 if is_by else None
