"""Images: bills of materials that agree with what is in them, secrets in any layer, pending security updates."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from tests.support.audit import CLEAN, FOUND, audit
from tests.support.stack import MEASURED, compose_image, docker
from tests.support.trivy_db import Value, write_database

DISTRIBUTIONS = "import importlib.metadata as m; print(*(f'{d.name}=={d.version}' for d in m.distributions()))"
# Made here, so that this file has none of the form that the service's keys have.
API_KEY = "bi_" + "0123456789ab" + "_" + "Zk3" * 14 + "Z"


@pytest.fixture
def build(image: str, tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """Build an image on the service's from a few lines; it goes away at the end."""
    tag = f"bi-test-supply:{tmp_path.name.lower()}"

    def make(lines: str) -> str:
        text = f"FROM {image}\nUSER 0\n{lines}\n"
        subprocess.run(
            ["docker", "build", "--quiet", "--build-arg", f"KEY={API_KEY}", "-t", tag, "-"],
            input=text, text=True, capture_output=True, check=True, timeout=120,
        )  # fmt: skip
        return tag

    yield make
    docker("image", "rm", "--force", tag, check=False)


def test_the_bill_of_materials_names_what_the_image_holds_and_is_the_same_twice(image: str, tmp_path: Path) -> None:
    texts = []
    for name in ("first", "second"):
        run = audit(tmp_path, "sbom", "--image", image, "--sboms", tmp_path / name)
        assert run.code == CLEAN, run.output
        (path,) = (tmp_path / name).glob("*.cdx.json")
        texts.append(path.read_bytes())
    assert texts[0] == texts[1]
    document: dict[str, Any] = json.loads(texts[0])
    purls = [unquote(component.get("purl", "")) for component in document["components"]]
    packed = {
        (c["name"].lower(), c["version"]) for c in document["components"] if c.get("purl", "").startswith("pkg:pypi")
    }
    held = docker("run", "--rm", "--network", "none", "--entrypoint", "python", image, "-c", DISTRIBUTIONS).split()
    assert {(name.lower(), version) for name, _, version in (text.partition("==") for text in held)} <= packed
    status = docker("run", "--rm", "--network", "none", "--entrypoint", "cat", image, "/var/lib/dpkg/status")
    installed = {line.removeprefix("Package: ") for line in status.splitlines() if line.startswith("Package: ")}
    assert installed == {purl.removeprefix("pkg:deb/debian/").partition("@")[0] for purl in purls if "pkg:deb/" in purl}
    assert docker("image", "inspect", "--format", "{{.Created}}", image).strip() == document["metadata"]["timestamp"]


def test_the_bill_of_materials_names_the_modules_of_a_go_program(engine: None, tmp_path: Path) -> None:
    caddy = compose_image("BI_CADDY_IMAGE")
    run = audit(tmp_path, "sbom", "--image", caddy, "--sboms", tmp_path)
    assert run.code == CLEAN, run.output
    (path,) = tmp_path.glob("*.cdx.json")
    purls = {str(component.get("purl", "")) for component in json.loads(path.read_text())["components"]}
    assert any(purl.startswith("pkg:golang/github.com/quic-go/quic-go@") for purl in purls)


def test_a_secret_is_found_in_a_layer_that_a_later_one_deletes_and_in_the_environment(
    build: Callable[[str], str], tmp_path: Path
) -> None:
    lines = 'ARG KEY\nRUN mkdir -p /srv/tests && echo "key: $KEY" > /srv/tests/notes.md\nRUN rm -r /srv/tests'
    tag = build(f"{lines}\nENV CLIENT_KEY={API_KEY}")
    left = docker("run", "--rm", "--network", "none", "--entrypoint", "ls", tag, "/srv")
    assert left == "", "it is gone from what a container sees"
    run = audit(tmp_path, "images", "--image", tag)
    assert run.code == FOUND, run.output
    found = {(finding["id"], finding["where"].removeprefix(f"image {tag}:")) for finding in run.findings}
    assert found >= {("bi-api-key", "/srv/tests/notes.md"), ("bi-api-key", "/configuration")}
    assert API_KEY not in run.output, "the audit must not print what it found"


def test_a_package_that_the_security_suite_has_newer_is_found(build: Callable[[str], str], tmp_path: Path) -> None:
    # An image of long ago, as far as its package database says.
    aged = build("RUN sed -i '/^Package: libexpat1$/,/^$/ s/^Version: .*/Version: 2.7.0-1/' /var/lib/dpkg/status")
    run = audit(tmp_path, "images", "--image", aged)
    if any("pending security updates" in words for words in run.report["undone"]):
        run.skip_what_was_not_done()
    assert run.code == FOUND, run.output
    (finding,) = run.findings
    assert (finding["kind"], finding["where"]) == ("update", f"image {aged}")
    assert finding["id"].startswith("libexpat1=") and "libexpat1 2.7.0-1" in finding["what"]


def test_a_known_vulnerability_is_found_where_a_release_fixes_it_and_counted_where_none_does(
    build: Callable[[str], str], tmp_path: Path
) -> None:
    lists = ["/etc/debian_version", "/usr/lib/os-release", "/var/lib/dpkg/status"]
    copies = [f"COPY --from=0 {path} {path}" for path in lists]
    starlette = "COPY --from=0 /opt/bi/lib/python3*/site-packages/starlette-*.dist-info /opt/bi/starlette.dist-info/"
    # The lists of what is in the image, without the rest of it: looked into in a second.
    image = build("\n".join(["FROM scratch", *copies, starlette]))
    fixed_in_debian, fixed_on_pypi, unfixed = "CVE-2026-90001", "GHSA-test-test-0002", "CVE-2026-90003"
    advisories: dict[str, Any] = {
        "data-source": {
            "debian 13": Value(ID="debian", Name="Debian Security Tracker", URL="https://example.invalid"),
            "pip::GitHub Security Advisory pip": Value(ID="ghsa", Name="GitHub", URL="https://example.invalid"),
        },
        "debian 13": {"expat": {fixed_in_debian: Value(FixedVersion="99.0-1")}, "zlib": {unfixed: Value()}},
        "pip::GitHub Security Advisory pip": {
            "starlette": {fixed_on_pypi: Value(PatchedVersions=["99.0"], VulnerableVersions=["<99.0"])}
        },
        "vulnerability": {
            name: Value(Title="made for a test", Severity="HIGH") for name in (fixed_in_debian, fixed_on_pypi, unfixed)
        },
    }
    write_database(tmp_path / "cache", advisories)
    run = audit(tmp_path, "images", "--image", image, settings={"TRIVY_CACHE_DIR": str(tmp_path / "cache")})
    assert run.code == FOUND, run.output
    known = {f["id"]: f for f in run.findings if f["kind"] == "vulnerability"}
    assert set(known) == {fixed_in_debian, fixed_on_pypi}, run.output
    assert "libexpat1" in known[fixed_in_debian]["what"] and "99.0-1" in known[fixed_in_debian]["advice"]
    assert "starlette" in known[fixed_on_pypi]["what"] and "99.0" in known[fixed_on_pypi]["advice"]
    assert any("1 known vulnerabilities that no release fixes yet" in note for note in run.report["notes"]), run.output
    assert not any("known vulnerabilities" in words for words in run.report["undone"])


def test_no_image_of_the_stack_holds_a_secret(engine: None, tmp_path: Path) -> None:
    run = audit(tmp_path, "images")
    secrets = [finding for finding in run.findings if finding["kind"] == "secret"]
    assert secrets == [], run.output
    # Published any day, so no reason for a change to fail: `make audit` is where they do.
    others = [f"{finding['where']}: {finding['what']}" for finding in run.findings if finding["kind"] != "secret"]
    MEASURED["pending security updates and known vulnerabilities of the images"] = "; ".join(others) or "none found"
    run.skip_what_was_not_done()
