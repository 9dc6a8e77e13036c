"""A backup's file, and how each volume is copied: what is damaged, forged or changing meanwhile; no engine needed."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import volume_agent
import volume_reading
import yaml
from archive import Writer, members, verify
from hypothesis import given, settings
from hypothesis import strategies as st
from stack_tools import Failure
from volumes import KEPT, LEFT_OUT

ROOT = Path(__file__).parents[2]

FILES = {
    "keys/keys.json": b'{"keys": []}',
    "snapshots/current.json": b"{}",
    "snapshots/0123456789abcdef.duckdb": random.Random(1).randbytes(70000),
}
POINTER = {"snapshot_id": "0123456789abcdef"}


def frame(path: str, size: int | None) -> dict[str, object]:
    return {"path": path, "mode": 0o640, "uid": 10001, "gid": 0, "mtime": 1.5, "bytes": size}


def write(path: Path, files: dict[str, bytes] = FILES) -> Path:
    with Writer(path) as writer:
        for volume in sorted({name.partition("/")[0] for name in files}):
            writer.add(volume, frame(".", None), io.BytesIO())
        for name, content in files.items():
            volume, _, inside = name.partition("/")
            writer.add(volume, frame(inside, len(content)), io.BytesIO(content))
        writer.finish({"project": "p"})
    return path


def test_what_is_written_is_read_with_owner_and_mode(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar.gz")
    read = {f"{volume}/{head['path']}": (head, body.read() if body else None) for volume, head, body in members(path)}
    assert {name: content for name, (_, content) in read.items() if content is not None} == FILES
    assert read["keys/keys.json"][0] == frame("keys.json", len(FILES["keys/keys.json"]))
    assert read["keys/."][0] == frame(".", None)
    assert verify(path)["project"] == "p"
    assert path.stat().st_mode & 0o777 == 0o600


def test_an_archive_that_could_not_be_finished_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="unexpected end"), Writer(tmp_path / "a.tar.gz") as writer:
        writer.add("keys", frame("keys.json", 100), io.BytesIO(b"short"))
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write(tmp_path_factory.mktemp("good") / "a.tar.gz").read_bytes()


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_whatever_is_changed_is_refused_or_changes_nothing(
    data: st.DataObject, good: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = data.draw(st.integers(0, len(good) - 1), label="place")
    flipped = data.draw(st.integers(1, 255), label="flipped")
    path = tmp_path_factory.getbasetemp() / "wrong.tar.gz"
    path.write_bytes(good[:place] + bytes([good[place] ^ flipped]) + good[place + 1 :])
    try:
        read = {f"{volume}/{head['path']}": body.read() for volume, head, body in members(path) if body}
    except Failure as failure:
        assert "damaged or no backup" in str(failure)
    else:  # the header's time, say, or two ways to compress the same bytes
        assert read == FILES


@pytest.mark.parametrize("share", [0, 0.01, 0.1, 0.5, 0.9, 0.99, 1])
def test_what_is_cut_off_is_refused(tmp_path: Path, good: bytes, share: float) -> None:
    path = tmp_path / "short.tar.gz"
    path.write_bytes(good[: int((len(good) - 1) * share)])
    with pytest.raises(Failure, match="damaged or no backup"):
        verify(path)


def forge(path: Path, change: Callable[[list[tuple[tarfile.TarInfo, bytes]]], None]) -> Path:
    """A whole archive whose members somebody changed, its checksums right."""
    with tarfile.open(write(path)) as tar:
        entries = [(member, tar.extractfile(member).read() if member.isreg() else b"") for member in tar]  # type: ignore[union-attr]
    change(entries)
    with gzip.open(path, "wb") as zipped, tarfile.open(fileobj=zipped, mode="w|") as tar:
        for member, content in entries:
            member.pax_headers = {}
            tar.addfile(member, io.BytesIO(content))
    return path


def added(
    name: str, kind: bytes = tarfile.REGTYPE, link: str = ""
) -> Callable[[list[tuple[tarfile.TarInfo, bytes]]], None]:
    def change(entries: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, link
        entries.insert(0, (member, b""))

    return change


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/cron.d/x", "/etc/passwd", "volumes/keys/../../x", "volumes/../x", "volumes/keys/a/./b", "volumes/keys//x",
        "volumes/keys", "volumes/", "keys/keys.json", "volumes//x", "volumes/keys/.bi-replaced/x", "volumes/keys/a/..",
    ],
)  # fmt: skip
def test_a_name_that_leads_out_of_its_volume_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(Failure, match="does not lie inside a volume"):
        verify(forge(tmp_path / "a.tar.gz", added(name)))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    with pytest.raises(Failure, match="neither file nor folder"):
        verify(forge(tmp_path / "a.tar.gz", added("volumes/keys/x", kind, "/etc")))


def content_changed(entries: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    place = next(i for i, (member, _) in enumerate(entries) if member.name == "volumes/keys/keys.json")
    entries[place] = (entries[place][0], entries[place][1].replace(b"[]", b"{}"))


def manifest_changed(entries: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    member, text = entries[-1]
    changed = text.replace(b'"format": 1', b'"format": 2')
    entries[-1] = (member, changed)


def twice(entries: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    entries.insert(1, next(entry for entry in entries if entry[0].name.endswith("keys.json")))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (content_changed, "keys/keys.json is not what the manifest says"),
        (added("volumes/keys/more"), "keys/more is not what the manifest says"),
        (added("volumes/other/folder", tarfile.DIRTYPE), "other has other folders"),
        (lambda entries: entries.pop(1), "is not what the manifest says|other folders"),
        (lambda entries: entries.pop(), "ends before its manifest"),
        (lambda entries: entries.append(entries[0]), "comes behind the manifest"),
        (twice, "is in it twice"),
        (manifest_changed, "not of format 1"),
    ],
)
def test_members_that_are_not_what_the_manifest_says_are_refused(
    tmp_path: Path, change: Callable[[list[tuple[tarfile.TarInfo, bytes]]], None], reason: str
) -> None:
    with pytest.raises(Failure, match=reason):
        verify(forge(tmp_path / "a.tar.gz", change))


def test_every_volume_of_the_stack_is_kept_or_left_out_with_a_reason() -> None:
    declared = {
        name
        for file in ("compose.yaml", "compose.prod.yaml")
        for name in yaml.load(
            (ROOT / file).read_text().replace("!override", "").replace("!reset", ""), yaml.SafeLoader
        )["volumes"]
    }
    assert set(KEPT) | set(LEFT_OUT) == declared
    assert not set(KEPT) & set(LEFT_OUT)


# --- the agent, on folders that stand for volumes -----------------------------------------------------------------------


@pytest.fixture
def volumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(volume_reading, "ROOT", tmp_path)
    (tmp_path / "snapshots").mkdir()
    (tmp_path / "audit").mkdir()
    return tmp_path


def copied(volume: str, meanwhile: Callable[[], object] = lambda: None) -> dict[str, bytes]:
    """What a backup holds of a volume that changes once its files are open."""
    taken = volume_reading.take(volume)
    meanwhile()
    found = {}
    for entry in taken.entries:
        stream = io.BytesIO()
        entry.send(stream)
        head, _, content = stream.getvalue().partition(b"\n")
        if json.loads(head)["bytes"] is not None:
            found[entry.path] = content
    return found


def publish(folder: Path, snapshot_id: str) -> None:
    (folder / f"{snapshot_id}.duckdb").write_bytes(snapshot_id.encode() * 100)
    (folder / "current.json.new").write_text(json.dumps({"snapshot_id": snapshot_id}))
    (folder / "current.json.new").rename(folder / "current.json")


def test_a_snapshot_that_is_pruned_while_it_is_copied_is_copied_whole(volumes: Path) -> None:
    folder = volumes / "snapshots"
    old, new = "0" * 16, "f" * 16
    publish(folder, old)
    (folder / ".draft.duckdb").write_bytes(b"half")

    def meanwhile() -> None:
        publish(folder, new)
        (folder / f"{old}.duckdb").unlink()

    found = copied("snapshots", meanwhile)
    assert json.loads(found.pop("current.json")) == {"snapshot_id": old}
    assert found == {f"{old}.duckdb": old.encode() * 100}


def test_a_pointer_to_a_snapshot_that_is_not_there_is_no_backup(volumes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volume_reading, "ATTEMPTS", 1)
    (volumes / "snapshots/current.json").write_text(json.dumps(POINTER))
    with pytest.raises(OSError, match="names a snapshot that is not there"):
        copied("snapshots")


def test_the_audit_log_is_whole_lines_whatever_is_written_or_moved_aside_meanwhile(volumes: Path) -> None:
    log, older = volumes / "audit/a.jsonl", volumes / "audit/a.jsonl.1"
    older.write_bytes(b'{"n": 1}\n')
    log.write_bytes(b'{"n": 2}\n{"n": 3}\n{"n": 4, "sq')

    def meanwhile() -> None:
        older.unlink()
        log.rename(older)
        log.write_bytes(b'{"n": 5}\n')

    assert copied("audit", meanwhile) == {"a.jsonl": b'{"n": 2}\n{"n": 3}\n', "a.jsonl.1": b'{"n": 1}\n'}


@pytest.mark.parametrize("moment", [0, 1, 2, 3])
def test_no_audit_line_is_missed_or_met_twice_when_files_move_while_they_are_opened(
    volumes: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    folder, opened = volumes / "audit", []
    for name, number in (("a.jsonl.2", 1), ("a.jsonl.1", 2), ("a.jsonl", 3)):
        (folder / name).write_bytes(b'{"n": %d}\n' % number)
    plain = volume_reading.Taken.add

    def add(taken: volume_reading.Taken, root: Path, path: str) -> volume_reading.Entry | None:
        if len(opened) == moment:
            for number in (2, 1):
                (folder / f"a.jsonl.{number}").rename(folder / f"a.jsonl.{number + 1}")
            (folder / "a.jsonl").rename(folder / "a.jsonl.1")
            (folder / "a.jsonl").write_bytes(b'{"n": 4}\n')
        opened.append(path)
        return plain(taken, root, path)

    monkeypatch.setattr(volume_reading.Taken, "add", add)
    lines = b"".join(copied("audit").values()).splitlines()
    assert len(lines) == len(set(lines))
    assert {b'{"n": 1}', b'{"n": 2}', b'{"n": 3}'} <= set(lines)


def test_a_line_longer_than_any_buffer_is_found_whole(tmp_path: Path) -> None:
    path = tmp_path / "long"
    line = b"x" * (3 * volume_reading.CHUNK) + b"\n"
    path.write_bytes(line + b"y" * (2 * volume_reading.CHUNK))
    with path.open("rb") as file:
        assert volume_reading.whole_lines(file, path.stat().st_size) == len(line)


def test_links_are_left_out_and_named(volumes: Path) -> None:
    (volumes / "grafana").mkdir()
    (volumes / "grafana/out").symlink_to("/etc/passwd")
    os.mkfifo(volumes / "grafana/pipe")
    taken = volume_reading.take("grafana")
    assert taken.left_out == ["out", "pipe"]
    assert [entry.path for entry in taken.entries] == ["."]


def filled(frames: list[dict[str, object] | bytes]) -> io.BytesIO:
    return io.BytesIO(b"".join(one if isinstance(one, bytes) else json.dumps(one).encode() + b"\n" for one in frames))


def here(volume: str, path: str, size: int | None) -> dict[str, object]:
    return {"volume": volume, **frame(path, size), "uid": os.getuid(), "gid": os.getgid()}


def tree(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in sorted(root.rglob("*")) if path.is_file()}


def test_filling_that_fails_leaves_what_was_there(volumes: Path) -> None:
    (volumes / "audit/a").write_text("old")
    for last in ({"volume": "audit", **frame("../../x", 0)}, here("audit", "cut", 100)):
        stream = filled([here("audit", ".", None), here("audit", "b", 3), b"new", last])
        with pytest.raises((OSError, ValueError)):
            volume_agent.fill_all(stream)
        assert tree(volumes) == {"audit/a": "old"}
        assert sorted(path.name for path in volumes.parent.iterdir() if path.name == "x") == []


def test_old_and_new_change_places_and_back(volumes: Path) -> None:
    (volumes / "audit/a").write_text("old")
    (volumes / "snapshots/s").write_text("old")
    frames: list[dict[str, object] | bytes] = [here(volume, ".", None) for volume in ("audit", "snapshots")]
    volume_agent.fill_all(filled([*frames, here("audit", "b", 3), b"new", {"end": True}]))
    volume_agent.exchange(volume_reading.INCOMING, volume_reading.OUTGOING)
    assert {name for name in tree(volumes) if ".bi-" not in name} == {"audit/b"}
    assert (volumes / "audit").stat().st_mode & 0o777 == 0o640
    volume_agent.exchange(volume_reading.OUTGOING, volume_reading.INCOMING)
    volume_agent.discard(volume_reading.INCOMING)
    assert tree(volumes) == {"audit/a": "old", "snapshots/s": "old"}


def test_an_exchange_that_fails_half_way_leaves_everything_where_it_was(volumes: Path) -> None:
    (volumes / "audit/a").write_text("old")
    (volumes / "snapshots/s").write_text("old")
    volume_agent.fill_all(filled([here("audit", ".", None), here("audit", "b", 3), b"new", {"end": True}]))
    with pytest.raises(FileNotFoundError):  # nothing was filled into the second
        volume_agent.exchange(volume_reading.INCOMING, volume_reading.OUTGOING)
    volume_agent.discard(volume_reading.INCOMING)
    assert tree(volumes) == {"audit/a": "old", "snapshots/s": "old"}


def test_the_agent_says_what_failed_and_ends_with_one(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-Es", ROOT / "infra/volume_agent.py", "read"],
        input=json.dumps({"copy": "nothing"}).encode() + b"\n",
        capture_output=True,
        check=False,
    )
    assert done.returncode == 1
    assert "nothing" in json.loads(done.stdout)["error"]
