"""A backup's file: a gzipped tar of `volumes/<volume>/<path>` members and, as the last, the manifest.

The manifest comes last, so that one pass writes it, and a file that was cut off has none. A reader checks everything at
once: that the compressed data are whole, every member's name, kind, size and SHA-256, and that none is missing or too many.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import tarfile
import zlib
from collections.abc import Callable, Generator
from pathlib import Path
from typing import IO, Self

from stack_tools import Failure, Json
from volume_reading import CHUNK, OURS

FORMAT = 1
MANIFEST = "manifest.json"
MANIFEST_MAX_BYTES = 64 << 20
PREFIX = "volumes/"
PART = ".part"
# What the manifest says beside its files, and of which kind that is.
SAID = {"project": str, "made_at": str, "release": str, "images": dict, "taken": dict, "volumes": dict}
DAMAGED = (EOFError, OSError, zlib.error, tarfile.TarError, ValueError, KeyError, TypeError)


class Writer:
    """Writes an archive, readable by its owner alone, that appears under its name when it is complete."""

    def __init__(self, path: Path) -> None:
        self._path, self.folder = path, path.parent
        self._draft = path.with_name(f".{path.name}{PART}")
        self._draft.unlink(missing_ok=True)
        # The stack's secrets are in it.
        self._file = os.fdopen(os.open(self._draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
        # Level 1: most of it is compressed already.
        self._gzip = gzip.GzipFile(filename="", fileobj=self._file, mode="wb", compresslevel=1)
        self._tar = tarfile.open(fileobj=self._gzip, mode="w|", format=tarfile.PAX_FORMAT)  # noqa: SIM115 - closed in finish
        self.volumes: dict[str, Json] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for stream in (self._tar, self._gzip, self._file):
            with contextlib.suppress(OSError, ValueError):
                stream.close()
        self._draft.unlink(missing_ok=True)

    def add(self, volume: str, frame: Json, body: IO[bytes]) -> None:
        """A file or folder as the agent describes it, its bytes read from `body`. Raises `OSError` when they are short."""
        member = tarfile.TarInfo(f"{PREFIX}{volume}/{frame['path']}")
        member.mode, member.uid, member.gid, member.mtime = (frame[name] for name in ("mode", "uid", "gid", "mtime"))
        content = self.volumes.setdefault(volume, {"files": {}, "folders": 0})
        if frame["bytes"] is None:
            member.type = tarfile.DIRTYPE
            self._tar.addfile(member)
            content["folders"] += 1
            return
        member.size = frame["bytes"]
        hashing = Hashing(body)
        self._tar.addfile(member, hashing)
        content["files"][frame["path"]] = {"bytes": member.size, "sha256": hashing.hexdigest()}

    def finish(self, about: Json, check: Callable[[Path], object] | None = None) -> Json:
        """Add the manifest, make it durable, `check` it (`verify`), and only then give it its name; the manifest.

        Raises `Failure` when what is on the disk is not what was written.
        """
        manifest = {"format": FORMAT, **about, "volumes": self.volumes}
        text = json.dumps(manifest, indent=1, sort_keys=True).encode()
        member = tarfile.TarInfo(MANIFEST)
        member.size, member.mode = len(text), 0o600
        self._tar.addfile(member, io.BytesIO(text))
        self._tar.close()
        self._gzip.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        (check or verify)(self._draft)
        self._draft.rename(self._path)
        folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return manifest


class Hashing(io.RawIOBase):
    """Passes reads on and hashes what it saw."""

    def __init__(self, source: IO[bytes]) -> None:
        self._source = source
        self._hash = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        """From the source."""
        piece = self._source.read(size)
        self._hash.update(piece)
        return piece

    def hexdigest(self) -> str:
        """SHA-256 of everything read so far."""
        return self._hash.hexdigest()


class Checked(Hashing):
    """A member's bytes. What is damaged raises `Failure` to whoever reads them, too."""

    def __init__(self, source: IO[bytes], path: Path) -> None:
        super().__init__(source)
        self._path = path

    def read(self, size: int = -1) -> bytes:
        """From the archive."""
        try:
            return super().read(size)
        except DAMAGED as error:
            raise damaged(self._path, error) from error


def damaged(path: Path, error: Exception) -> Failure:
    """What a person reads."""
    return Failure(f"{path} is damaged or no backup: {error or type(error).__name__}")


Member = tuple[str, Json, IO[bytes] | None]  # volume, the agent's frame, the bytes of a file
Members = Generator[Member, None, Json]


def verify(path: Path, seen: Callable[[int], None] = lambda _: None) -> Json:
    """Read all of an archive; its manifest. Raises `Failure` when anything is not as it was written."""
    reading = members(path, seen)
    while True:
        try:
            next(reading)
        except StopIteration as end:
            manifest: Json = end.value
            return manifest


def members(path: Path, seen: Callable[[int], None] = lambda _: None) -> Members:
    """Every member of an archive, then its manifest; `seen` is told how many of its bytes are read.

    Raises `Failure` on the first thing that is wrong, at the latest at the end: trust nothing before the iterator ended.
    """
    try:
        return (yield from _members(path, seen))
    except DAMAGED as error:
        raise damaged(path, error) from error


def _members(path: Path, seen: Callable[[int], None]) -> Members:
    found: dict[str, Json] = {}
    manifest: Json | None = None
    names: set[str] = set()
    with path.open("rb") as file, gzip.GzipFile(fileobj=file) as unzipped, _tar(unzipped) as tar:
        for member in tar:
            if manifest is not None:
                raise ValueError(f"{member.name!r} comes behind the manifest")
            if member.name == MANIFEST:
                manifest = _manifest(tar, member)
                continue
            if member.name in names:
                raise ValueError(f"{member.name!r} is in it twice")
            names.add(member.name)
            volume, inside = _place(member)
            content = found.setdefault(volume, {"files": {}, "folders": 0})
            frame = {
                "path": inside,
                "mode": member.mode & 0o777,
                "uid": member.uid,
                "gid": member.gid,
                "mtime": member.mtime,
            }
            if member.isdir():
                content["folders"] += 1
                yield volume, {**frame, "bytes": None}, None
            else:
                body = tar.extractfile(member)
                hashing = Checked(body, path)  # type: ignore[arg-type]  # a regular file's is never None
                yield volume, {**frame, "bytes": member.size}, hashing  # type: ignore[misc]
                while hashing.read(CHUNK):
                    pass
                content["files"][inside] = {"bytes": member.size, "sha256": hashing.hexdigest()}
            seen(file.tell())
        while unzipped.read(CHUNK):  # to the end, where the checksum stands
            pass
    if manifest is None:
        raise ValueError("it ends before its manifest")
    _compare(manifest, found)
    return manifest


def _tar(unzipped: gzip.GzipFile) -> tarfile.TarFile:
    return tarfile.open(fileobj=unzipped, mode="r|")


def _manifest(tar: tarfile.TarFile, member: tarfile.TarInfo) -> Json:
    body = tar.extractfile(member) if member.isreg() and member.size <= MANIFEST_MAX_BYTES else None
    manifest = json.loads(body.read()) if body else None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"its manifest is not of format {FORMAT}; take the version of this program that wrote it")
    for name, kind in SAID.items():
        if not isinstance(manifest.get(name), kind):
            raise ValueError(f"its manifest does not say {name!r}")
    if not all(isinstance(image, dict) and "image" in image for image in manifest["images"].values()):
        raise ValueError("its manifest does not say which images ran")
    if not all(isinstance(about, dict) for about in manifest["taken"].values()):
        raise ValueError("its manifest does not say when each volume was taken")
    return manifest


def _place(member: tarfile.TarInfo) -> tuple[str, str]:
    """Volume and path of a member. Raises `ValueError` for whatever could end up anywhere else than in a volume."""
    if not (member.isreg() or member.isdir()):
        raise ValueError(f"{member.name!r} is neither file nor folder")
    volume, _, path = member.name.removeprefix(PREFIX).partition("/")
    parts = path.split("/") if path != "." else ["root"]
    plain = {"", ".", ".."}.isdisjoint({volume, *parts}) and "\0" not in member.name and "\\" not in volume
    if not member.name.startswith(PREFIX) or not plain or parts[0] in OURS:
        raise ValueError(f"{member.name!r} does not lie inside a volume")
    return volume, path


def _compare(manifest: Json, found: dict[str, Json]) -> None:
    promised = manifest["volumes"]
    for volume in sorted(promised.keys() | found.keys()):
        there, said = found.get(volume, {"files": {}}), promised.get(volume, {"files": {}})
        for name in sorted(there["files"].keys() | said["files"].keys()):
            if there["files"].get(name) != said["files"].get(name):
                raise ValueError(f"{volume}/{name} is not what the manifest says")
        if there.get("folders") != said.get("folders"):
            raise ValueError(f"{volume} has other folders than the manifest says")
