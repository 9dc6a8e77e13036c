"""BI Solution's query service: governed, cached SQL over immutable DuckDB snapshots of Parquet files."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("bi-query")
except PackageNotFoundError:  # a checkout on sys.path, not installed
    __version__ = "0.0.0+uninstalled"
