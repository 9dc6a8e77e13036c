"""What the programs of `infra` share: settings as compose reads them, the lock, Python's version; a deploy's way back."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import deploy
import exchange
import pytest
import restore
import stack_tools
import volumes
from stack_tools import Failure

ROOT = Path(__file__).parents[2]
LINES = {
    "BI_TLS=acme      # or files": "acme",
    "BI_TLS='acme'": "acme",
    'BI_TLS="acme" # or files': "acme",
    'BI_TLS="a # b"': "a # b",
    "export BI_TLS=files": "files",
    "BI_TLS=a#b": "a#b",
    "BI_TLS= # none": "default",
    "BI_TLS=": "default",
    "BI_TLS=acme\nBI_TLS=files  ": "files",
    "#BI_TLS=acme": "default",
    "MY_BI_TLS=acme": "default",
}


@pytest.mark.parametrize(("line", "value"), LINES.items())
def test_programs_and_scripts_read_a_setting_as_compose_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, value: str
) -> None:
    (tmp_path / ".env").write_text(f"{line}\n")
    monkeypatch.setenv("BI_ENV_FILE", str(tmp_path / ".env"))
    monkeypatch.delenv("BI_TLS", raising=False)
    assert stack_tools.setting("BI_TLS", "default") == value
    script = "set -euo pipefail; . infra/lib.sh; setting BI_TLS default"
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"{value}\n"


def test_a_time_that_is_no_number_is_told_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BI_DEPLOY_SECONDS", "slow")
    with pytest.raises(Failure, match="BI_DEPLOY_SECONDS=slow: must be a number of seconds"):
        stack_tools.seconds("BI_DEPLOY_SECONDS", "120")


def test_a_lock_that_may_not_be_opened_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack_tools, "STATE", tmp_path / "state")
    (tmp_path / "state/deploy-p.lock").mkdir(parents=True)  # what root may not open either
    with pytest.raises(Failure, match="cannot be written"), stack_tools.alone("p", "backup"):
        pass


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (("backup", "FOLDER=/mnt/my backups"), ["infra/backup.py '/mnt/my backups'"]),
        (("restore", "FILE=a b.tar.gz"), ["infra/restore.py 'a b.tar.gz'"]),
        (("rollback", "ID=a b"), ["rollback 'a b'"]),
        (("rollback",), ["rollback"]),
        (("republish",), ["run --rm --no-deps -T publish publish"]),
    ],
)
def test_a_value_with_a_blank_stays_one_word(target: tuple[str, ...], words: list[str]) -> None:
    command = ["make", "--no-print-directory", "-n", *target]  # these tests may have been started by a make themselves
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1].strip().endswith(words[0])


@pytest.mark.parametrize("target", ["backup", "restore", "deploy", "doctor"])
def test_an_old_python_is_told_before_anything_is_run(tmp_path: Path, target: str) -> None:
    old = tmp_path / "python3.10"
    old.write_text('#!/bin/sh\n[ "$1" = -c ] && exit 1\necho it ran\n')
    old.chmod(0o755)
    done = subprocess.run(["make", target, f"PYTHON={old}"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "Python 3.11 or newer is needed" in done.stderr and "it ran" not in done.stdout


@pytest.mark.parametrize(
    ("lines", "scenario", "said"),
    [
        ("", "publish", "--publish-command \"sh -c 'make -s rollback || make -s republish'\""),
        (
            "COMPOSE_FILE=compose.yaml:compose.prod.yaml\nBI_DOMAIN=bi.test\n",
            "slo",
            "--url https://bi.test --client-only",
        ),
        (
            "COMPOSE_FILE=compose.yaml:compose.prod.yaml\nBI_DOMAIN=bi.test\n",
            "publish",
            "--publish-command \"ssh SERVER 'cd FOLDER && { make -s rollback || make -s republish; }'\"",
        ),
    ],
)
def test_a_load_test_that_cannot_work_in_its_container_is_told_before_anything_is_built(
    tmp_path: Path, lines: str, scenario: str, said: str
) -> None:
    (tmp_path / ".env").write_text(lines)
    environment = {**os.environ, **engine_of(tmp_path, "*) true;;"), "BI_ENV_FILE": str(tmp_path / ".env")}
    command = ["make", "load", f"SCENARIO={scenario}"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"-m loadtest {scenario} --url http" in done.stderr and said in done.stderr
    told = [line.partition("#")[0].strip() for line in done.stderr.splitlines() if line.startswith("  ")]
    assert told[0].startswith("(umask 077; make -s keys ") and told[0].endswith(" > .stack/load-keys.txt)")
    *_, third, second, last = told
    assert (second, last) == ('make keys ARGS="revoke load"', "rm .stack/load-keys.txt")
    assert (third == "make -s republish") == (scenario == "publish"), "a rollback would be the last word"
    assert not (tmp_path / "asked").exists(), "the engine was asked for something"


def test_an_address_that_the_shell_exports_is_not_the_one_that_is_served() -> None:
    environment = {**os.environ, "HOST": "some-machine", "PORT": "tcp://10.0.0.1:80"}

    def listens(*words: str) -> str:
        command = ["make", "--no-print-directory", "-n", "serve", *words]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout

    assert "BI_HOST=127.0.0.1 BI_PORT=8000 " in listens()
    assert "BI_HOST=0.0.0.0 BI_PORT=8123 " in listens("HOST=0.0.0.0", "PORT=8123")


@pytest.mark.parametrize(
    ("answer", "code", "said"),
    [
        ("echo s3cret", 0, "First API key: s3cret"),
        ("exit 3", 0, "First API key: not made yet"),
        ("echo permission denied >&2; exit 1", 1, "permission denied"),
        ("echo no such image >&2; exit 125", 1, "no such image"),
    ],
)
def test_what_keeps_a_password_from_being_shown_is_said(tmp_path: Path, answer: str, code: int, said: str) -> None:
    environment = {**os.environ, **engine_of(tmp_path, f"*) {answer};;")}
    done = subprocess.run(
        ["infra/secrets/show.sh"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == code and said in done.stdout + done.stderr


@pytest.mark.parametrize("found", ["", "BI_PYTHON_IMAGE=stand-in:1\n"])
def test_the_load_generator_is_built_on_the_python_that_env_names_unless_another_was_found(
    tmp_path: Path, found: str
) -> None:
    checkout = tmp_path / "checkout"
    (checkout / "infra").mkdir(parents=True)
    (checkout / "loadtest").mkdir()
    (checkout / ".stack").mkdir()
    for name in ("infra/lib.sh", "loadtest/image.sh"):
        shutil.copy(ROOT / name, checkout / name)
    (checkout / ".env").write_text("BI_PYTHON_IMAGE=mirror.test/python:3.13\n")
    if found:
        (checkout / ".stack/images.env").write_text(found)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("BI_")}
    environment = clean | engine_of(tmp_path, "*) true;;")
    subprocess.run(["loadtest/image.sh"], cwd=checkout, env=environment, check=True)
    wanted = "stand-in:1" if found else "mirror.test/python:3.13"
    assert f"--build-arg PYTHON_IMAGE={wanted} " in (tmp_path / "asked").read_text()


def engine_of(folder: Path, *lines: str) -> dict[str, str]:
    """A `docker` that answers so, and notes what it was asked."""
    docker = folder / "docker"
    docker.write_text("\n".join(["#!/bin/sh", f'echo "$*" >> {folder}/asked', 'case "$*" in', *lines, "esac", ""]))
    docker.chmod(0o755)
    return {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


@pytest.mark.parametrize(
    ("asked", "health", "said"),
    [
        ((), "unhealthy", "not healthy within 30 s: redis"),
        (("redis",), "starting", "not healthy within 30 s: redis"),
        (("edge",), "unhealthy", None),
        ((), "healthy", None),
    ],
)
def test_a_compose_whose_time_is_over_is_not_taken_at_its_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: tuple[str, ...], health: str, said: str | None
) -> None:
    labels = {stack_tools.SERVICE_LABEL: "redis"}
    redis = {"Created": "1", "Config": {"Labels": labels}, "State": {"Health": {"Status": health}}}
    exporter = {"Created": "2", "Config": {"Labels": {stack_tools.SERVICE_LABEL: "exporter"}}, "State": {}}
    answer = json.dumps([redis, exporter])
    path = engine_of(tmp_path, "'ps '*) echo one;;", f"'inspect '*) echo '{answer}';;")["PATH"]
    monkeypatch.setenv("PATH", path)
    with pytest.raises(Failure, match=said) if said else contextlib.nullcontext():
        stack_tools.bring_up("p", 30, *asked)
    assert "up -d --no-build --wait --wait-timeout 30" in (tmp_path / "asked").read_text()


def test_what_a_creation_that_failed_half_way_has_made_is_known_and_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tmp_path / "made"
    environment = engine_of(
        tmp_path,
        f"'compose '*'create '*) touch {made}; echo no address is left >&2; exit 1;;",
        f"'ps '*) echo old; [ ! -e {made} ] || echo new;;",
        '\'inspect old\') echo \'[{"Id": "old", "Created": "1"}]\';;',
        '\'inspect \'*) echo \'[{"Id": "old", "Created": "1"}, {"Id": "new", "Created": "2", "State": {}}]\';;',
    )
    monkeypatch.setenv("PATH", environment["PATH"])
    old: stack_tools.Json = {"Id": "old", "Image": "sha256:old", "Config": {"Image": "bi:1"}}
    release = deploy.Release("p", "bi:1", [old])
    with pytest.raises(Failure, match="no address is left"):
        release.create(2)
    assert release.new == ["new"]
    release.roll_back()
    asked = (tmp_path / "asked").read_text().splitlines()
    assert "rm -f new" in asked and "tag sha256:old bi:1" in asked


def test_a_deploy_where_no_replica_runs_has_the_other_services_read_their_files_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setenv("PATH", engine_of(tmp_path, "*) true;;")["PATH"])
    monkeypatch.setattr(deploy, "refuse_interrupted", lambda image, volumes: None)
    monkeypatch.setattr(deploy, "read_anew", lambda project, voice: asked.append(project))
    assert deploy.deploy("p", {"query": {"image": "bi:1"}}, {}, build=False) == 0
    assert asked == ["p"]
    assert " up -d --no-build --wait " in (tmp_path / "asked").read_text()


def test_a_one_shot_without_a_container_is_a_failure_with_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", engine_of(tmp_path, "*) true;;")["PATH"])
    with pytest.raises(Failure, match="publish has 0 containers"):
        deploy.run_one_shot("p", "publish")


def test_a_service_beside_the_replicas_that_fails_is_told_from_a_deploy_that_went_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = tmp_path / "made"
    old = '{"Id": "old", "Created": "1", "Image": "sha256:old", "Config": {"Image": "bi:1", "Labels": {}}}'
    new = '{"Id": "new", "Created": "2", "Image": "sha256:new", "Config": {"Image": "bi:1", "Labels": {}}}'
    environment = engine_of(
        tmp_path,
        f"'compose '*'create '*) touch {made};;",
        "'compose '*'up '*) echo prometheus is unhealthy >&2; exit 1;;",
        f"'ps '*'service=edge'*) ;;\n'ps '*) echo old; [ ! -e {made} ] || echo new;;",
        "'inspect --format '*) echo 'running/healthy 0';;",
        f"'inspect old') echo '[{old}]';;",
        f"'inspect '*) echo '[{old}, {new}]';;",
    )
    monkeypatch.setenv("PATH", environment["PATH"])
    monkeypatch.setattr(deploy, "EDGE_FINDS_SECONDS", 0.0)
    services: dict[str, stack_tools.Json] = {"query": {"image": "bi:1"}, "prometheus": {}}
    with pytest.raises(SystemExit) as end:
        deploy.deploy("p", services, {}, build=False)
    said = capsys.readouterr().err
    assert end.value.code == 2
    assert "THE NEW RELEASE SERVES" in said and "prometheus is unhealthy" in said
    asked = (tmp_path / "asked").read_text().splitlines()
    assert "stop old" in asked and "rm old" in asked and "rm -f new" not in asked


@pytest.mark.parametrize(
    ("answer", "current", "said"),
    [
        ("exit 1", "a" * 16, "could not be asked: make snapshots"),
        ("echo bbbb", None, "served is snapshot bbbb; the backup was made before"),
        ("echo bbbb", "a" * 16, f"make rollback ID={'a' * 16}"),
        ("echo bbbb", "bbbb", "as at the backup"),
    ],
)
def test_which_snapshot_is_served_is_told_and_never_fails_a_restore(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    answer: str,
    current: str | None,
    said: str,
) -> None:
    one = '[{"Id": "one", "Created": "1"}]'
    environment = engine_of(tmp_path, "'ps '*) echo one;;", f"'inspect '*) echo '{one}';;", f"'exec '*) {answer};;")
    monkeypatch.setenv("PATH", environment["PATH"])
    restore.tell_current("p", {"taken": {"snapshots": {"current": current}}})
    assert said in capsys.readouterr().out


def test_an_agent_that_does_not_end_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = engine_of(tmp_path, "'run '*) echo '{\"ok\": 1}'; exec sleep 600;;")
    monkeypatch.setenv("PATH", environment["PATH"])
    monkeypatch.setattr(volumes, "END_SECONDS", 0.3)
    assert volumes.ask("image", {"keys": "p_keys"}, "exchange") == {"ok": 1}
    asked = (tmp_path / "asked").read_text().splitlines()
    name = asked[0].split("--name ")[1].split()[0]
    assert asked[-1] == f"rm -f {name}"


def test_every_failure_of_the_way_back_tells_what_is_so_now_and_the_first_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = engine_of(
        tmp_path,
        "*volume_agent.py*) echo no space left; echo cannot start a container >&2; exit 125;;",
        "'compose '*) ;;",
    )
    monkeypatch.setenv("PATH", environment["PATH"])
    stack = exchange.Stack("p", "image", {"keys": "p_keys"}, [], was_there=True)
    with pytest.raises(Failure) as told:
        exchange.exchange(stack)
    said = str(told.value)
    assert "nothing of them is deleted. Next: make restore UNDO=1" in said
    assert "The first reason:" in said and said.count("cannot start a container") == 2
    asked = (tmp_path / "asked").read_text()
    assert " discard" not in asked and " commit" not in asked


def test_a_stack_that_is_deleted_leaves_no_notes_of_deploys_and_takes_no_others(tmp_path: Path) -> None:
    (tmp_path / "infra").mkdir()
    (tmp_path / ".stack").mkdir()
    for name in ("infra/clean.sh", "infra/lib.sh"):
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("mounted-p.json", "deploy-p.lock", "up.log", "mounted-p2.json", "deploy-other.lock"):
        (tmp_path / ".stack" / name).touch()
    engine = engine_of(tmp_path, r"""*' config '*) printf '{\n  "name": "p",\n';;""", "*) true;;")
    subprocess.run([tmp_path / "infra/clean.sh"], env={**os.environ, **engine, "YES": "1"}, check=True)
    assert {path.name for path in (tmp_path / ".stack").iterdir()} == {"mounted-p2.json", "deploy-other.lock"}


def test_a_terminal_that_was_closed_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w", buffering=1) as nobody:
        monkeypatch.setattr(sys, "stdout", nobody)
        monkeypatch.setattr(sys, "stderr", nobody)
        voice = stack_tools.Voice("restore")
        voice.say("GOING BACK")
        with pytest.raises(SystemExit):
            voice.fail("last words")
        monkeypatch.undo()
        os.dup2(os.open(os.devnull, os.O_WRONLY), nobody.fileno())
