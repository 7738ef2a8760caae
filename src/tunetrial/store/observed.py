"""Tables of what was observed of a model besides its answers, as Parquet files: columns of one length."""

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tunetrial.core.errors import EvidenceError, IntegrityError
from tunetrial.core.evidence import Table
from tunetrial.core.records import digest


def settle(table: Mapping[str, object], where: str) -> dict[str, np.ndarray]:
    """Bring columns to the types in which they are kept: int64, float64 in which nan is a missing value, or text.

    Raises:
        EvidenceError: There is no column or row, columns differ in length, or one holds something else or inf.
    """
    settled = {name: _settle(column, f"{where}: {name}") for name, column in table.items()}
    lengths = sorted({len(column) for column in settled.values()})
    if len(lengths) != 1 or lengths[0] == 0:
        raise EvidenceError(f"{where}: needs columns of one length, 1 or more, got {lengths}; observe again")
    return settled


def table_digest(table: Table) -> str:
    """SHA-256 of a settled table, independent of file format and of the order of its columns: of numbers, by their
    bytes, since some tables have hundreds of thousands."""
    return digest({name: _content(column) for name, column in table.items()})


def _content(column: np.ndarray) -> list[str]:
    if column.dtype == object:
        return column.tolist()
    little = np.where(np.isnan(column), np.nan, column) if column.dtype.kind == "f" else column
    return [hashlib.sha256(little.astype(f"<{column.dtype.kind}8").tobytes()).hexdigest()]


def to_parquet(table: Table) -> bytes:
    """Write a settled table."""
    import pyarrow as pa
    from pyarrow import parquet

    columns = {
        name: pa.array(column.tolist(), pa.string()) if column.dtype == object else pa.array(column, from_pandas=True)
        for name, column in table.items()
    }
    buffer = io.BytesIO()
    parquet.write_table(pa.table(columns), buffer, compression="zstd", use_dictionary=_texts(table))
    return buffer.getvalue()


def _texts(table: Table) -> list[str]:
    return [name for name, column in table.items() if column.dtype == object]


def read_parquet(path: Path, expected: str) -> dict[str, np.ndarray]:
    """Read a table and check its digest.

    Raises:
        IntegrityError: The file is no table, or its content has another digest than `expected`.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        read = parquet.ParquetFile(path).read()
        table = settle({name: _column(read[name]) for name in read.column_names}, str(path))
    except (OSError, pa.ArrowException, EvidenceError) as error:
        raise IntegrityError(f"{path}: not a table of this version, got {error!r}; restore it") from None
    found = table_digest(table)
    if found != expected:
        raise IntegrityError(f"{path}: expected a table with SHA-256 {expected}, got SHA-256 {found}; restore it")
    return table


def _column(column: object) -> object:
    import pyarrow as pa

    return column.to_pylist() if pa.types.is_string(column.type) else column.to_numpy()


def _settle(column: object, where: str) -> np.ndarray:
    values = np.asarray(column)
    if values.ndim == 1 and values.dtype.kind in "iu":
        return values.astype(np.int64)
    if values.ndim == 1 and values.dtype.kind == "f" and not np.isinf(values).any():
        return values.astype(np.float64)
    if values.ndim == 1 and values.dtype.kind in "UO" and all(isinstance(value, str) for value in values.tolist()):
        return values.astype(object)
    raise EvidenceError(f"{where}: must hold finite numbers or text, got {values!r:.80}; observe again")
