"""The words a catalogue knows: which of them mean the same, and which one a misspelt word was meant to be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rapidfuzz import process
from rapidfuzz.distance import OSA

from . import periods
from .stop_words import FUTURE_PHRASES, GOING_TO, PREPOSITIONS, STOP_WORDS, TURNING_WORDS
from .words import NUMBER_WORDS, Word, stem, stems_of

MAX_CORRECTIONS = 24
_SHORTEST_CORRECTED = 5
_SHORTEST_CORRECTION = 4
_LONG = 8
_DOUBT_PER_EDIT = 0.2


@dataclass(frozen=True)
class Concept:
    """What words `start` up to `end` (excluded) of a question mean; `doubt` is that of the least certain word.

    `is_unknown`: a word that the catalogue has nowhere; `restricts`: such a one after a preposition (`in Ohio`, `de xampu`).
    """

    name: str
    start: int
    end: int
    doubt: float = 0.0
    is_unknown: bool = False
    restricts: bool = False


class Lexicon:
    """Words and groups of words that mean the same; `known` words are never taken for a misspelling of another."""

    def __init__(self, same: Iterable[Sequence[str]], known: Sequence[str]) -> None:
        self._concepts: dict[tuple[str, ...], str] = {}
        for group in same:
            keys = [stems_of(phrase) for phrase in group]
            for key in keys:
                self._concepts.setdefault(key, " ".join(keys[0]))
        counts = Counter(part for phrase in known for part in stems_of(phrase))
        self._longest = max(map(len, self._concepts), default=1)
        self._future = self._concepts.get(stems_of(FUTURE_PHRASES[0]))
        single = {part for key in self._concepts for part in key}
        single.update(counts)
        self._known = single | STOP_WORDS | TURNING_WORDS | {stem(word) for word in (*NUMBER_WORDS, *periods.WORDS)}
        ours = single - STOP_WORDS - TURNING_WORDS
        ours.update(stem(word) for word in periods.WORDS)
        # Of equally near words the first is taken: the one that more phrases have, then the longer one.
        self._candidates = sorted(
            (part for part in ours if part.isalpha() and len(part) >= _SHORTEST_CORRECTION),
            key=lambda part: (-counts[part], -len(part), part),
        )
        self._period_texts = {stem(word): word for word in periods.WORDS}

    def corrected(self, words: Sequence[Word]) -> list[Word]:
        """The words, misspelt ones replaced by the known word they are nearest to, if one is near enough."""
        left, result = MAX_CORRECTIONS, []
        for word in words:
            if word.stem in self._known or not word.stem.isalpha() or len(word.stem) < _SHORTEST_CORRECTED or not left:
                result.append(word)
                continue
            left -= 1
            result.append(self._nearest(word))
        return result

    def _nearest(self, word: Word) -> Word:
        edits = 1 if len(word.stem) < _LONG else 2
        found = process.extractOne(word.stem, self._candidates, scorer=OSA.distance, score_cutoff=edits)
        if found is None:
            return word
        stem_, distance = found[0], int(found[1])
        # A short word one letter off is often simply another word; people rarely miss the first letter.
        if stem_[0] != word.stem[0] and len(word.stem) < _LONG:
            return word
        return Word(
            self._period_texts.get(stem_, stem_),
            stem_,
            doubt=_DOUBT_PER_EDIT * distance,
            # `sabado` is one letter off `salad`; with the same letters in another order it is hardly another word.
            is_guess=len(word.stem) < _LONG and sorted(stem_) != sorted(word.stem),
        )

    def concepts(self, words: Sequence[Word]) -> list[Concept]:
        """What the words mean, the longest known phrases first; words that only say how one asks are left out."""
        found, start = [], 0
        stems = tuple(word.stem for word in words)
        while start < len(words):
            for end in range(min(len(words), start + self._longest), start, -1):
                name = self._concepts.get(stems[start:end])
                if name is None and end == start + 1 and _tells(words[start]):
                    name = stems[start]
                if name is not None:
                    doubt = max(word.doubt for word in words[start:end])
                    is_unknown = stems[start] not in self._known
                    found.append(Concept(name, start, end, doubt, is_unknown, is_unknown and _restricts(words, start)))
                    start = end
                    break
            else:
                if self._future is not None and _is_future(words, start):
                    found.append(Concept(self._future, start, start + 1))
                start += 1
        return found


def _tells(word: Word) -> bool:
    return word.stem not in STOP_WORDS and (len(word.stem) > 1 or word.number is not None)


def _is_future(words: Sequence[Word], start: int) -> bool:
    """`vão crescer`; not `vamos ver`, which only says that one asks."""
    verb = words[start + 1] if start + 1 < len(words) else None
    return (
        verb is not None
        and words[start].text in GOING_TO
        and verb.stem not in STOP_WORDS
        and (verb.doubt > 0 or verb.text.endswith(("ar", "er", "ir")))  # of a corrected word the ending is not known
    )


def _restricts(words: Sequence[Word], start: int) -> bool:
    """Whether a preposition stands before a word, with an article between them at most."""
    before = words[max(0, start - 2) : start]
    return any(
        word.text in PREPOSITIONS and all(between.stem in STOP_WORDS for between in before[place + 1 :])
        for place, word in enumerate(before)
    )
