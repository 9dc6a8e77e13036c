"""The catalogue: every fault is found, with its file and line, and the examples of its page are real."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from bi_query.catalogue import CatalogueError, load_catalogue
from bi_query.errors import ConfigurationError

from tests.support.small import FRESHNESS, Small

PAGE = Path(__file__).parents[2] / "docs" / "catalogue.md"


def query(header: str, sql: str = "select $a as a") -> str:
    return f"/*---\n{header}\n---*/\n{sql}\n"


GOOD = "title: T\nfreshness: quick\nparameters:\n  a: {type: integer, default: 1, minimum: 0, maximum: 9}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for part in ("queries", "models"):
        (tmp_path / part).mkdir()
    (tmp_path / "freshness.yaml").write_text(FRESHNESS)
    return tmp_path


def problems(folder: Path) -> list[str]:
    with pytest.raises(CatalogueError) as caught:
        load_catalogue(folder)
    return [str(problem).removeprefix(f"{folder}/") for problem in caught.value.problems]


FAULTS = {
    "YAML error": ("title: T\nfreshness: [quick", "select 1", 4, "not YAML"),
    "unknown key": (GOOD + "\ntitel: X", "select $a", 6, "titel"),
    "missing title": ("freshness: quick", "select 1", 1, "title"),
    "a key twice": (GOOD + "\ntitle: X", "select $a", 6, "'title' stands here twice"),
    "a parameter twice": (GOOD + "\n  a: {type: boolean}", "select $a", 6, "'a' stands here twice"),
    "not a mapping": ("- a\n- b", "select 1", 1, "front matter"),
    "bad type": ("title: T\nfreshness: quick\nparameters:\n  a: {type: float}", "select $a", 5, "type must be one of"),
    "no bounds": (
        "title: T\nfreshness: quick\nparameters:\n  a: {type: date}",
        "select $a",
        5,
        "minimum and a maximum",
    ),
    "default out of range": (GOOD.replace("default: 1", "default: 11"), "select $a", 5, "is too large"),
    "default of another type": (GOOD.replace("default: 1", "default: x"), "select $a", 5, "is not a integer"),
    "bounds the wrong way": (GOOD.replace("maximum: 9", "maximum: -1"), "select $a", 5, ""),
    "choices no list": ("title: T\nfreshness: quick\nparameters:\n  a: {type: string, choices: 5}", "select $a", 5, ""),
    "choices no texts": (
        "title: T\nfreshness: quick\nparameters:\n  a: {type: string, choices: [yes, no]}",
        "select $a",
        5,
        "",
    ),
    "a time in a date": (
        "title: T\nfreshness: quick\nparameters:\n"
        "  a: {type: date, minimum: 2017-01-01 10:00:00, maximum: 2018-01-01, default: 2017-06-01}",
        "select $a",
        5,
        "",
    ),
    "undeclared parameter": (GOOD, "select $a,\n  $b", 8, "uses $b, which the front matter does not declare"),
    "unused parameter": (GOOD, "select 1", 5, "'a' is declared but the SQL never uses $a"),
    "a parameter's name": (GOOD.replace("  a:", "  Aa:"), "select $Aa", 5, "lower_snake_case"),
    "a name that is taken": (GOOD.replace("  a:", "  format:"), "select $format", 5, "?format= means something else"),
    "unknown class": (GOOD.replace("quick", "slowly"), "select $a", 3, "unknown freshness class 'slowly'"),
    "time-out of nothing": (GOOD + "\ntimeout_seconds: 0", "select $a", 6, "greater than 0"),
    "two statements": (GOOD, "select $a;\n\nselect 2", 9, "expected one SELECT, found 2"),
    "no SELECT": (GOOD, "create table x as select $a as a", 7, "exactly one SELECT"),
    "no SQL": (GOOD, "", 8, "no SQL"),
    "only a comment": (GOOD, "-- nothing", 7, "exactly one SELECT"),
    "a phrase that is none": (GOOD + "\nask: [what, '?']", "select $a", 6, "needs a letter or a digit"),
    "a phrase in line": (GOOD + "\nask:\n  - what\n  - yes", "select $a", 8, "put quotes around it"),
    "too long a phrase": (GOOD + f"\nask: [{'a' * 81}]", "select $a", 6, "at most 80 characters"),
    "a place for no parameter": (GOOD + "\nask:\n  - fine\n  - 'by {b}'", "select $a", 8, "no parameter 'b'"),
    "a title in another language": (GOOD + "\ntitles: {fr: T}", "select $a", 6, "'pt' or 'en'"),
    "words for a value that is refused": (
        GOOD.replace("maximum: 9", "maximum: 9, synonyms: {10: [ten]}"),
        "select $a",
        5,
        "synonyms of '10'",
    ),
    "words for a value that are no list": (
        GOOD.replace("maximum: 9", "maximum: 9, synonyms: {5: five}"),
        "select $a",
        5,
        "",
    ),
    "a number's phrase without its place": (
        GOOD.replace("maximum: 9", "maximum: 9, ask: [at least]"),
        "select $a",
        5,
        "needs one #",
    ),
    "a number's phrase for a text": (
        "title: T\nfreshness: quick\nparameters:\n  a: {type: string, ask: ['no #']}",
        "select $a",
        5,
        "ask is for numbers",
    ),
    "a sentence by no parameter": (
        GOOD + "\nsays:\n  ranked_by:\n    b: {x: amount}",
        "select $a",
        8,
        "says.ranked_by: there is no parameter 'b' with choices",
    ),
    "a sentence without a choice": (
        "title: T\nfreshness: quick\nsays:\n  ranked_by: {a: {x: n}}\nparameters:\n  a: {type: string, choices: [x, y]}",
        "select $a",
        5,
        "says.ranked_by: a has other choices: y",
    ),
    "a sentence of two kinds of rows": (
        GOOD + "\nsays:\n  rows: {n: {x: [ex]}, m: {y: [why]}}",
        "select $a",
        7,
        "says.rows",
    ),
    "a sentence's figure without words": (
        GOOD + "\nsays:\n  best_by: [n]\n  adds:\n    - n",
        "select $a",
        7,
        "says.best_by: vocabulary.yaml has no words for 'n' in measures",
    ),
    "an unknown key of a sentence": (GOOD + "\nsays:\n  best: [n]", "select $a", 7, "says.best: Extra inputs"),
    "what is meant and not taken": (
        GOOD.replace("maximum: 9", "maximum: 9, if_not_named: 10"),
        "select $a",
        5,
        "if_not_named: '10' is too large",
    ),
    "syntax error": (GOOD, "select $a\nfrom range(3)\nwhere where", 9, "syntax error"),
}


@pytest.mark.parametrize(("header", "sql", "line", "said"), FAULTS.values(), ids=FAULTS)
def test_each_fault_of_a_query_is_said_with_its_line(folder: Path, header: str, sql: str, line: int, said: str) -> None:
    (folder / "queries" / "q.sql").write_text(query(header, sql))
    found = problems(folder)
    assert any(text.startswith(f"queries/q.sql:{line}: ") and said in text for text in found), found


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("queries/Bad-Name.sql", query(GOOD), "queries/Bad-Name.sql:1: the file name becomes the name"),
        ("queries/plain.sql", "select 1", "queries/plain.sql:1: no front matter"),
        ("queries/ad_hoc.sql", query(GOOD), "queries/ad_hoc.sql:1: the name 'ad_hoc' is taken"),
        ("queries/open.sql", "/*---\ntitle: T\nselect 1", "queries/open.sql:1: front matter opens"),
        ("models/m.sql", "/*---\nmaterialized: sometimes\n---*/\nselect 1", "models/m.sql:2: materialized"),
        ("models/m.sql", "select $a", "models/m.sql:1: a model takes no parameters"),
        ("models/m.sql", "", "models/m.sql:1: there is no SQL"),
        ("freshness.yaml", "quick: {fresh_seconds: -1}", "freshness.yaml:1: quick.fresh_seconds"),
        ("freshness.yaml", "a: {fresh_seconds: 1}\nb: {stale_seconds: 1}", "freshness.yaml:2: b.fresh_seconds"),
        ("freshness.yaml", "a: {fresh_seconds: 1}\nb: [", "freshness.yaml:2: not YAML"),
        ("freshness.yaml", "- a", "freshness.yaml:1: expected a mapping"),
        ("freshness.yaml", "a: 5", "freshness.yaml:1: a: "),
    ],
)
def test_each_fault_of_the_other_files_is_said_with_its_line(folder: Path, name: str, text: str, said: str) -> None:
    (folder / name).write_text(text)
    assert any(found.startswith(said) for found in problems(folder)), problems(folder)


VOCABULARY_FAULTS = [
    ("synonym: [[a]]", 1, "synonym"),
    ("same:\n  - [sales, vendas]\n  - [turnover, Sales]", 3, "same: 'Sales' stands in groups 1 and 2"),
    ("same:\n  - [sales]\n  - [on]", 3, "put quotes around it"),
    ("values:\n  b: {x: [y]}", 2, "values: no named query takes 'b'"),
    ("values:\n  a:\n    1: [one]\n    10: [ten]", 4, "values.a: parameter 'a': '10' is too large"),
    ("numbers:\n  a: ['no #']\n  s: ['no #']", 3, "numbers: no named query takes a number 's'"),
    ("numbers:\n  a:\n    - 'no #'\n    - 'no'", 4, "numbers.a: 'no' needs one #"),
    ("absent: [margin, 1.5, true]", 1, "put quotes around it"),
    ("labels: {fr: {a: montant}}", 1, "labels.fr"),
    ("labels:\n  pt: {a: ''}", 2, "a phrase needs a letter"),
    ("measures:\n  n: [on]", 2, "put quotes around it"),
    ("first_week: 2016-12-27", 1, "first_week: a week begins on a Monday"),
]


@pytest.mark.parametrize(("text", "line", "said"), VOCABULARY_FAULTS)
def test_each_fault_of_the_vocabulary_is_said_with_its_line(folder: Path, text: str, line: int, said: str) -> None:
    (folder / "queries" / "q.sql").write_text(query(GOOD + "\n  s: {type: string}", "select $a, $s"))
    (folder / "vocabulary.yaml").write_text(text)
    found = problems(folder)
    assert any(problem.startswith(f"vocabulary.yaml:{line}: ") and said in problem for problem in found), found


def test_a_faulty_query_does_not_make_the_vocabulary_look_faulty(folder: Path) -> None:
    (folder / "queries" / "q.sql").write_text(query(GOOD + "\ntitel: X"))
    (folder / "vocabulary.yaml").write_text("numbers: {a: ['no #']}")
    assert {text.split(":")[0] for text in problems(folder)} == {"queries/q.sql"}


def test_words_for_asking_are_as_declared(folder: Path) -> None:
    header = GOOD.replace("maximum: 9", "maximum: 9, ask: ['first #'], synonyms: {2: [a pair, 2]}")
    (folder / "queries" / "q.sql").write_text(
        query(header + "\nask: ['by {a}', quanto]\ntitles: {pt: Título}", "select $a")
    )
    (folder / "vocabulary.yaml").write_text(
        "same: [[sales, vendas]]\nvalues: {a: {3: [três]}}\nlabels: {pt: {a: quantidade}}"
    )
    catalogue = load_catalogue(folder)
    found = catalogue.queries["q"]
    assert (found.ask, found.titles) == (("by {a}", "quanto"), {"pt": "Título"})
    assert found.labels == {"pt": {"a": "quantidade"}}
    assert found.parameters["a"].synonyms == {"2": ("a pair", "2")}
    assert found.parameters["a"].ask == ("first #",)
    assert catalogue.vocabulary.values == {"a": {"3": ("três",)}}


def test_all_faults_are_said_at_once(folder: Path) -> None:
    (folder / "queries" / "a.sql").write_text(query(GOOD + "\ntitel: X"))
    (folder / "queries" / "b.sql").write_text(query(GOOD.replace("quick", "x"), "select 1"))
    (folder / "models" / "c.sql").write_bytes(b"select '\xff'")
    assert {text.split(":")[0] for text in problems(folder)} == {"queries/a.sql", "queries/b.sql", "models/c.sql"}


def test_line_numbers_hold_after_blank_lines_a_byte_order_mark_and_windows_line_ends(folder: Path) -> None:
    text = "\ufeff\n\n" + query(GOOD + "\ntitel: X").replace("\n", "\r\n")
    (folder / "queries" / "q.sql").write_bytes(text.encode())
    assert any(found.startswith("queries/q.sql:8: titel") for found in problems(folder)), problems(folder)


def test_a_good_query_is_as_declared(folder: Path) -> None:
    (folder / "queries" / "q.sql").write_text(query(GOOD, "select $a as a -- $b; select\n;\n"))
    found = load_catalogue(folder).queries["q"]
    assert (found.title, found.freshness_class, found.sql_line) == ("T", "quick", 7)
    assert found.parameters["a"].default == 1
    assert found.sql.startswith("select $a")


def test_a_query_s_digest_follows_its_text(folder: Path) -> None:
    digests = set()
    for header, sql in ((GOOD, "select $a"), (GOOD, "select $a "), (GOOD, "select $a + 1"), (GOOD + "\n", "select $a")):
        (folder / "queries" / "q.sql").write_text(query(header, sql))
        digests.add(load_catalogue(folder).queries["q"].digest)
    (folder / "queries" / "q.sql").write_text(query(GOOD.replace("maximum: 9", "maximum: 8"), "select $a"))
    digests.add(load_catalogue(folder).queries["q"].digest)
    assert len(digests) == 3


def test_a_folder_that_is_no_catalogue_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="does not exist"):
        load_catalogue(tmp_path / "missing")
    with pytest.raises(ConfigurationError, match="holds no queries"):
        load_catalogue(tmp_path)


def test_no_catalogue_is_an_empty_one() -> None:
    empty = load_catalogue(None)
    assert (empty.models, empty.queries) == ({}, {})
    assert empty.ad_hoc_freshness.fresh_seconds == 60


def test_the_examples_of_the_page_are_a_catalogue_that_works(small: Small) -> None:
    examples = re.findall(r"`(\S+)`:\n\n```\w+\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert {name for name, _ in examples} >= {"models/sales_by_month.sql", "queries/best_shops.sql", "freshness.yaml"}
    for part in ("models", "queries"):
        for path in (small.catalogue / part).glob("*.sql"):
            path.unlink()
    for name, text in examples:
        (small.catalogue / name).write_text(text)
    assert small.publish().relations["sales_by_month"]["description"]
    assert set(small.load().queries) == {"best_shops"}
