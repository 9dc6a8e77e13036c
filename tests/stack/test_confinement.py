"""What compose.yaml promises about containers, seen on the containers themselves."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import httpx

from tests.support.stack import SERVICE_LABEL, Json, Stack, docker, python_beside, python_in, volume_files

from .receiver import Receiver

CONNECT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=2).close()
    print("connected")
except OSError as error:
    print(f"refused: {error}")
"""
WRITE = """
import pathlib
for folder in ("/", "/usr/local", "/opt", "/etc/bi/catalogue", "/data", "/var/lib/bi/snapshots", "/run/bi-secrets"):
    try:
        pathlib.Path(folder, "written").write_text("x")
        print(folder)
    except OSError:
        pass
"""
TOOLS = """
import importlib.util, shutil
names = "pip pip3 apt apt-get dpkg uv gcc cc g++ make ld as".split()
print(*[name for name in names if shutil.which(name)])
print(*[name for name in ("pip", "ensurepip", "setuptools") if importlib.util.find_spec(name)])
"""


MODES = "import os\nfor e in os.scandir('/run/bi-secrets'): print(oct(e.stat().st_mode & 0o777), e.name)"
PING = """
import socket
connection = socket.create_connection(("redis", 6379), 3)
connection.send(b"PING\\r\\n")
print(connection.recv(99).decode())
"""


def by_service(stack: Stack) -> dict[str, Json]:
    return {c["Config"]["Labels"][SERVICE_LABEL]: c for c in stack.inspect()}


def test_every_container_runs_confined_as_compose_says(stack: Stack) -> None:
    wanted = json.loads(stack.compose("config", "--format", "json").stdout)
    exceptions = wanted["x-hardening-exceptions"]
    for name, container in by_service(stack).items():
        host, config, service = container["HostConfig"], container["Config"], wanted["services"][name]
        assert config["User"] == service["user"], name
        assert config["User"] not in ("", "0", "root", "0:0") or "root" in exceptions[name], f"{name} runs as root"
        assert host["ReadonlyRootfs"], f"{name} can write its root"
        assert host["CapDrop"] == ["ALL"] and not host["Privileged"], name
        added = {cap.removeprefix("CAP_") for cap in host["CapAdd"] or []}
        assert added == set(service.get("cap_add") or []), f"{name} has {added}"
        assert "no-new-privileges:true" in host["SecurityOpt"], name
        assert host["Memory"] > 0 and host["NanoCpus"] > 0 and host["PidsLimit"] > 0, f"{name} has no limits"


def test_the_processes_themselves_have_no_capability_and_no_root(stack: Stack) -> None:
    for container in stack.inspect(running=True):
        name = container["Config"]["Labels"][SERVICE_LABEL]
        if name in ("edge", "llm-gate"):  # NET_BIND_SERVICE, see x-hardening-exceptions
            continue
        lines = docker("exec", container["Id"], "cat", "/proc/1/status").splitlines()
        status = {line.split(":", 1)[0]: line.split(":", 1)[1].split() for line in lines if ":" in line}
        assert int(status["CapEff"][0], 16) == 0 and int(status["CapBnd"][0], 16) == 0, name
        assert "0" not in status["Uid"], f"{name} runs as root"
        assert status["NoNewPrivs"] == ["1"], name


def test_no_secret_is_in_a_containers_environment_labels_or_command(stack: Stack, receiver: Receiver) -> None:
    files = {name: content.decode().strip() for name, content in volume_files(stack, "secrets").items()}
    assert {"redis-password", "redis-admin-password", "grafana-admin-password", "api-key"} <= files.keys()
    values = [value for value in files.values() if len(value) < 200] + [receiver.token]
    values += list(json.loads(files["redis-exporter.json"]).values())
    assert all(len(value) >= 20 for value in values), "a secret that could be guessed"
    told = json.dumps(stack.inspect())
    assert [name for name, value in files.items() if value in told] == []
    assert not any(value in told for value in values)


def test_each_secret_is_made_anew_for_each_stack_and_read_by_one_user(stack: Stack) -> None:
    listed = python_in(stack.inspect("query", running=True)[0]["Id"], MODES).splitlines()
    assert {line.split()[0] for line in listed} == {"0o400"}, listed


def test_redis_is_reached_by_the_service_and_its_exporter_alone(stack: Stack) -> None:
    networks = stack.inspect("redis")[0]["NetworkSettings"]["Networks"]
    (address,) = [network["IPAddress"] for network in networks.values()]
    containers = {c["Config"]["Labels"][SERVICE_LABEL]: c["Id"] for c in stack.inspect(running=True)}

    def reaches(service: str) -> bool:
        said = [python_beside(containers[service], CONNECT, target, "6379") for target in ("redis", address)]
        assert len({text.split()[0].rstrip(":") for text in said}) == 1, said
        return said[0].strip() == "connected"

    others = [service for service in containers if service != "redis"]
    with ThreadPoolExecutor(len(others)) as pool:
        reached = {service for service, yes in zip(others, pool.map(reaches, others), strict=True) if yes}
    assert reached == {"query", "redis-exporter"}


def test_redis_answers_nobody_without_a_password(stack: Stack) -> None:
    assert "NOAUTH" in python_in(stack.inspect("query", running=True)[0]["Id"], PING)


def test_nothing_is_published_to_other_machines(stack: Stack) -> None:
    published = {
        (c["Config"]["Labels"][SERVICE_LABEL], bound["HostIp"])
        for c in stack.inspect(running=True)
        for bindings in (c["NetworkSettings"]["Ports"] or {}).values()
        for bound in bindings or []
    }
    assert {address for _, address in published} == {"127.0.0.1"}
    assert {service for service, _ in published} - {"grafana"} == {"edge", "prometheus", "alertmanager"}


def test_the_service_can_write_nothing_but_its_scratch_space(stack: Stack) -> None:
    assert python_in(stack.inspect("query", running=True)[0]["Id"], WRITE).split() == []


def test_the_services_image_has_no_package_manager_and_no_compiler(stack: Stack) -> None:
    assert python_in(stack.inspect("query", running=True)[0]["Id"], TOOLS).split() == []


def test_the_services_metrics_are_not_reached_through_the_edge(stack: Stack) -> None:
    for path in ("/metrics", "//metrics", "/%6detrics"):
        answer = httpx.get(f"{stack.url('QUERY')}{path}", timeout=10)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), path
