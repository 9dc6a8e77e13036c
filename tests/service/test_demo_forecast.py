"""The demo's forecast, computed again in Python from the raw sales; its back-test knows nothing of its weeks."""

from __future__ import annotations

import re
from datetime import date, timedelta
from math import sqrt
from pathlib import Path
from typing import Any

import duckdb
import pytest

from tests.support.demo_data import Demo, close, fetch, with_local_days

MODELS = Path(__file__).resolve().parents[2] / "services" / "query" / "catalogue" / "models"
FORECAST_MODELS = (
    "sales_lines",
    "calendar",
    "calendar_weeks",
    "basket_departments",
    "department_weeks",
    "forecast_parameters",
    "forecast_steps",
)
ALPHAS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9)
EFFECTS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
FIRST_WEEK, LAST_WEEK, BACKTEST_WEEKS = 2, 53, 8


@pytest.fixture(scope="module")
def lines(demo: Demo) -> duckdb.DuckDBPyConnection:
    return with_local_days(demo)


def weekly_sales(lines: duckdb.DuckDBPyConnection, department: str) -> list[float]:
    """Sales of weeks 2 to 53 (the full ones), zero where nothing was sold."""
    where = "true" if department == "ALL DEPARTMENTS" else "department = ?"
    values = [] if department == "ALL DEPARTMENTS" else [department]
    sales = dict(fetch(lines, f"select week, sum(sales_value) from lines where {where} group by week", *values))
    return [sales.get(week, 0.0) for week in range(FIRST_WEEK, LAST_WEEK + 1)]


def month_start_share(week: int) -> float:
    """Part of a week's days that are a month's first to seventh."""
    monday = date(2016, 12, 26) + timedelta(weeks=week - 1)
    return sum((monday + timedelta(days=day)).day <= 7 for day in range(7)) / 7


def smooth(sales: list[float], alpha: float, effect: float) -> tuple[list[float], float, float]:
    """Exponential smoothing: one-step forecasts from the fifth week on, last level, adjusted error spread."""
    factors = [1 + effect * month_start_share(FIRST_WEEK + index) for index in range(len(sales))]
    level = sum(sales[index] / factors[index] for index in range(4)) / 4
    forecasts, squares = [], 0.0
    for index in range(4, len(sales)):
        forecasts.append(level * factors[index])
        error = sales[index] / factors[index] - level
        level += alpha * error
        squares += error * error
    return forecasts, level, sqrt(squares / (len(sales) - 4))


def choose(training: list[float]) -> tuple[float, float]:
    """The parameters with the smallest mean squared one-step error."""

    def score(candidate: tuple[float, float]) -> float:
        forecasts, _, _ = smooth(training, *candidate)
        return round(sum((a - f) ** 2 for a, f in zip(training[4:], forecasts, strict=True)) / len(forecasts), 6)

    return min(((alpha, effect) for alpha in ALPHAS for effect in EFFECTS), key=lambda item: (score(item), item))


@pytest.mark.parametrize("department", ["GROCERY", "MEAT-PCKGD", "GARDEN CENTER", "ALL DEPARTMENTS"])
def test_the_reported_backtest_is_what_python_finds_from_the_raw_sales(
    demo: Demo, lines: duckdb.DuckDBPyConnection, department: str
) -> None:
    sales = weekly_sales(lines, department)
    alpha, effect = choose(sales[:-BACKTEST_WEEKS])
    forecasts, level, spread = smooth(sales, alpha, effect)
    actual, last_forecasts, naive = sales[-8:], forecasts[-8:], sales[-9:-1]
    errors = [abs(a - f) for a, f in zip(actual, last_forecasts, strict=True)]
    naive_errors = [abs(a - n) for a, n in zip(actual, naive, strict=True)]

    answer = demo.rows("sales_forecast", department=department, weeks=8)
    for row in answer:
        horizon = row["horizon_weeks"]
        factor = 1 + effect * month_start_share(LAST_WEEK + horizon)
        width = 1.2816 * spread * factor * sqrt(1 + (horizon - 1) * alpha**2)
        assert (row["alpha"], row["month_start_effect"]) == (alpha, effect)
        assert close(row["forecast_usd"], level * factor)
        assert close(row["upper_80_usd"], level * factor + width)
        assert close(row["backtest_mae_usd"], sum(errors) / 8)
        assert close(row["backtest_naive_mae_usd"], sum(naive_errors) / 8)
        assert close(row["backtest_wape_pct"], 100 * sum(errors) / sum(actual))
        assert close(row["backtest_naive_wape_pct"], 100 * sum(naive_errors) / sum(actual))
    by_week = demo.rows("forecast_backtest", department=department, weeks=8)
    assert all(close(row["forecast_usd"], forecast) for row, forecast in zip(by_week, last_forecasts, strict=True))
    assert all(close(row["naive_usd"], last) for row, last in zip(by_week, naive, strict=True))
    assert [row["week"] for row in by_week] == list(range(46, 54))
    assert all(row["in_backtest"] for row in by_week)


def test_intervals_hold_the_forecast_and_widen_with_the_horizon(demo: Demo) -> None:
    rows = demo.rows("sales_forecast", weeks=26)
    departments = {row["department"] for row in rows}
    assert len(rows) == 26 * len(departments)
    assert "ALL DEPARTMENTS" not in departments
    for row in rows:
        bounds = [row[key] for key in ("lower_95_usd", "lower_80_usd", "forecast_usd", "upper_80_usd", "upper_95_usd")]
        assert bounds == sorted(bounds)
        assert bounds[0] >= 0
    meat = [row for row in rows if row["department"] == "MEAT"]
    widths = [row["upper_95_usd"] / row["forecast_usd"] for row in meat]
    assert widths == sorted(widths)
    assert widths[-1] > widths[0]
    assert [row["week_start"] for row in meat[:2]] == ["2018-01-01", "2018-01-08"]


def test_the_forecast_beats_the_naive_one_taken_together_and_says_where_it_does_not(demo: Demo) -> None:
    [pooled] = demo.rows("forecast_accuracy", scope="pooled")
    departments = demo.rows("forecast_accuracy", scope="department")
    assert pooled["wape_pct"] < pooled["naive_wape_pct"]
    assert pooled["beats_naive"]
    assert sum(row["beats_naive"] for row in departments) > len(departments) / 2
    # Pooled figures are those of the departments added up, so no bad department is left out.
    assert abs(pooled["mae_usd"] * len(departments) - sum(row["mae_usd"] for row in departments)) < 0.5
    assert all(row["beats_naive"] == (row["mae_usd"] < row["naive_mae_usd"]) for row in departments)
    assert all((row["wape_pct"] is None) == (row["mean_sales_usd"] == 0) for row in departments)


def forecast_tables(raw: duckdb.DuckDBPyConnection, change: str) -> tuple[list[Any], list[Any]]:
    """Parameters, and forecasts up to week 46, of the catalogue's own models on transactions with sales changed by SQL."""
    connection = duckdb.connect()
    try:
        sales = raw.sql(f"select * replace ({change} as sales_value) from transactions").to_arrow_table()
        connection.register("transactions", sales)
        connection.register("products", raw.sql("from products").to_arrow_table())
        for name in FORECAST_MODELS:
            connection.execute(f"create table {name} as {(MODELS / f'{name}.sql').read_text(encoding='utf-8')}")
        parameters = connection.execute("from forecast_parameters order by department").fetchall()
        steps = "select department, week, round(forecast_usd, 4) from forecast_steps where week <= 46 order by 1, 2"
        return parameters, connection.execute(steps).fetchall()
    finally:
        connection.close()


def test_changing_the_backtest_weeks_changes_neither_parameters_nor_earlier_forecasts(demo: Demo) -> None:
    # Week 46 is the first week of the window: its forecast, too, is made from the weeks before it.
    before = forecast_tables(demo.raw, "sales_value")
    after = forecast_tables(
        demo.raw, "case when week >= 46 then round(sales_value * (1 + week % 3), 2) else sales_value end"
    )
    assert before == after
    earlier = forecast_tables(demo.raw, "case when week = 45 then sales_value * 3 else sales_value end")
    assert earlier != before


def test_the_models_of_the_forecast_test_are_all_that_the_forecast_reads() -> None:
    known = {path.stem for path in MODELS.glob("*.sql")}
    for name in FORECAST_MODELS:
        sql = re.sub(r"/\*.*?\*/|--[^\n]*", "", (MODELS / f"{name}.sql").read_text(encoding="utf-8"), flags=re.DOTALL)
        read = set(re.findall(r"(?:from|join)\s+([a-z_]+)", sql)) & known
        assert read <= set(FORECAST_MODELS)
