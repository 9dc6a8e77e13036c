"""Going back: which snapshot, what stays away afterwards, and for how long."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from bi_query.errors import PublishBusy, PublishError
from bi_query.publish import How, Published, publish
from bi_query.rollback import kept_snapshots, roll_back
from bi_query.snapshot_files import exclusive, read_pointer, snapshot_path

from tests.support.small import Small

BY_ITSELF = How(progress=False, keep_rollback=True)


def publish_by_itself(small: Small, version: int | None = None) -> Published:
    """As the publisher and the stack's one-shot do."""
    if version is not None:
        small.write_data(version)
    return publish(small.settings(), small.data, small.load(), BY_ITSELF)


def current(small: Small) -> str:
    pointer = read_pointer(small.snapshots)
    assert pointer is not None
    return pointer.snapshot_id


@pytest.fixture
def three(small: Small) -> list[str]:
    """Ids of three snapshots, in the order they were published."""
    return [small.publish(version).snapshot_id for version in (1, 2, 3)]


def test_back_is_the_snapshot_published_before_and_again_the_one_before_that(small: Small, three: list[str]) -> None:
    assert roll_back(small.snapshots).snapshot_id == three[1] == current(small)
    assert roll_back(small.snapshots).snapshot_id == three[0] == current(small)
    with pytest.raises(PublishError, match="no earlier snapshot"):
        roll_back(small.snapshots)
    assert current(small) == three[0]


def test_back_and_forth_by_name(small: Small, three: list[str]) -> None:
    assert roll_back(small.snapshots, three[0]).snapshot_id == current(small)
    assert roll_back(small.snapshots, three[2]).snapshot_id == current(small)
    pointer = read_pointer(small.snapshots)
    assert pointer is not None
    assert pointer.rolled_back_from is None


@pytest.mark.parametrize("name", ["0123456789abcdef", "../../etc/passwd", "", "*", "current"])
def test_a_snapshot_that_is_not_kept_is_refused_with_those_that_are(small: Small, three: list[str], name: str) -> None:
    if not name:
        (small.snapshots / "current.json").write_text("rubbish")
    with pytest.raises(PublishError, match="bi-query snapshots" if not name else three[1]):
        roll_back(small.snapshots, name)


@pytest.mark.parametrize("damage", [b"", b"rubbish" * 100, None], ids=["empty", "rubbish", "cut off"])
def test_a_damaged_snapshot_is_not_gone_back_to(small: Small, three: list[str], damage: bytes | None) -> None:
    path = snapshot_path(small.snapshots, three[1])
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if damage is None else damage)
    with pytest.raises(PublishError, match=f"{three[1]}.duckdb is damaged"):
        roll_back(small.snapshots)
    assert current(small) == three[2]


def test_the_data_s_age_stays_that_of_its_publishing(small: Small, three: list[str]) -> None:
    before = {one.snapshot_id: one.published_at for one in kept_snapshots(small.snapshots)}
    roll_back(small.snapshots)
    pointer = read_pointer(small.snapshots)
    assert pointer is not None
    assert pointer.published_at == before[three[1]] < before[three[2]]


def test_what_was_gone_back_from_is_not_published_again_until_its_inputs_change(small: Small, three: list[str]) -> None:
    roll_back(small.snapshots)
    for _ in range(2):
        kept = publish_by_itself(small)
        assert (kept.snapshot_id, kept.changed, kept.is_rollback_kept) == (three[1], False, True)
    assert current(small) == three[1]
    mended = publish_by_itself(small, 4)
    assert (mended.changed, mended.is_rollback_kept) == (True, False)
    assert current(small) == mended.snapshot_id
    assert current(small) not in three


def test_two_steps_back_keep_away_what_the_inputs_still_are(small: Small, three: list[str]) -> None:
    roll_back(small.snapshots)
    roll_back(small.snapshots)
    assert publish_by_itself(small).snapshot_id == three[0]


def test_a_changed_model_ends_a_rollback(small: Small, three: list[str]) -> None:
    roll_back(small.snapshots)
    (small.catalogue / "models" / "more.sql").write_text("select 1 as one")
    assert publish_by_itself(small).changed


def test_the_same_bad_data_delivered_anew_is_published_after_good_data_came_between(
    small: Small, three: list[str]
) -> None:
    roll_back(small.snapshots)
    assert publish_by_itself(small, 2).snapshot_id == three[1]
    assert publish_by_itself(small, 3).snapshot_id == three[2]


def test_publishing_by_hand_ends_a_rollback(small: Small, three: list[str]) -> None:
    roll_back(small.snapshots)
    assert small.publish().snapshot_id == three[2] == current(small)
    assert not publish_by_itself(small).is_rollback_kept


def test_a_snapshot_gone_back_to_that_is_lost_is_said_and_not_replaced_by_the_bad_one(
    small: Small, three: list[str]
) -> None:
    roll_back(small.snapshots)
    snapshot_path(small.snapshots, three[1]).unlink()
    with pytest.raises(PublishError, match=f"{three[1]}.*missing or damaged.*bi-query rollback"):
        publish_by_itself(small)
    roll_back(small.snapshots, three[0])
    assert publish_by_itself(small).snapshot_id == three[0]


def test_the_list_says_which_is_current_and_which_was_left(small: Small, three: list[str]) -> None:
    (small.snapshots / "mine.duckdb").write_bytes(b"a user's file")
    roll_back(small.snapshots)
    kept = kept_snapshots(small.snapshots)
    assert [one.snapshot_id for one in kept] == three[::-1]
    assert [one.is_current for one in kept] == [False, True, False]
    assert [one.is_rolled_back for one in kept] == [True, False, False]
    assert all(one.file_bytes == snapshot_path(small.snapshots, one.snapshot_id).stat().st_size for one in kept)


def test_without_a_pointer_times_of_files_order_the_list(small: Small, three: list[str]) -> None:
    (small.snapshots / "current.json").write_bytes(b"\xff")
    for place, name in enumerate(three):
        os.utime(snapshot_path(small.snapshots, name), (1000 + place, 1000 + place))
    assert [one.snapshot_id for one in kept_snapshots(small.snapshots)] == three[::-1]
    assert roll_back(small.snapshots, three[1]).snapshot_id == current(small)


def test_a_rollback_waits_for_a_publish_and_then_refuses(
    small: Small, three: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bi_query.rollback._LOCK_WAIT_SECONDS", 0.3)
    with exclusive(small.snapshots), pytest.raises(PublishBusy, match="another publish is running"):
        roll_back(small.snapshots)
    assert current(small) == three[2]


def test_going_back_where_nothing_was_published_says_so(tmp_path: Path) -> None:
    with pytest.raises(PublishError, match="nothing was published"):
        roll_back(tmp_path / "missing")


def test_a_pointer_of_an_older_version_is_understood(small: Small, three: list[str]) -> None:
    (small.snapshots / "current.json").write_text(json.dumps({"snapshot_id": three[2], "published_at": 1.0}))
    for place, name in enumerate(three):
        os.utime(snapshot_path(small.snapshots, name), (1000 + place, 1000 + place))
    assert roll_back(small.snapshots).snapshot_id == three[1]
