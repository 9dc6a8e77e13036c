"""The chat's quality, measured: the question set asked of a real service on the demo data."""

from __future__ import annotations

import sys
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from loadtest.chat import score
from loadtest.chat.asking import Chat
from loadtest.chat.cli import ask_all
from loadtest.chat.grading import Reply, grade
from loadtest.chat.questions import Question, load_questions
from tests.support.scripted_model import Received, runs_sql, scripted_model
from tests.support.service import Service, running

AIM = 0.90
QUESTIONS = load_questions()
ONLY_SQL = {question.text: question for question in QUESTIONS if question.kind == "sql"}


@pytest.mark.parametrize("question", ONLY_SQL.values(), ids=lambda question: question.id)
def test_an_expected_result_is_what_its_sql_gives(demo_service: Service, question: Question) -> None:
    answer = demo_service.sql(question.sql)
    assert answer.status_code == 200, answer.text
    reply = Reply(200, {"query": None, "sql": question.sql, "result": answer.json()}, 0.0)
    verdict = grade(question, reply, {}, with_model=True)
    assert verdict.right, verdict.chosen


def test_without_a_model_nine_of_ten_questions_are_answered_rightly_and_sentences_say_what_was_asked(
    demo_service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    with Chat(demo_service.url) as chat:
        verdicts, with_model = ask_all(chat, QUESTIONS)
    report = score.document(verdicts, with_model=with_model)
    with capsys.disabled():
        sys.stdout.write(f"\n{score.as_text(report)}\n")
    assert not with_model
    assert report["all"]["asked"] == len(QUESTIONS)
    assert score.accuracy(verdicts) >= AIM
    assert score.sentences(verdicts) >= AIM


@pytest.mark.parametrize("is_right", [True, False], ids=["right", "wrong"])
def test_with_a_model_what_only_sql_answers_is_judged_by_its_rows(demo_snapshots: Path, is_right: bool) -> None:
    def write(handler: BaseHTTPRequestHandler, received: Received) -> None:
        sql = ONLY_SQL[received.body["messages"][-1]["content"]].sql
        runs_sql(sql if is_right else f"select * from ({sql}) where false")(handler, received)

    with scripted_model() as model:
        model.play(*[write] * len(ONLY_SQL))
        with (
            running(demo_snapshots, llm_base_url=model.url, llm_model="scripted") as service,
            Chat(service.url) as chat,
        ):
            verdicts, with_model = ask_all(chat, list(ONLY_SQL.values()))
    assert with_model
    by_model = [verdict for verdict in verdicts if verdict.reply.by_model]
    assert len(by_model) >= 10
    assert {verdict.right for verdict in by_model} == {is_right}
