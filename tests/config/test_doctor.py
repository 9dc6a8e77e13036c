"""`make doctor` in real situations: a port that is taken, a file that is cut off, an engine that is old or does not answer.

The engine is a program named `docker` that answers as the real one would; everything else is this machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import doctor_host
import pytest
from doctor_engine import version
from findings import ok
from stack_tools import assignments

from tests.support.service import free_port, wait_until
from tests.support.small import make_small
from tests.support.stack import docker, require_engine

ROOT = Path(__file__).parents[2]
PROGRAM = ("-S", "-E", str(ROOT / "infra/doctor.py"))  # the standard library alone
GIB = 1 << 30
FAKE = """#!/bin/sh
answer() { if [ -f "$ANSWERS/$1.error" ]; then cat "$ANSWERS/$1.error" >&2; exit 1; fi; cat "$ANSWERS/$1"; exit; }
case "$*" in
  version*) answer version ;;
  "compose version"*) answer compose ;;
  *"config --format json") answer config ;;
  "buildx version") answer buildx ;;
  info*) answer info ;;
  ps*) answer ps ;;
esac
echo "docker: unknown: $*" >&2
exit 1
"""
Findings = dict[str, list[dict[str, str]]]


class Machine:
    """A folder of settings and data, and what the engine on it answers."""

    def __init__(self, root: Path) -> None:
        self.env, self.bin, self.answers = root / ".env", root / "bin", root / "answers"
        self.data = make_small(root).data
        for folder in (self.bin, self.answers):
            folder.mkdir()
        self.data.chmod(0o755)
        (self.bin / "docker").write_text(FAKE)
        (self.bin / "docker").chmod(0o755)
        self.env.write_text("BI_QUERY_REPLICAS=1\n")
        self.port = free_port()
        self.config: dict[str, Any] = {
            "name": "bi-doctor",
            "services": {
                "query": {"restart": "unless-stopped", "mem_limit": str(2 * GIB), "deploy": {"replicas": 2}},
                "publish": {"restart": "no", "mem_limit": str(64 * GIB), "volumes": [
                    {"type": "bind", "source": str(self.data), "target": "/data"}]},
                "edge": {"restart": "unless-stopped", "mem_limit": str(GIB), "environment": {}, "ports": [
                    {"target": 8000, "published": str(self.port), "host_ip": "127.0.0.1", "protocol": "tcp"}]},
                "prometheus": {"restart": "unless-stopped", "command": ["--storage.tsdb.retention.size=1MB"]},
            },
        }  # fmt: skip
        self.says(version="26.1.5+dfsg1", compose="2.26.1-4", buildx="github.com/docker/buildx v0.13.1 x", ps="")
        self.info(64 * GIB)

    def info(self, memory: int) -> None:
        self.says(info=json.dumps({"MemTotal": memory, "DockerRootDir": str(self.answers)}))

    def says(self, **answers: str) -> None:
        for what, text in answers.items():
            (self.answers / what).write_text(text + "\n")

    def refuses(self, what: str, words: str) -> None:
        (self.answers / f"{what}.error").write_text(words + "\n")

    def run(self, *flags: str, path: str = "") -> subprocess.CompletedProcess[str]:
        (self.answers / "config").write_text(json.dumps(self.config))
        clean = {
            name: value for name, value in os.environ.items() if not name.startswith(("BI_", "COMPOSE_", "DOCKER_"))
        }
        return subprocess.run(
            [sys.executable, *PROGRAM, *flags],
            env={
                **clean,
                "PATH": path or f"{self.bin}:{os.environ['PATH']}",
                "ANSWERS": str(self.answers),
                "BI_ENV_FILE": str(self.env),
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def findings(self, status: str, path: str = "") -> Findings:
        """What is not well, by check; the exit code must fit."""
        done = self.run("--json", path=path)
        assert done.stderr == "", done.stderr
        # Whether this machine's engine gives many open files, or its clock is kept in step, is not what is tested here.
        found = [
            one for one in json.loads(done.stdout) if one["status"] != "warn" or one["check"] not in ("files", "clock")
        ]
        assert done.returncode == any(one["status"] == "FAIL" for one in found)
        assert all(one["advice"] for one in found if one["status"] != "ok")
        by_check: Findings = {}
        for one in found:
            if one["status"] == status:
                by_check.setdefault(one["check"], []).append(one)
        return by_check


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def only(machine: Machine, check: str, status: str = "FAIL") -> str:
    """Detail and advice of the one finding that is not well."""
    found = machine.findings(status)
    assert list(found) == [check], found
    return " | ".join(f"{one['detail']} -> {one['advice']}" for one in found[check])


def test_a_machine_that_is_well_has_a_line_a_check_and_exit_code_0(machine: Machine) -> None:
    assert machine.findings("FAIL") == machine.findings("warn") == {}
    checks = {"engine", "compose", "buildx", "memory", "disk", "ports", "data", "settings"}
    assert set(machine.findings("ok")) >= checks
    done = machine.run()
    assert done.returncode == 0 and "0 failed" in done.stdout.splitlines()[-1]
    assert machine.run("--quiet").stdout.count("ok ") == 0


def test_no_docker_client_is_told_with_how_to_get_one(machine: Machine, tmp_path: Path) -> None:
    found = machine.findings("FAIL", path=str(tmp_path / "nothing"))
    assert "not installed" in found["engine"][0]["detail"] and "make engine" in found["engine"][0]["advice"]
    assert {"engine", "compose", "buildx", "stack"} == set(found)


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (
            "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?",
            "systemctl start",
        ),
        ("permission denied while trying to connect to the Docker daemon socket", "usermod -aG docker"),
    ],
)
def test_an_engine_that_does_not_answer_is_told_from_one_that_may_not_be_asked(
    machine: Machine, words: str, advice: str
) -> None:
    machine.refuses("version", words)
    assert advice in only(machine, "engine")


@pytest.mark.parametrize("old", ["24.0.7", "20.10.24+dfsg1", "nonsense"])
def test_an_old_engine_fails(machine: Machine, old: str) -> None:
    machine.says(version=old)
    assert f"{old}; 25.0 or newer" in only(machine, "engine") or old == "nonsense"


@pytest.mark.parametrize("old", ["2.23.3", "2.9.0", "1.29.2"])
def test_an_old_compose_fails(machine: Machine, old: str) -> None:
    machine.says(compose=old)
    assert f"{old}; 2.24 or newer" in only(machine, "compose")


def test_production_needs_a_newer_compose(machine: Machine) -> None:
    machine.says(compose="2.24.3")
    assert machine.findings("FAIL") == {}
    machine.env.write_text("COMPOSE_FILE=compose.yaml:compose.prod.yaml\n")
    assert "2.24.3; 2.24.4 or newer" in only(machine, "compose")


@pytest.mark.parametrize("new", ["v2.24.4", "2.26.1-4", "5.5.0"])
def test_a_new_compose_is_well(machine: Machine, new: str) -> None:
    machine.says(compose=new)
    assert machine.findings("FAIL") == {}


def test_versions_are_compared_as_numbers() -> None:
    assert version("2.9.0") < version("2.24.4") < version("v2.100.0-rc1")


def test_a_missing_compose_fails(machine: Machine) -> None:
    machine.refuses("compose", "docker: 'compose' is not a docker command.")
    assert "compose plug-in" in only(machine, "compose")


def test_a_missing_buildx_fails_where_the_image_is_built_here(machine: Machine) -> None:
    machine.refuses("buildx", "docker: 'buildx' is not a docker command.")
    assert "docker-buildx" in only(machine, "buildx")
    machine.env.write_text("BI_QUERY_PULL_POLICY=missing\n")
    assert "docker-buildx" in only(machine, "buildx", "warn")


def test_too_little_memory_fails_and_limits_beyond_it_warn(machine: Machine) -> None:
    machine.info(8 * GIB)
    assert machine.findings("warn") == {}
    machine.info(4 * GIB + 1)
    assert "add up to 5.4 GB" in only(machine, "memory", "warn")
    machine.info(3 * GIB)
    assert "query alone may take 4.3 GB -> a machine with more, or lower BI_QUERY_MEMORY" in only(machine, "memory")


def test_a_disk_that_cannot_hold_one_snapshot_fails(machine: Machine) -> None:
    huge = machine.data / "huge.parquet"
    with huge.open("wb") as file:  # sparse: it takes no room
        file.write(b"PAR1")
        file.seek(8 << 40)
        file.write(b"PAR1")
    assert "are needed for images and one snapshot -> docker system df" in only(machine, "disk")


def test_a_disk_that_metrics_could_fill_warns(machine: Machine) -> None:
    machine.config["services"]["prometheus"]["command"] = ["--storage.tsdb.retention.size=900TB"]
    assert "BI_PROMETHEUS_RETENTION_SIZE" in only(machine, "disk", "warn")


@contextlib.contextmanager
def listening(kind: int = socket.SOCK_STREAM) -> Iterator[int]:
    with socket.socket(socket.AF_INET, kind) as server:
        server.bind(("127.0.0.1", 0))
        if kind == socket.SOCK_STREAM:
            server.listen()
        yield server.getsockname()[1]


def test_a_port_that_another_program_has_fails_and_the_setting_is_named(machine: Machine) -> None:
    with listening() as port:
        machine.config["services"]["edge"]["ports"][0]["published"] = str(port)
        said = only(machine, "ports")
    assert f"{port}/tcp, of edge, is taken by another program" in said
    assert "set BI_QUERY_PORT in .env" in said
    assert machine.findings("FAIL") == {}, "the port is free again"


def test_a_udp_port_that_is_taken_fails(machine: Machine) -> None:
    with listening(socket.SOCK_DGRAM) as port:
        taken = {"target": 443, "published": str(port), "protocol": "udp"}
        machine.config["services"]["edge"]["ports"] = [taken]
        assert "set BI_HTTPS_PORT" in only(machine, "ports")


def test_a_port_that_this_stack_has_itself_is_well_and_another_containers_is_named(machine: Machine) -> None:
    with listening() as port:
        machine.config["services"]["edge"]["ports"][0]["published"] = str(port)
        machine.says(ps="bi-doctor-edge-1\tbi-doctor")
        assert "this stack's already" in machine.findings("ok")["ports"][0]["detail"]
        machine.says(ps="shop-web-1\tshop")
        assert "is taken by container shop-web-1" in only(machine, "ports")


@pytest.mark.parametrize(("published", "said"), [("8000-8010", "8000-8010, of edge, is no single port"), ("", "")])
def test_a_range_of_ports_warns_and_any_free_port_is_well(machine: Machine, published: str, said: str) -> None:
    machine.config["services"]["edge"]["ports"][0]["published"] = published
    assert machine.findings("FAIL") == {}
    if said:
        assert said in only(machine, "ports", "warn")
    else:
        assert machine.findings("warn") == {}


def test_ports_of_services_that_are_left_out_do_not_matter(machine: Machine) -> None:
    with listening() as port:
        ports = [{"target": 3000, "published": str(port), "host_ip": "127.0.0.1", "protocol": "tcp"}]
        machine.config["services"]["grafana"] = {"ports": ports, "deploy": {"replicas": 0}}
        assert machine.findings("FAIL") == {}


def test_a_data_folder_that_is_missing_fails_and_an_empty_one_is_the_demo(machine: Machine) -> None:
    shutil.rmtree(machine.data)
    assert "does not exist -> set BI_DATA_FOLDER" in only(machine, "data")
    machine.data.write_text("")
    assert "is no folder" in only(machine, "data")
    machine.data.unlink()
    machine.data.mkdir()
    assert "the demo data" in machine.findings("ok")["data"][0]["detail"]


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def without_head(path: Path) -> None:
    path.write_bytes(b"PART" + path.read_bytes()[4:])


@pytest.mark.parametrize(
    "damage", [cut_off, without_head, lambda path: path.write_bytes(b""), lambda path: path.write_bytes(b"PAR1")]
)
def test_a_parquet_file_that_is_not_complete_fails_by_name(machine: Machine, damage: Callable[[Path], None]) -> None:
    damage(machine.data / "sales.parquet")
    assert "sales.parquet is no complete Parquet file" in only(machine, "data")


def test_files_that_writers_keep_for_themselves_do_not_matter(machine: Machine) -> None:
    (machine.data / "_temporary").mkdir()
    for name in (".a.parquet", "_b.parquet", "c.parquet.tmp", "_temporary/d.parquet"):
        (machine.data / name).write_bytes(b"half")
    assert machine.findings("FAIL") == {}


def test_many_damaged_files_are_counted_not_listed(machine: Machine) -> None:
    for number in range(40):
        (machine.data / f"part{number}.parquet").write_bytes(b"half")
    found = machine.findings("FAIL")["data"]
    assert len(found) == 6 and "and 35 more" in found[-1]["detail"]


def test_what_the_publishers_user_may_not_read_fails_with_the_command_that_mends_it(machine: Machine) -> None:
    path = machine.data / "sales.parquet"
    path.chmod(0o600)
    assert f"may not be read by user 10001 -> chmod o+r {path}" in only(machine, "data")
    path.chmod(0o644)
    folder = machine.data / "parts"
    folder.mkdir()
    shutil.copy(path, folder / "one.parquet")
    folder.chmod(0o700)
    assert f"chmod o+rx {folder}" in only(machine, "data")
    folder.chmod(0o755)
    machine.data.chmod(0o750)
    assert f"chmod o+rx {machine.data}" in only(machine, "data")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("BI_QUERY_MEMROY=4g", "did you mean BI_QUERY_MEMORY?"),
        ("BI_DATA_DIR=/srv/data", "did you mean BI_DATA_FOLDER?"),
        ("BI_QQQQ=1", ".env.example names all"),
        ("BI_MCP=true\nBI_MCP=false", "BI_MCP is set twice"),
    ],
)
def test_a_setting_that_means_nothing_warns_with_the_nearest(machine: Machine, line: str, said: str) -> None:
    machine.env.write_text(line + "\n")
    assert said in only(machine, "settings", "warn")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("BI_MAX_CONNECTIONS=fifty", "BI_MAX_CONNECTIONS=fifty: must be a number"),
        ("BI_SNAPSHOT_MAX_BYTES=2GB", "must be a number"),
        ("BI_MCP=yes", "must be true or false"),
        ('BI_QUERY_MEMORY="much"', "must be a size with a unit"),
        ("BI_ALERT_GROUP_WAIT=30", "must be a time with a unit"),
    ],
)
def test_a_value_of_another_kind_fails(machine: Machine, line: str, said: str) -> None:
    machine.env.write_text(line + "\n")
    assert said in only(machine, "settings")


def test_settings_that_are_right_are_not_complained_of(machine: Machine) -> None:
    lines = ["# BI_NOTHING=1", "export BI_QUERY_CPUS=1.5", "BI_QUERY_MEMORY='4g' # more", "BI_SNAPSHOT_MAX_BYTES="]
    lines += ["BI_PROMETHEUS_MEMORY=2147483648"]
    lines += [
        "BI_UP_SECONDS=60",
        "COMPOSE_PROJECT_NAME=x",
        "BI_ALERT_GROUP_INTERVAL=1m30s",
        "BI_DATA_FOLDER=${HOME}/data",
    ]
    machine.env.write_text("\n".join(lines))
    assert machine.findings("warn") == machine.findings("FAIL") == {}


def asks(machine: Machine, url: str, *, key: str = "", **services: Any) -> None:
    """A machine whose service is told of a model, with the services of a profile."""
    query = machine.config["services"]["query"]
    query["environment"] = {"BI_LLM_BASE_URL": url, "BI_LLM_API_KEY_FILE": key or None}
    query["volumes"] = [{"type": "bind", "source": str(machine.answers), "target": "/run/llm-secrets"}]
    machine.config["services"] |= services


def gate(url: str) -> dict[str, Any]:
    return {"restart": "unless-stopped", "mem_limit": "128", "environment": {"GATE_TO": url}}


LOCAL = {"llm": {"restart": "unless-stopped", "mem_limit": str(GIB)}}


def test_a_model_that_can_be_reached_is_not_complained_of(machine: Machine) -> None:
    asks(machine, "http://llm:11434/v1", **LOCAL)
    assert machine.findings("warn") == machine.findings("FAIL") == {}
    asks(machine, "http://llm-gate:8080/v1", **{"llm-gate": gate("https://api.example.com")})
    assert machine.findings("warn") == machine.findings("FAIL") == {}


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://api.example.com/v1", "the service has no way there"),
        ("http://127.0.0.1:11434/v1", "the service has no way there"),
        ("http://llm:11434/v1", "COMPOSE_PROFILES=llm in .env"),
        ("http://llm-gate:8080/v1", "COMPOSE_PROFILES=llm-outside in .env"),
    ],
)
def test_a_model_that_cannot_be_reached_warns_with_the_way(machine: Machine, url: str, said: str) -> None:
    asks(machine, url)
    assert said in only(machine, "model", "warn")


@pytest.mark.parametrize("url", ["", "api.example.com", "https://api.example.com/v1", "ftp://api.example.com"])
def test_a_gate_that_leads_nowhere_fails(machine: Machine, url: str) -> None:
    asks(machine, "http://llm-gate:8080/v1", **{"llm-gate": gate(url)})
    assert "scheme and host, no path" in only(machine, "model")


def test_a_models_key_that_is_not_there_fails_and_one_that_by_its_mode_cannot_be_read_warns(machine: Machine) -> None:
    file = machine.answers / "api key"
    asks(machine, "http://llm:11434/v1", key="/run/llm-secrets/api key", **LOCAL)
    machine.answers.chmod(0o755)
    assert f"BI_LLM_API_KEY_FILE: {file}: No such file" in only(machine, "model")
    file.write_text("k")
    file.chmod(0o600)
    assert f"may not be read by user 10001 -> sudo chown 10001 '{file}'; " in only(machine, "model", "warn")
    file.chmod(0o644)
    assert machine.findings("warn") == machine.findings("FAIL") == {}
    asks(machine, "http://llm:11434/v1", key="/etc/api-key", **LOCAL)
    assert "not where the container finds it" in only(machine, "model")


def test_settings_that_compose_refuses_fail_with_its_words(machine: Machine) -> None:
    words = "error while interpolating: required variable BI_DOMAIN is missing a value: is missing in .env"
    machine.refuses("config", words)
    assert "required variable BI_DOMAIN is missing" in only(machine, "stack")


def test_a_clock_behind_what_was_written_here_fails(machine: Machine) -> None:
    future = time.time() + 3600
    os.utime(machine.env, (future, future))
    assert "was written at" in only(machine, "clock")


def test_production_needs_the_certificate_that_it_names(machine: Machine, tmp_path: Path) -> None:
    folder = tmp_path / "tls"
    folder.mkdir()
    folder.chmod(0o755)
    edge = machine.config["services"]["edge"]
    edge["environment"] = {"EDGE_TLS": "files", "EDGE_DOMAIN": "bi.test"}
    edge["volumes"] = [{"type": "bind", "source": str(folder), "target": "/certs"}]
    said = only(machine, "tls")
    assert "cert.pem: No such file" in said and "key.pem: No such file" in said
    (folder / "cert.pem").write_text("-----BEGIN CERTIFICATE-----\n")
    (folder / "key.pem").write_text("-----BEGIN CERTIFICATE-----\n")
    assert "key.pem holds no PRIVATE KEY" in only(machine, "tls")
    (folder / "key.pem").write_text("-----BEGIN EC PRIVATE KEY-----\n")
    (folder / "key.pem").chmod(0o600)
    said = only(machine, "tls", "warn")
    assert f"by its mode {folder}/key.pem may not be read by user 65534 -> sudo chown 65534 {folder}/key.pem" in said
    (folder / "key.pem").chmod(0o644)
    assert machine.findings("FAIL") == machine.findings("warn") == {}
    edge["environment"] |= {"EDGE_TLS": "acme", "EDGE_ACME_CA_ROOT": "acme_ca_root /certs/ca.pem"}
    assert "ca.pem: No such file" in only(machine, "tls")
    (folder / "ca.pem").write_text("-----BEGIN EC PRIVATE KEY-----\n")
    assert "ca.pem holds no CERTIFICATE" in only(machine, "tls")
    (folder / "ca.pem").write_text("-----BEGIN CERTIFICATE-----\n")
    assert machine.findings("FAIL") == {}
    edge["environment"]["EDGE_ACME_CA_ROOT"] = ""
    assert machine.findings("FAIL") == {}
    edge["environment"]["EDGE_TLS"] = "internal"
    assert "trusted by nobody" in only(machine, "tls", "warn")
    edge["environment"]["EDGE_TLS"] = "acne"
    assert "BI_TLS=acne is unknown" in only(machine, "tls")


@contextlib.contextmanager
def as_somebody_else() -> Iterator[Path]:
    """A block in which this process is a user like any other, and a folder where all may look into files that are theirs."""
    is_root = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "key.pem").write_text("-----BEGIN EC PRIVATE KEY-----\n")
        (folder / "key.pem").chmod(0o400 if is_root else 0o000)
        if is_root:
            os.chown(folder / "key.pem", 65534, 65534)
            os.seteuid(12345)
        try:
            yield folder
        finally:
            if is_root:
                os.seteuid(0)


def test_a_key_that_only_the_edge_may_read_warns_who_cannot_look_into_it() -> None:
    with as_somebody_else() as folder:
        edge = {
            "environment": {"EDGE_TLS": "files"},
            "volumes": [{"type": "bind", "source": str(folder), "target": "/certs"}],
        }
        certificate, key = doctor_host.certificates({"edge": edge})
    assert (certificate.status, key.status) == ("FAIL", "warn") and "cert.pem: No such file" in certificate.detail
    assert key.detail == f"{folder}/key.pem cannot be looked at by this user" and "sudo make doctor" in key.advice


def alerting(machine: Machine, folder: Path, *, production: bool = True, **settings: str) -> None:
    """A machine with Alertmanager and these settings of it, and a heartbeat's file unless they say otherwise."""
    folder.mkdir(exist_ok=True)
    folder.chmod(0o755)
    (folder / "heartbeat").write_text("https://beat.test/\n")
    environment = {"ALERT_RECEIVER": "none", "ALERT_HEARTBEAT_URL_FILE": "/run/alert-secrets/heartbeat"} | settings
    machine.config["services"]["alertmanager"] = {
        "restart": "unless-stopped",
        "environment": environment,
        "volumes": [{"type": "bind", "source": str(folder), "target": "/run/alert-secrets"}],
    }
    machine.config["services"]["edge"]["environment"] = {"EDGE_TLS": "acme"} if production else {}


SLACK = {
    "ALERT_RECEIVER": "slack",
    "ALERT_SLACK_URL_FILE": "/run/alert-secrets/slack-url",
    "ALERT_SLACK_CHANNEL": "#bi",
}


def test_alerts_that_reach_nobody_warn_in_production_alone(machine: Machine, tmp_path: Path) -> None:
    alerting(machine, tmp_path / "secrets")
    assert "nobody is told when something fails -> BI_ALERT_RECEIVER=" in only(machine, "alerts", "warn")
    (tmp_path / "secrets/slack-url").write_text("https://slack.test/\n")
    alerting(machine, tmp_path / "secrets", **SLACK)
    assert machine.findings("warn") == machine.findings("FAIL") == {}
    alerting(machine, tmp_path / "secrets", **SLACK, ALERT_HEARTBEAT_URL_FILE="")
    assert "no heartbeat" in only(machine, "alerts", "warn")
    alerting(machine, tmp_path / "secrets", production=False, ALERT_HEARTBEAT_URL_FILE="")
    assert machine.findings("warn") == machine.findings("FAIL") == {}


def test_the_settings_that_the_operations_page_shows_have_all_that_alerts_need(
    machine: Machine, tmp_path: Path
) -> None:
    page = (ROOT / "docs/operations.md").read_text().partition("## Production")[2]
    shown = tmp_path / "shown.env"
    shown.write_text(page.partition("```sh\n")[2].partition("```")[0])
    settings = {name.removeprefix("BI_"): value for name, value in assignments(shown) if name.startswith("BI_ALERT_")}
    alerting(machine, tmp_path / "secrets", **settings)
    for file in re.findall(r" infra/local/alert-secrets/(\S+)", page):
        (tmp_path / "secrets" / file).write_text("https://receiver.test/\n")
    assert machine.findings("warn") == machine.findings("FAIL") == {}


@pytest.mark.parametrize("production", [True, False])
def test_a_receiver_that_lacks_something_fails_with_the_settings_name(
    machine: Machine, tmp_path: Path, production: bool
) -> None:
    alerting(machine, tmp_path / "secrets", production=production, ALERT_RECEIVER="slack")
    said = only(machine, "alerts")
    assert "BI_ALERT_RECEIVER=slack needs BI_ALERT_SLACK_URL_FILE" in said and "needs BI_ALERT_SLACK_CHANNEL" in said
    alerting(machine, tmp_path / "secrets", production=production, ALERT_RECEIVER="pager")
    assert "BI_ALERT_RECEIVER=pager is unknown" in only(machine, "alerts")
    email = {"ALERT_EMAIL_TO": "a@bi.test", "ALERT_EMAIL_FROM": "b@bi.test", "ALERT_SMTP_HOST": "mail.test:25"}
    alerting(machine, tmp_path / "secrets", production=production, ALERT_RECEIVER="email", **email)
    assert machine.findings("FAIL") == {}
    email["ALERT_SMTP_USER"] = "bi"
    alerting(machine, tmp_path / "secrets", production=production, ALERT_RECEIVER="email", **email)
    assert "BI_ALERT_SMTP_PASSWORD_FILE" in only(machine, "alerts")


def test_a_receivers_file_that_alertmanager_cannot_read_fails(machine: Machine, tmp_path: Path) -> None:
    alerting(machine, tmp_path / "secrets", **SLACK)
    file = tmp_path / "secrets/slack-url"
    assert f"BI_ALERT_SLACK_URL_FILE: {file}: No such file" in only(machine, "alerts")
    file.write_text("")
    assert f"{file} is empty" in only(machine, "alerts")
    file.write_text("https://slack.test/\n")
    file.chmod(0o600)
    assert f"{file} may not be read by user 65534 -> sudo chown 65534 {file}" in only(machine, "alerts", "warn")
    file.chmod(0o644)
    assert machine.findings("FAIL") == {}
    alerting(machine, tmp_path / "secrets", **SLACK | {"ALERT_SLACK_URL_FILE": "/etc/slack-url"})
    assert "not where the container finds it" in only(machine, "alerts")
    alerting(machine, tmp_path / "secrets", ALERT_HEARTBEAT_URL_FILE="/run/alert-secrets/beat")
    assert "BI_ALERT_HEARTBEAT_URL_FILE" in only(machine, "alerts")


def test_an_engine_with_few_open_files_warns(machine: Machine) -> None:
    program = machine.bin / "dockerd"
    shutil.copy(shutil.which("sleep") or "", program)
    with subprocess.Popen(["sh", "-c", f"ulimit -n 512; exec {program} 60"]) as engine:
        wait_until(lambda: Path(f"/proc/{engine.pid}/comm").read_text() == "dockerd\n", what="the stand-in to run")
        try:
            said = json.loads(machine.run("--json").stdout)
        finally:
            engine.kill()
    (found,) = [one for one in said if one["check"] == "files" and "512 open files" in one["detail"]]
    assert found["status"] == "warn" and "LimitNOFILE" in found["advice"]


def test_a_kernel_that_has_no_files_left_fails(tmp_path: Path) -> None:
    (tmp_path / "sys/fs").mkdir(parents=True)
    (tmp_path / "sys/fs/file-nr").write_text("95\t0\t100\n")
    (found,) = doctor_host.file_limits(tmp_path)
    assert found.status == "FAIL" and "95 of the kernel's 100" in found.detail
    (tmp_path / "sys/fs/file-nr").write_text("9\t0\t100\n")
    assert doctor_host.file_limits(tmp_path) == [ok("files", "enough open files")]


def test_the_text_has_the_advice_below_what_failed(machine: Machine) -> None:
    machine.says(version="24.0.7")
    done = machine.run()
    lines = done.stdout.splitlines()
    assert done.returncode == 1
    assert lines[0].startswith("FAIL  engine     24.0.7;") and lines[1].strip().startswith("-> upgrade it")
    assert lines[2] == "ok    compose    2.26.1-4" and "1 failed" in lines[-1]
    assert machine.run("--quiet").stdout.startswith("\n".join(lines[:2]))


def test_on_this_machine_with_its_own_engine_a_stack_that_can_start_is_well(tmp_path: Path) -> None:
    require_engine()
    done = real(tmp_path, free_port())
    assert done.returncode == 0, done.stdout + done.stderr


def real(tmp_path: Path, port: int, *program: str) -> subprocess.CompletedProcess[str]:
    env = tmp_path / ".env"
    others = {name: free_port() for name in ("PROMETHEUS", "ALERTMANAGER", "GRAFANA")}
    lines = [f"BI_QUERY_PORT={port}", *(f"BI_{name}_PORT={number}" for name, number in others.items())]
    env.write_text("\n".join([*lines, f"BI_DATA_FOLDER={ROOT / 'data'}", "COMPOSE_PROJECT_NAME=bi-doctor"]))
    command = program or (sys.executable, *PROGRAM)
    settings = {"BI_ENV_FILE": str(env), "COMPOSE_PROJECT_NAME": "bi-doctor"}
    return subprocess.run(
        command, env={**os.environ, **settings}, cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_make_up_starts_nothing_where_the_doctor_finds_a_failure(tmp_path: Path) -> None:
    require_engine()
    with listening() as port:
        done = real(tmp_path, port, "infra/up.sh")
    assert done.returncode == 1
    assert f"{port}/tcp, of edge, is taken by" in done.stdout and "nothing was started" in done.stderr
    assert docker("ps", "-aq", "--filter", "label=com.docker.compose.project=bi-doctor") == ""
