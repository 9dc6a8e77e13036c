"""Files that services read at their start: what is said when they cannot be checked, and what is restarted for nothing.

The engine is a program named `docker`; the real one checks and restarts in tests/stack/test_deploy.py and test_start.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import mounted
import pytest
import stack_tools
from stack_tools import Failure, Json

from .test_stack_programs import engine_of

EARLIER, LATER = "2000-01-01T00:00:00Z", "2100-01-01T00:00:00Z"


class Engine:
    """It runs one container, `prometheus`, with `folder` mounted; its checker and its health are as said."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.folder = root, root / "rules, all"
        self.folder.mkdir()
        self.rules = self.folder / "one.yaml"
        self.rules.write_text("good")
        monkeypatch.setattr(mounted, "STATE", root / "state")
        monkeypatch.setattr(mounted, "OF_THE_RELEASE", (self.folder,))
        self._monkeypatch = monkeypatch
        self.answers()

    def answers(self, checker: str = "true", health: str = "running/healthy 0", started: str = LATER) -> None:
        (self.root / "container.json").write_text(json.dumps([self.container(started)]))
        lines = [
            "'ps '*) echo one;;",
            f"'inspect --format '*) echo '{health}';;",
            f"'inspect '*) cat {self.root}/container.json;;",
            f"'run '*) {checker};;",
        ]
        self._monkeypatch.setenv("PATH", engine_of(self.root, *lines)["PATH"])

    def container(self, started: str = EARLIER) -> Json:
        return {
            "Id": "one",
            "Image": "sha256:image",
            "Created": "1",
            "State": {"StartedAt": started},
            "HostConfig": {"RestartPolicy": {"Name": "unless-stopped"}, "CapAdd": ["CAP_NET_BIND_SERVICE"]},
            "Config": {
                "User": "65534",
                "Env": ["A=b c"],
                "Cmd": None,
                "Labels": {stack_tools.SERVICE_LABEL: "prometheus"},
            },
            "Mounts": [
                {"Type": "bind", "Source": str(self.folder), "Destination": "/etc/rules"},
                {"Type": "volume", "Source": "/var/lib/volume", "Destination": "/data"},
            ],
        }

    @property
    def asked(self) -> list[str]:
        return (self.root / "asked").read_text().splitlines()

    @property
    def restarts(self) -> int:
        return self.asked.count("restart one")

    def read_anew(self) -> None:
        mounted.read_anew("p", stack_tools.Voice("test"), [self.folder])


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    return Engine(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("checker", "said"),
    [
        ("echo a rule is broken >&2; exit 1", "it would not start on the new ones:\na rule is broken"),
        ("echo the bind source does not exist >&2; exit 125", "its check failed:\nthe bind source does not exist"),
        ("echo no such program >&2; exit 127", "its check failed:\nno such program"),
        ("exit 137", "its check failed:"),
        ("exec sleep 600", "its check failed: docker run --name bi-check-"),
    ],
)
def test_a_check_that_came_to_no_verdict_is_told_from_one_that_says_no_and_leaves_no_container(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, checker: str, said: str
) -> None:
    monkeypatch.setattr(mounted, "CHECK_SECONDS", 0.3 if "sleep" in checker else 30)
    engine.answers(checker)
    with pytest.raises(mounted.RunsOnOldFiles) as told:
        mounted.check(engine.container(), ("promtool", "check"))
    assert str(told.value).startswith(f"it runs on its old files: {said}")
    name = engine.asked[0].split("--name ")[1].split()[0]
    assert engine.asked[-1] == f"rm -f {name}"


def test_a_checker_can_do_nothing_but_read_and_makes_no_folder_where_a_source_is_gone(engine: Engine) -> None:
    mounted.check(engine.container(), ("promtool", "check"))
    words = engine.asked[0]
    for flag in (
        "--cap-drop ALL",
        "--security-opt no-new-privileges",
        "--read-only",
        "--memory 256m",
        "--network none",
    ):
        assert f" {flag} " in words
    assert " -v " not in words and "/var/lib/volume" not in words
    assert f'--mount "type=bind","source={engine.folder}","target=/etc/rules","readonly" ' in words
    assert " --cap-add CAP_NET_BIND_SERVICE " in words and "--entrypoint promtool sha256:image check" in words


def test_a_service_that_refused_its_new_files_is_not_restarted_when_the_old_ones_are_back(engine: Engine) -> None:
    engine.read_anew()
    engine.rules.write_text("broken")
    engine.answers("exit 1", started=EARLIER)
    with pytest.raises(Failure, match="prometheus: it runs on its old files"):
        engine.read_anew()
    engine.rules.write_text("good")
    engine.read_anew()
    assert engine.restarts == 0
    engine.rules.write_text("better")
    engine.answers(started=EARLIER)
    engine.read_anew()
    assert engine.restarts == 1


def test_a_service_that_was_restarted_and_is_not_healthy_gets_the_old_files_when_they_are_back(engine: Engine) -> None:
    engine.read_anew()
    engine.rules.write_text("broken, and no checker sees it")
    engine.answers(health="exited/ 1", started=EARLIER)
    with pytest.raises(Failure, match="prometheus: it ended by itself"):
        engine.read_anew()
    engine.rules.write_text("good")
    engine.answers(started=EARLIER)
    engine.read_anew()
    assert engine.restarts == 2


def test_a_mounted_file_that_is_gone_is_told_and_the_others_have_their_turn(engine: Engine) -> None:
    engine.rules.unlink()
    engine.folder.rmdir()
    with pytest.raises(Failure, match=r"prometheus: .*No such file.*rules, all"):
        engine.read_anew()
    assert engine.restarts == 0


@pytest.mark.parametrize("record", ["null", "[1]", "{", '{"one": null}', '"text"'])
def test_a_record_that_is_no_record_is_as_none(engine: Engine, record: str) -> None:
    (engine.root / "state").mkdir()
    (engine.root / "state/mounted-p.json").write_text(record)
    engine.read_anew()
    assert json.loads((engine.root / "state/mounted-p.json").read_text()).keys() == {"one"}
