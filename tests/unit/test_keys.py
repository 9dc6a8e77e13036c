"""The key file: made, changed by many at once, followed while it serves."""

from __future__ import annotations

import hashlib
import hmac
import stat
import threading
import time
from pathlib import Path

import pytest
from bi_query.access import Role
from bi_query.errors import ConfigurationError
from bi_query.key_ring import KeyRing
from bi_query.keys import KeyFile, is_key, key_id
from bi_query.metrics import Metrics
from bi_query.policies import Policy


@pytest.fixture
def file(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path / "keys" / "keys.json")


def ring(file: KeyFile, policies: dict[str, Policy] | None = None) -> KeyRing:
    made = KeyRing(file.path, policies or {}, Metrics())
    made.load()
    return made


def test_the_file_holds_no_key_and_only_its_owner_reads_it(file: KeyFile) -> None:
    [key] = file.add("ana", Role.READER)
    assert key.encode() not in file.path.read_bytes() and key.split("_", 2)[2].encode() not in file.path.read_bytes()
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600


def test_a_key_is_found_and_a_changed_one_is_not(file: KeyFile) -> None:
    [key] = file.add("ana", Role.ANALYST)
    keys = ring(file)
    found = keys.find(key.encode())
    assert found is not None and (found.name, found.role, found.client) == ("ana", Role.ANALYST, f"key-{key[3:15]}")
    flipped = key[:-1] + ("A" if key[-1] != "A" else "B")
    for wrong in (flipped, key + "A", key[:-1], key.upper(), "", "bi_", key[:16], "x" * 5000, "bi_\xff", f" {key}"):
        assert keys.find(wrong.encode()) is None, wrong


def test_a_key_for_an_unknown_id_is_hashed_and_compared_all_the_same(
    file: KeyFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[int, int]] = []
    monkeypatch.setattr("hmac.compare_digest", lambda a, b: bool(compared.append((len(a), len(b)))) or a == b)
    [key] = file.add("ana", Role.READER)
    [entry] = file.read()
    assert is_key(key.encode(), entry) and not is_key(key.encode(), None)
    assert compared == [(64, 64), (64, 64)]


def test_revoking_ends_a_key_by_id_or_all_of_a_name(file: KeyFile) -> None:
    first, second = file.add("ana", Role.READER, count=2)
    [other] = file.add("bob", Role.READER)
    file.revoke(key_id(first.encode()) or "")
    assert ring(file).find(first.encode()) is None and ring(file).find(second.encode()) is not None
    file.revoke("ana")
    assert ring(file).find(second.encode()) is None and ring(file).find(other.encode()) is not None
    with pytest.raises(ConfigurationError, match="no key with the id or name 'ana'"):
        file.revoke("ana")


class Clock:
    """In the place of the module `time`."""

    def __init__(self) -> None:
        self.now = time.time()

    def time(self) -> float:
        return self.now


def test_rotating_keeps_the_rights_and_ends_the_old_key_after_the_grace(
    file: KeyFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr("bi_query.keys.time", clock)
    [old] = file.add("ana", Role.ANALYST, rate_limit="5/minute")
    [new] = file.rotate("ana", grace_seconds=3)
    keys = ring(file)
    successor = keys.find(new.encode())
    assert successor is not None and (successor.role, successor.rate_limit) == (Role.ANALYST, "5/minute")
    clock.now += 2.9
    assert keys.find(old.encode()) is not None
    clock.now += 0.1
    assert keys.find(old.encode()) is None and keys.find(new.encode()) is not None
    assert len(file.rotate("ana", grace_seconds=60)) == 1, "an ended key has no successor"


def test_an_old_key_that_ends_sooner_is_not_prolonged_by_rotating(file: KeyFile) -> None:
    ends = time.time() + 100
    file.add("ana", Role.READER, expires_at=ends)
    file.rotate("ana", grace_seconds=10_000)
    assert sorted(entry.expires_at or 0 for entry in file.read()) == [0, ends]


def test_administrators_at_the_same_time_lose_no_key(file: KeyFile) -> None:
    threads = [threading.Thread(target=file.add, args=(f"n{i}", Role.READER)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(entry.name for entry in file.read()) == sorted(f"n{i}" for i in range(12))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "cannot be used"),
        ("[]", "not a key file"),
        ('{"version": 2, "keys": []}', "version 1"),
        ('{"version": 1, "keys": [{"id": "x"}]}', "id: String should match"),
        ('{"version": 1, "keys": [{"id": "0123456789ab", "name": "a", "role": "root", "created_at": 1}]}', "role"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_key_file_says_what_is_wrong(file: KeyFile, content: str, said: str) -> None:
    file.path.parent.mkdir()
    file.path.write_text(content)
    with pytest.raises(ConfigurationError, match=said):
        file.read()


@pytest.mark.parametrize("wrong", [{"rate_limit": "often"}, {"name": "a b"}, {"name": "-x"}, {"name": "x" * 64}])
def test_a_key_with_a_wrong_name_or_limit_is_not_made(file: KeyFile, wrong: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError):
        file.add(**{"name": "ana", "role": Role.READER, **wrong})
    assert not file.path.exists()


def test_a_broken_file_leaves_the_last_good_keys_in_force(file: KeyFile) -> None:
    [key] = file.add("ana", Role.READER)
    keys = ring(file)
    file.path.write_text("{")
    with pytest.raises(ConfigurationError):
        keys.load()
    assert keys.find(key.encode()) is not None


def test_a_key_whose_policy_is_gone_or_does_not_fit_is_known_and_refused_everything(file: KeyFile) -> None:
    [gone] = file.add("ana", Role.ADMIN, policy="gone")
    [wrong] = file.add("bob", Role.ADMIN, policy="shop", attributes={"shop": 5})
    keys = ring(file, {"shop": Policy(attributes={"shop": "text"}, rows={"sales": "shop = $shop"})})
    for key in (gone, wrong):
        found = keys.find(key.encode())
        assert found is not None and "cannot be applied" in found.refusal
        with pytest.raises(Exception, match="cannot be applied"):
            found.require(Role.READER)


def test_every_way_to_be_wrong_ends_in_one_comparison_of_digests(
    file: KeyFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that neither an id that exists nor a prefix that fits can be told by the time a refusal takes."""
    [key] = file.add("ana", Role.READER)
    keys, hashed, compared = ring(file), list[int](), list[tuple[int, int]]()
    compare, sha256 = hmac.compare_digest, hashlib.sha256
    monkeypatch.setattr("hmac.compare_digest", lambda a, b: compared.append((len(a), len(b))) or compare(a, b))
    monkeypatch.setattr("hashlib.sha256", lambda data: hashed.append(len(data)) or sha256(data))
    wrong = [b"", b"bi_", b"x" * 100, key[:16].encode(), f"bi_{'0' * 12}_{'A' * 43}".encode(), key[:-1].encode() + b"!"]
    for guess in wrong:
        assert keys.find(guess) is None
    assert hashed == [len(guess) for guess in wrong]
    assert compared == [(64, 64)] * len(wrong)
