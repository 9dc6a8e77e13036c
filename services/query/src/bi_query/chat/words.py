"""A question as words: without accents, case or endings, numbers read, so that Portuguese and English compare alike."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

MAX_CHARACTERS = 2_000
MAX_WORDS = 120
_TOKEN = re.compile(
    r"\d{4}-\d{1,2}(?:-\d{1,2})?"  # 2017-06, 2017-06-01
    r"|(?<![\w/])(?:jan(?:eiro|uary)?|fev(?:ereiro)?|feb(?:ruary)?|mar(?:co|ch)?|a[pb]r(?:il)?|mai(?:o)?|may|jun(?:ho|e)?"
    r"|jul(?:ho|y)?|ago(?:sto)?|aug(?:ust)?|set(?:embro)?|sept?(?:ember)?|out(?:ubro)?|oct(?:ober)?|nov(?:embro|ember)?"
    r"|dez(?:embro)?|dec(?:ember)?)/(?:\d{4}|\d{2})(?![\w/])"  # jan/17
    r"|\d{1,2}[./-]\d{1,2}[./-]\d{4}|\d{1,2}/\d{4}|\d{1,2}/\d{1,2}(?:/\d{2})?"  # 01/06/2017, 06/2017, 1/6
    r"|\d{1,3}(?:[.,]\d{3})+(?:[.,]\d+)?(?![\d\w])|\d+[.,]\d+(?![\d\w])|\d+(?![\d\w])"
    r"|#|[^\W_]+"
    r"|(?<=[\s\d])[-–—](?=[\s\d])"
)
_GREETING = re.compile(r"\s*(?:good (?:morning|afternoon|evening)|bom dia|boa (?:tarde|noite))\b")
_WHOLE = {"maio", "marco", "goods"}  # without their last letters they would be `mais`, `marca`, `good`
_MOST_DIGITS = 24  # with its marks; longer ones are no numbers that a parameter takes
_GROUPED = re.compile(r"\d{1,3}(?:[.,]\d{3})+(?:[.,]\d+)?")
NUMBER_WORDS = {
    name: number
    for number, names in {
        2: "two dois duas",
        3: "three tres",
        4: "four quatro",
        5: "five cinco",
        6: "six seis",
        7: "seven sete",
        8: "eight oito",
        9: "nine nove",
        10: "ten dez",
        11: "eleven onze",
        12: "twelve doze dozen duzia",
        13: "thirteen treze",
        14: "fourteen quatorze catorze",
        15: "fifteen quinze",
        20: "twenty vinte",
        25: "twentyfive",
        30: "thirty trinta",
        40: "forty quarenta",
        50: "fifty cinquenta",
        100: "hundred cem",
    }.items()
    for name in names.split()
}


@dataclass(frozen=True)
class Word:
    """One word: `text` folded, `stem` what is compared, `number` when it is one, `doubt` from 0 (as written) to 1.

    `is_guess`: it stands for a short word that is not known, which is as often another word as a misspelt one.
    """

    text: str
    stem: str
    number: float | None = None
    doubt: float = 0.0
    is_guess: bool = False


def words_of(text: str, most: int = MAX_WORDS) -> list[Word]:
    """The first `most` words of a text's first 2,000 characters, without a greeting before them."""
    found, plain = [], folded(text[:MAX_CHARACTERS])[: 2 * MAX_CHARACTERS]
    greeting = _GREETING.match(plain)
    for match in _TOKEN.finditer(plain, greeting.end() if greeting else 0):
        token = match.group()
        found.append(Word(token, stem(token), number_of(token)))
        if len(found) == most:
            break
    return found


def stems_of(text: str) -> tuple[str, ...]:
    """The stems of a phrase of the catalogue."""
    return tuple(word.stem for word in words_of(text))


def folded(text: str) -> str:
    """Lower case without accents."""
    plain = unicodedata.normalize("NFKD", text.lower())
    return "".join(character for character in plain if not unicodedata.combining(character))


def stem(word: str) -> str:
    """A word without its plural, its gender and its last vowel: the same for `stores` and `store`, `nova` and `novos`.

    It need not be right, only the same for what belongs together, in either language.
    """
    if len(word) < 4 or not word.isalpha() or word in _WHOLE:
        return word
    for ending, singular in (("oes", "ao"), ("aes", "ao"), ("ais", "al"), ("eis", "el"), ("ies", "y"), ("ss", "ss")):
        if word.endswith(ending) and len(word) > 4:
            word = word[: -len(ending)] + singular
            break
    else:
        word = word.removesuffix("s")
    if len(word) > 3 and word[-1] in "aeo":
        word = word[:-1]
    if word[-1] == "m":
        return word[:-1] + "n"
    return word[:-1] + "i" if word[-1] == "y" else word


def stems(words: Iterable[str]) -> frozenset[str]:
    """The stems of single words."""
    return frozenset(map(stem, words))


def number_of(token: str) -> float | None:
    """The number that a word is, in digits of either language or written out; None when it is none."""
    if token in NUMBER_WORDS:
        return NUMBER_WORDS[token]
    if (
        not token
        or len(token) > _MOST_DIGITS
        or not token[0].isdigit()
        or not token[-1].isdigit()
        or not token.isascii()
    ):
        return None
    if _GROUPED.fullmatch(token):  # the last mark tells decimals from thousands when both stand there
        whole, fraction = token, ""
        if len({mark for mark in token if not mark.isdigit()}) > 1:
            cut = max(token.rfind(","), token.rfind("."))
            whole, fraction = token[:cut], token[cut + 1 :]
        return float(re.sub(r"[.,]", "", whole) + "." + (fraction or "0"))
    try:
        return float(token.replace(",", "."))
    except ValueError:  # a date, 3t17
        return None
