"""Plain texts that a model is not trained on, from a file of one's own: what it may forget is measured on them."""

from dataclasses import dataclass
from pathlib import Path

from tunetrial.core.errors import DataError
from tunetrial.tasks import files

END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True)
class PlainText:
    """One text; `cluster` groups texts of one source, which are not independent of each other."""

    id: str
    cluster: str
    text: str


def read_texts(path: Path) -> tuple[PlainText, ...]:
    """Read the texts of a file.

    A JSONL, CSV or Parquet file has a field `text` and may have `id` (else the row's number) and `cluster` (else the
    id); other fields are passed over. A .txt file is texts with a line `<|endoftext|>` between them, and one text
    without; blank space at both ends of a text is left out. It does not find out whether a base has seen the texts.

    Raises:
        DataError: The file cannot be read, a text is empty or no text, or an id stands twice.
    """
    texts = _read_txt(path) if path.suffix.lower() == ".txt" else _read_rows(path)
    seen: set[str] = set()
    twice = [text.id for text in texts if text.id in seen or seen.add(text.id)]
    files.refuse(path.name, [f"id {own!r} stands twice" for own in twice], of=len(texts))
    return texts


def _read_rows(path: Path) -> tuple[PlainText, ...]:
    texts, faults = [], []
    rows = files.read(path, path.name)
    for row in rows:
        text, own = row.fields.get("text"), row.fields.get("id", row.number)
        if not isinstance(text, str) or not text.strip():
            faults.append(f"{row.where}: needs a field 'text' that is not empty, got {files.short(text)}")
            continue
        texts.append(PlainText(str(own), str(row.fields.get("cluster", own)), text))
    files.refuse(path.name, faults, of=len(rows))
    return tuple(texts)


def _read_txt(path: Path) -> tuple[PlainText, ...]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path.name}: cannot be read, got {error.args[-1]}; name a file that you may read") from None
    parts: list[list[str]] = [[]]
    for line in files.decode(content, path.name).split("\n"):
        if line.strip() == END_OF_TEXT:
            parts.append([])
        else:
            parts[-1].append(line)
    texts = [text for text in ("\n".join(part).strip() for part in parts) if text]
    if not texts:
        raise DataError(f"{path.name}: has no text, got {len(content)} bytes; add some or name another file")
    return tuple(PlainText(str(number), str(number), text) for number, text in enumerate(texts, start=1))
