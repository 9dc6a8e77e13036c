"""Which catalogue a process uses."""

from __future__ import annotations

from pathlib import Path

from .settings import Settings


def catalogue_dir(settings: Settings, is_demo: bool | None = None) -> Path | None:
    """The catalogue in use: the one set; else the demo's for the demo data; else none (your data, no named queries).

    `is_demo` says what the data are, where that is known better than by whether a data folder is set.
    """
    if settings.catalogue_dir is not None:
        return settings.catalogue_dir
    return demo_catalogue_dir() if (settings.data_dir is None if is_demo is None else is_demo) else None


def demo_catalogue_dir() -> Path:
    """The demo's catalogue: inside the installed package, or beside the source in a checkout."""
    packaged = Path(__file__).parent / "demo_catalogue"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "catalogue"
