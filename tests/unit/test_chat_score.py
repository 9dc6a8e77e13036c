"""The grader of the chat's question set: what it takes for right, and above all what it does not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import orjson
import pytest
import yaml
from bi_query.catalogue import load_catalogue
from bi_query.catalogue_dir import demo_catalogue_dir
from bi_query.parameters import bind

from loadtest.chat import score
from loadtest.chat.asking import Chat
from loadtest.chat.cli import main
from loadtest.chat.grading import Reply, grade
from loadtest.chat.questions import QUESTIONS, Choice, Question, load_questions

DEFAULTS = {
    "top": {"department": None, "limit": 20, "sort_by": "sales", "from_date": "2017-01-01", "least": 0.0, "all": False},
    "other": {"limit": 20},
}
NAMED = Question(
    "n",
    "en",
    "top 5 of march",
    "named",
    (Choice("top", {"limit": 5, "from_date": date(2017, 3, 1)}, {"sort_by": ["units"]}),),
)
REFUSAL = Question("r", "pt", "previsão do tempo", "cannot_answer")
CANNOT = {"query": None, "sql": None, "params": {}, "result": None, "confidence": 0.1}


def reply(document: Mapping[str, Any], status: int = 200) -> Reply:
    return Reply(status, document, 0.5)


def named(query: str, **params: Any) -> Reply:
    result = {"columns": [], "rows": [], "row_count": 0, "truncated": False}
    return reply({"query": query, "sql": "select", "params": params, "result": result})


def rows(*found: list[Any]) -> Reply:
    return reply({"query": None, "sql": "select", "params": {}, "result": {"rows": list(found)}})


def right(question: Question, answer: Reply, *, with_model: bool = False) -> bool:
    return grade(question, answer, DEFAULTS, with_model=with_model).right


def test_the_right_query_with_every_stated_parameter_is_right() -> None:
    assert right(NAMED, named("top", limit=5, from_date="2017-03-01"))


def test_defaults_of_what_the_question_does_not_state_are_right() -> None:
    every = {"department": None, "sort_by": "sales", "least": 0, "all": False}
    assert right(NAMED, named("top", limit=5, from_date="2017-03-01", **every))


def test_a_value_that_the_question_leaves_open_is_right() -> None:
    assert right(NAMED, named("top", limit=5, from_date="2017-03-01", sort_by="units"))


@pytest.mark.parametrize(
    "wrong",
    [
        named("other", limit=5, from_date="2017-03-01"),
        named("top", limit=5),
        named("top", limit=20, from_date="2017-03-01"),
        named("top", limit=None, from_date="2017-03-01"),
        named("top", limit=5, from_date="2017-03-02"),
        named("top", limit=5, from_date="2017-03-01", department="MEAT"),
        named("top", limit=5, from_date="2017-03-01", sort_by="name"),
        named("top", limit=5, from_date="2017-03-01", all=True),
        named("top", limit=5, from_date="2017-03-01", unheard_of=1),
        named("top"),
        rows([5, "2017-03-01"]),
        reply(CANNOT),
        reply({**CANNOT, "query": "top", "params": {"limit": 5, "from_date": "2017-03-01"}}),
        Reply(500, named("top", limit=5, from_date="2017-03-01").document, 0.5),
        reply({"code": "model_unavailable"}, 503),
    ],
)
@pytest.mark.parametrize("with_model", [False, True])
def test_a_wrong_answer_to_a_named_question_is_wrong(wrong: Reply, with_model: bool) -> None:
    assert not right(NAMED, wrong, with_model=with_model)


def test_one_of_two_queries_that_both_answer_is_right() -> None:
    either = Question("e", "en", "?", "named", (Choice("top", {"limit": 5}, {}), Choice("other", {"limit": 6}, {})))
    assert right(either, named("top", limit=5))
    assert right(either, named("other", limit=6))
    assert not right(either, named("other", limit=5))


def test_what_cannot_be_answered_must_be_refused() -> None:
    assert right(REFUSAL, reply(CANNOT))
    assert right(REFUSAL, reply(CANNOT), with_model=True)
    assert not right(REFUSAL, named("top"))
    assert not right(REFUSAL, rows([1]))
    assert not right(REFUSAL, reply({**CANNOT, "code": "internal"}, 500)), "an error is no refusal"
    assert not right(REFUSAL, reply({**CANNOT, "sql": "delete"})), "SQL was tried"


def asked_for(*expected: tuple[Any, ...], ordered: bool = False) -> Question:
    return Question("s", "en", "?", "sql", (), expected, ordered, "select 1")


def test_without_a_model_what_only_sql_answers_must_be_refused() -> None:
    assert right(asked_for((7,)), reply(CANNOT))
    assert not right(asked_for((7,)), rows([7]))
    assert not right(asked_for((7,)), reply(CANNOT), with_model=True)


@pytest.mark.parametrize(
    ("expected", "got"),
    [
        (asked_for((7,)), [[7]]),
        (asked_for((7,)), [["7"]]),
        (asked_for((7,)), [[7.0]]),
        (asked_for((961.49,)), [["961.49"]]),
        (asked_for((961.49,)), [["a basket", 961.490001]]),
        (asked_for((date(2017, 12, 23),)), [["2017-12-23", 24760.1]]),
        (asked_for((date(2017, 12, 23),)), [["2017-12-23T00:00:00"]]),
        (asked_for((1, 2)), [[2, 1]]),
        (asked_for((1,), (2,)), [[2], [1]]),
        (asked_for((1,), (2,), ordered=True), [[1, 900.5], [2, 800.5]]),
    ],
)
def test_the_expected_rows_are_right_however_they_are_written(expected: Question, got: list[list[Any]]) -> None:
    assert right(expected, rows(*got), with_model=True)


@pytest.mark.parametrize(
    ("expected", "got"),
    [
        (asked_for((7,)), [[8]]),
        (asked_for((7,)), [[True]]),
        (asked_for((1,)), [[True]]),
        (asked_for((7,)), [[None]]),
        (asked_for((7,)), []),
        (asked_for((7,)), [[7], [7]]),
        (asked_for((7,)), [["seven"]]),
        (asked_for((961.49,)), [[961.48]]),
        (asked_for((961.49,)), [[961]]),
        (asked_for((date(2017, 12, 23),)), [["2017-12-24"]]),
        (asked_for((date(2017, 12, 23),)), [["2017-12-23T08:00:00"]]),
        (asked_for((1, 1)), [[1, 2]]),
        (asked_for((1,), (1,)), [[1], [2]]),
        (asked_for((1,), (2,), ordered=True), [[2], [1]]),
    ],
)
def test_other_rows_are_wrong(expected: Question, got: list[list[Any]]) -> None:
    assert not right(expected, rows(*got), with_model=True)


def test_the_report_counts_by_language_and_kind_and_names_every_miss() -> None:
    answers = [
        (NAMED, named("top", limit=5, department="MEAT")),
        (REFUSAL, reply(CANNOT)),
        (asked_for((7,)), rows([8])),
    ]
    graded = [grade(question, answer, DEFAULTS, with_model=True) for question, answer in answers]
    report = score.document(graded, with_model=True)
    assert report["all"] == {"right": 1, "asked": 3}
    assert report["accuracy"] == 0.3333
    assert report["by_language"] == {"en": {"right": 0, "asked": 2}, "pt": {"right": 1, "asked": 1}}
    assert report["by_kind"]["cannot_answer"] == {"right": 1, "asked": 1}
    misses = [line for line in score.as_text(report).splitlines() if line.startswith("miss ")]
    assert misses == [
        "miss n: 'top 5 of march' expected top(from_date=2017-03-01, limit=5); got top(department=MEAT, limit=5)",
        "miss s: '?' expected rows [7]; got SQL select -> rows [8]",
    ]


@pytest.mark.parametrize(
    ("sentence", "is_said"),
    [
        ("T: the first: a 2.034.", True),
        ("T: the first: a 2.034, b 7.", True),
        ("T: the first: b 7.", False),
        ("", False),
    ],
)
def test_a_sentence_is_right_when_it_holds_every_text_that_the_question_names(sentence: str, is_said: bool) -> None:
    question = Question("s", "en", "how many?", "named", (Choice("top", {}, {}),), says=("a", "2.034"))
    answer = reply({**named("top").document, "answer": sentence})
    verdict = grade(question, answer, DEFAULTS, with_model=False)
    assert (verdict.right, verdict.is_said) == (True, is_said), "graded apart from the query"


def test_sentences_are_counted_apart_and_each_wrong_one_is_shown() -> None:
    question = Question("s", "en", "how many?", "named", (Choice("top", {}, {}),), says=("7",))
    told = [{**named("top").document, "answer": text} for text in ("a 7", "a 8")]
    graded = [grade(question, reply(document), DEFAULTS, with_model=False) for document in told]
    graded.append(grade(REFUSAL, reply(CANNOT), DEFAULTS, with_model=False))
    report = score.document(graded, with_model=False)
    assert (report["all"], report["sentences"]) == ({"right": 3, "asked": 3}, {"right": 1, "asked": 2})
    text = score.as_text(report)
    assert "sentences         1 of    2   50.0%" in text
    assert "sentence s: 'how many?' must say 7; got 'a 8'" in text
    assert "sentences" not in score.as_text(score.document(graded[-1:], with_model=False))
    assert score.sentences(graded[-1:]) == 1


def test_the_set_is_large_and_even_and_asks_for_every_query() -> None:
    questions = load_questions()
    kinds, languages = Counter(q.kind for q in questions), Counter(q.language for q in questions)
    assert len(questions) >= 100
    assert kinds["cannot_answer"] >= 20
    assert kinds["sql"] >= 10
    assert min(languages["pt"], languages["en"]) >= 0.45 * len(questions)
    for query in load_catalogue(demo_catalogue_dir()).queries:
        of_query = {q.language for q in questions if any(choice.query == query for choice in q.choices)}
        assert of_query == {"pt", "en"}, query


def test_every_expected_value_is_one_that_its_query_takes() -> None:
    queries = load_catalogue(demo_catalogue_dir()).queries
    for choice in (choice for question in load_questions() for choice in question.choices):
        texts = [(name, str(value)) for name, value in choice.params.items() if value is not None]
        assert choice.params.items() <= bind(queries[choice.query].parameters, texts).items()
        for name, values in choice.may.items():
            for value in values:
                bind(queries[choice.query].parameters, [(name, str(value))])


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"query": None, "cannot_answer": True}, "exactly one of"),
        ({"parms": {}}, "unknown keys"),
        ({"language": "fr"}, "language"),
        ({"sql": "select 1"}, "needs the SQL"),
        ({"says": "7"}, "says is a list of texts"),
        ({"says": [7]}, "says is a list of texts"),
        ({"params": {"limit": 1}, "may": {"limit": [2]}}, "both stated and left open"),
    ],
)
def test_a_fault_in_the_file_is_named(tmp_path: Path, change: dict[str, Any], complaint: str) -> None:
    path = tmp_path / "questions.yaml"
    entry = {"id": "odd", "language": "pt", "question": "?", "query": "top", **change}
    path.write_text(yaml.safe_dump({"questions": [entry]}))
    with pytest.raises(ValueError, match=f"odd: .*{complaint}"):
        load_questions(path)


@contextmanager
def answering(answers: Mapping[str, tuple[int, dict[str, str], dict[str, Any]]]) -> Iterator[str]:
    """A server that answers each question by its text; one with `Retry-After` once only, then as `again` says."""
    seen: Counter[str] = Counter()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            listed = [{"name": name, "default": value} for name, value in DEFAULTS["top"].items()]
            listed[0]["if_not_named"] = "ALL"
            self.answer(200, {}, {"queries": [{"name": "top", "parameters": listed}]})

        def do_POST(self) -> None:
            question = orjson.loads(self.rfile.read(int(self.headers["content-length"])))["question"]
            seen[question] += 1
            status, headers, document = answers[question]
            if status == 429 and seen[question] > 1:
                status, document = 200, CANNOT
            self.answer(status, headers, document)

        def answer(self, status: int, headers: dict[str, str], document: dict[str, Any]) -> None:
            body = orjson.dumps(document)
            self.send_response(status)
            for name, value in {**headers, "content-length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_what_a_question_means_that_names_no_value_is_no_made_up_value() -> None:
    with answering({}) as url, Chat(url) as chat:
        defaults = chat.defaults()
    assert defaults["top"]["department"] == "ALL"
    assert grade(
        NAMED, named("top", limit=5, from_date="2017-03-01", department="ALL"), defaults, with_model=False
    ).right
    assert not grade(
        NAMED, named("top", limit=5, from_date="2017-03-01", department="X"), defaults, with_model=False
    ).right


@pytest.fixture
def two(tmp_path: Path) -> Path:
    path = tmp_path / "two.yaml"
    entries = [
        {"id": "a", "language": "en", "question": "weather?", "cannot_answer": True},
        {"id": "b", "language": "pt", "question": "quantos?", "result": [[7]], "sql": "select 7"},
    ]
    path.write_text(yaml.safe_dump({"questions": entries}))
    return path


def test_the_command_fails_below_the_aim_and_writes_its_report(
    two: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = dict(named("top").document) | {"tokens": {"prompt": 0, "completion": 0}}
    report = tmp_path / "report.json"
    common = ["--questions", str(two), "--json", str(report)]
    with answering({"weather?": (200, {}, CANNOT), "quantos?": (200, {}, wrong)}) as url:
        assert main(["--url", url, *common]) == 1
        assert main(["--url", url, *common, "--at-least", "0.5"]) == 0
    written = orjson.loads(report.read_bytes())
    assert written["with_model"] is False
    assert [entry["right"] for entry in written["questions"]] == [True, False]
    assert "miss b: 'quantos?' expected cannot answer; got top()" in capsys.readouterr().out


@pytest.mark.parametrize("tokens", [{"prompt": 90, "completion": 9}, {"prompt": 0, "completion": 0}])
def test_sql_tells_that_a_model_answers_and_its_rows_are_graded(two: Path, tokens: dict[str, int]) -> None:
    answer = dict(rows([7]).document) | {"tokens": tokens}
    with answering({"weather?": (200, {}, CANNOT), "quantos?": (200, {}, answer)}) as url:
        common = ["--url", url, "--questions", str(two), "--at-least", "1"]
        assert main(common) == 0
        assert main([*common, "--no-model"]) == 1


def test_tokens_spent_tell_that_a_model_answers_whatever_it_chose(two: Path) -> None:
    declined = CANNOT | {"tokens": {"prompt": 90, "completion": 9}}
    with answering({"weather?": (200, {}, declined), "quantos?": (200, {}, CANNOT)}) as url:
        common = ["--url", url, "--questions", str(two), "--at-least", "1"]
        assert main(common) == 1
        assert main([*common, "--no-model"]) == 0


def test_a_spent_quota_is_waited_for(two: Path) -> None:
    limited = (429, {"retry-after": "0"}, {"code": "rate_limited"})
    with answering({"weather?": limited, "quantos?": limited}) as url:
        assert main(["--url", url, "--questions", str(two), "--at-least", "1"]) == 0


@pytest.mark.parametrize(("status", "code"), [(401, "unknown_key"), (404, "not_found"), (429, "token_budget_spent")])
def test_what_cannot_be_measured_is_no_score(
    two: Path, capsys: pytest.CaptureFixture[str], status: int, code: str
) -> None:
    document = {"code": code, "detail": "why not"}
    with answering({"weather?": (status, {}, document), "quantos?": (status, {}, document)}) as url:
        assert main(["--url", url, "--questions", str(two)]) == 2
    assert "why not" in capsys.readouterr().err


def test_a_service_that_is_not_there_is_no_score(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--url", "http://127.0.0.1:9", "--questions", str(QUESTIONS)]) == 2
    assert "did not answer" in capsys.readouterr().err
