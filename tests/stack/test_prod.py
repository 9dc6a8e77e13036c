"""The production overlay on live containers: what the edge lets in, what it says, and what it hides."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.production import DOMAIN, RELOAD, ProductionStack
from tests.support.service import wait_until
from tests.support.stack import ROOT, SERVICE_LABEL, docker, has_grafana, python_beside

MIB = 1024 * 1024
REFUSAL = "application/problem+json"
# Prints the answer's number; the path goes out as it is.
ASK = """
import http.client, sys, urllib.parse
url = urllib.parse.urlsplit(sys.argv[1])
connection = http.client.HTTPConnection(url.netloc, timeout=5)
connection.request("GET", url.path)
print(connection.getresponse().status)
"""


@pytest.fixture(scope="module")
def client(production: ProductionStack) -> Iterator[httpx.Client]:
    with production.client() as client:
        yield client


def test_the_certificate_is_of_our_own_authority_and_of_no_other(production: ProductionStack) -> None:
    with socket.create_connection(("127.0.0.1", production.https_port), 10) as plain:
        context = ssl.create_default_context(cadata=production.root_certificate())
        with context.wrap_socket(plain, server_hostname=DOMAIN) as secured:
            certificate = secured.getpeercert()
            assert certificate and ("DNS", DOMAIN) in certificate["subjectAltName"]
            assert secured.version() in ("TLSv1.2", "TLSv1.3")
    with (
        socket.create_connection(("127.0.0.1", production.https_port), 10) as plain,
        pytest.raises(ssl.SSLCertVerificationError),
    ):
        ssl.create_default_context().wrap_socket(plain, server_hostname=DOMAIN)


def test_plain_http_is_sent_to_our_own_name_over_tls(production: ProductionStack) -> None:
    url = f"http://127.0.0.1:{production.http_port}/api/v1/queries?x=1"
    answer = httpx.get(url, headers={"Host": "somebody.else"}, timeout=10)
    assert answer.status_code == 308
    assert answer.headers["location"] == f"https://{DOMAIN}/api/v1/queries?x=1"


def test_http_2_is_spoken_and_http_3_is_offered(production: ProductionStack) -> None:
    with production.client(http2=True) as client:
        answer = client.get("/api/v1/queries/shops")
    assert (answer.status_code, answer.http_version) == (200, "HTTP/2")
    assert 'h3=":443"' in answer.headers["alt-svc"]


@pytest.mark.parametrize("path", ["/api/v1/queries/shops", "/docs", "/metrics", "/nothing"])
def test_every_answer_carries_the_security_headers_once(client: httpx.Client, path: str) -> None:
    headers = client.get(path).headers
    assert headers["strict-transport-security"].startswith("max-age=")
    assert headers.get_list("x-content-type-options") == ["nosniff"]
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert len(headers.get_list("content-security-policy")) == 1
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert "server" not in headers


def test_the_pages_own_policy_is_left_alone(client: httpx.Client) -> None:
    assert "script-src 'sha256-" in client.get("/docs").headers["content-security-policy"]


@pytest.mark.parametrize(
    "path",
    ["/metrics", "//metrics", "/%6detrics", "/./metrics", "/x/../metrics", "/metrics/", "/METRICS", "/metrics?x"],
)
def test_the_services_metrics_are_not_reached_from_outside(production: ProductionStack, path: str) -> None:
    certificate = production.folder / f"{production.project}.crt"
    certificate.write_text(production.root_certificate())
    run = subprocess.run(
        ["curl", "-s", "--path-as-is", "--cacert", str(certificate), "-w", "\n%{http_code} %{content_type}",
         "--resolve", f"{DOMAIN}:{production.https_port}:127.0.0.1", f"https://{DOMAIN}:{production.https_port}{path}"],
        capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    assert run.stdout.splitlines()[-1] == f"404 {REFUSAL}"
    assert "http_requests_total" not in run.stdout


def test_monitors_outside_may_ask_whether_it_is_ready(client: httpx.Client) -> None:
    assert client.get("/health/ready").json()["status"] == "ok"


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded", "X-Real-IP"])
def test_who_claims_to_be_somebody_else_is_not_believed(production: ProductionStack, header: str) -> None:
    name = f"spoof-{header.lower()}"
    with production.client(headers={header: "6.6.6.6", "X-Request-ID": name}) as client:
        client.get("/api/v1/queries")

    def seen() -> list[str]:
        logs = [docker("logs", "--since", "60s", replica) for replica in production.replicas()]
        return [line for log in logs for line in log.splitlines() if f'"{name}"' in line]

    wait_until(lambda: bool(seen()), 10, what="the request's log line")
    (line,) = seen()
    client_seen = json.loads(line)["client"]
    gateways = {
        network["Gateway"]
        for network in production.inspect("edge", running=True)[0]["NetworkSettings"]["Networks"].values()
    }
    assert client_seen.removeprefix("addr-") in gateways, f"{header} made it {client_seen}"


def test_a_container_beside_the_replicas_cannot_forward_for_others(production: ProductionStack) -> None:
    # From the monitoring network, straight to a replica: not the edge, so not believed.
    (url,) = list(production.replicas().values())[:1]
    httpx.get(f"{url}/api/v1/queries", headers={"X-Forwarded-For": "6.6.6.6", "X-Request-ID": "beside"}, timeout=10)
    wait_until(
        lambda: any('"beside"' in docker("logs", "--since", "60s", replica) for replica in production.replicas()),
        10, what="the request's log line",
    )  # fmt: skip
    logs = "".join(docker("logs", "--since", "60s", replica) for replica in production.replicas())
    assert "addr-6.6.6.6" not in logs


@pytest.mark.parametrize("size", [MIB + MIB // 2, 4 * MIB])
def test_a_body_that_is_too_large_is_refused(client: httpx.Client, size: int) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(size // 65536):
            yield b"a" * 65536

    answer = client.post("/api/v1/query", content=chunks(), headers={"content-type": "application/json"})
    assert (answer.status_code, answer.headers["content-type"]) == (413, REFUSAL)
    assert answer.json()["code"] == "body_too_large"


def test_text_is_compressed_and_parquet_is_not(client: httpx.Client) -> None:
    sql = {"sql": "select s.shop, s.amount from sales s"}
    packed = client.post("/api/v1/query", json=sql, headers={"Accept-Encoding": "gzip"})
    assert packed.headers["content-encoding"] == "gzip" and packed.json()["row_count"] > 100
    parquet = client.post(
        "/api/v1/query", json=sql, params={"format": "parquet"}, headers={"Accept-Encoding": "gzip, zstd"}
    )
    assert "content-encoding" not in parquet.headers and parquet.content[:4] == b"PAR1"


def test_agents_reach_their_tools_under_the_domain_and_under_no_other_name(
    production: ProductionStack, client: httpx.Client
) -> None:
    params = {"name": "run_query", "arguments": {"name": "uncached"}}
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    answer = client.post("/mcp", json=message, headers={"Accept": "application/json"})
    assert answer.status_code == 200, answer.text
    assert answer.json()["result"]["structuredContent"]["rows"] == client.get("/api/v1/queries/uncached").json()["rows"]
    for replica in production.replicas().values():
        direct = {**production.key, "Accept": "application/json"}
        assert httpx.post(f"{replica}/mcp", json=message, headers=direct, timeout=10).status_code == 421


def test_the_edge_tells_its_probe_whether_it_works_and_nothing_else(production: ProductionStack) -> None:
    prober = production.inspect("blackbox", running=True)[0]["Id"]

    def asked(path: str) -> str:
        return python_beside(prober, ASK, f"http://edge:8000{path}").strip()

    assert asked("/health/ready") == "200"
    assert {asked(path) for path in ("/", "/api/v1/queries", "/metrics", "/health/ready/../../api/v1/queries")} == {
        "404"
    }


def test_ports_80_and_443_of_the_edge_are_published_and_no_other(production: ProductionStack) -> None:
    found = {
        (container["Config"]["Labels"][SERVICE_LABEL], port, binding["HostPort"])
        for container in production.inspect(running=True)
        for port, bindings in (container["NetworkSettings"]["Ports"] or {}).items()
        for binding in bindings or []
    }
    http, https = str(production.http_port), str(production.https_port)
    assert found == {("edge", "80/tcp", http), ("edge", "443/tcp", https), ("edge", "443/udp", https)}


def test_both_replicas_are_asked(production: ProductionStack, client: httpx.Client) -> None:
    for _ in range(30):
        assert client.get("/api/v1/queries/uncached").status_code == 200
    for replica in production.replicas():
        assert "/api/v1/queries/{name}" in docker("logs", "--since", "60s", replica), "a replica that nobody asks"


def test_grafana_has_its_path(client: httpx.Client) -> None:
    assert client.get("/grafana").headers["location"] == "/grafana/"
    assert client.get("/grafana/metrics").status_code == 404
    if not has_grafana():
        # Its image cannot be had here: the route is there, and says that nobody is behind it.
        answer = client.get("/grafana/login")
        assert (answer.status_code, answer.json()["code"]) == (502, "edge_error")
        assert answer.headers["retry-after"]
        return
    assert client.get("/grafana/login").status_code == 200


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_a_given_certificate_is_shown_and_a_renewed_one_after_a_reload(
    production: ProductionStack, tmp_path: Path
) -> None:
    make_certificate(tmp_path, "first")
    with production.edge_with_files(tmp_path) as (port, container):
        wait_until(lambda: shown(port) == "first", 20, what="the edge to show the given certificate")
        make_certificate(tmp_path, "renewed")
        docker("exec", container, *RELOAD)
        assert shown(port) == "renewed"


def make_certificate(folder: Path, organisation: str) -> None:
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem"),
         "-subj", f"/O={organisation}/CN={DOMAIN}", "-addext", f"subjectAltName=DNS:{DOMAIN}"],
        capture_output=True, check=True,
    )  # fmt: skip
    folder.chmod(0o755)
    (folder / "key.pem").chmod(0o644)


def shown(port: int) -> str:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            socket.create_connection(("127.0.0.1", port), 5) as plain,
            context.wrap_socket(plain, server_hostname=DOMAIN) as secured,
        ):
            raw = secured.getpeercert(binary_form=True) or b""
    except OSError:
        return ""
    return next((name for name in ("first", "renewed") if name.encode() in raw), "")


def test_the_doctor_takes_the_ports_of_the_running_stack_for_its_own(production: ProductionStack) -> None:
    done = production.program("python3", "infra/doctor.py", "--json")
    found = {finding["check"]: finding for finding in json.loads(done.stdout)}
    assert found["ports"]["status"] == "ok", found
    for port in (f"{production.http_port}/tcp", f"{production.https_port}/tcp", f"{production.https_port}/udp"):
        assert f"{port} (this stack's already)" in found["ports"]["detail"]


RUNBOOKS = (ROOT / "docs/runbooks.md").read_text()
# What a person would put in, and the part before a pipe: `jq` is the reader's own.
IN_CONTAINERS = [
    shlex.split(
        line.partition(" | ")[0]
        .replace("EXPRESSION", "up")
        .replace("$USER", "me")
        .replace("NAME", "Test")
        .replace("\\\n", "")
    )
    for line in re.findall(
        r"(?:^|`)docker compose exec ((?:-T )?(?:prometheus|alertmanager) (?:[^`\n\\]|\\\n)+)", RUNBOOKS, re.MULTILINE
    )
]


def test_the_runbooks_have_commands_to_try() -> None:
    # None found would be a test with no parameters, which is skipped.
    assert len(IN_CONTAINERS) >= 4 and {"prometheus", "alertmanager"} <= {word for one in IN_CONTAINERS for word in one}


@pytest.mark.parametrize("command", IN_CONTAINERS, ids=" ".join)
def test_the_runbooks_commands_work_where_nothing_is_published(production: ProductionStack, command: list[str]) -> None:
    if "target=ADDRESS" in command[-1]:
        command = [*command[:-1], command[-1].replace("ADDRESS", "http://query:8000/health/ready")]
    said = production.compose("exec", *(["-T"] if command[0] != "-T" else []), *command)
    assert said.stdout


def test_the_runbooks_tunnel_leads_to_the_pages_of_prometheus_and_alertmanager(production: ProductionStack) -> None:
    (form,) = re.findall(r"^docker inspect -f '(.*?)'", RUNBOOKS, re.MULTILINE)
    for name, port in (("prometheus", 9090), ("alertmanager", 9093)):
        addresses = docker("inspect", "-f", form, production.inspect(name, running=True)[0]["Id"]).split()
        assert addresses
        assert {httpx.get(f"http://{one}:{port}/-/ready", timeout=10).status_code for one in addresses} == {200}
