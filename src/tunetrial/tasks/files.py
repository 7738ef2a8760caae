"""Rows of JSONL, CSV and Parquet files, each with the number by which a person finds it."""

import csv
import difflib
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tunetrial.core.errors import DataError

SHOWN = 5


@dataclass(frozen=True)
class Row:
    """One row of a file: its number among the rows (the first is 1), its line in a text file, and its fields."""

    number: int
    line: int | None
    fields: dict

    @property
    def where(self) -> str:
        """How messages name it."""
        return f"row {self.number}" + (f" (line {self.line})" if self.line not in (None, self.number) else "")


def read(path: Path, where: str) -> list[Row]:
    """Read all rows of a file whose name ends in .jsonl, .csv or .parquet; text is UTF-8, with or without a mark.

    A line of JSONL is one object; empty lines are passed over. A CSV file has a header and commas; all its values are
    text. Nothing is repaired.

    Args:
        where: How messages name the file.
    Raises:
        DataError: There is no such file, it has another ending or encoding, no rows, or rows that cannot be read.
    """
    read_rows = READERS.get(path.suffix.lower())
    if read_rows is None:
        raise DataError(f"{where}: unknown kind of file, got ending {path.suffix!r}; use {', '.join(READERS)}")
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{where}: no such file, got {path}; {_advise(path)}") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{where}: cannot be read, got {error.args[-1]}; name a file that you may read") from None
    rows = read_rows(content, where)
    if not rows:
        raise DataError(f"{where}: has no rows, got {len(content)} bytes; add rows or name another file")
    return rows


def refuse(where: str, faults: Sequence[str], *, of: int) -> None:
    """Raise DataError with the first faults, if there are any, out of so many rows."""
    if faults:
        shown = "; ".join(faults[:SHOWN]) + (f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else "")
        raise DataError(f"{where}: {len(faults)} of {of} rows cannot be used: {shown}; mend or remove them")


def short(value: object) -> str:
    """A value as messages show it: on one line and not long."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _advise(path: Path) -> str:
    if not path.parent.is_dir():
        return f"make the folder {path.parent} or mend the path"
    there = sorted(entry.name for entry in path.parent.iterdir() if entry.suffix.lower() in READERS)
    near = difflib.get_close_matches(path.name, there) or there[:SHOWN]
    return f"that folder has {', '.join(near)}" if near else f"that folder has no {', '.join(READERS)} file"


def decode(content: bytes, where: str) -> str:
    """The text of a file in UTF-8, with or without a mark.

    Raises:
        DataError: It is in another encoding.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        guess = "UTF-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "another encoding"
        got = f"byte 0x{content[error.start]:02x} on line {line}"
        raise DataError(f"{where}: not UTF-8 (perhaps {guess}), got {got}; save it as UTF-8") from None


def _read_jsonl(content: bytes, where: str) -> list[Row]:
    rows, faults = [], []
    # Not splitlines: U+2028 and its like may stand inside a JSON string.
    for line, text in enumerate(decode(content, where).split("\n"), start=1):
        if not text.strip():
            continue
        fields: object = None
        try:
            fields = json.loads(text)
            fault = None if isinstance(fields, dict) else "not a JSON object"
        except json.JSONDecodeError as error:
            fault = f"not JSON ({error.msg} at column {error.colno})"
        except (ValueError, RecursionError) as error:
            fault = f"not readable JSON ({error})"
        row = Row(number=len(rows) + 1, line=line, fields=fields if isinstance(fields, dict) else {})
        rows.append(row)
        faults += [f"{row.where}: {fault}, got {short(text)}"] if fault else []
    refuse(where, faults, of=len(rows))
    return rows


def _read_csv(content: bytes, where: str) -> list[Row]:
    lines = _csv_lines(decode(content, where), where)
    _, header = next(lines, (1, []))
    _check_header(header, where)
    rows, faults = [], []
    for line, cells in lines:
        row = Row(number=len(rows) + 1, line=line, fields=dict(zip(header, cells, strict=False)))
        rows.append(row)
        if len(cells) != len(header):
            faults.append(f"{row.where}: needs {len(header)} cells as the header, got {len(cells)}")
    refuse(where, faults, of=len(rows))
    return rows


def _csv_lines(text: str, where: str) -> Iterator[tuple[int, list[str]]]:
    """The cells of each row that is not blank, with the line where it begins."""
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(f"{where}: line {line}: not CSV, got {error}; mend its quotes") from None
        if cells:
            yield line, cells


def _check_header(header: list[str], where: str) -> None:
    if len(header) == 1 and any(mark in header[0] for mark in ";\t|"):
        raise DataError(f"{where}: one column, got {header[0]!r}; save it with commas between the cells")
    twice = sorted({name for name in header if header.count(name) > 1 or not name.strip()})
    if twice:
        raise DataError(f"{where}: columns need one name each, got {twice[0]!r} twice or empty; rename them")


def _read_parquet(content: bytes, where: str) -> list[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(content))
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{where}: not a Parquet file, got {str(error).splitlines()[0]}; write it anew") from None
    _check_header(table.column_names, where)
    return [Row(number, None, fields) for number, fields in enumerate(table.to_pylist(), start=1)]


READERS: dict[str, Callable[[bytes, str], list[Row]]] = {
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
