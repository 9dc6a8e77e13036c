"""The part of a restore after which nothing may be lost: the stack stops, old and new data change places, it starts.

Whatever happens from there on, the old data lie in the volumes until the stack is healthy on the restored ones; and every
failure says where they lie, and which command comes next.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn

from stack_tools import SERVICE_LABEL, Failure, Json, Voice, bring_up, compose, containers, run, seconds
from volume_reading import OUTGOING
from volumes import ask, existing

voice = Voice("restore")
BACK_SECONDS = 300.0
WAY_BACK = f"the data of before lie in {OUTGOING} of each volume, nothing of them is deleted. Next: make restore UNDO=1"


@dataclass(frozen=True)
class Stack:
    """What is restored: the volumes that change, the services that are started (all when none is named)."""

    project: str
    image: str
    volumes: Mapping[str, str]
    services: list[str]
    was_there: bool
    """Whether there is anything to go back to."""


def exchange(stack: Stack) -> None:
    """Stop, change places, start; and back when that fails, does not turn healthy, or is interrupted."""
    wait_seconds = seconds("BI_UP_SECONDS", "300")
    try:
        voice.say("stopping the stack")
        compose("down", "--remove-orphans", timeout=300)
        ask(stack.image, stack.volumes, "exchange")
        voice.say("starting the stack on the restored data")
        try:
            start(stack.project, stack.services, wait_seconds)
        except Failure as failure:
            if stack.was_there:
                raise
            commit(stack.image, stack.volumes)
            raise Restored(
                f"the data are restored, but the stack is not healthy; make up says why\n{failure}"
            ) from failure
    except Restored:
        raise
    except BaseException as reason:
        go_back(stack, str(reason) if isinstance(reason, Failure) else f"interrupted ({type(reason).__name__})")
    commit(stack.image, stack.volumes)


class Restored(Failure):
    """The data are in place, the stack is not healthy, and there is nothing to go back to."""


def go_back(stack: Stack, reason: str) -> NoReturn:
    """To the data of before, from wherever the exchange ended. Always raises `Failure`, with the reason."""
    voice.say(f"GOING BACK to the data of before: {(reason.splitlines() or ['?'])[0]}")
    first = f"\nThe first reason:\n{reason}"
    with undisturbed():
        with otherwise(f"the stack could not be stopped; {WAY_BACK}", first):
            compose("down", "--remove-orphans", timeout=300)
        undo(stack.image, stack.volumes, first)
        if not stack.was_there:
            raise Failure(f"not restored; there was nothing before, and is nothing now. The reason:\n{reason}")
        with otherwise("the data of before are back, but the stack does not start on them. Next: make up", first):
            start(stack.project, stack.services, BACK_SECONDS)
    raise Failure(f"not restored, the stack runs on the data of before. The reason:\n{reason}")


def undo(image: str, volumes: Mapping[str, str], first: str = "") -> None:
    """The data of before into their places, checked. Raises `Failure`; then nothing is deleted."""
    with otherwise(f"the data of before could not all be put back; {WAY_BACK}", first):
        ask(image, volumes, "undo")
        left = ask(image, volumes, "state")
        if left["replaced"] or left["unknown"]:
            raise Failure(f"still replaced: {', '.join(left['replaced'] + left['unknown'])}")
    with otherwise(
        "the data of before are back. What was to replace them could not be deleted; the next restore will", first
    ):
        ask(image, volumes, "discard")


def commit(image: str, volumes: Mapping[str, str]) -> None:
    """Delete the old data; the restored ones serve. Raises `Failure` when that has to be done later."""
    with otherwise(
        f"the restored data are in place. Those of before could not be deleted and may still lie in {OUTGOING} of each"
        " volume. Next: make restore KEEP=1",
        "",
    ):
        ask(image, volumes, "commit")


def unfinished(image: str, volumes: Mapping[str, str]) -> Json:
    """What a restore has left, or is at work on: `volume_reading.state` of those that are there, empty for nothing."""
    there = existing(volumes)
    left = ask(image, there, "state") if there else {}
    return left if any(left.values()) else {}


def refuse_interrupted(image: str, volumes: Mapping[str, str]) -> None:
    """Raises `Failure` when a restore has left old data beside new ones; ends by itself what only had to be deleted.

    Only while no restore is under way.
    """
    there, left = existing(volumes), unfinished(image, volumes)
    if not left:
        return
    if left["committed"]:
        voice.say("an earlier restore was healthy and was ended while it deleted the old data: deleting the rest")
        commit(image, there)
        left = ask(image, there, "state")
    if left["unknown"]:
        raise Failure(
            f"nothing was changed: {', '.join(left['unknown'])} hold data in {OUTGOING} that no journal describes. They may"
            " be the only ones of before: look at them, then move or delete that folder"
        )
    if left["replaced"]:
        choice = "" if left["incoming"] else ", or KEEP=1 to keep the restored ones"
        raise Failure(
            f"nothing was changed: an earlier restore did not come to its end. The data of before of"
            f" {', '.join(left['replaced'])} lie in {OUTGOING} there. Next: make restore UNDO=1 puts them back{choice}"
        )


def end_interrupted(stack: Stack, way: str) -> None:
    """UNDO or KEEP what a killed restore has left. Raises `Failure` when there is nothing of the kind."""
    left = ask(stack.image, stack.volumes, "state") if stack.volumes else {}
    if not left or not left["replaced"] or left["committed"]:
        refuse_interrupted(stack.image, stack.volumes)
        if left and left["committed"]:
            if way == "UNDO":
                raise Failure("UNDO=1: the data of before were being deleted already; the restored ones are kept")
            return
        raise Failure(f"{way}=1: no restore was interrupted, there is nothing to do")
    if way == "KEEP":
        if left["incoming"]:
            raise Failure(
                f"only some volumes were restored ({', '.join(left['incoming'])} were not): make restore UNDO=1"
            )
        commit(stack.image, stack.volumes)
        voice.say("the restored data are kept, those of before are deleted. Does nothing run: make up")
        return
    voice.say("stopping the stack")
    compose("down", "--remove-orphans", timeout=300)
    undo(stack.image, stack.volumes)
    voice.say("the data of before are back; starting the stack on them")
    with otherwise("the data of before are back, but the stack does not start on them. Next: make up", ""):
        start(stack.project, stack.services, seconds("BI_UP_SECONDS", "300"))


@contextmanager
def otherwise(state: str, first: str) -> Iterator[None]:
    """A failure in the block is told behind the state it leaves, and before the first reason."""
    try:
        yield
    except Failure as failure:
        raise Failure(f"{state}\n{failure}{first}") from failure


@contextmanager
def undisturbed() -> Iterator[None]:
    """No second Ctrl-C ends the way back."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def start(project: str, services: list[str], seconds: float) -> None:
    """Up and healthy within `seconds`, data published before. Raises `Failure` with the words of what is not."""
    try:
        bring_up(project, seconds, *services, timeout=seconds + 3600)
    except Failure as failure:
        raise Failure("\n".join([str(failure).splitlines()[-1], *last_words(project)])) from failure


def last_words(project: str) -> list[str]:
    """The last log lines of each service that should be healthy and is not, or ended with an error."""
    lines = []
    for container in containers(project, every=True):
        state = container["State"]
        if state["ExitCode"] == 0 and state.get("Health", {}).get("Status") in (None, "healthy"):
            continue
        log = run("sh", "-c", f"docker logs --tail 5 {container['Id']} 2>&1", check=False)
        service = container["Config"]["Labels"][SERVICE_LABEL]
        lines += [f"  {service} | {line[:300]}" for line in log.splitlines()]
    return lines
