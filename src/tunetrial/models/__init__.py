"""Base models: a name, folder or Hub id in, a checked folder with a weight fingerprint out. No torch.

`embedded` is the base that travels inside the package; any other name is a local folder in the Hugging Face layout or
an id of the Hub. Weights are safetensors alone: a pickled checkpoint can run code when it is opened, so it is refused,
and so is a model that brings code of its own.
"""

import hashlib
import json
from pathlib import Path

from tunetrial.core import manifest
from tunetrial.core.errors import IntegrityError, ModelError
from tunetrial.core.records import Record
from tunetrial.core.study import Lock
from tunetrial.models.bounds import Bound
from tunetrial.models.hub import Repository, fetch, listed
from tunetrial.models.named import EMBEDDED, Described, described
from tunetrial.models.sizes import ModelShape, shape, shape_of

__all__ = [
    "EMBEDDED",
    "Bound",
    "Described",
    "ModelShape",
    "PinnedModel",
    "described",
    "of_arm",
    "resolve",
    "shape",
    "shape_of",
    "weight_files",
]

INDEX = "model.safetensors.index.json"
PICKLED = (".bin", ".pt", ".pth", ".gguf")
WANTED = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "*.model",
    "vocab.*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.*",
    "model.safetensors",
    "model-*.safetensors",
    INDEX,
)


class PinnedModel(Record):
    """A base model whose files were found and checked.

    `fingerprint` is the SHA-256 over the sorted `name:SHA-256` lines of its safetensors files: equal for equal
    weights in equal files, whatever the folder is called. `revision` is the commit of a model from the Hub.
    """

    name: str
    folder: Path
    fingerprint: str
    revision: str | None = None


def resolve(base_model: str, root: Path | None = None) -> PinnedModel:
    """Find a base model and check its files against its manifest, if it has one (`embedded` always has).

    A folder is preferred to an id of the same name.

    Args:
        base_model: "embedded", a folder with `config.json` and `*.safetensors`, or `org/name[@revision]`.
        root: The folder that a relative path starts from; by default the current one.
    Raises:
        ModelError: No such folder or model, or it lacks a config or safetensors weights.
        IntegrityError: A file is missing, truncated or altered (the message names it and its expected
            SHA-256), or its manifest does not list the config or the weights.
    """
    folder = EMBEDDED if base_model == "embedded" else ((root or Path()) / Path(base_model).expanduser()).absolute()
    repository, revision = None, None
    if not folder.is_dir():
        repository = Repository.parse(base_model, "model")
        if repository is None:
            remedy = "name a local folder, a model of the Hub as org/name, or 'embedded'"
            raise ModelError(f"base_model: no such folder, got {base_model!r}; {remedy}")
        no_folder = f"base_model: no folder {base_model} here; as a model of the Hub:"
        folder, revision = fetch(repository, WANTED, lambda what: ModelError(f"{no_folder} {what}"))
    weights, digests = _weights(folder, repository)
    lines = [f"{path.name}:{digests.get(path.name) or manifest.sha256(path)}" for path in weights]
    fingerprint = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return PinnedModel(name=base_model, folder=folder, fingerprint=fingerprint, revision=revision)


def of_arm(lock: Lock, arm: str, root: Path | None = None) -> PinnedModel:
    """Find the base that an arm of a locked study was trained on.

    Raises:
        ModelError: As `resolve`.
        IntegrityError: Its weights are others now.
    """
    pin, name = lock.base(arm), lock.study.base_of(arm)
    base = resolve(f"{name.partition('@')[0]}@{pin.revision}" if pin.revision else name, root)
    if base.fingerprint != pin.fingerprint:
        got = f"got fingerprint {base.fingerprint[:12]}, the runs have {pin.fingerprint[:12]}"
        raise IntegrityError(f"{base.folder}: not the base that {arm} was trained on, {got}; restore its weights")
    return base


def _weights(folder: Path, repository: Repository | None) -> tuple[list[Path], dict[str, str]]:
    """The files that hold the weights, and the digests of those that a manifest lists."""
    sealed = folder == EMBEDDED or (folder / manifest.NAME).exists()
    digests = manifest.check_manifest(folder) if sealed else {}
    where = repository.address if repository else folder
    if not (folder / "config.json").is_file():
        raise ModelError(f"{where}: no config.json; name a model in the Hugging Face layout")
    there = sorted(folder.glob("*.safetensors"))
    if not there:
        names = listed(repository, folder.name) if repository else [path.name for path in folder.iterdir()]
        kinds = sorted({Path(name).suffix for name in names} & set(PICKLED))
        found = f"weights in {', '.join(kinds)}" if kinds else "no weights"
        raise ModelError(f"{where}: no *.safetensors, got {found}; save the model as safetensors first")
    for path in (folder / "config.json", *there) if sealed else ():
        if path.name not in digests:
            raise IntegrityError(f"{path}: not listed in {manifest.NAME}; restore the folder or remove the file")
    return weight_files(folder), digests


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold a model's weights: those that transformers loads, where they have the usual
    names."""
    return _loaded(folder) or sorted(folder.glob("*.safetensors"))


def _loaded(folder: Path) -> list[Path]:
    """The files that transformers loads, where they have the usual names."""
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if not (folder / INDEX).is_file():
        return []
    try:
        names = sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
        shards = [folder / Path(name).name for name in names]
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ModelError(f"{folder / INDEX}: not an index of weights; restore the file") from None
    missing = [path.name for path in shards if not path.is_file()]
    if missing:
        got = f"got {len(shards) - len(missing)} of {len(shards)} files"
        raise ModelError(f"{folder}: {missing[0]} is missing, {got}; copy or download the rest")
    return shards
