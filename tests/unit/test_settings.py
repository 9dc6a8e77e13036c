"""Settings: readable errors, sane defaults in containers, and a page that documents each of them."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from bi_query import settings as settings_module
from bi_query.errors import ConfigurationError
from bi_query.settings import Settings, available_cpus, load_settings, unknown_settings

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("BI_PORT", "99999", "less than or equal to 65535"),
        ("BI_PORT", "http", "valid integer"),
        ("BI_MAX_CONNECTIONS", "0", "greater than or equal to 1"),
        ("BI_QUERY_TIMEOUT_SECONDS", "inf", "finite number"),
        ("BI_QUERY_TIMEOUT_SECONDS", "nan", "finite number"),
        ("BI_QUERY_TIMEOUT_SECONDS", "-1", "greater than 0"),
        ("BI_RATE_LIMIT", "lots", "is not a rate limit"),
        ("BI_RATE_LIMIT_ROUTES", "oops", "not JSON"),
        ("BI_RATE_LIMIT_ROUTES", '{"/api/v1/query": "many"}', "is not a rate limit"),
        ("BI_TRUSTED_PROXIES", "10.0.0.0/8,foo", "does not appear to be"),
        ("BI_LOG_LEVEL", "loud", "'debug', 'info'"),
        ("BI_ENGINE_MEMORY_BYTES", "1000", "greater than or equal to"),
        ("BI_LLM_BASE_URL", "llm:8080", "is not an address"),
        ("BI_LLM_BASE_URL", "http://user:secret@llm/v1", "is not an address"),
        ("BI_LLM_TIMEOUT_SECONDS", "0", "greater than 0"),
        ("BI_LLM_TOOL_CHOICE", "none", "'required' or 'auto'"),
        ("BI_LLM_COMPLETION_TOKENS_FIELD", "tokens", "'max_completion_tokens' or 'max_tokens'"),
        ("BI_LLM_TOKENS_PER_DAY", "-1", "greater than or equal to 0"),
    ],
)
def test_a_wrong_setting_is_named_with_what_would_be_right(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    assert name in str(caught.value)
    assert said in str(caught.value)


def test_an_endpoint_needs_the_name_of_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BI_LLM_BASE_URL", "http://llm:8080/v1")
    with pytest.raises(ConfigurationError, match=r"BI_LLM_MODEL: .* name the model"):
        load_settings()
    monkeypatch.setenv("BI_LLM_MODEL", "small")
    assert load_settings().llm_model == "small"


def test_a_secret_s_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="BI_LLM_API_KEY_FILE: cannot read"):
        load_settings(llm_api_key_file=tmp_path / "absent").llm_api_key()


def test_all_wrong_settings_are_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BI_PORT", "x")
    monkeypatch.setenv("BI_SNAPSHOTS_KEPT", "0")
    with pytest.raises(ConfigurationError, match=r"(?s)BI_SNAPSHOTS_KEPT.*BI_PORT|BI_PORT.*BI_SNAPSHOTS_KEPT"):
        load_settings()


@pytest.mark.parametrize("field", sorted(Settings.model_fields))
def test_an_empty_variable_means_not_set(monkeypatch: pytest.MonkeyPatch, field: str) -> None:
    monkeypatch.setenv(f"BI_{field.upper()}", "")
    assert load_settings() == Settings()


def test_a_misspelt_setting_is_pointed_out() -> None:
    said = unknown_settings(["BI_MAX_CONECTIONS", "BI_PORT", "PATH", "BI_ZZZ"])
    assert said == ["BI_MAX_CONECTIONS is not a setting; did you mean BI_MAX_CONNECTIONS?", "BI_ZZZ is not a setting"]


def test_settings_cannot_change_after_the_start() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_settings().port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("quota", "cores"), [("150000 100000", 2), ("50000 100000", 1), ("max 100000", 99), ("40000000 100000", 400)]
)
def test_running_queries_follow_the_container_s_cpu_quota(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quota: str, cores: int
) -> None:
    file = tmp_path / "cpu.max"
    file.write_text(quota)
    monkeypatch.setattr(settings_module, "_CGROUP_CPU_FILE", str(file))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(max(cores, 99))), raising=False)
    assert available_cpus() == cores
    settings = load_settings()
    assert settings.max_running_queries == min(1024, 3 * cores), "a long query keeps no short one waiting"
    assert settings.engine_threads == cores and settings.effective_ad_hoc_max_running_queries == min(4, cores)
    assert load_settings(max_running_queries=1).engine_threads == 1


def test_the_engine_takes_seven_tenths_of_what_the_container_may_have(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "memory.max"
    file.write_text("1000000000\n")
    monkeypatch.setattr(settings_module, "_CGROUP_MEMORY_FILES", (str(tmp_path / "missing"), str(file)))
    assert load_settings().effective_engine_memory_bytes == 700_000_000
    assert load_settings(engine_memory_bytes=2**27).effective_engine_memory_bytes == 2**27


def test_queries_do_not_spill_into_a_read_only_snapshot_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert load_settings(snapshot_dir=tmp_path).effective_spill_dir == tmp_path / "spill"
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere, so chmod would show nothing
    assert not load_settings(snapshot_dir=tmp_path).effective_spill_dir.is_relative_to(tmp_path)
    assert load_settings(snapshot_dir=tmp_path, spill_dir=tmp_path / "x").effective_spill_dir == tmp_path / "x"


def documented() -> dict[str, list[str]]:
    """The page's table rows: name -> the other cells."""
    rows = re.findall(r"^\| `(BI_\w+)` \|(.*)\|$", PAGE.read_text(), re.MULTILINE)
    return {name: [cell.strip() for cell in cells.split("|")] for name, cells in rows}


def test_the_settings_page_lists_every_setting_and_no_other() -> None:
    assert set(documented()) == {f"BI_{name.upper()}" for name in Settings.model_fields}


@pytest.mark.parametrize("field", sorted(Settings.model_fields))
def test_the_settings_page_gives_the_real_default_and_a_unit_for_numbers(field: str) -> None:
    default_cell, unit_cell, meaning = documented()[f"BI_{field.upper()}"]
    info = Settings.model_fields[field]
    default = info.get_default(call_default_factory=False)
    if info.default_factory is None and default not in (None, ()):
        text = str(default).lower() if isinstance(default, bool) else str(default)
        text = ",".join(default) if isinstance(default, tuple) else text
        assert default_cell == f"`{text}`" or default_cell == f"`{text.removesuffix('.0')}`"
    elif field == "max_running_queries":
        assert default_cell == "three times the cores"
    else:
        assert default_cell == "not set"
    for suffix, unit in (("_seconds", "seconds"), ("_bytes", "bytes")):
        if field.endswith(suffix):
            assert unit_cell == unit
    assert len(meaning) > 15
