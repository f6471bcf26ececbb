"""Parquet files of unknown origin: the columns asked for, once the metadata says that they are of a size that the file
can be worth, and in parts, since a dictionary lets a few bytes stand for any number of large cells.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from diffusion_forcing.errors import UserError
from diffusion_forcing.limits import Refused, check_expansion, refusing

_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 12, "FLOAT": 4, "DOUBLE": 8}
"""Bytes of a value; those of text are counted when they are read."""
_PART_BYTES = 1 << 30
"""Largest part that is read at once, if every cell of it is as large as its whole column."""


def import_pyarrow() -> Any:
    """pyarrow, with parquet; UserError where it is not installed."""
    try:
        import pyarrow
        import pyarrow.compute
        import pyarrow.parquet
    except ImportError as missing:
        raise UserError("Parquet files need pyarrow: pip install -c constraints.txt -e '.[robot]'") from missing
    return pyarrow


def read_schema(path: Path) -> Any:
    """The arrow schema of a file. OSError, or `Refused` where it is damaged."""
    with refusing("is not a readable Parquet file"), import_pyarrow().parquet.ParquetFile(path) as parquet:
        return parquet.schema_arrow


def read_table(path: Path, columns: Collection[str] | None = None, *, only: tuple[str, int] | None = None) -> Any:
    """The arrow table of `columns`, or of all; `only`: of the rows where one of them, of integers, has a value. OSError,
    or `Refused` where the file is damaged or asks for more memory than it can be worth."""
    arrow = import_pyarrow()
    with refusing("is not a readable Parquet file"), arrow.parquet.ParquetFile(path) as parquet:
        schema, stored = parquet.schema_arrow, path.stat().st_size
        names = schema.names if columns is None else list(columns)
        for name in names:
            if name not in schema.names:
                raise Refused(f"has no column {name!r}")
        if len(set(names)) < len(names) or any(schema.names.count(name) > 1 for name in names):
            raise Refused("has two columns of one name")
        groups, largest, whole = _groups(parquet.metadata, names, only), 1, 0
        for group in groups:
            for chunk in _chunks(parquet.metadata.row_group(group), names):
                largest = max(largest, chunk.total_uncompressed_size)
                whole += max(chunk.num_values * _WIDTHS.get(chunk.physical_type, 1), chunk.total_uncompressed_size)
        check_expansion(whole, stored, "a table")
        batches, whole = [], 0
        rows = max(1, min(_PART_BYTES // largest, 1 << 16))
        for batch in parquet.iter_batches(rows, row_groups=groups, columns=names):
            if only:
                batch = batch.filter(arrow.compute.equal(batch.column(only[0]), only[1]))
            whole += batch.nbytes
            check_expansion(whole, stored, "a table")
            batches.append(batch)
        wanted = arrow.schema([schema.field(name) for name in names], metadata=schema.metadata)
        return arrow.Table.from_batches(batches, schema=batches[0].schema if batches else wanted).select(names)


def _chunks(group: Any, names: Collection[str]) -> list[Any]:
    chunks = [group.column(number) for number in range(group.num_columns)]
    return [chunk for chunk in chunks if any(f"{chunk.path_in_schema}.".startswith(f"{name}.") for name in names)]


def _groups(metadata: Any, names: Collection[str], only: tuple[str, int] | None) -> list[int]:
    """The row groups that may hold the rows of `only`."""
    found = []
    for number in range(metadata.num_row_groups):
        chunks = {chunk.path_in_schema: chunk for chunk in _chunks(metadata.row_group(number), names)}
        known = chunks[only[0]].statistics if only and only[0] in chunks else None
        if only is None or known is None or not known.has_min_max or known.min <= only[1] <= known.max:
            found.append(number)
    return found
