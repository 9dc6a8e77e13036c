"""A real Redis for tests, which can be killed, paused and restarted: the stack's image in a container where Docker and the
image are at hand, else the installed `redis-server`."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
import redis

from .service import free_port, wait_until

ROOT = Path(__file__).parents[2]
_IMAGE_VARIABLE = "BI_REDIS_IMAGE"


class _Host(Protocol):
    """Where a Redis runs."""

    def start(self) -> None: ...
    def kill(self) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def close(self) -> None: ...


def _options(password: str | None) -> list[str]:
    return ["--save", "", "--protected-mode", "no", *(["--requirepass", password] if password else [])]


class _Process:
    """The installed `redis-server`."""

    def __init__(self, port: int, password: str | None) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", self._folder.name]
        self._command += _options(password)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def _signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        assert self._process is not None
        self.resume()
        self._process.kill()
        self._process.wait(10)

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()
        self._folder.cleanup()


class _Container:
    """The stack's Redis image, by testcontainers; restarts keep the container and its port."""

    def __init__(self, image: str, port: int, password: str | None) -> None:
        os.environ["TESTCONTAINERS_RYUK_DISABLED"] = "true"  # its helper image may not be at hand; close() removes ours
        from testcontainers.core.container import DockerContainer

        self._container = (
            DockerContainer(image).with_command(_options(password)).with_kwargs(entrypoint=["redis-server"])
        )
        # with_bind_ports() would publish it on every address of the machine.
        self._container.ports["6379/tcp"] = ("127.0.0.1", port)  # type: ignore[assignment]
        self._is_made = self._is_paused = False

    @property
    def _wrapped(self) -> Any:
        return self._container.get_wrapped_container()

    def start(self) -> None:
        if self._is_made:
            self._wrapped.start()
        else:
            self._container.start()
            self._is_made = True

    def kill(self) -> None:
        self.resume()
        self._wrapped.kill()
        self._wrapped.wait(timeout=20)

    def pause(self) -> None:
        self._wrapped.pause()
        self._is_paused = True

    def resume(self) -> None:
        if self._is_paused:
            self._wrapped.unpause()
            self._is_paused = False

    def close(self) -> None:
        if self._is_made:
            self.resume()
            self._container.stop(force=True, delete_volume=True)


class RedisServer:
    """One Redis on a port of its own."""

    def __init__(self, image: str | None, password: str | None = None, port: int | None = None) -> None:
        self.port = port or free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.client = redis.Redis(port=self.port, password=password, socket_timeout=5)
        self._host: _Host = (
            _Container(image, self.port, password) if image is not None else _Process(self.port, password)
        )
        self._runs = False

    def start(self) -> None:
        """Start (again, on the same port) and wait until it answers."""
        self._host.start()
        self._runs = True
        wait_until(self._answers, 30, what="redis to answer")

    def _answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except redis.RedisError as error:
            raise OSError(str(error)) from error

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self._host.kill()
        self._runs = False
        self.client.connection_pool.disconnect()

    def pause(self) -> None:
        """Stop it from answering while its connections stay open."""
        self._host.pause()

    def resume(self) -> None:
        """Undo `pause`."""
        self._host.resume()

    def reset(self) -> None:
        """As new for the next test: running, answering, empty."""
        if self._runs:
            self._host.resume()
        else:
            self.start()
        wait_until(self._answers, 30, what="redis to answer")
        self.client.flushall()

    def close(self) -> None:
        """End and clean up."""
        self.client.close()
        self._host.close()


def redis_image() -> str | None:
    """The image compose.yaml names, or its stand-in of `make images`, if a Docker engine has it; None without."""
    if shutil.which("docker") is None:
        return None
    found = re.search(rf"\$\{{{_IMAGE_VARIABLE}:-([^}}]+)\}}", (ROOT / "compose.yaml").read_text())
    candidates = [found.group(1)] if found else []
    stand_ins = ROOT / ".stack" / "images.env"
    if stand_ins.exists():
        candidates += re.findall(rf"^{_IMAGE_VARIABLE}=(.+)$", stand_ins.read_text(), re.MULTILINE)
    for image in candidates:
        with contextlib.suppress(subprocess.SubprocessError, OSError):
            command = ["docker", "image", "inspect", "--format", "{{.Id}}", image]
            if subprocess.run(command, capture_output=True, timeout=20, check=False).returncode == 0:
                return image
    return None


@contextlib.contextmanager
def redis_running(
    password: str | None = None, *, container: bool = False, port: int | None = None
) -> Iterator[RedisServer]:
    """A fresh Redis (on `port`, or any).

    With `container` it is the stack's image if that can be had, else the installed server; else the other way round.

    Skips with a reason where there is neither; under CI that is a failure.
    """
    installed = shutil.which("redis-server") is not None
    image = redis_image() if container or not installed else None
    if image is None and not installed:
        reason = (
            "no Redis: neither a Docker engine with the image of compose.yaml nor redis-server is here "
            "(apt-get install redis-server); tests of the shared cache tier need a real one"
        )
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    server = RedisServer(image, password, port)
    try:
        server.start()
        yield server
    finally:
        server.close()
