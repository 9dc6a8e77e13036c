"""Whether the service's memory grows for ever: in a long run it must not, once the first quarter has warmed it up."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from .verdict import Row, not_judged

# (seconds into the run, resident bytes); NaN where the service could not be read.
Readings = Sequence[tuple[float, float]]
SHORTEST_SECONDS = 600.0
MAY_GROW = 0.10
MAY_GROW_BYTES = 32 * 1024**2
TABLE_ROWS = 20
_MIB = 1024**2


def memory_row(readings: Readings, seconds: float, *, judged: bool) -> Row:
    """The last quarter's median beside the second quarter's, for a run that was to last `seconds`.

    Not judged in a run too short to tell. A long run that could not be read is a miss.
    """
    objective = f"grows < {100 * MAY_GROW:g} % or {MAY_GROW_BYTES // _MIB} MiB"
    if seconds < SHORTEST_SECONDS:
        return not_judged("memory", objective, "not measured")
    second, last = _median(readings, seconds / 4, seconds / 2), _median(readings, 3 * seconds / 4, seconds)
    if math.isnan(second) or math.isnan(last):
        return Row("memory", objective, "-", "nothing measured", False, None, judged)
    met = last - second <= max(MAY_GROW * second, MAY_GROW_BYTES)
    return Row("memory", objective, "-", f"{second / _MIB:.0f} -> {last / _MIB:.0f} MiB", met, None, judged)


def _median(readings: Readings, began: float, ended: float) -> float:
    values = [size for at, size in readings if began <= at <= ended and not math.isnan(size)]
    return statistics.median(values) if values else math.nan


def memory_table(readings: Sequence[Sequence[float | None]]) -> list[list[str]]:
    """Time and MiB, evenly over the run and with its last reading; first line is the head."""
    known = [(at, size) for at, size in readings if at is not None and size is not None]
    step = max(1, math.ceil((len(known) - 1) / (TABLE_ROWS - 1)))
    chosen = known[::step]
    if known and chosen[-1] is not known[-1]:
        chosen = [*chosen[: TABLE_ROWS - 1], known[-1]]
    return [["seconds", "MiB"], *([f"{at:.0f}", f"{size / _MIB:.0f}"] for at, size in chosen)]
