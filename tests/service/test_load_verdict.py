"""The load test's exit code, on a real small service: 0 when all is well, not 0 when it should not be.

What is provoked lies far from what is asked for: slo.yaml of these tests is lenient, the faults are gross.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from loadtest.objectives import load_objectives
from loadtest.service_side import Prometheus, requests_in
from tests.config.monitoring import tool
from tests.support.service import Service, free_port, wait_until
from tests.support.small import Small

ROOT = Path(__file__).parents[2]
USERS = 4


@dataclass
class Report:
    """A finished run."""

    code: int
    text: str
    document: dict[str, Any]

    @property
    def missed(self) -> set[str]:
        """Lines of the verdict that do not pass."""
        return {row["slo"] for row in self.document["verdict"] if row["outcome"] not in ("met", "not judged")}

    def row(self, slo: str) -> dict[str, Any]:
        """One line of the verdict."""
        return next(row for row in self.document["verdict"] if row["slo"] == slo)


def lenient_slo(path: Path) -> Path:
    """slo.yaml with numbers that a small service on a busy machine meets by far."""
    document = yaml.safe_load((ROOT / "slo.yaml").read_text())
    document["users"] = USERS
    document["throughput"]["requests_per_second"] = 5
    document["latency"] |= {"objective_percent": 80, "threshold_seconds": 2, "p95_seconds": 2}
    document["cache"]["hit_rate_percent"] = 50
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Report]:
    """Run the load test against a service: `load(service, "--fault-delay", "3")`."""

    def run(service: Service, *options: str, scenario: str = "slo", seconds: int = 6) -> Report:
        reports = tmp_path / "reports"
        done = subprocess.run(
            [
                sys.executable, "-m", "loadtest", scenario, "--url", service.url, "--slo",
                str(lenient_slo(tmp_path / "slo.yaml")), "--seconds", str(seconds), "--pace", "20",
                "--queries", "shops,quick", "--reports", str(reports), *options,
            ],
            cwd=ROOT, capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        found = sorted(reports.glob("*.json"))
        text = done.stdout + done.stderr
        assert found, text
        return Report(done.returncode, text, json.loads(found[-1].read_text()))

    return run


def test_all_well_is_exit_code_0_and_both_sides_counted_the_same(
    serve: Callable[..., Service], load: Callable[..., Report], tmp_path: Path
) -> None:
    # Long enough at full speed that reading a page at its ends does not blur the rate.
    done = load(serve(rate_limit="100/minute"), seconds=40)
    assert (done.code, done.missed) == (0, set()), done.text
    requests = done.row("requests")
    assert requests["client"] == requests["service"] != "0"
    stages = [(part["stage"], part["client"] == part["service"]) for part in requests["parts"]]
    assert stages == [("people", True), ("full speed", True)], "people pause while the service is read"
    assert {phase["failed"] for phase in done.document["phases"].values()} == {0}
    shops = done.document["queries"]["shops"]
    assert shops["with_cache_ms"]["requests"] > 0 and shops["without_cache_ms"]["requests"] > 0
    page = next((tmp_path / "reports").glob("*.html")).read_text()
    assert "slo: passed" in page and "without" not in page.split("<h2>")[0]


def test_an_injected_delay_of_3_seconds_fails(serve: Callable[..., Service], load: Callable[..., Report]) -> None:
    done = load(serve(fault_injection=True), "--fault-delay", "3", seconds=8)
    assert done.code == 1
    assert {"latency", "p95"} <= done.missed <= {"latency", "p95", "throughput"}, done.text
    assert done.row("latency")["agreed"], "the service sees the delay as the client does"


def test_injected_errors_fail(serve: Callable[..., Service], load: Callable[..., Report]) -> None:
    done = load(serve(fault_injection=True), "--fault-status", "500", "--fault-share", "0.3", scenario="soak")
    assert (done.code, done.missed) == (1, {"availability"}), done.text


def test_faults_are_ignored_by_a_service_that_does_not_allow_them(
    serve: Callable[..., Service], load: Callable[..., Report]
) -> None:
    done = load(serve(), "--fault-status", "500", scenario="soak")
    assert (done.code, done.missed) == (0, set()), done.text


def test_a_cache_that_is_flushed_all_the_time_fails(serve: Callable[..., Service], load: Callable[..., Report]) -> None:
    # Nobody hurries here: at full speed many hits fit between two flushes.
    done = load(serve(), "--flush-every", "0.005", scenario="soak")
    assert (done.code, done.missed) == (1, {"hit_rate"}), done.text


def test_a_cache_that_is_left_alone_passes_the_same_run(
    serve: Callable[..., Service], load: Callable[..., Report]
) -> None:
    done = load(serve(), scenario="soak")
    assert (done.code, done.missed) == (0, set()), done.text


def test_a_cache_that_is_bypassed_fails_for_nothing_was_looked_up(
    serve: Callable[..., Service], load: Callable[..., Report]
) -> None:
    done = load(serve(), "--no-cache", seconds=40)
    assert (done.code, done.missed) == (1, {"hit_rate"}), done.text
    assert "nothing measured" in done.row("hit_rate")["client"]


def test_cold_judges_no_hit_rate(serve: Callable[..., Service], load: Callable[..., Report]) -> None:
    done = load(serve(), scenario="cold")
    assert done.code == 0, done.text
    assert set(done.document["queries"]["shops"]["cache"]) == {"bypass"}


def test_other_peoples_requests_make_the_sides_disagree(
    serve: Callable[..., Service], load: Callable[..., Report]
) -> None:
    # The page of one service, the load on another: what the client sends is not what this page counts.
    busy, idle = serve(), serve()
    done = load(busy, "--metrics", f"{idle.url}/metrics")
    assert done.code == 1
    assert "requests" in done.missed and done.row("requests")["agreed"] is False, done.text


@dataclass
class Page:
    """Stands before a service's /metrics, and fails at the readings named by their number (from 1)."""

    url: str
    fails: set[int]
    read: list[bool] = field(default_factory=list)


@pytest.fixture
def page() -> Iterator[Callable[..., Page]]:
    """A page in front of a service: `page(service, fails={2, 3})`."""
    servers: list[ThreadingHTTPServer] = []

    def start(service: Service, fails: set[int]) -> Page:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                made.read.append(len(made.read) + 1 not in made.fails)
                body = httpx.get(f"{service.url}/metrics").content if made.read[-1] else b"broken"
                self.send_response(200 if made.read[-1] else 503)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        made = Page(f"http://127.0.0.1:{server.server_address[1]}/metrics", fails)
        return made

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


# Before the people: the mark, the histogram's edges, the number of clients. From the fourth on they are at work.
BEFORE = 3


def test_readings_that_fail_on_the_way_are_gaps_and_the_run_is_judged(
    serve: Callable[..., Service], load: Callable[..., Report], page: Callable[..., Page]
) -> None:
    # Memory twice, the end of people, the beginning of full speed; what follows is read again.
    service = serve()
    broken = page(service, fails={BEFORE + 1, BEFORE + 2, BEFORE + 3, BEFORE + 4})
    done = load(service, "--metrics", broken.url, seconds=8)
    assert (done.code, done.missed) == (0, set()), done.text
    assert len(done.document["gaps"]) == 4 and "503" in done.document["gaps"][0]
    (together,) = done.document["limits"]
    assert together == "people + full speed"
    assert [part["stage"] for part in done.row("latency")["parts"]] == ["people", "full speed"]
    requests = done.row("requests")
    assert requests["client"] == requests["service"] != "0"


def test_without_the_last_reading_there_is_a_report_but_no_verdict(
    serve: Callable[..., Service], load: Callable[..., Report], page: Callable[..., Page]
) -> None:
    service = serve()
    broken = page(service, fails=set(range(BEFORE + 2, 99)))
    done = load(service, "--metrics", broken.url, scenario="soak", seconds=4)
    assert done.code == 2 and "VERDICT: none" in done.text, done.text
    assert "503" in done.document["unmeasured"] and done.document["passed"] is False
    assert done.document["phases"]["people"]["all_ms"]["requests"] > 0
    assert done.row("availability")["service"] == "-"


def test_an_objective_between_two_buckets_is_found_before_anybody_asks(
    serve: Callable[..., Service], tmp_path: Path
) -> None:
    service, slo = serve(), lenient_slo(tmp_path / "slo.yaml")
    slo.write_text(slo.read_text().replace("threshold_seconds: 2", "threshold_seconds: 0.7"))
    done = subprocess.run(
        [sys.executable, "-m", "loadtest", "soak", "--url", service.url, "--slo", str(slo), "--reports", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2 and "0.7 s is no bucket edge" in done.stderr, done.stderr
    asked = 'http_requests_total{endpoint="/api/v1/queries/{name}",method="GET",status="200"}'
    assert f"{asked} 0.0" in httpx.get(f"{service.url}/metrics").text


def test_a_service_that_is_not_there_is_exit_code_2() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "loadtest", "slo", "--url", f"http://127.0.0.1:{free_port()}"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert "not run: URLError" in done.stderr


def test_a_file_of_keys_that_has_something_else_in_it_is_exit_code_2(tmp_path: Path) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text("make[1]: Entering directory '/srv/bi'\nbi_0123456789ab_secret\n")  # what a make in a make adds
    done = subprocess.run(
        [sys.executable, "-m", "loadtest", "slo", "--url", f"http://127.0.0.1:{free_port()}", "--keys-file", keys],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert f"{keys}, line 1: not an API key" in done.stderr and "secret" not in done.stderr


def test_new_snapshots_under_load_fail_nobody(
    small: Small, serve: Callable[..., Service], load: Callable[..., Report], tmp_path: Path
) -> None:
    script = tmp_path / "publish.py"
    script.write_text(
        "import sys, time\nfrom pathlib import Path\nfrom tests.support.small import Small\n"
        "Small(Path(sys.argv[1])).publish(int(time.time()))\n"
    )
    service = serve(snapshot_poll_seconds=0.2)
    command = f"env PYTHONPATH={ROOT} {sys.executable} {script} {small.root}"
    done = load(
        service, "--publish-command", command, "--publish-every", "1.5", scenario="publish", seconds=10
    )  # fmt: skip
    assert (done.code, done.missed) == (0, set()), done.text
    assert done.document["snapshots_seen"] > 1


def test_publishing_that_fails_fails_the_run(serve: Callable[..., Service], load: Callable[..., Report]) -> None:
    done = load(serve(), "--publish-command", "false", "--publish-every", "1", scenario="publish", seconds=4)
    assert (done.code, done.missed) == (1, {"publishes"}), done.text


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """A real Prometheus that scrapes services as the stack's does."""
    program = tool("prometheus", "prometheus")
    started: list[subprocess.Popen[bytes]] = []

    def start(*services: Service, interval: str = "1s") -> str:
        port = free_port()
        config = {
            "global": {"scrape_interval": interval, "scrape_timeout": "1s"},
            "scrape_configs": [
                {
                    "job_name": "query",
                    "static_configs": [{"targets": [service.url.removeprefix("http://") for service in services]}],
                }
            ],
        }
        (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump(config))
        with (tmp_path / "prometheus.log").open("wb") as log:
            started.append(
                subprocess.Popen(
                    [
                        program, f"--config.file={tmp_path}/prometheus.yaml", f"--storage.tsdb.path={tmp_path}/tsdb",
                        f"--web.listen-address=127.0.0.1:{port}",
                    ],
                    stdout=log, stderr=log,
                )
            )  # fmt: skip
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: httpx.get(f"{url}/-/ready").status_code == 200, 30, what="a ready Prometheus")
        return url

    yield start
    for process in started:
        process.terminate()
        process.wait(20)


def test_prometheus_tells_what_the_client_saw(
    serve: Callable[..., Service], load: Callable[..., Report], prometheus: Callable[..., str]
) -> None:
    service = serve()
    done = load(service, "--prometheus", prometheus(service), seconds=40)
    assert (done.code, done.missed) == (0, set()), done.text
    requests = done.row("requests")
    assert [part["client"] for part in requests["parts"]] == [part["service"] for part in requests["parts"]]
    assert requests["client"] == requests["service"], "no request lies at an edge of a window"
    assert done.row("throughput")["agreed"]


def test_replicas_that_are_scraped_at_different_moments_are_counted_over_the_same_window(
    serve: Callable[..., Service], prometheus: Callable[..., str]
) -> None:
    replicas = [serve() for _ in range(3)]
    url = prometheus(*replicas, interval="4s")
    counted = {"query": "count(up == 1) == 3"}
    wait_until(lambda: httpx.get(f"{url}/api/v1/query", params=counted).json()["data"]["result"], what="three targets")
    side = Prometheus(url, "query")
    objectives = load_objectives(ROOT / "slo.yaml")
    for turn in range(2):
        for replica in replicas:  # before the window
            replica.query("shops")
        side.mark(f"begin {turn}", quiet=True)
        for replica in replicas:
            for _ in range(10):
                replica.query("shops")
        side.mark(f"end {turn}", quiet=True)
        assert requests_in(side.counted(f"begin {turn}", f"end {turn}"), objectives) == 30


def test_the_verdict_can_be_scraped(serve: Callable[..., Service], tmp_path: Path) -> None:
    service, port = serve(), free_port()
    slo = lenient_slo(tmp_path / "slo.yaml")
    process = subprocess.Popen(
        [
            sys.executable, "-m", "loadtest", "cold", "--url", service.url, "--slo", str(slo), "--seconds", "3",
            "--pace", "20", "--queries", "shops", "--reports", str(tmp_path), "--listen", str(port), "--linger", "60",
        ],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        line = 'bi_loadtest_last_verdict{scenario="cold",slo="availability"} 1.0'

        def shown() -> bool:
            return line in httpx.get(f"http://127.0.0.1:{port}/metrics").text

        wait_until(shown, 40, what="the verdict on the load test's own page")
        page = httpx.get(f"http://127.0.0.1:{port}/metrics").text
        for name in ("users", "requests_per_second", "p95_seconds", "failures_ratio"):
            assert f"\nbi_loadtest_{name} " in page
    finally:
        process.kill()
        process.wait(10)
