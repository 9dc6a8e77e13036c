"""The chat's quality, measured: the question set asked of a real service on the demo data, without a model."""

from __future__ import annotations

import sys

import pytest

from loadtest.chat import score
from loadtest.chat.asking import Chat
from loadtest.chat.cli import ask_all
from loadtest.chat.grading import Reply, grade
from loadtest.chat.questions import Question, load_questions
from tests.support.service import Service

AIM = 0.90
QUESTIONS = load_questions()


@pytest.mark.parametrize("question", [q for q in QUESTIONS if q.kind == "sql"], ids=lambda question: question.id)
def test_an_expected_result_is_what_its_sql_gives(demo_service: Service, question: Question) -> None:
    answer = demo_service.sql(question.sql)
    assert answer.status_code == 200, answer.text
    reply = Reply(200, {"query": None, "sql": question.sql, "result": answer.json()}, 0.0)
    verdict = grade(question, reply, {}, with_model=True)
    assert verdict.right, verdict.chosen


def test_without_a_model_nine_of_ten_questions_are_answered_rightly(
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
