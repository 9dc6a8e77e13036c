"""The OpenAPI document: complete, and true under schemathesis's generated requests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.service import Service


@pytest.fixture(scope="module")
def document(demo_service: Service) -> Any:
    return demo_service.get("/openapi.json").json()


def test_every_named_query_is_an_operation_with_its_typed_parameters(demo_service: Service, document: Any) -> None:
    for query in demo_service.get("/api/v1/queries").json()["queries"]:
        operation = document["paths"][f"/api/v1/queries/{query['name']}"]["get"]
        shown = {parameter["name"]: parameter for parameter in operation["parameters"]}
        assert shown.keys() == {parameter["name"] for parameter in query["parameters"]} | {"format"}
        for parameter in query["parameters"]:
            kind = "string" if parameter["type"] == "date" else parameter["type"]
            assert kind in shown[parameter["name"]]["schema"]["type"]
            assert shown[parameter["name"]]["required"] is parameter["required"]
        assert operation["summary"] == query["title"]


def test_every_route_and_every_refusal_is_described(document: Any) -> None:
    wanted = {"/api/v1/queries", "/api/v1/query", "/api/v1/tables", "/api/v1/cache"}
    assert wanted | {"/health/live", "/health/ready", "/metrics"} <= document["paths"].keys()
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert operation["operationId"]
            for status, answer in operation["responses"].items():
                assert answer["description"]
                if int(status) >= 400:
                    assert "application/problem+json" in answer["content"], (path, status)


def test_operation_ids_are_unique(document: Any) -> None:
    ids = [operation["operationId"] for methods in document["paths"].values() for operation in methods.values()]
    assert len(ids) == len(set(ids))


def test_every_example_is_answered(demo_service: Service, document: Any) -> None:
    asked = 0
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            examples = {p["name"]: p["example"] for p in operation.get("parameters", ()) if "example" in p}
            if method == "get" and path.startswith("/api/v1/queries/"):
                answer = demo_service.get(path, params=examples)
            elif method == "post":
                body = operation["requestBody"]["content"]["application/json"]["example"]
                answer = demo_service.client.post(path, json=body)
            else:
                continue
            assert answer.status_code == 200, (path, answer.text)
            asked += 1
    assert asked > 8


def test_schemathesis_finds_no_5xx_and_no_breach_of_the_document(demo_service: Service, tmp_path: Path) -> None:
    checks = [
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_headers_conformance",
        "response_schema_conformance",
        "negative_data_rejection",
        "unsupported_method",
    ]
    run = subprocess.run(
        [
            str(Path(sys.executable).with_name("schemathesis")),
            "run",
            f"{demo_service.url}/openapi.json",
            f"--checks={','.join(checks)}",
            "--phases=examples,coverage,fuzzing",
            "--max-examples=12",
            "--seed=1",
            "--workers=1",
            "--request-timeout=20",
            "--no-color",
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert demo_service.get("/health/ready").status_code == 200
