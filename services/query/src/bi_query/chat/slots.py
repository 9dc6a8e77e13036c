"""What a question says about the parameters of one named query: values in words, numbers, a period."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Literal

from ..catalogue import NamedQuery
from ..errors import BadRequest
from ..parameters import Parameter
from ..vocabulary import Vocabulary
from .lexicon import Concept, Lexicon
from .periods import Period, is_ambiguous, read_period
from .stop_words import STOP_WORDS
from .units import Clock
from .words import Word, folded, stem, stems_of

Role = Literal["value", "number", "period"]
# What anybody's catalogue may call its "how many rows", and how people ask for it.
LIMIT_NAMES = frozenset({"limit", "top", "top_n", "n", "most", "rows", "max_rows"})
_LIMIT_PHRASES = (
    "top #", "first #", "best #", "leading #", "biggest #", "largest #", "# best", "# top", "# biggest", "# largest",
    "# most", "# highest", "# main", "the # with", "primeiros #", "primeiras #", "melhores #", "maiores #",
    "principais #", "# primeiros", "# primeiras", "# melhores", "# maiores", "# principais", "# mais",
    "os # que", "as # que",
)  # fmt: skip
_FROM_NAMES = ("from", "start", "since", "first", "begin", "after", "min", "de", "desde", "inicio")
_TO_NAMES = ("to", "end", "until", "last", "before", "max", "ate", "fim")
_BETWEEN_NUMBER_AND_NAME = frozenset(
    {"n", "no", "nr", "numero", "number", "id", "code", "codigo", "de", "da", "do", "of", "the", "com"}
)
_MOST_SKIPPED = 2
_AMBIGUOUS = 0.2
_GUESSED = 0.5  # enough for any match to stay below the threshold
_YEARS = range(1900, 2100)
_MOST_NUMBERS = 12


@dataclass
class Filled:
    """Texts for parameters, and what each word served for; words with no role were not understood here."""

    values: dict[str, str] = field(default_factory=dict)
    roles: dict[int, Role] = field(default_factory=dict)
    doubt: float = 0.0  # of the least certain word that a value was read from
    # The question names what the query cannot be asked for: a number out of range, a period that holds no day, none that the
    # query's parameters reach, or a second one.
    unusable: bool = False

    def free(self, start: int, end: int) -> bool:
        """Whether words `start` up to `end` serve for nothing yet."""
        return not any(index in self.roles for index in range(start, end))

    def free_any(self, start: int, end: int) -> bool:
        """Whether any of the words `start` up to `end` serves for nothing yet."""
        return any(index not in self.roles for index in range(start, end))

    def use(self, start: int, end: int, role: Role) -> None:
        """Words `start` up to `end` serve for `role`."""
        self.roles.update(dict.fromkeys(range(start, end), role))


class Slots:
    """Fills the parameters of one named query. `reference` is the last day of data, where a catalogue tells it."""

    def __init__(self, query: NamedQuery, vocabulary: Vocabulary, lexicon: Lexicon, reference: date | None) -> None:
        self._query = query
        self._first_week = vocabulary.first_week
        self._end = period_end(query)
        self._reference = self._end or reference
        self._from, self._to = period_parameters(query.parameters.values())
        self._words: dict[tuple[str, ...], list[tuple[str, str, str]]] = {}
        self._numbers: list[tuple[str, tuple[str, ...], tuple[str, ...]]] = []
        self._nouns: dict[str, frozenset[str]] = {}
        for parameter in query.parameters.values():
            declared = words_for(parameter, vocabulary)
            shared = Counter(key for phrases in declared.values() for key in set(map(stems_of, phrases)))
            for value, phrases in declared.items():
                for phrase in phrases:
                    # `próxima semana` is one week, `próximas semanas` are not: a number's words count as they are written.
                    # So do those that stand for two values but for their endings: `por cesta` and `por cestas`.
                    exactly = (
                        folded(phrase)
                        if parameter.type in ("integer", "number") or shared[stems_of(phrase)] > 1
                        else ""
                    )
                    self._words.setdefault(stems_of(phrase), []).append((parameter.name, value, exactly))
            for phrase in number_phrases_for(parameter, vocabulary):
                before, _, after = phrase.partition("#")
                self._numbers.append((parameter.name, stems_of(before), stems_of(after)))
            nouns = lexicon.concepts([Word(part, stem(part)) for part in parameter.name.split("_")])
            self._nouns[parameter.name] = frozenset(noun.name for noun in nouns)
        self._numbers.sort(key=lambda entry: -len(entry[1]) - len(entry[2]))
        self._longest = max(map(len, self._words), default=0)
        self._firsts = frozenset(key[0] for key in self._words if key)

    def fill(self, words: Sequence[Word], concepts: Sequence[Concept], today: date) -> Filled:
        """The parameters that the words name; every text is one that the parameter takes."""
        filled = Filled()
        stems = tuple(word.stem for word in words)
        numbers = [(index, word.number) for index, word in enumerate(words) if word.number is not None][:_MOST_NUMBERS]
        for between in (0, 1):  # `10 products` before `10 cheap products`
            for index, number in numbers:
                if filled.free(index, index + 1):
                    self._fill_number(index, number, stems, between, filled)
        self._fill_values(words, stems, concepts, filled)
        self._fill_period(words, today, filled)
        doubts = (word.doubt for index, word in enumerate(words) if index in filled.roles)
        filled.doubt = max(filled.doubt, *doubts, 0.0)
        return filled

    def _fill_number(self, index: int, number: float, stems: tuple[str, ...], between: int, filled: Filled) -> None:
        rejected: tuple[int, int] | None = None
        for name, before, after in self._numbers:
            if name in filled.values:
                continue
            if between and (before or not after or stems[index + 1 : index + 2] in _NOT_BETWEEN):
                continue
            start, end = _backward(stems, index, before), _forward(stems, index + 1 + between, after)
            text = f"{number:g}" if number != int(number) else str(int(number))
            if start is None or end is None or not filled.free(start, end):
                continue
            if _accepts(self._query.parameters[name], text):
                filled.values[name] = text
                filled.use(start, end if not between else index + 1, "number")
                return
            if rejected is None and not between and number not in _YEARS:
                rejected = start, end
        if rejected is not None:
            filled.unusable = True
            filled.use(*rejected, "number")

    def _fill_values(
        self, words: Sequence[Word], stems: tuple[str, ...], concepts: Sequence[Concept], filled: Filled
    ) -> None:
        starts = [start for start, first in enumerate(stems) if first in self._firsts]
        for length in range(min(self._longest, len(stems)), 0, -1):
            for start in starts:
                entries = self._words.get(stems[start : start + length])
                if entries is None or start + length > len(stems) or not filled.free(start, start + length):
                    continue
                for name, value, exactly in entries:
                    if exactly and exactly != " ".join(word.text for word in words[start : start + length]):
                        continue
                    # A second, other value cannot be meant as well: its words stay unexplained.
                    if filled.values.setdefault(name, value) == value:
                        filled.use(start, start + length, "value")
                        if any(word.is_guess for word in words[start : start + length]):
                            filled.doubt = _GUESSED
                        self._use_noun(name, start, start + length, concepts, filled)
                        break

    def _use_noun(self, name: str, start: int, end: int, concepts: Sequence[Concept], filled: Filled) -> None:
        """`departamento de carnes`, `meat department`: the parameter's own name belongs to its value."""
        for concept in concepts:
            is_beside = 0 <= start - concept.end <= 1 or concept.start == end
            if is_beside and concept.name in self._nouns[name] and filled.free(concept.start, concept.end):
                filled.use(concept.start, concept.end, "value")
                return

    def _fill_period(self, words: Sequence[Word], today: date, filled: Filled) -> None:
        if self._from is None and self._to is None:
            return
        last_day = self._reference or today - timedelta(1)
        clock = Clock(last_day, self._reference or today, self._first_week, today)
        period = _next_period(words, filled, clock)
        if period is None:
            return
        filled.use(period.start, period.end, "period")
        # A query without an end of its own may know of what is planned, but not of today when the data end before.
        is_now = period.first is not None and period.first >= today - timedelta(1)
        end = self._end or (self._reference if is_now else None)
        texts = None if period.is_empty else self._period_texts(period, last_day, end)
        if texts is None:
            filled.unusable = True
            return
        filled.values |= texts
        if is_ambiguous(words[period.start : period.end]):
            filled.doubt = max(filled.doubt, _AMBIGUOUS)
        second = _next_period(words, filled, clock)
        # `em 2017, vendas de março` is one period; of two that are compared one would be dropped.
        if second is not None and not (period.holds(second) or second.holds(period)):
            filled.unusable = True

    def _period_texts(self, period: Period, last_day: date, end: date | None) -> dict[str, str] | None:
        """The period cut to what the parameters allow and the data cover; None when nothing of it is left."""
        texts = {}
        first, last = period.first, period.last
        if end is not None:
            if first is not None and first > end:
                return None
            last = last and min(last, end)
        for parameter in (self._from, self._to):
            if parameter is None:
                continue
            low, high = parameter.minimum, parameter.maximum
            if (last is not None and last < low) or (first is not None and first > high):
                return None
        if self._from is not None:
            if first is not None:
                texts[self._from.name] = max(first, self._from.minimum).isoformat()
            elif self._to is not None:
                texts[self._from.name] = self._from.minimum.isoformat()
        if self._to is not None and (last is not None or self._to.required):
            texts[self._to.name] = max(min(last or last_day, self._to.maximum), self._to.minimum).isoformat()
        return texts


def _next_period(words: Sequence[Word], filled: Filled, clock: Clock) -> Period | None:
    """The first period among the words that serve for nothing yet."""
    return read_period(tuple(words), tuple(index not in filled.roles for index in range(len(words))), clock)


def words_for(parameter: Parameter, vocabulary: Vocabulary) -> Mapping[str, tuple[str, ...]]:
    """Value -> words for it: as declared for the parameter or for all of its name; else a value is called by itself."""
    own: dict[str, tuple[str, ...]] = {
        value: (value.replace("_", " "),)
        for value in (*parameter.choices, *parameter.examples)
        if parameter.type == "string"
    }
    shared = vocabulary.values.get(parameter.name, {})
    for value, phrases in (*shared.items(), *parameter.synonyms.items()):
        if _accepts(parameter, value):
            own[value] = phrases
    return own


def number_phrases_for(parameter: Parameter, vocabulary: Vocabulary) -> tuple[str, ...]:
    """The phrases that bring a parameter's number, `#` in its place."""
    if parameter.type not in ("integer", "number"):
        return ()
    phrases = parameter.ask + vocabulary.numbers.get(parameter.name, ())
    if parameter.name in LIMIT_NAMES:
        return phrases + _LIMIT_PHRASES
    return phrases or (parameter.name.removesuffix("_id").replace("_", " ") + " #",)


def period_end(query: NamedQuery) -> date | None:
    """The last day that a query's period has by default; None without one, or when it is open."""
    _, to = period_parameters(query.parameters.values())
    if to is None or not isinstance(to.default, date) or to.default == to.maximum:
        return None
    return to.default


def period_parameters(parameters: Iterable[Parameter]) -> tuple[Parameter | None, Parameter | None]:
    """The parameters for a period's first and last day, by their names, else by their order."""
    dates = [parameter for parameter in parameters if parameter.type == "date"]
    first = next((parameter for parameter in dates if _named(parameter, _FROM_NAMES)), None)
    last = next((parameter for parameter in dates if parameter is not first and _named(parameter, _TO_NAMES)), None)
    rest = [parameter for parameter in dates if parameter is not first and parameter is not last]
    if first is None and last is None and rest:
        return rest[0], rest[1] if len(rest) > 1 else None
    return first, last


def _named(parameter: Parameter, names: tuple[str, ...]) -> bool:
    return any(part in names for part in parameter.name.split("_"))


def _accepts(parameter: Parameter, text: str) -> bool:
    try:
        parameter.parse(text)
    except BadRequest:
        return False
    return True


def _backward(stems: tuple[str, ...], index: int, phrase: tuple[str, ...]) -> int | None:
    """Where `phrase` begins when it ends before `index`, with nothing but little words (`loja nº 367`) between."""
    for skipped in range(_MOST_SKIPPED + 1 if phrase else 1):
        start = index - skipped - len(phrase)
        if (
            start >= 0
            and stems[start : index - skipped] == phrase
            and _SKIPPED.issuperset(stems[index - skipped : index])
        ):
            return start
    return None


def _forward(stems: tuple[str, ...], index: int, phrase: tuple[str, ...]) -> int | None:
    end = index + len(phrase)
    return end if stems[index:end] == phrase else None


_NOT_BETWEEN = {(), *((word,) for word in STOP_WORDS)}
_SKIPPED = frozenset(map(stem, _BETWEEN_NUMBER_AND_NAME))
