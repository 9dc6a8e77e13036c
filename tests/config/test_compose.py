"""compose.yaml, as compose itself resolves it, held against the hardening list and against .env.example."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from hardening import CHECKS, Service, deviations

ROOT = Path(__file__).parents[2]
COMPOSE_FILE = ROOT / "compose.yaml"
PRODUCTION_FILE = ROOT / "compose.prod.yaml"
ENV_EXAMPLE = ROOT / ".env.example"
SETTINGS_FILE = ROOT / "services/query/src/bi_query/settings.py"

PROFILES = [flag for name in ("llm", "llm-outside", "llm-pull", "loadtest", "tools") for flag in ("--profile", name)]

# What production has another default for.
PRODUCTION_DEFAULTS = {"BI_QUERY_REPLICAS": "2", "BI_DRAIN_SECONDS": "5", "BI_MCP_HOSTS": "$BI_DOMAIN"}

# Settings of the service that the stack decides: where things are inside the container.
FIXED = {
    "BI_AUDIT_LOG", "BI_CATALOGUE_DIR", "BI_DATA_DIR", "BI_DEMO_WHEN_EMPTY", "BI_HOST", "BI_KEYS_FILE", "BI_PORT",
    "BI_REDIS_PASSWORD_FILE", "BI_REDIS_URL", "BI_SNAPSHOT_DIR",
    "BI_SPILL_DIR",
}  # fmt: skip


def resolve(*arguments: str, **environment: str) -> dict[str, Any]:
    """The compose file as compose resolves it, without this machine's .env or variables."""
    if (
        shutil.which("docker") is None
        or subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode
    ):
        message = "docker compose is not installed (make engine)"
        pytest.fail(message) if os.environ.get("CI") == "true" else pytest.skip(message)
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("BI_", "COMPOSE_"))} | environment
    run = subprocess.run(
        ["docker", "compose", "--env-file", os.devnull, "-f", str(COMPOSE_FILE), *arguments, "config", "--format", "json"],
        capture_output=True, text=True, check=False, env=clean, cwd=ROOT,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    resolved: dict[str, Any] = json.loads(run.stdout)
    return resolved


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return resolve(*PROFILES)


def exceptions(compose: dict[str, Any]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = compose["x-hardening-exceptions"]
    return found


def test_every_service_meets_the_hardening_list_or_says_why_not(compose: dict[str, Any]) -> None:
    allowed = exceptions(compose)
    found = {name: deviations(service) - set(allowed.get(name, {})) for name, service in compose["services"].items()}
    assert {name: sorted(checks) for name, checks in found.items() if checks} == {}


def test_no_exception_outlives_its_need(compose: dict[str, Any]) -> None:
    for name, reasons in exceptions(compose).items():
        assert name in compose["services"], f"x-hardening-exceptions names {name}, which is no service"
        assert set(reasons) <= deviations(compose["services"][name]), f"{name}: an exception that nothing needs"
        assert all(len(reason) > 15 for reason in reasons.values()), f"{name}: a reason that says nothing"


WEAKER: dict[str, dict[str, Any]] = {
    "healthcheck": {"healthcheck": {"test": ["CMD", "true"], "interval": "1s", "timeout": "1s"}},
    "mem_limit": {"mem_limit": None},
    "cpus": {"cpus": 0},
    "pids_limit": {"pids_limit": 0},
    "root": {"user": "root"},
    "read_only": {"read_only": False},
    "tmpfs": {"tmpfs": ["/tmp"]},
    "cap_drop": {"cap_drop": ["NET_RAW"]},
    "cap_add": {"cap_add": ["SYS_ADMIN"]},
    "no_new_privileges": {"security_opt": []},
    "logging": {"logging": {"driver": "json-file"}},
    "restart": {"restart": "no"},
    "networks": {"networks": {"default": None}},
    "ports": {"ports": [{"target": 8000, "published": "8000"}]},
    "secrets": {"environment": {"GF_SECURITY_ADMIN_PASSWORD": "admin"}},
    "host": {"volumes": [{"type": "bind", "source": "/var/run/docker.sock", "target": "/s", "read_only": True}]},
    "binds": {"volumes": [{"type": "bind", "source": "/data", "target": "/data"}]},
    "image": {"image": "redis:latest"},
    "container_name": {"container_name": "query"},
}


@pytest.mark.parametrize("check", sorted(CHECKS))
def test_a_weakened_service_is_noticed(check: str, compose: dict[str, Any]) -> None:
    service: Service = copy.deepcopy(compose["services"]["query"])
    assert deviations(service) == set()
    weaker = {key: value for key, value in {**service, **WEAKER[check]}.items() if value is not None}
    assert deviations(weaker) == {check}


@pytest.mark.parametrize(
    "image", ["redis", "redis:latest", "redis:8", "redis:alpine", "prom/prometheus:main", "a.b:5000/x"]
)
def test_an_inexact_image_tag_is_noticed(image: str) -> None:
    assert not CHECKS["image"]({"image": image})


def test_redis_is_reached_by_the_service_and_its_exporter_alone(compose: dict[str, Any]) -> None:
    redis = compose["services"]["redis"]
    assert list(redis["networks"]) == ["cache"] and not redis.get("ports")
    assert compose["networks"]["cache"]["internal"] is True
    members = {name for name, service in compose["services"].items() if "cache" in (service.get("networks") or {})}
    assert members == {"redis", "query", "redis-exporter"}


def test_the_service_has_no_way_out(compose: dict[str, Any]) -> None:
    masquerade = "com.docker.network.bridge.enable_ip_masquerade"
    for name in compose["services"]["query"]["networks"]:
        network = compose["networks"][name]
        assert network.get("internal") or network["driver_opts"][masquerade] == "false", f"{name} leads out"


def members(compose: dict[str, Any], network: str) -> set[str]:
    return {name for name, service in compose["services"].items() if network in (service.get("networks") or {})}


def test_neither_model_nor_gate_runs_unless_its_profile_is_named() -> None:
    plain = resolve()["services"]
    assert not [name for name in plain if name.startswith("llm")]
    assert set(resolve(COMPOSE_PROFILES="llm")["services"]) - set(plain) == {"llm"}
    assert set(resolve(COMPOSE_PROFILES="llm-outside")["services"]) - set(plain) == {"llm-gate"}


def test_the_local_model_is_reached_by_the_service_alone_and_reaches_nothing_outside(compose: dict[str, Any]) -> None:
    model = compose["services"]["llm"]
    assert list(model["networks"]) == ["models"] and not model.get("ports")
    assert compose["networks"]["models"]["internal"] is True
    assert members(compose, "models") == {"query", "llm", "llm-gate"}
    (folder,) = model["volumes"]
    assert folder["target"] == model["environment"]["OLLAMA_MODELS"] and folder["read_only"]


def test_of_what_the_chat_needs_the_gate_alone_leads_out_and_to_the_endpoint_that_was_named() -> None:
    compose = resolve(*PROFILES, BI_LLM_OUTSIDE_URL="https://api.example.com")
    assert members(compose, "llm-way-out") == {"llm-gate"} and members(compose, "model-registry") == {"llm-pull"}
    assert compose["services"]["llm-gate"]["environment"]["GATE_TO"] == "https://api.example.com"


def test_a_folder_of_models_may_be_ones_own_instead_of_the_volume(tmp_path: Path) -> None:
    compose = resolve(*PROFILES, BI_LLM_MODELS_FOLDER=str(tmp_path))
    for name in ("llm", "llm-pull"):
        found = [v for v in compose["services"][name]["volumes"] if v["target"] == "/models"]
        assert [(v["type"], v["source"]) for v in found] == [("bind", str(tmp_path))], name


def test_the_endpoints_key_comes_from_a_file_and_stands_in_no_environment(tmp_path: Path) -> None:
    settings = {"BI_LLM_API_KEY_FILE": "/run/llm-secrets/api-key", "BI_LLM_SECRETS_FOLDER": str(tmp_path)}
    query = resolve(**settings)["services"]["query"]
    (mounted,) = [v for v in query["volumes"] if v["target"] == "/run/llm-secrets"]
    assert mounted["source"] == str(tmp_path) and mounted["read_only"]
    keys = {name: value for name, value in query["environment"].items() if "API_KEY" in name}
    assert keys == {"BI_LLM_API_KEY_FILE": "/run/llm-secrets/api-key"}


def test_who_answers_questions_reads_no_data_folder_and_who_reads_it_has_no_network(compose: dict[str, Any]) -> None:
    readers = {
        name
        for name, service in compose["services"].items()
        if "/data" in {v["target"] for v in service.get("volumes", [])}
    }
    assert readers == {"publish", "publisher"}
    assert {compose["services"][name]["network_mode"] for name in readers} == {"none"}


def test_alertmanager_gets_its_default_route_from_the_network_that_leads_out(compose: dict[str, Any]) -> None:
    # Of a container's networks the first by name gives the default route.
    assert min(compose["services"]["alertmanager"]["networks"]) == "alert-receivers"


def test_prometheus_shares_one_network_with_the_service_so_each_replica_is_one_target(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert set(services["prometheus"]["networks"]) & set(services["query"]["networks"]) == {"monitoring"}


def test_compose_gives_the_service_longer_to_stop_than_it_takes(compose: dict[str, Any]) -> None:
    from hardening import seconds

    default = re.search(r"shutdown_grace_seconds: float = Field\(([\d.]+)", SETTINGS_FILE.read_text())
    assert default and seconds(compose["services"]["query"]["stop_grace_period"]) > float(default[1]) + 5


def test_what_compose_mounts_from_the_repository_is_committed() -> None:
    # In the place of what is missing the engine makes an empty folder, as root: a service fails on it where a file is meant,
    # and where the folder is beside files of the user's own commands, these can write there no more.
    stacks = [resolve(*PROFILES), resolve("-f", str(PRODUCTION_FILE), *PROFILES, BI_DOMAIN="bi.test")]
    mounted = {
        volume["source"]
        for stack in stacks
        for service in stack["services"].values()
        for volume in service.get("volumes", [])
        if volume["type"] == "bind"
    }
    assert len([path for path in mounted if path.startswith(f"{ROOT}/infra/local/")]) == 4
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    missing = [
        path
        for path in sorted(mounted)
        if not subprocess.run([*listed, path], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    ]
    assert missing == []


@pytest.mark.parametrize(
    ("name", "is_ignored"),
    [
        ("alert-secrets/slack-url", True),
        ("llm-secrets/api-key", True),
        ("targets/probe-x.yaml", True),
        ("tls/key.pem", True),
        ("tls/of-last-year/key.pem", True),
        ("key.pem", True),
        ("README.md", False),
        ("tls/.gitkeep", False),
    ],
)
def test_what_a_user_puts_into_the_folders_of_this_machine_is_never_committed(name: str, is_ignored: bool) -> None:
    command = ["git", "check-ignore", "-q", "--no-index", f"infra/local/{name}"]
    assert (subprocess.run(command, cwd=ROOT, check=False).returncode == 0) == is_ignored


def test_another_project_name_moves_everything(compose: dict[str, Any]) -> None:
    other = resolve(COMPOSE_PROJECT_NAME="other")
    assert (compose["name"], other["name"]) == ("bi-solution", "other")
    named = [*other["volumes"].values(), *other["networks"].values()]
    assert all(thing["name"].startswith("other_") for thing in named)


# --- .env.example ---------------------------------------------------------------------------------------------------


def documented() -> dict[str, tuple[str, str]]:
    """Variable -> (value shown, the comment above it, or above the block of variables it stands in)."""
    found: dict[str, tuple[str, str]] = {}
    comment = ""
    previous_was_comment = False
    for line in ENV_EXAMPLE.read_text().splitlines():
        entry = re.fullmatch(r"#?([A-Z][A-Z0-9_]*)=(.*)", line)
        if entry:
            found[entry[1]] = (entry[2], comment)
        elif line.startswith("# ") and not line.startswith("# ---"):
            comment = f"{comment} {line[2:]}" if previous_was_comment else line[2:]
        else:
            comment = ""
        previous_was_comment = not entry and line.startswith("# ")
    return found


def used_with_default() -> dict[str, str]:
    """Variable -> default; where the production overlay has another one, that of compose.yaml."""
    base, overlay = (
        dict(re.findall(r"\$\{([A-Z][A-Z0-9_]*):-([^}]*)\}", file.read_text()))
        for file in (COMPOSE_FILE, PRODUCTION_FILE)
    )
    return {name: value for name, value in overlay.items() if name not in PRODUCTION_DEFAULTS} | base


def required() -> set[str]:
    return set(re.findall(r"\$\{([A-Z][A-Z0-9_]*):\?", PRODUCTION_FILE.read_text()))


def test_every_variable_has_a_default_or_is_optional_by_form() -> None:
    assert (
        re.findall(r"(?<!\$)\$\{[A-Z0-9_]+(?![A-Z0-9_]|:-|:\+)[^}]*\}|(?<!\$)\$[A-Z]\w*", COMPOSE_FILE.read_text())
        == []
    )


def passed_through() -> set[str]:
    return set(re.findall(r"^\s+(BI_[A-Z0-9_]+):$", COMPOSE_FILE.read_text(), re.MULTILINE))


def settings_of_the_service() -> dict[str, Any]:
    from bi_query.settings import Settings

    defaults = Settings.model_construct()
    return {f"BI_{name.upper()}": getattr(defaults, name) for name in Settings.model_fields}


def test_every_variable_is_documented_with_a_reason() -> None:
    known = documented()
    assert sorted((set(used_with_default()) | passed_through() | required()) - set(known)) == []
    assert [name for name, (_, comment) in known.items() if len(comment) < 20] == []


def test_no_variable_is_documented_that_nothing_reads() -> None:
    composes_own = {"COMPOSE_PROJECT_NAME", "COMPOSE_FILE", "COMPOSE_PROFILES"}
    assert sorted(set(documented()) - set(used_with_default()) - passed_through() - required() - composes_own) == []


def test_documented_defaults_are_those_of_compose() -> None:
    known = documented()
    assert {name: known[name][0] for name in used_with_default()} == used_with_default()


def test_every_setting_of_the_service_is_passed_through_or_decided_by_the_stack() -> None:
    assert sorted(set(settings_of_the_service()) - passed_through() - set(used_with_default()) - FIXED) == []


def test_documented_defaults_are_those_of_the_service() -> None:
    known = documented()
    differing = {}
    for name, default in settings_of_the_service().items():
        if name not in passed_through():
            continue
        shown = known[name][0]
        text = "" if default is None else json.dumps(default) if isinstance(default, bool | dict) else str(default)
        text = ",".join(default) if isinstance(default, tuple) and default else text
        same = float(shown) == float(text) if re.fullmatch(r"[\d.]+", shown) and text else shown == text
        if not same:
            differing[name] = (shown, text)
    assert differing == {}


def test_the_example_works_as_an_env_file_with_everything_switched_on(tmp_path: Path) -> None:
    everything = re.sub(r"^#([A-Z])", r"\1", ENV_EXAMPLE.read_text(), flags=re.MULTILINE)
    (tmp_path / "env").write_text(everything)
    plain, uncommented = resolve(), resolve("--env-file", str(tmp_path / "env"))
    assert plain["services"].keys() == uncommented["services"].keys()
    for name, service in plain["services"].items():
        ours = {key: value for key, value in (uncommented["services"][name].get("environment") or {}).items() if value}
        theirs = {key: value for key, value in (service.get("environment") or {}).items() if value}
        assert theirs.items() <= ours.items(), name
        assert {**uncommented["services"][name], "environment": 0} == {**service, "environment": 0}, name
