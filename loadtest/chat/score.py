"""The score of a run: in words, and as a JSON document."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from .grading import Verdict


def accuracy(verdicts: Sequence[Verdict]) -> float:
    """The share that is right; 0 without any."""
    return sum(verdict.right for verdict in verdicts) / len(verdicts) if verdicts else 0.0


def sentences(verdicts: Sequence[Verdict]) -> float:
    """The share of the graded sentences that hold what was asked for; 1 without any."""
    said = [verdict.is_said for verdict in verdicts if verdict.is_said is not None]
    return sum(said) / len(said) if said else 1.0


def document(verdicts: Sequence[Verdict], *, with_model: bool) -> dict[str, Any]:
    """The report: counts, tokens, seconds, and every question with its outcome."""
    p50, p95 = _quantiles([verdict.reply.seconds for verdict in verdicts])
    return {
        "with_model": with_model,
        "accuracy": round(accuracy(verdicts), 4),
        "all": _count(verdicts),
        "sentences": {
            "right": sum(verdict.is_said is True for verdict in verdicts),
            "asked": sum(verdict.is_said is not None for verdict in verdicts),
        },
        "by_language": _grouped(verdicts, lambda verdict: verdict.question.language),
        "by_kind": _grouped(verdicts, lambda verdict: verdict.question.kind),
        "tokens": {
            "prompt": sum(verdict.reply.tokens[0] for verdict in verdicts),
            "completion": sum(verdict.reply.tokens[1] for verdict in verdicts),
        },
        "seconds": {"p50": round(p50, 4), "p95": round(p95, 4)},
        "questions": [
            {
                "id": verdict.question.id,
                "language": verdict.question.language,
                "kind": verdict.question.kind,
                "question": verdict.question.text,
                "right": verdict.right,
                "expected": verdict.expected,
                "chosen": verdict.chosen,
                "says": list(verdict.question.says),
                "answer": verdict.reply.document.get("answer"),
                "said": verdict.is_said,
                "tokens": sum(verdict.reply.tokens),
                "seconds": round(verdict.reply.seconds, 4),
            }
            for verdict in verdicts
        ],
    }


def as_text(report: dict[str, Any]) -> str:
    """The report for a terminal: queries chosen rightly, sentences that say what was asked, the cost, each miss."""
    misses = [entry for entry in report["questions"] if not entry["right"]]
    counts = [("all", report["all"]), *report["by_language"].items(), *report["by_kind"].items()]
    if report["sentences"]["asked"]:
        counts.append(("sentences", report["sentences"]))
    tokens, seconds = report["tokens"], report["seconds"]
    lines = [
        f"{name:<14} {count['right']:>4} of {count['asked']:>4}  {count['right'] / count['asked']:>6.1%}"
        for name, count in counts
    ]
    model = "with a model" if report["with_model"] else "without a model: what only SQL answers has to be refused"
    lines += [
        f"tokens         {tokens['prompt']} prompt, {tokens['completion']} completion ({model})",
        f"seconds        p50 {seconds['p50']:.3f}, p95 {seconds['p95']:.3f}",
    ]
    lines += [
        f"miss {entry['id']}: {entry['question']!r} expected {entry['expected']}; got {entry['chosen']}"
        for entry in misses
    ]
    lines += [
        f"sentence {entry['id']}: {entry['question']!r} must say {', '.join(entry['says'])}; got {entry['answer']!r}"
        for entry in report["questions"]
        if entry["said"] is False
    ]
    return "\n".join(lines)


def _quantiles(seconds: Sequence[float]) -> tuple[float, float]:
    if len(seconds) < 2:
        return (seconds[0], seconds[0]) if seconds else (0.0, 0.0)
    cuts = statistics.quantiles(seconds, n=20, method="inclusive")
    return cuts[9], cuts[18]


def _count(verdicts: Sequence[Verdict]) -> dict[str, int]:
    return {"right": sum(verdict.right for verdict in verdicts), "asked": len(verdicts)}


def _grouped(verdicts: Sequence[Verdict], key: Callable[[Verdict], str]) -> dict[str, dict[str, int]]:
    groups: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        groups.setdefault(key(verdict), []).append(verdict)
    return {name: _count(group) for name, group in sorted(groups.items())}
