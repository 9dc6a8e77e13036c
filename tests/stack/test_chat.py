"""A question in words through the edge: the local model of profile llm, and the gate to one elsewhere."""

from __future__ import annotations

import json
from typing import Any

import httpx

from tests.support.service import wait_until
from tests.support.stack import Stack, docker, python_in

from .endpoint import Endpoint

CONNECT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=3).close()
    print("connected")
except OSError as error:
    print(f"refused: {error}")
"""
ASK = """
import json, sys, urllib.error, urllib.request
method, url, body = sys.argv[1:]
headers = {"Authorization": "Bearer the-endpoints-key", "Content-Type": "application/json", "X-Stainless-OS": "Linux"}
request = urllib.request.Request(url, body.encode() or None, headers, method=method)
try:
    with urllib.request.urlopen(request, timeout=10) as answer:
        print(answer.status, answer.read().decode())
except urllib.error.HTTPError as error:
    print(error.code)
"""
COUNTED = [[1000, sum(range(1000))]]


def ask(stack: Stack, question: str, url: str = "") -> httpx.Response:
    """One question, through the edge or to the replica at `url`."""
    base = url or stack.url("QUERY")
    return httpx.post(f"{base}/api/v1/chat", json={"question": question}, headers=stack.key, timeout=60)


def running(stack: Stack, service: str) -> str:
    container: str = stack.inspect(service, running=True)[0]["Id"]
    return container


def metric(stack: Stack, url: str, line: str) -> float:
    lines = stack.get("/metrics", url).text.splitlines()
    return next(float(found.rpartition(" ")[2]) for found in lines if found.startswith(line))


def test_a_question_that_no_query_answers_is_answered_by_the_local_model(stack: Stack) -> None:
    answer: dict[str, Any] = ask(stack, "Do count all that was ever written down here").json()
    assert answer["query"] is None and answer["sql"].startswith("select count(*)")
    assert answer["result"]["rows"] == COUNTED
    assert answer["tokens"] == {"prompt": 900, "completion": 30}


def test_a_question_that_a_query_answers_costs_no_tokens(stack: Stack) -> None:
    answer = ask(stack, "Shops").json()
    assert answer["query"] == "shops" and answer["result"]["row_count"] == 4
    assert answer["tokens"] == {"prompt": 0, "completion": 0}


def test_what_one_replica_spends_of_the_budget_the_other_knows(stack: Stack) -> None:
    used = "bi_llm_budget_used_tokens "
    first, second = stack.replicas().values()
    before = metric(stack, second, used)
    for i in range(3):
        assert ask(stack, f"Do count it for the budget, number {i}", first).status_code == 200
    # Replicas learn of each other's when they share, which the next question does at the latest.
    assert ask(stack, "Do count it for the budget, and be done", second).status_code == 200
    wait_until(lambda: metric(stack, second, used) >= before + 4 * 930, 20, what="the other replica to know")


def test_the_local_model_reaches_nothing_outside_and_the_gate_does(stack: Stack, endpoint: Endpoint) -> None:
    outside = (endpoint.host, str(endpoint.port))
    assert "refused" in python_in(running(stack, "llm"), CONNECT, *outside)
    said = python_in(running(stack, "query"), ASK, "POST", "http://llm-gate:8080/v1/chat/completions", "{}")
    assert said.startswith("200 ")


def test_the_gate_passes_the_one_call_on_with_its_key_and_tells_nothing_of_this_side(
    stack: Stack, endpoint: Endpoint
) -> None:
    endpoint.requests.clear()
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "how many?"}]})
    said = python_in(running(stack, "query"), ASK, "POST", "http://llm-gate:8080/v1/chat/completions", body)
    assert said.strip() == '200 {"choices": []}'
    (method, path, headers, received) = endpoint.requests[0]
    assert (method, path, received) == ("POST", "/v1/chat/completions", body)
    assert headers["authorization"] == "Bearer the-endpoints-key"
    assert [name for name in headers if name.startswith(("x-", "via", "forwarded"))] == []


def test_the_gate_passes_nothing_else_on(stack: Stack, endpoint: Endpoint) -> None:
    endpoint.requests.clear()
    container = running(stack, "query")
    for method, path in (("GET", "/v1/models"), ("POST", "/v1/files"), ("GET", "/v1/chat/completions"), ("PUT", "/x")):
        assert python_in(container, ASK, method, f"http://llm-gate:8080{path}", "").strip() == "404", path
    assert endpoint.requests == []


def test_who_fetches_a_model_fills_the_folder_that_the_local_model_only_reads(stack: Stack) -> None:
    stack.compose("run", "--rm", "-T", "llm-pull")
    model = running(stack, "llm")
    assert docker("exec", model, "cat", "/models/manifests/scripted") == "fetched"
    assert "Read-only file system" in python_in(
        model, "import os\ntry: os.mkdir('/models/x')\nexcept OSError as e: print(e)"
    )


def test_a_model_that_is_gone_is_503_while_queries_are_answered_and_is_asked_again_when_it_is_back(
    stack: Stack,
) -> None:
    container = running(stack, "llm")
    docker("kill", container)
    try:
        refused = ask(stack, "Do count it while nobody is there")
        assert (refused.status_code, refused.json()["code"]) == (503, "model_unavailable")
        assert int(refused.headers["retry-after"]) >= 1
        assert ask(stack, "Shops").status_code == 200
    finally:
        docker("start", container)

    def answered_by(url: str) -> bool:
        return ask(stack, "Do count it when all are back", url).status_code == 200

    for url in stack.replicas().values():
        wait_until(lambda url=url: answered_by(url), 60, what=f"{url} to ask the model again")
