"""The command line as users and scripts meet it: what it prints, where, and its exit codes."""

from __future__ import annotations

import os
import pty
import re
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.support.service import Service, wait_until
from tests.support.small import Small, make_small

Done = subprocess.CompletedProcess[str]


@pytest.fixture
def unpublished(tmp_path: Path) -> Small:
    return make_small(tmp_path)


def environment(small: Small, **settings: object) -> dict[str, str]:
    values = {
        "data_dir": small.data,
        "catalogue_dir": small.catalogue,
        "snapshot_dir": small.snapshots,
        **settings,
    }
    return {**os.environ, **{f"BI_{name.upper()}": str(value) for name, value in values.items()}}


def run(small: Small, *arguments: str, **settings: object) -> Done:
    return subprocess.run(
        [sys.executable, "-m", "bi_query.cli", *arguments],
        env=environment(small, **settings),
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_publish_says_what_it_made_and_is_quiet_on_standard_error_without_a_terminal(unpublished: Small) -> None:
    done = run(unpublished, "publish")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^  sales +1,000 rows +3 columns +table$", done.stdout, re.MULTILINE), done.stdout
    assert re.search(r"published snapshot [0-9a-f]{16}: 3 tables, 1,005 rows, [\d,]+ bytes, [\d.]+ s", done.stdout)
    again = run(unpublished, "publish")
    assert again.returncode == 0
    assert re.search(r"nothing changed: snapshot [0-9a-f]{16} is already published", again.stdout)


@pytest.mark.parametrize("quiet", [False, True])
def test_publish_shows_progress_on_a_terminal_unless_quiet(unpublished: Small, quiet: bool) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    with subprocess.Popen(
        [sys.executable, "-m", "bi_query.cli", "publish", *(["--quiet"] if quiet else [])],
        env=environment(unpublished),
        stdout=subprocess.DEVNULL,
        stderr=theirs,
    ) as process:
        os.close(theirs)
        shown = b""
        try:
            while chunk := os.read(ours, 4096):
                shown += chunk
        except OSError:  # the terminal's other end closed
            pass
        assert process.wait(60) == 0
    os.close(ours)
    assert (b"publishing: 100%" in shown) is not quiet


def test_a_failed_publish_is_one_line_on_standard_error_and_exit_code_1(unpublished: Small) -> None:
    (unpublished.data / "sales.parquet").write_bytes(b"PAR1 half")
    done = run(unpublished, "publish")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"bi-query: {unpublished.data}/sales.parquet: not a complete Parquet file")


def test_a_running_service_goes_on_when_publishing_fails(small: Small, serve: Callable[..., Service]) -> None:
    service = serve(snapshot_poll_seconds=0.05)
    (small.data / "sales.parquet").write_bytes(b"")
    assert run(small, "publish").returncode == 1
    wait_until(lambda: service.metric("bi_publish_last_success") == 0)
    assert service.sql("select count(*) from sales").json()["rows"] == [[1000]]


@pytest.mark.parametrize("command", ["publish", "serve", "check"])
def test_a_wrong_setting_is_a_sentence_and_exit_code_1(unpublished: Small, command: str) -> None:
    done = run(unpublished, command, port="many")
    assert done.returncode == 1
    assert "BI_PORT" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_misspelt_setting_is_a_warning(unpublished: Small) -> None:
    done = run(unpublished, "publish", snapshots_keep=2)
    assert done.returncode == 0
    assert "BI_SNAPSHOTS_KEEP is not a setting; did you mean BI_SNAPSHOTS_KEPT?" in done.stderr


@pytest.mark.parametrize("arguments", [[], ["sing"], ["publish", "--loud"]])
def test_wrong_usage_is_exit_code_2(unpublished: Small, arguments: list[str]) -> None:
    done = run(unpublished, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: bi-query")


def test_serve_refuses_to_start_without_a_snapshot_and_says_what_to_do(unpublished: Small) -> None:
    done = run(unpublished, "serve")
    assert done.returncode == 1
    assert f"nothing is published in {unpublished.snapshots} yet; run `bi-query publish` first" in done.stderr


def test_serve_says_that_its_port_is_taken(small: Small) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = run(small, "serve", port=taken.getsockname()[1])
    assert done.returncode == 1
    assert "address already in use" in done.stderr


def test_serve_says_where_to_look_and_gives_a_line_to_copy(small: Small, serve: Callable[..., Service]) -> None:
    service = serve()
    wait_until(lambda: "try:" in service.errors())
    said = service.errors()
    for path in ("/docs", "/api/v1/queries", "/api/v1/tables", "/metrics"):
        assert f"{service.url}{path}\n" in said
    curl = re.search(r"curl '(\S+)'", said)
    assert curl is not None
    assert service.get(curl[1].removeprefix(service.url)).status_code == 200


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "with a query running"])
def test_sigterm_ends_a_service_with_exit_code_0(small: Small, serve: Callable[..., Service], busy: bool) -> None:
    service = serve(shutdown_grace_seconds=60)
    if not busy:
        service.signal(signal.SIGTERM)
    else:
        with subprocess.Popen(
            ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", f"{service.url}/api/v1/queries/slow?size=15"],
            stdout=subprocess.PIPE,
        ) as curl:
            wait_until(lambda: service.metric("bi_engine_running_queries") == 1)
            service.signal(signal.SIGTERM)
            out, _ = curl.communicate(timeout=60)
            assert out == b"200", "the running query was answered"
    assert service.process.wait(30) == 0
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", service.port), timeout=5)


def test_a_replica_that_drains_says_so_and_answers_until_it_goes(small: Small, serve: Callable[..., Service]) -> None:
    service = serve(drain_seconds=6)
    started = time.monotonic()
    service.signal(signal.SIGTERM)
    wait_until(lambda: service.get("/health/ready").status_code == 503, 5)
    refusal = service.get("/health/ready")
    assert refusal.json()["code"] == "shutdown" and refusal.headers["retry-after"] == "1"
    with httpx.Client(base_url=service.url) as newcomer:
        assert newcomer.get("/api/v1/queries/shops").status_code == 200
    assert service.get("/health/live").status_code == 200
    assert service.process.wait(30) == 0
    assert time.monotonic() - started >= 6


def test_a_second_sigterm_ends_the_drain(small: Small, serve: Callable[..., Service]) -> None:
    service = serve(drain_seconds=600)
    service.signal(signal.SIGTERM)
    wait_until(lambda: service.get("/health/ready").status_code == 503)
    service.signal(signal.SIGTERM)
    assert service.process.wait(30) == 0


def test_a_query_that_outlives_the_grace_is_refused_with_503_and_not_cut_off(
    small: Small, serve: Callable[..., Service]
) -> None:
    service = serve(shutdown_grace_seconds=0.3, query_timeout_seconds=600)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(
            service.sql,
            "select count(*) from sales a, sales b, sales c, sales d where a.amount + b.amount + c.amount = d.amount",
        )
        wait_until(lambda: service.metric("bi_engine_running_queries") == 1)
        service.signal(signal.SIGTERM)
        answer = asked.result(30)
    assert (answer.status_code, answer.json()["code"]) == (503, "shutdown")
    assert answer.headers["retry-after"]
    assert service.process.wait(30) == 0


def test_check_is_content_with_a_good_catalogue(small: Small) -> None:
    (small.catalogue / "queries" / "slow.sql").unlink()
    done = run(small, "check")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{small.catalogue}: 1 models and 3 queries are fine\n"


def test_check_without_a_snapshot_publishes_into_a_scratch_folder(unpublished: Small) -> None:
    (unpublished.catalogue / "queries" / "slow.sql").unlink()
    done = run(unpublished, "check")
    assert done.returncode == 0, done.stderr
    assert not unpublished.snapshots.exists()


HEADER = "/*---\ntitle: T\nfreshness: quick\n"


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        (HEADER + "---*/\nselect *\nfrom sales\njoin nowhere using (shop)", 7, "nowhere"),
        (HEADER + "---*/\nselect amount,\n  'é', nope\nfrom sales", 6, "nope"),
        (HEADER + "---*/\nselect amount,\n\n  cast(shop as integer)\nfrom sales", 7, "Conversion Error"),
        (HEADER + "---*/\nselect amount\nfrom sales\nwhere nofunction(1) = 1", 7, "nofunction"),
        (
            HEADER + "parameters:\n  d: {type: string, default: a, examples: [x]}\n---*/\nselect\n  cast($d as date)",
            8,
            "d=a",
        ),
        (HEADER + "titel: x\n---*/\nselect 1", 4, "titel"),
        (
            HEADER
            + "says:\n  rows: {shop: {north: [north]}}\n  said: [shop,\n    nope]\n---*/\nselect shop from sales",
            7,
            "says.said: the result has no column 'nope'",
        ),
        (HEADER + "---*/\nselect 1;\nselect 2", 6, "expected one SELECT"),
        (HEADER + "---*/\nselect 1\nwhere where", 6, "syntax error"),
    ],
)
def test_check_names_file_and_line_of_each_fault(small: Small, text: str, line: int, said: str) -> None:
    (small.catalogue / "queries" / "slow.sql").unlink()
    path = small.catalogue / "queries" / "bad.sql"
    path.write_text(text)
    done = run(small, "check")
    assert done.returncode == 1
    found = [one for one in (done.stdout + done.stderr).splitlines() if one.startswith(f"{path}:")]
    assert len(found) == 1, done.stdout + done.stderr
    assert found[0].startswith(f"{path}:{line}: "), found
    assert said in found[0]


def test_check_without_running_reads_only_the_files(small: Small) -> None:
    (small.catalogue / "queries" / "bad.sql").write_text(HEADER + "---*/\nselect nope from sales")
    assert run(small, "check", "--no-run").returncode == 0


def test_check_says_when_the_snapshot_itself_is_bad(small: Small) -> None:
    (snapshot,) = small.snapshots.glob("*.duckdb")
    snapshot.chmod(0o644)
    snapshot.write_bytes(b"rubbish")
    done = run(small, "check")
    assert done.returncode == 1
    assert str(snapshot) in done.stderr
    assert "bi-query publish" in done.stderr
