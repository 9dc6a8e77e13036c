"""API keys: a file of hashes that administrators change with `bi-query keys`, and that replicas follow within a second.

A key is `bi_<id>_<secret>`; the file holds the id and SHA-256 of the whole key. The secret has 256 random bits, so a fast
hash is enough: there is nothing to guess. The id finds the entry; the comparison takes constant time, also for an id that
does not exist.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import orjson
from limits import parse_many
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from .access import Role
from .errors import ConfigurationError

KEY_PREFIX = "bi_"
_FORM = re.compile(rb"bi_([0-9a-f]{12})_[A-Za-z0-9_-]{43}")
_NOBODY = hashlib.sha256(b"no key hashes to this").hexdigest()
_SHAPE = {"version": 1}


def _is_limit(text: str | None) -> str | None:
    if text is not None:
        parse_many(text)  # a ValueError says what is wrong
    return text


class KeyEntry(BaseModel):
    """One key. Times are seconds since the epoch."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    id: str = Field(pattern=r"^[0-9a-f]{12}$")
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,62}$")
    role: Role
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", repr=False)
    created_at: int
    expires_at: float | None = None
    rate_limit: Annotated[str | None, AfterValidator(_is_limit)] = None
    policy: str | None = None
    attributes: dict[str, int | str | list[int] | list[str]] = Field(default_factory=dict)

    @property
    def has_expired(self) -> bool:
        """Whether it is past its time."""
        return self.expires_at is not None and time.time() >= self.expires_at


def key_id(key: bytes) -> str | None:
    """The id within a key; None when it does not look like one."""
    match = _FORM.fullmatch(key)
    return match[1].decode() if match else None


def is_key(key: bytes, entry: KeyEntry | None) -> bool:
    """Whether `key` is `entry`'s. As slow for no entry as for a wrong secret."""
    digest = hashlib.sha256(key).hexdigest()
    return hmac.compare_digest(digest, entry.sha256 if entry is not None else _NOBODY) and entry is not None


class KeyFile:
    """The file. Every change is made under a lock, on a copy, and moved into place."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[KeyEntry]:
        """The entries. Raises `ConfigurationError` when the file is missing, unreadable or not a key file."""
        try:
            document = orjson.loads(self.path.read_bytes())
            if not isinstance(document, dict) or document.get("version") != 1:
                raise ValueError("not a key file of version 1")
            entries = [KeyEntry.model_validate(entry) for entry in document["keys"]]
        except FileNotFoundError:
            raise ConfigurationError(f"there is no key file {self.path}; make one: bi-query keys add NAME") from None
        except ValidationError as error:
            first = error.errors(include_input=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise ConfigurationError(f"key file {self.path}: {where}: {first['msg']}") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigurationError(f"key file {self.path} cannot be used: {error}") from error
        if len({entry.id for entry in entries}) != len(entries):
            raise ConfigurationError(f"key file {self.path}: an id stands there twice")
        return entries

    def add(self, name: str, role: Role, count: int = 1, **more: Any) -> list[str]:
        """Make `count` keys; returns them. This is the only time they are seen."""
        with self._changing() as entries:
            made = [_make(name, role, **more) for _ in range(count)]
            entries.extend(entry for _, entry in made)
        return [key for key, _ in made]

    def revoke(self, which: str) -> list[KeyEntry]:
        """Remove the key with this id, or all of this name; returns them. Raises `ConfigurationError` if there is none."""
        with self._changing() as entries:
            gone = _find(entries, which)
            entries[:] = [entry for entry in entries if entry not in gone]
        return gone

    def rotate(self, which: str, grace_seconds: float) -> list[str]:
        """A new key for each of these, with the same rights; the old ones end after `grace_seconds`."""
        with self._changing() as entries:
            now, keys = time.time(), []
            for old in [entry for entry in _find(entries, which) if not entry.has_expired]:
                rights = old.model_dump(include={"rate_limit", "policy", "attributes"})
                key, entry = _make(old.name, old.role, **rights)
                ends = min(old.expires_at or now + grace_seconds, now + grace_seconds)
                entries[entries.index(old)] = old.model_copy(update={"expires_at": ends})
                entries.append(entry)
                keys.append(key)
        return keys

    @contextlib.contextmanager
    def _changing(self) -> Iterator[list[KeyEntry]]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_name(f".{self.path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            entries = self.read() if self.path.exists() else []
            yield entries
            document = {**_SHAPE, "keys": [entry.model_dump(mode="json", exclude_defaults=True) for entry in entries]}
            self._replace(orjson.dumps(document, option=orjson.OPT_INDENT_2))

    def _replace(self, content: bytes) -> None:
        draft = self.path.with_name(f".{self.path.name}.new")
        draft.unlink(missing_ok=True)
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self.path)


def _make(name: str, role: Role, **more: Any) -> tuple[str, KeyEntry]:
    identity = secrets.token_hex(6)
    key = f"{KEY_PREFIX}{identity}_{secrets.token_urlsafe(32)}"
    digest = hashlib.sha256(key.encode()).hexdigest()
    try:
        entry = KeyEntry(id=identity, name=name, role=role, sha256=digest, created_at=int(time.time()), **more)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        raise ConfigurationError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    return key, entry


def _find(entries: list[KeyEntry], which: str) -> list[KeyEntry]:
    found = [entry for entry in entries if which in (entry.id, entry.name)]
    if not found:
        raise ConfigurationError(f"there is no key with the id or name {which!r}; bi-query keys list shows them")
    return found


def attributes_of(texts: list[str], types: Mapping[str, str]) -> dict[str, Any]:
    """`name=value` words as a policy's attributes; lists are separated by commas. Raises `ConfigurationError`."""
    given: dict[str, Any] = {}
    for text in texts:
        name, separator, value = text.partition("=")
        kind = types.get(name)
        if not separator or kind is None or name in given:
            raise ConfigurationError(
                f"--attribute {text!r}: write NAME=VALUE, once for each of {', '.join(types) or 'none'}"
            )
        try:
            if kind.endswith("s"):
                parts = [part.strip() for part in value.split(",") if part.strip()]
                given[name] = [int(part) for part in parts] if kind == "integers" else parts
            else:
                given[name] = int(value) if kind == "integer" else value
        except ValueError:
            raise ConfigurationError(f"--attribute {text!r}: {name} is {kind}") from None
    return given
