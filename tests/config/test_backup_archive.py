"""A backup's file, and how each volume is copied: what is damaged, forged or changing meanwhile; no engine needed."""

from __future__ import annotations

import errno
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
ABOUT: dict[str, object] = {
    "project": "p",
    "made_at": "2026-11-25T00:00:00Z",
    "release": "1",
    "images": {"query": {"image": "bi-query:1", "id": "sha256:0"}},
    "taken": {"snapshots": {"at": 1.0, "left_out": [], "current": None}},
}


def frame(path: str, size: int | None) -> dict[str, object]:
    return {"path": path, "mode": 0o640, "uid": 10001, "gid": 0, "mtime": 1.5, "bytes": size}


def write(path: Path, files: dict[str, bytes] = FILES) -> Path:
    with Writer(path) as writer:
        for volume in sorted({name.partition("/")[0] for name in files}):
            writer.add(volume, frame(".", None), io.BytesIO())
        for name, content in files.items():
            volume, _, inside = name.partition("/")
            writer.add(volume, frame(inside, len(content)), io.BytesIO(content))
        writer.finish(ABOUT)
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


def test_an_archive_has_its_name_only_when_it_was_read_back(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"

    def damage(draft: Path) -> None:
        assert not path.exists()
        assert draft.stat().st_mode & 0o777 == 0o600
        content = draft.read_bytes()
        draft.write_bytes(content[: len(content) // 2])
        verify(draft)

    with pytest.raises(Failure, match="is damaged"), Writer(path) as writer:
        writer.add("keys", frame("keys.json", 3), io.BytesIO(b"abc"))
        writer.finish(ABOUT, damage)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "change", [{"made_at": None}, {"images": {"query": "x"}}, {"taken": {"keys": 1}}, {"taken": []}]
)
def test_a_manifest_that_does_not_say_what_a_restore_tells_is_refused(
    tmp_path: Path, change: dict[str, object]
) -> None:
    with pytest.raises(Failure, match="its manifest does not say"), Writer(tmp_path / "a.tar.gz") as writer:
        writer.finish({**ABOUT, **change})


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


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.EACCES])
def test_a_file_that_cannot_be_opened_ends_the_backup(
    volumes: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    (volumes / "grafana").mkdir()
    (volumes / "grafana/grafana.db").write_text("x")

    def refuse(path: Path, *_: object) -> int:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(OSError, match=r"grafana\.db"):
        volume_reading.take("grafana")


def test_a_volume_of_more_files_than_are_open_at_first_is_read_whole(volumes: Path) -> None:
    (volumes / "grafana").mkdir()
    for number in range(300):
        (volumes / f"grafana/{number}").write_text("x")
    done = agent("read", volumes, "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 1000))", {"copy": "grafana"})
    assert done.returncode == 0, done.stdout
    frames = [json.loads(line.removeprefix(b"x")) for line in done.stdout.splitlines()]
    assert len([one for one in frames if one.get("bytes") == 1]) == 300
    assert frames[-1]["left_out"] == []


def agent(mode: str, volumes: Path, first: str, *frames: dict[str, object]) -> subprocess.CompletedProcess[bytes]:
    """The agent as a process of its own, on these volumes; `first` is what it does before anything else."""
    program = f"""
import os, pathlib, resource, shutil, sys
sys.path.insert(0, {str(ROOT / "infra")!r})
import volume_agent, volume_reading
volume_reading.ROOT = pathlib.Path({str(volumes)!r})
{first}
sys.exit(volume_agent.main({mode!r}))
"""
    given = b"".join(json.dumps(one).encode() + b"\n" for one in frames)
    return subprocess.run([sys.executable, "-c", program], input=given, capture_output=True, check=False)


# Ends the process, as a kill does, before its step number N: nothing of Python's runs any more.
DIES = """
left = [{step}]
def dying(plain):
    def step(*arguments, **named):
        left[0] -= 1
        if left[0] < 0:
            os._exit(137)
        return plain(*arguments, **named)
    return step
for name in ("rename", "mkdir", "rmdir", "unlink", "chmod"):
    setattr(pathlib.Path, name, dying(getattr(pathlib.Path, name)))
shutil.rmtree = dying(shutil.rmtree)
os.sync = lambda: None
"""
STEPS = 60


def killed(mode: str, volumes: Path, step: int) -> bool:
    """Run a mode of the agent and kill it before a step; whether it lived to be killed."""
    done = agent(mode, volumes, DIES.format(step=step))
    assert done.returncode in (0, 137), done.stdout + done.stderr
    return done.returncode == 137


def modes(volumes: Path) -> dict[str, object]:
    """Everything in the volumes but what is ours: content, mode."""
    return {
        str(path.relative_to(volumes)): (path.stat().st_mode, path.read_text() if path.is_file() else None)
        for path in sorted(volumes.rglob("*"))
        if not volume_reading.OURS & set(path.relative_to(volumes).parts)
    }


def two_volumes(volumes: Path, name: str) -> Path:
    """Two volumes with old data, and new data filled in beside them; some names are in both."""
    root = volumes / name
    for volume in ("audit", "snapshots"):
        (root / volume / "folder").mkdir(parents=True)
        (root / volume).chmod(0o750)
        (root / volume / "same").write_text("old")
        (root / volume / "folder/inside").write_text("old")
        (root / volume / "gone").write_text("old")
    frames: list[dict[str, object] | bytes] = []
    for volume in ("audit", "snapshots"):
        frames += [here(volume, ".", None), here(volume, "same", 3), b"new", here(volume, "added", 3), b"new"]
    plain, volume_reading.ROOT = volume_reading.ROOT, root
    try:
        volume_agent.fill_all(filled([*frames, {"end": True}]))
    finally:
        volume_reading.ROOT = plain
    return root


def state(root: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = json.loads(agent("state", root, "").stdout)
    return found


def test_an_exchange_that_is_killed_at_any_moment_is_undone_whole(volumes: Path) -> None:
    mixed = 0
    for step in range(STEPS):
        root = two_volumes(volumes, f"exchange{step}")
        before = modes(root)
        if not killed("exchange", root, step):
            break
        now = modes(root)
        mixed += "audit/added" in now and now.get("snapshots/gone") == before["snapshots/gone"]
        undone = agent("undo", root, "")
        assert undone.returncode == 0, (step, undone.stdout)
        assert modes(root) == before, step
        assert state(root)["replaced"] == state(root)["unknown"] == [], step
    assert step > 15 and mixed, "it was never killed between two volumes"


def test_an_undo_that_is_killed_at_any_moment_is_done_again(volumes: Path) -> None:
    for step in range(STEPS):
        root = two_volumes(volumes, f"undo{step}")
        before = modes(root)
        assert agent("exchange", root, "").returncode == 0
        (root / "audit/made-since").write_text("by a service that ran on the new data")
        was_killed = killed("undo", root, step)
        assert agent("undo", root, "").returncode == 0
        assert modes(root) == before, step
        if not was_killed:
            break
    assert step > 15


def test_old_data_that_are_being_deleted_never_come_back_in_part(volumes: Path) -> None:
    for step in range(STEPS):
        root = two_volumes(volumes, f"commit{step}")
        assert agent("exchange", root, "").returncode == 0
        restored = modes(root)
        was_killed = killed("commit", root, step)
        if was_killed and step:
            assert state(root)["committed"], step
        assert agent("commit", root, "").returncode == 0
        assert modes(root) == restored
        assert not any(state(root).values())
        if not was_killed:
            break
    assert step > 4


@pytest.mark.parametrize("left", [volume_reading.JOURNAL, volume_reading.COMMITTED, volume_reading.OUTGOING])
def test_nothing_is_exchanged_where_the_old_data_of_another_restore_lie(volumes: Path, left: str) -> None:
    root = two_volumes(volumes, "left")
    (root / "audit" / left).mkdir()
    (root / "audit" / left / "only-copy").write_text("old")
    before = modes(root)
    done = agent("exchange", root, "")
    assert done.returncode == 1 and b"has not come to its end" in done.stdout
    assert agent("discard", root, "").returncode == 0
    assert modes(root) == before
    assert (root / "audit" / left / "only-copy").read_text() == "old"


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
    volume_agent.exchange()
    assert {name for name in tree(volumes) if ".bi-" not in name} == {"audit/b"}
    assert (volumes / "audit").stat().st_mode & 0o777 == 0o640
    volume_agent.undo()
    volume_agent.discard()
    assert tree(volumes) == {"audit/a": "old", "snapshots/s": "old"}


def test_an_exchange_that_fails_half_way_leaves_everything_where_it_was(volumes: Path) -> None:
    (volumes / "audit/a").write_text("old")
    (volumes / "snapshots/s").write_text("old")
    (volumes / "audit").chmod(0o750)
    volume_agent.fill_all(filled([here("audit", ".", None), here("audit", "b", 3), b"new", {"end": True}]))
    with pytest.raises(FileNotFoundError):  # nothing was filled into the second
        volume_agent.exchange()
    volume_agent.discard()
    assert tree(volumes) == {"audit/a": "old", "snapshots/s": "old"}
    assert (volumes / "audit").stat().st_mode & 0o777 == 0o750


def test_the_agent_says_what_failed_and_ends_with_one(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-Es", ROOT / "infra/volume_agent.py", "read"],
        input=json.dumps({"copy": "nothing"}).encode() + b"\n",
        capture_output=True,
        check=False,
    )
    assert done.returncode == 1
    assert "nothing" in json.loads(done.stdout)["error"]
