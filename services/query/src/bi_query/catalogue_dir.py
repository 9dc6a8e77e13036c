"""Which catalogue a process uses."""

from __future__ import annotations

from pathlib import Path

from .settings import Settings


def catalogue_dir(settings: Settings) -> Path | None:
    """The catalogue in use: the one set; else the demo's for the demo data; else none (your data, no named queries)."""
    if settings.catalogue_dir is not None:
        return settings.catalogue_dir
    return None if settings.data_dir is not None else demo_catalogue_dir()


def demo_catalogue_dir() -> Path:
    """The demo's catalogue: inside the installed package, or beside the source in a checkout."""
    packaged = Path(__file__).parent / "demo_catalogue"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "catalogue"
