"""Frozen settings, read once from `BI_*` environment variables. Units stand in the names."""

from __future__ import annotations

import difflib
import math
import os
import re
import tempfile
from collections.abc import Iterable
from functools import cached_property
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Literal

from limits import parse_many
from pydantic import Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict, SettingsError

from .errors import ConfigurationError

MIB = 1024 * 1024
GIB = 1024 * MIB
_HOST = re.compile(r"([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]+)?")
_WEB_ADDRESS = re.compile(r"https?://[^\s/?#@]+(/[^\s?#]*)?")
_CGROUP_CPU_FILE = "/sys/fs/cgroup/cpu.max"
_CGROUP_MEMORY_FILES = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


class Settings(BaseSettings):
    """Every knob of the service. Build it with `load_settings()` for readable errors."""

    model_config = SettingsConfigDict(
        # Compose passes `BI_X=` for what is not set there: an empty variable means "not set".
        env_prefix="BI_",
        env_ignore_empty=True,
        frozen=True,
        extra="ignore",
        allow_inf_nan=False,
    )

    data_dir: Path | None = None
    demo_when_empty: bool = False
    catalogue_dir: Path | None = None
    snapshot_dir: Path = Path(".bi/snapshots")
    snapshots_kept: int = Field(3, ge=1, le=1000)
    snapshot_max_bytes: int | None = Field(None, ge=MIB)
    snapshot_poll_seconds: float = Field(2.0, gt=0, le=3600)
    publish_interval_seconds: float = Field(10.0, gt=0, le=86_400)
    publish_settle_seconds: float = Field(5.0, ge=0, le=3600)
    publish_patience_seconds: float = Field(600.0, ge=0, le=86_400)
    publish_timeout_seconds: float = Field(3600.0, gt=0, le=86_400)

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    trusted_proxies: Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode] = ()
    max_body_bytes: int = Field(MIB, ge=1024)
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    send_timeout_seconds: float = Field(30.0, gt=0, le=3600)
    drain_seconds: float = Field(0.0, ge=0, le=3600)
    shutdown_grace_seconds: float = Field(10.0, ge=0, le=3600)

    max_connections: int = Field(50, ge=1, le=10_000)
    # More than the cores, so that a long query does not keep short ones waiting and a core has work while a thread waits for
    # the interpreter: docs/performance.md.
    max_running_queries: int = Field(default_factory=lambda: min(1024, 3 * available_cpus()), ge=1, le=1024)
    queue_timeout_seconds: float = Field(10.0, gt=0, le=3600)
    query_timeout_seconds: float = Field(30.0, gt=0, le=86_400)
    max_result_rows: int = Field(100_000, ge=1)
    max_result_bytes: int = Field(64 * MIB, ge=1024)
    unsent_max_bytes: int | None = Field(None, ge=1024)
    engine_memory_bytes: int | None = Field(None, ge=64 * MIB)
    ad_hoc_max_running_queries: int | None = Field(None, ge=1, le=1024)
    ad_hoc_share: float = Field(0.5, gt=0, lt=1)
    spill_dir: Path | None = None
    spill_max_bytes: int = Field(4 * GIB, ge=0)

    cache_memory_bytes: int = Field(256 * MIB, ge=0)
    cache_entry_max_bytes: int = Field(8 * MIB, ge=1024)
    redis_url: str | None = None
    redis_password_file: Path | None = None
    redis_timeout_seconds: float = Field(0.25, gt=0, le=5)

    rate_limit: str = "100/minute"
    rate_limit_routes: dict[str, str] = Field(default_factory=dict)

    keys_file: Path | None = None
    audit_log: Path | None = None
    audit_max_bytes: int = Field(64 * MIB, ge=1024)
    audit_files_kept: int = Field(10, ge=1, le=1000)

    mcp: bool = False
    mcp_hosts: Annotated[tuple[str, ...], NoDecode] = ("127.0.0.1", "localhost", "[::1]")

    llm_base_url: str | None = None
    llm_model: str | None = Field(None, max_length=200, validate_default=True)
    llm_api_key_file: Path | None = None
    llm_timeout_seconds: float = Field(30.0, gt=0, le=600)
    llm_max_retries: int = Field(2, ge=0, le=10)
    llm_max_completion_tokens: int = Field(1024, ge=16, le=1_000_000)
    llm_completion_tokens_field: Literal["max_completion_tokens", "max_tokens"] = "max_completion_tokens"
    llm_tool_choice: Literal["required", "auto"] = "required"
    llm_tokens_per_day: int = Field(0, ge=0)
    llm_tokens_per_key_per_day: int = Field(0, ge=0)
    chat_min_confidence: float = Field(0.5, ge=0, le=1)
    chat_sure_confidence: float = Field(0.9, ge=0, le=1)

    fault_injection: bool = False

    @field_validator("trusted_proxies", mode="before")
    @classmethod
    def _split_networks(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(ip_network(part.strip(), strict=False) for part in value.split(",") if part.strip())
        return value

    @field_validator("mcp_hosts", mode="before")
    @classmethod
    def _split_names(cls, value: object) -> object:
        names = tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value
        if isinstance(names, tuple) and (wrong := [name for name in names if not _HOST.fullmatch(str(name))]):
            raise ValueError(f"{wrong[0]!r} is not a host name; write for example 'bi.example.com' or 'query:8000'")
        return names

    @field_validator("llm_base_url")
    @classmethod
    def _is_an_address(cls, value: str | None) -> str | None:
        if value is not None and not _WEB_ADDRESS.fullmatch(value):
            raise ValueError(f"{value!r} is not an address; write for example 'http://llm:11434/v1'")
        return value

    @field_validator("llm_model")
    @classmethod
    def _model_goes_with_address(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None and info.data.get("llm_base_url") is not None:
            raise ValueError("BI_LLM_BASE_URL is set, so name the model to ask for")
        return value

    @field_validator("unsent_max_bytes")
    @classmethod
    def _holds_one_result(cls, value: int | None, info: ValidationInfo) -> int | None:
        most = info.data.get("max_result_bytes", 0)
        if value is not None and value < most:
            raise ValueError(
                f"one result may have {most} bytes (BI_MAX_RESULT_BYTES) and must fit; raise this or lower that"
            )
        return value

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
    def engine_threads(self) -> int:
        """Threads of the DuckDB instance that named queries share, and of the one that publishes: the cores."""
        return min(self.max_running_queries, available_cpus())

    @cached_property
    def effective_ad_hoc_max_running_queries(self) -> int:
        """Ad-hoc queries that may execute at once: as set, else as many as cores, four at most.

        Each has an instance with a memory limit of its own: the more there are, the less each may take.
        """
        return self.ad_hoc_max_running_queries or min(4, self.engine_threads)

    @cached_property
    def ad_hoc_threads(self) -> int:
        """Threads of one ad-hoc query: together not many more than the cores, but two where there are two."""
        share = self.engine_threads // self.effective_ad_hoc_max_running_queries
        return min(self.engine_threads, max(2, share))

    @cached_property
    def named_memory_bytes(self) -> int:
        """What the instance that all named queries share may take."""
        return int(self.effective_engine_memory_bytes * (1 - self.ad_hoc_share))

    @cached_property
    def named_spill_bytes(self) -> int:
        """What named queries together may have on disk."""
        return int(self.spill_max_bytes * (1 - self.ad_hoc_share))

    @cached_property
    def ad_hoc_memory_bytes(self) -> int:
        """What one ad-hoc query may take."""
        return int(self.effective_engine_memory_bytes * self.ad_hoc_share / self.effective_ad_hoc_max_running_queries)

    @cached_property
    def ad_hoc_spill_bytes(self) -> int:
        """What one ad-hoc query may have on disk."""
        return int(self.spill_max_bytes * self.ad_hoc_share / self.effective_ad_hoc_max_running_queries)

    @cached_property
    def effective_unsent_max_bytes(self) -> int:
        """What large answers may take: as set, else a tenth of the available memory, one result at least."""
        return self.unsent_max_bytes or max(self.max_result_bytes, available_memory_bytes() // 10)

    @cached_property
    def effective_spill_dir(self) -> Path:
        """Where queries spill: as set, else beside the snapshots, or, when that is read only, in the temporary folder."""
        if self.spill_dir is not None:
            return self.spill_dir
        if not self.snapshot_dir.exists() or os.access(self.snapshot_dir, os.W_OK):
            return self.snapshot_dir / "spill"
        return Path(tempfile.gettempdir()) / "bi-query-spill"

    def redis_password(self) -> str | None:
        """The Redis password from its file, or None when no file is set."""
        return _secret("BI_REDIS_PASSWORD_FILE", self.redis_password_file)

    def llm_api_key(self) -> str | None:
        """The key for the model's endpoint from its file, or None when no file is set."""
        return _secret("BI_LLM_API_KEY_FILE", self.llm_api_key_file)


def _secret(variable: str, path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{variable}: cannot read {path}: {error}") from error


def load_settings(**overrides: object) -> Settings:
    """Read the environment once; raise `ConfigurationError` naming each variable that is wrong."""
    try:
        return Settings(**overrides)  # type: ignore[arg-type]  # pydantic validates the values
    except ValidationError as error:
        lines = [_fault(entry["loc"], entry["msg"], entry["input"]) for entry in error.errors()]
        raise ConfigurationError("settings:\n  " + "\n  ".join(lines)) from error
    except SettingsError as error:  # a variable that must be JSON and is not
        field = next((name for name in Settings.model_fields if f'"{name}"' in str(error)), "a setting")
        example = '{"/api/v1/query": "20/minute"}'
        raise ConfigurationError(f"settings:\n  BI_{field.upper()}: not JSON; write for example {example}") from error


def _fault(place: tuple[int | str, ...], message: str, value: object) -> str:
    name = f"BI_{str(place[0]).upper()}" + "".join(f".{part}" for part in place[1:])
    return f"{name}: {message.removeprefix('Value error, ')} (got {str(value)!r})"


def unknown_settings(environment: Iterable[str]) -> list[str]:
    """A sentence for each `BI_*` variable that is no setting: most likely misspelt, and silently without effect."""
    known = [f"BI_{name.upper()}" for name in Settings.model_fields]
    sentences = []
    for name in sorted(environment):
        if name.startswith("BI_") and name not in known:
            close = difflib.get_close_matches(name, known, 1, 0.8)
            sentences.append(f"{name} is not a setting" + (f"; did you mean {close[0]}?" if close else ""))
    return sentences


def available_cpus() -> int:
    """Cores this process may use: its affinity, less what the container's CPU quota takes away; at least one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path(_CGROUP_CPU_FILE).read_text(encoding="ascii").split()
        return max(1, min(cores, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no cgroup, or "max": no quota
        return max(1, cores)


def physical_memory_bytes() -> int:
    """The machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def available_memory_bytes() -> int:
    """Memory this process may use: the cgroup's limit, else the machine's."""
    physical = physical_memory_bytes()
    for path in _CGROUP_MEMORY_FILES:
        try:
            text = Path(path).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdigit():
            return min(physical, int(text))
    return physical
