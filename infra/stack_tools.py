"""Shared by the programs beside it (deploy, backup, doctor): compose and docker as the scripts call them, and words.

The standard library alone, Python 3.11 or newer: these run on a server that has nothing of this project installed.
`BI_ENV_FILE` names another file than `.env`, for a second stack of one checkout.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[1]
STATE = ROOT / ".stack"
IMAGES_ENV = STATE / "images.env"
PROJECT_LABEL = "com.docker.compose.project"
SERVICE_LABEL = "com.docker.compose.service"
ONE_OFF_LABEL = "com.docker.compose.oneoff"
POLL_SECONDS = 0.5

Json = dict[str, Any]


class Failure(Exception):
    """What a person should read before the program ends with 1."""


class Ended(Failure):
    """A command that ran, and ended with another code than 0; `words` are its own last ones."""

    def __init__(self, command: Sequence[str], code: int, words: str) -> None:
        super().__init__(f"{' '.join(command)[:200]} failed:\n{words}")
        self.code, self.words = code, words


class Voice:
    """Lines with the program's name in front. Nobody may be there to read them: a closed terminal is no reason to end, least
    of all on the way back from something.
    """

    def __init__(self, program: str) -> None:
        self._program = program

    def say(self, text: str) -> None:
        """To whoever watches."""
        with contextlib.suppress(OSError):
            print(f"{self._program}: {text}", flush=True)

    def fail(self, text: str, code: int = 1) -> NoReturn:
        """Last words, and the exit code."""
        with contextlib.suppress(OSError):
            print(f"{self._program}: {text}", file=sys.stderr, flush=True)
        raise SystemExit(code)


class Progress:
    """How far a long step is: on a terminal a line that changes, elsewhere nothing but the last."""

    def __init__(self, voice: Voice, what: str, total: int) -> None:
        self._voice, self._what, self._total = voice, what, total
        self._started = self._shown = time.monotonic()
        self._live = sys.stdout.isatty()

    def at(self, amount: int) -> None:
        """So much of the total is done."""
        now = time.monotonic()
        if self._live and now - self._shown > 0.2 and self._total:
            self._shown = now
            share = min(100, 100 * amount // self._total)
            with contextlib.suppress(OSError):
                print(f"\r  {self._what}: {share:3} % after {now - self._started:.0f} s ", end="", flush=True)

    def done(self, text: str) -> None:
        """The line that stays."""
        if self._live:
            with contextlib.suppress(OSError):
                print("\r\033[K", end="")
        self._voice.say(f"{text} ({time.monotonic() - self._started:.1f} s)")


@contextlib.contextmanager
def alone(project: str, what: str) -> Iterator[None]:
    """One deploy, backup or restore of a stack at a time. Raises `Failure` while there is another."""
    path = STATE / f"deploy-{project}.lock"
    try:
        STATE.mkdir(exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        raise Failure(
            f"{path} cannot be written ({error.strerror}): another user's? chown it, or run this as that user"
        ) from error
    with file as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            raise Failure(f"another {lock.read().strip() or 'deploy'} of {project} is under way") from None
        lock.truncate(0)
        lock.write(what)
        lock.flush()
        yield


def end_by_exception() -> None:
    """SIGTERM and a closed terminal end the program as Ctrl-C does: by an exception, so that what must be undone is."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup
            signal.signal(number, lambda received, _: sys.exit(128 + received))


def size(amount: float) -> str:
    """Bytes for people."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if amount < 1000 or unit == "GB":
            break
        amount /= 1000
    return f"{amount:.0f} {unit}" if amount >= 10 or unit == "bytes" else f"{amount:.1f} {unit}"


def env_file() -> Path:
    """The user's settings file."""
    return ROOT / os.environ.get("BI_ENV_FILE", ".env")


def run(*command: str, timeout: float = 600, check: bool = True, stdin: Any = None) -> str:
    """A command's standard output. Raises `Ended` with the command's own last words, `Failure` when it did not even end."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, check=False, cwd=ROOT, stdin=stdin
        )
    except FileNotFoundError as error:
        raise Failure(f"{command[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise Failure(f"{' '.join(command[:4])} … took longer than {timeout:g} s") from error
    if check and done.returncode != 0:
        words = (done.stderr.strip() or done.stdout.strip())[-1500:]
        raise Ended(command, done.returncode, words)
    return done.stdout


def docker(*arguments: str, timeout: float = 600, check: bool = True) -> str:
    """The docker client."""
    return run("docker", *arguments, timeout=timeout, check=check)


def compose(*arguments: str, timeout: float = 600, check: bool = True) -> str:
    """Compose with the user's settings, then what `make images` found, which has the last word on images."""
    files = [flag for file in (env_file(), IMAGES_ENV) if file.is_file() for flag in ("--env-file", str(file))]
    return run("docker", "compose", *files, *arguments, timeout=timeout, check=check)


def configuration() -> Json:
    """The compose files as compose resolves them. Raises `Failure` with compose's words when they do not fit."""
    resolved: Json = json.loads(compose("config", "--format", "json"))
    return resolved


def containers(project: str, service: str = "", *, every: bool = False) -> list[Json]:
    """What the engine knows of a project's containers, oldest first; those that run, or `every` one."""
    labels = [f"{PROJECT_LABEL}={project}", f"{ONE_OFF_LABEL}=False"]
    labels += [f"{SERVICE_LABEL}={service}"] if service else []
    flags = [flag for label in labels for flag in ("--filter", f"label={label}")]
    ids = docker("ps", "-q", "--no-trunc", *(["-a"] if every else []), *flags).split()
    found: list[Json] = json.loads(docker("inspect", *ids)) if ids else []
    return sorted(found, key=lambda container: str(container["Created"]))


def bring_up(project: str, within_seconds: float, *services: str, timeout: float = 3600) -> None:
    """These services, or all, up and healthy `within_seconds` of their start. Raises `Failure` naming those that are not."""
    compose("up", "-d", "--no-build", "--wait", "--wait-timeout", f"{within_seconds:.0f}", *services, timeout=timeout)
    # Compose 2.26 ends with 0 when the time is over, whatever is not healthy yet.
    states = [
        (str(container["Config"]["Labels"][SERVICE_LABEL]), container["State"].get("Health", {}).get("Status"))
        for container in containers(project)
    ]
    unwell = {name for name, health in states if health in ("starting", "unhealthy") and name in (services or (name,))}
    if unwell:
        raise Failure(f"not healthy within {within_seconds:g} s: {', '.join(sorted(unwell))}")


def wait_healthy(container: str, within_seconds: float) -> None:
    """Until docker calls it healthy. Raises `Failure`, with its last log lines, when it ends, or time does."""
    deadline = time.monotonic() + within_seconds
    while True:
        state, restarts = docker(
            "inspect", "--format", "{{.State.Status}}/{{if .State.Health}}{{.State.Health.Status}}{{end}} {{.RestartCount}}",
            container,
        ).split()  # fmt: skip
        if state == "running/healthy":
            return
        if restarts != "0" or state.startswith(("exited", "dead", "restarting")):
            reason = "it ended by itself"
        elif time.monotonic() > deadline:
            reason = f"it was not healthy within {within_seconds:g} s ({state})"
        else:
            time.sleep(POLL_SECONDS)
            continue
        log = run("sh", "-c", f"docker logs --tail 12 {container} 2>&1", check=False)
        raise Failure(f"{reason}; its last words:\n" + "\n".join(f"  | {line[:300]}" for line in log.splitlines()))


def setting(name: str, default: str = "") -> str:
    """A setting as compose would see it: the environment, else the user's file, else the default."""
    value = os.environ.get(name, "")
    if not value and env_file().is_file():
        value = dict(assignments(env_file())).get(name, "")
    return value or default


def seconds(name: str, default: str) -> float:
    """A setting that is a time. Raises `Failure` when it is none."""
    try:
        return float(setting(name, default))
    except ValueError:
        raise Failure(f"{name}={setting(name)}: must be a number of seconds; correct it in {env_file().name}") from None


def assignments(path: Path) -> Iterator[tuple[str, str]]:
    """NAME and VALUE of each line that has them, commented-out defaults of an example too."""
    is_example = path.name.endswith(".example")
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        found = re.fullmatch(rf"{'#?' if is_example else ''}\s*(?:export\s+)?([A-Z][A-Z0-9_]*)\s*=(.*)", line)
        if found:
            quoted = re.match(r"""\s*(["'])(.*?)\1""", found[2])
            yield found[1], quoted[2] if quoted else re.sub(r"\s#.*$", "", found[2]).strip()
