"""Frozen settings, read once from `BI_*` environment variables. Units stand in the names."""

from __future__ import annotations

import os
from functools import cached_property
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Literal

from limits import parse_many
from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from .errors import ConfigurationError

MIB = 1024 * 1024
GIB = 1024 * MIB
_CGROUP_MEMORY_FILES = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


class Settings(BaseSettings):
    """Every knob of the service. Build it with `load_settings()` for readable errors."""

    model_config = SettingsConfigDict(env_prefix="BI_", frozen=True, extra="ignore")

    data_dir: Path | None = None
    catalogue_dir: Path | None = None
    snapshot_dir: Path = Path(".bi/snapshots")
    snapshots_kept: int = Field(3, ge=1, le=1000)
    snapshot_poll_seconds: float = Field(2.0, gt=0, le=3600)

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    trusted_proxies: Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode] = ()
    max_body_bytes: int = Field(MIB, ge=1024)
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    shutdown_grace_seconds: float = Field(10.0, ge=0)

    max_connections: int = Field(50, ge=1, le=10_000)
    max_running_queries: int = Field(default_factory=lambda: os.cpu_count() or 2, ge=1, le=1024)
    queue_timeout_seconds: float = Field(10.0, gt=0)
    query_timeout_seconds: float = Field(30.0, gt=0)
    max_result_rows: int = Field(100_000, ge=1)
    max_result_bytes: int = Field(64 * MIB, ge=1024)
    engine_memory_bytes: int | None = Field(None, ge=64 * MIB)
    spill_dir: Path | None = None
    spill_max_bytes: int = Field(4 * GIB, ge=0)

    cache_memory_bytes: int = Field(256 * MIB, ge=0)
    cache_entry_max_bytes: int = Field(8 * MIB, ge=1024)
    redis_url: str | None = None
    redis_password_file: Path | None = None
    redis_timeout_seconds: float = Field(0.25, gt=0, le=5)

    rate_limit: str = "100/minute"
    rate_limit_routes: dict[str, str] = Field(default_factory=dict)

    fault_injection: bool = False

    @field_validator("trusted_proxies", mode="before")
    @classmethod
    def _split_networks(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(ip_network(part.strip(), strict=False) for part in value.split(",") if part.strip())
        return value

    @field_validator(
        "data_dir",
        "catalogue_dir",
        "redis_url",
        "redis_password_file",
        "spill_dir",
        "engine_memory_bytes",
        mode="before",
    )
    @classmethod
    def _empty_is_unset(cls, value: object) -> object:
        # Compose passes `BI_X=${BI_X:-}`: an empty variable means "not set".
        return None if value == "" else value

    @field_validator("rate_limit", "rate_limit_routes")
    @classmethod
    def _limits_parse(cls, value: str | dict[str, str]) -> str | dict[str, str]:
        for text in [value] if isinstance(value, str) else value.values():
            try:
                parse_many(text)
            except ValueError as error:
                raise ValueError(f"{text!r} is not a rate limit; write for example '100/minute'") from error
        return value

    @cached_property
    def effective_engine_memory_bytes(self) -> int:
        """DuckDB's memory limit: as set, else 70 % of the container's or the machine's memory.

        DuckDB's own default looks at the machine, not the cgroup, and over-commits a container.
        """
        return self.engine_memory_bytes or int(available_memory_bytes() * 0.7)

    @cached_property
    def effective_spill_dir(self) -> Path:
        """Where queries spill: as set, else a folder beside the snapshots."""
        return self.spill_dir or self.snapshot_dir / "spill"

    def redis_password(self) -> str | None:
        """The Redis password from its file, or None when no file is set."""
        if self.redis_password_file is None:
            return None
        try:
            return self.redis_password_file.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ConfigurationError(
                f"BI_REDIS_PASSWORD_FILE: cannot read {self.redis_password_file}: {error}"
            ) from error


def load_settings(**overrides: object) -> Settings:
    """Read the environment once; raise `ConfigurationError` naming each variable that is wrong."""
    try:
        return Settings(**overrides)  # type: ignore[arg-type]  # pydantic validates the values
    except ValidationError as error:
        lines = [f"BI_{'_'.join(map(str, e['loc'])).upper()}: {e['msg']} (got {e['input']!r})" for e in error.errors()]
        raise ConfigurationError("settings:\n  " + "\n  ".join(lines)) from error


def available_memory_bytes() -> int:
    """Memory this process may use: the cgroup's limit, else the machine's."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in _CGROUP_MEMORY_FILES:
        try:
            text = Path(path).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdigit():
            return min(physical, int(text))
    return physical
