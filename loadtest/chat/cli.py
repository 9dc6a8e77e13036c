"""Ask the chat of a running service every question of the set, and say how many answers are right."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml
from tqdm import tqdm

from . import score
from .asking import Chat, NotAsked
from .grading import Reply, Verdict, grade
from .questions import QUESTIONS, Question, load_questions

BELOW, NOT_RUN = 1, 2


def ask_all(chat: Chat, questions: Sequence[Question], *, model: bool | None = None) -> tuple[list[Verdict], bool]:
    """Ask, then grade: the verdicts, and whether a model was at work (`model` None: the answers tell). Raises NotAsked."""
    defaults = chat.defaults()
    replies: list[Reply] = []
    with tqdm(questions, unit="question", dynamic_ncols=True) as progress:
        for question in progress:
            progress.set_postfix_str(question.id, refresh=False)
            replies.append(chat.ask(question))
    with_model = any(reply.by_model for reply in replies) if model is None else model
    pairs = zip(questions, replies, strict=True)
    return [grade(question, reply, defaults, with_model=with_model) for question, reply in pairs], with_model


def main(arguments: Sequence[str] | None = None) -> int:
    """0: as good as `--at-least`; 1: not; 2: could not be measured."""
    options = _parser().parse_args(arguments)
    try:
        questions = [question for question in load_questions(options.questions) if options.only in question.id]
        key = options.api_key_file.read_text(encoding="utf-8").strip() if options.api_key_file else ""
        with Chat(options.url, key) as chat:
            verdicts, with_model = ask_all(chat, questions, model=options.model)
    except (NotAsked, OSError, ValueError, yaml.YAMLError) as error:
        print(f"not measured: {error}", file=sys.stderr)
        return NOT_RUN
    report = score.document(verdicts, with_model=with_model)
    print(score.as_text(report))
    if options.json:
        options.json.write_text(json.dumps(report, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    if min(score.accuracy(verdicts), score.sentences(verdicts)) >= options.at_least:
        return 0
    print(f"below the aim of {options.at_least:.0%}", file=sys.stderr)
    return BELOW


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError("a share from 0 to 1")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="loadtest.chat", description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the service")
    parser.add_argument("--api-key-file", type=Path, help="file that holds the API key")
    parser.add_argument("--questions", type=Path, default=QUESTIONS, help="the question set")
    parser.add_argument("--only", default="", help="only questions whose id holds this text")
    parser.add_argument(
        "--model",
        action=argparse.BooleanOptionalAction,
        help="whether a model is configured (otherwise tokens and SQL in the answers tell)",
    )
    parser.add_argument(
        "--at-least", type=_share, default=0.9, help="share of right answers, and of right sentences, that passes (0.9)"
    )
    parser.add_argument("--json", type=Path, help="write the whole report here")
    return parser
