"""Which data and which catalogue: the user's own, or the demo."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .catalogue_dir import catalogue_dir
from .settings import Settings
from .snapshot_files import SnapshotUnusable, read_pointer
from .sources import demo_data_dir, has_data


@dataclass(frozen=True)
class Inputs:
    """What goes into a publish."""

    data_dir: Path
    catalogue_dir: Path | None
    is_demo: bool = False


def inputs(settings: Settings) -> Inputs:
    """What a publish would read now. Raises `PublishError` when the demo is wanted and not installed."""
    is_demo = settings.data_dir is None or (
        settings.demo_when_empty and not has_data(settings.data_dir) and not _serves_own_data(settings.snapshot_dir)
    )
    data_dir = demo_data_dir() if is_demo or settings.data_dir is None else settings.data_dir
    return Inputs(data_dir, catalogue_dir(settings, is_demo), is_demo)


def _serves_own_data(folder: Path) -> bool:
    """Whether something else than the demo is published: a data folder that is empty then is a fault (a lost mount, say)."""
    try:
        pointer = read_pointer(folder)
    except SnapshotUnusable:
        return True
    return pointer is not None and not pointer.is_demo
