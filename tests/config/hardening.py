"""What every service of the stack must have, as checks of the resolved compose file."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

Service = dict[str, Any]
Check = Callable[[Service], bool]

LONGEST_START_INTERVAL_SECONDS = 5
SHORTEST_INTERVAL_SECONDS = 15
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


def seconds(duration: str) -> float:
    """`1m30s` in seconds; 0 for anything that is not a duration."""
    return sum(float(number) * _UNITS[unit] for number, unit in re.findall(r"([\d.]+)(ms|h|m|s)", duration))


def _health(service: Service) -> bool:
    check = service.get("healthcheck") or {}
    test = check.get("test") or ["NONE"]
    return (
        test[0] != "NONE"
        and not check.get("disable")
        and seconds(check.get("interval", "")) >= SHORTEST_INTERVAL_SECONDS
        and 0 < seconds(check.get("start_interval", "")) <= LONGEST_START_INTERVAL_SECONDS
        and 0 < seconds(check.get("timeout", "")) <= 10
        and seconds(check.get("start_period", "")) > 0
    )


def _logging(service: Service) -> bool:
    options = service.get("logging", {}).get("options", {})
    return bool(options.get("max-size")) and int(options.get("max-file", 0)) >= 2


def _ports(service: Service) -> bool:
    return all(port.get("host_ip") == "127.0.0.1" for port in service.get("ports", []))


def _secrets(service: Service) -> bool:
    """No secret in the environment, where `docker inspect` shows it: only names of files."""
    return not [
        name
        for name, value in (service.get("environment") or {}).items()
        if value and re.search(r"PASSWORD|SECRET|TOKEN|API_?KEY", name) and not name.endswith("_FILE")
    ]


def _host(service: Service) -> bool:
    shared = any(str(service.get(key, "")).startswith("host") for key in ("pid", "ipc", "network_mode", "userns_mode"))
    socket = any("docker.sock" in str(volume.get("source", "")) for volume in service.get("volumes", []))
    return not (shared or socket or service.get("privileged") or service.get("devices"))


def _binds(service: Service) -> bool:
    return all(volume.get("read_only") for volume in service.get("volumes", []) if volume["type"] == "bind")


def _image(service: Service) -> bool:
    """An exact tag: a version with at least two numbers, or a digest."""
    name = str(service.get("image", "")).rsplit("/", 1)[-1]
    return bool(re.search(r":[a-z]*\d+\.\d+[\w.-]*$|@sha256:[0-9a-f]{64}$", name))


def _user(service: Service) -> bool:
    return bool(re.fullmatch(r"[1-9]\d*:\d+", str(service.get("user", ""))))


CHECKS: dict[str, Check] = {
    "healthcheck": _health,
    "mem_limit": lambda service: int(service.get("mem_limit", 0)) > 0,
    "cpus": lambda service: float(service.get("cpus", 0)) > 0,
    "pids_limit": lambda service: int(service.get("pids_limit", 0)) > 0,
    "root": _user,
    "read_only": lambda service: service.get("read_only") is True,
    "tmpfs": lambda service: all("size=" in entry for entry in service.get("tmpfs", [])),
    "cap_drop": lambda service: service.get("cap_drop") == ["ALL"],
    "cap_add": lambda service: not service.get("cap_add"),
    "no_new_privileges": lambda service: "no-new-privileges:true" in service.get("security_opt", []),
    "logging": _logging,
    "restart": lambda service: service.get("restart") == "unless-stopped",
    "networks": lambda service: bool(service.get("networks")) and "default" not in service["networks"],
    "ports": _ports,
    "secrets": _secrets,
    "host": _host,
    "binds": _binds,
    "image": _image,
    "container_name": lambda service: "container_name" not in service,
}


def deviations(service: Service) -> set[str]:
    """Names of the checks a service does not meet."""
    return {name for name, check in CHECKS.items() if not check(service)}
