"""A bound on the process's memory, at the container's: beyond it the system refuses memory instead of ending the process.

DuckDB keeps most of what it holds within its own limit, but asks the system directly for some of it: one value of a list
or a text, above all (`generate_series(1, 400000000)` is a single list of 3 GB). Without this bound the kernel answers by
killing the replica, and with it every query that runs there; with it, that one query fails and its memory comes back.
"""

from __future__ import annotations

import logging
import resource

from .settings import available_memory_bytes, physical_memory_bytes

logger = logging.getLogger(__name__)

_PUBLISHER_SHARE = 0.9  # its parent, `bi-query watch`, may live in the same container


def bound_publisher_memory() -> None:
    """Hold this process to most of the container's or the machine's memory.

    A Parquet file of a few kilobytes can make DuckDB ask for any amount while it reads the footer, outside of its own limit.
    """
    _bound(int(available_memory_bytes() * _PUBLISHER_SHARE))


def bound_memory() -> None:
    """Hold this process to its container's memory; does nothing outside of one.

    The image sets `DUCKDB_JE_MALLOC_CONF` so that DuckDB's allocator gives freed memory back to the system: what it kept
    would count against the bound for ever.
    """
    container_bytes = available_memory_bytes()
    if container_bytes < physical_memory_bytes():
        _bound(container_bytes)


def _bound(limit_bytes: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if all(set_before == resource.RLIM_INFINITY or limit_bytes <= set_before for set_before in (soft, hard)):
        resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, hard))
        logger.info("memory bounded", extra={"fields": {"bytes": limit_bytes}})
