"""Rows of data sets of the Hugging Face Hub: `hub:org/name[:config][@revision][#split]`, at one commit.

The files come through the Hub's own client and cache (`models.hub` says which environment variables count) and are
read by `datasets`; code of a data set is never run. Class labels stand as their names, and rows are numbered from 1.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tunetrial.core.errors import DataError
from tunetrial.models.hub import Repository, fetch
from tunetrial.tasks.files import Row

PREFIX = "hub:"
ID = re.compile(r"hub:(?P<repo>[^:@#]+)(:(?P<config>[^:@#]+))?(@(?P<revision>[^:@#]+))?(#(?P<split>[^:@#]+))?")
OURS = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
} | {"test": "test"}
ENDINGS = ("parquet", "jsonl", "json", "csv", "jsonl.gz", "json.gz", "csv.gz", "arrow")
UNLABELLED = (-1, None)

Rows = tuple[str, Sequence[Row]]


@dataclass(frozen=True)
class Named:
    """What an id names."""

    repository: Repository
    config: str | None
    split: str | None

    @classmethod
    def parse(cls, text: str) -> "Named":
        """Read an id.

        Raises:
            DataError: It is none.
        """
        found = ID.fullmatch(text)
        revision = f"@{found['revision']}" if found and found["revision"] else ""
        repository = Repository.parse(found["repo"] + revision, "dataset") if found else None
        if repository is None:
            raise DataError(
                f"{text}: not an id of the Hub; write hub:org/name, hub:org/name:config or either with @revision"
            )
        return cls(repository, found["config"], found["split"])


def read(text: str, role: str, target: str) -> tuple[dict[str, Rows], list[str]]:
    """Read what an id names, by our splits.

    Args:
        text: The id. Without a split it names for `role` "train" all splits that are called as ours are, else the
            split called as the role.
        target: The field of the target: a split in which no row has one (-1 or nothing) is not a split to judge by,
            and is left out with a remark.
    Returns:
        By split, how messages name it and its rows; and remarks.
    Raises:
        DataError: There is no such data set, config or split, it cannot be fetched, or cannot be read.
    """
    named = Named.parse(text)
    folder, commit = _fetch(named, text)
    tables = _tables(folder, named, text)
    base = text.partition("#")[0]
    remarks = [f"rows of {base} at commit {commit}"]
    if named.split is not None:
        return {role: (text, _rows(_pick(tables, named.split, text)))}, remarks
    found: dict[str, Rows] = {}
    for split in tables:
        ours = OURS.get(split)
        rows = _rows(tables[split]) if ours else []
        if ours is None:
            remarks.append(f"{base}: the split {split!r} is not used")
        elif ours != "train" and all(row.fields.get(target) in UNLABELLED for row in rows):
            remarks.append(f"{ours}: the split {split!r} of {base} has no labels and is not used")
        else:
            found[ours] = (f"{base}#{split}", rows)
    if role not in found:
        raise DataError(f"{text}: no split {role} with labels, got {', '.join(tables)}; add #split to the id")
    return (found if role == "train" else {role: found[role]}), remarks


def _fetch(named: Named, text: str) -> tuple[Path, str]:
    """The folder of the data set's files, as few as its card allows to tell, and its commit."""
    refuse = lambda what: DataError(f"{text}: {what}")  # noqa: E731
    folder, commit = fetch(named.repository, ["README.md"], refuse)
    pinned = Repository("dataset", named.repository.repo, commit)
    patterns = _files_of(folder, named.config) or [f"*.{ending}" for ending in ENDINGS]
    return fetch(pinned, ["README.md", *patterns], refuse)


def _files_of(folder: Path, config: str | None) -> list[str]:
    """Patterns of the files of one config, where the card lists them."""
    from huggingface_hub import DatasetCard

    card = folder / "README.md"
    if config is None or not card.is_file():
        return []
    listed = DatasetCard.load(card, ignore_metadata_errors=True).data.to_dict().get("configs") or []
    chosen = [one.get("data_files") for one in listed if isinstance(one, dict) and one.get("config_name") == config]
    return list(_paths(chosen))


def _paths(data_files: object) -> Iterator[str]:
    if isinstance(data_files, str):
        yield data_files
    elif isinstance(data_files, dict):
        yield from _paths(data_files.get("path"))
    elif isinstance(data_files, list):
        for one in data_files:
            yield from _paths(one)


def _tables(folder: Path, named: Named, text: str):
    """The splits of one config, by name."""
    import datasets
    import pyarrow

    datasets.disable_progress_bars()
    if not any(path.is_file() for ending in ENDINGS for path in folder.rglob(f"*.{ending}")):
        kinds = ", ".join(ENDINGS[:4])
        raise DataError(f"{text}: has no files of rows ({kinds}), and code is never run; use a data set that has")
    try:
        configs = datasets.get_dataset_config_names(str(folder))
        chosen = named.config or (configs[0] if len(configs) == 1 or configs[0] == "default" else None)
        if chosen not in configs:
            got = "got none" if named.config is None else f"got {named.config!r}"
            raise DataError(f"{text}: choose a config, {got}; write :config, one of {', '.join(configs[:20])}")
        return datasets.load_dataset(str(folder), chosen)
    except (datasets.exceptions.DatasetsError, pyarrow.ArrowException, ValueError, OSError) as error:
        first = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise DataError(f"{text}: cannot be read, got {first}; name files of your own, or another data set") from None


def _pick(tables, split: str, text: str):
    if split not in tables:
        raise DataError(f"{text}: no such split, got {split!r}; use one of {', '.join(tables)}")
    return tables[split]


def _rows(table) -> list[Row]:
    """Rows with class labels by name; what has no name, such as -1, stays."""
    from datasets import ClassLabel

    names = {column: kind.names for column, kind in table.features.items() if isinstance(kind, ClassLabel)}
    plain = table.with_format("arrow")[:].to_pylist()
    for fields in plain:
        for column, labels in names.items():
            number = fields[column]
            if number is not None and 0 <= number < len(labels):
                fields[column] = labels[number]
    return [Row(number, None, fields) for number, fields in enumerate(plain, start=1)]
