"""README.pt-BR.md says what README.md says: section by section, what is not prose is the same in both."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENGLISH, PORTUGUESE = "README.md", "README.pt-BR.md"
_FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
_HEADING = re.compile(r"^#+ .+$", re.MULTILINE)
_TO_THE_OTHER = re.compile(r"^\[(?:English|Português)\]\((README[^)]*)\)$", re.MULTILINE)


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def code_blocks(text: str) -> list[str]:
    return _FENCED.findall(text)


def sections(text: str) -> list[tuple[str, str]]:
    """Heading (`## Start`) and text of each section, without code blocks and the line that leads to the other language."""
    prose = _TO_THE_OTHER.sub("", _FENCED.sub("", text))
    starts = [*_HEADING.finditer(prose)]
    ends = [*(start.start() for start in starts[1:]), len(prose)]
    return [(start[0], prose[start.end() : end]) for start, end in zip(starts, ends, strict=True)]


def links(section: str) -> Counter[str]:
    return Counter(re.findall(r"\]\(([^)]+)\)", section))


def code_words(section: str) -> Counter[str]:
    return Counter(re.findall(r"`([^`\n]+)`", section))


def table_rows(section: str) -> list[tuple[str, int]]:
    """First cell and number of cells of each row below a table's head; the rule under the head parts tables."""
    rows = [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in section.splitlines()
        if line[:1] == "|"
    ]
    heads = {place - 1 for place, row in enumerate(rows) if set("".join(row)) <= set("-: ")}
    return [(row[0], len(row)) for place, row in enumerate(rows) if place not in heads]


def points(section: str) -> int:
    return len(re.findall(r"^- ", section, re.MULTILINE))


def paragraphs(section: str) -> int:
    return len([part for part in re.split(r"\n\s*\n", section) if part.strip()])


def test_each_leads_to_the_other_at_its_top() -> None:
    for page, other in ((ENGLISH, PORTUGUESE), (PORTUGUESE, ENGLISH)):
        assert _TO_THE_OTHER.findall(text_of(page)[:200]) == [other], page


def test_headings_have_the_same_levels_in_the_same_order() -> None:
    english = [heading.split()[0] for heading, _ in sections(text_of(ENGLISH))]
    assert len(english) >= 8
    assert [heading.split()[0] for heading, _ in sections(text_of(PORTUGUESE))] == english


def test_code_blocks_are_the_same_to_the_byte() -> None:
    english = code_blocks(text_of(ENGLISH))
    assert len(english) >= 8
    assert code_blocks(text_of(PORTUGUESE)) == english


@pytest.mark.parametrize("of", [links, code_words, table_rows, points, paragraphs], ids=lambda of: of.__name__)
def test_each_section_has_the_same(of: object) -> None:
    assert callable(of)
    english, portuguese = sections(text_of(ENGLISH)), sections(text_of(PORTUGUESE))
    assert any(of(section) for _, section in english)
    for (heading, mine), (_, its) in zip(english, portuguese, strict=True):
        assert of(its) == of(mine), f"{PORTUGUESE} does not say what {ENGLISH} says under {heading!r}"


def test_the_prose_is_another_language() -> None:
    english, portuguese = sections(text_of(ENGLISH)), sections(text_of(PORTUGUESE))
    same = [
        line
        for (_, mine), (_, its) in zip(english, portuguese, strict=True)
        for line in set(mine.splitlines()) & set(its.splitlines())
        if len(re.sub(r"`[^`]*`|\[[^\]]*\]\([^)]*\)|[^A-Za-z ]", "", line).split()) > 6
    ]
    assert same == []
