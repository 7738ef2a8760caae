"""Base models: a name or folder in, a checked folder with a weight fingerprint out. No torch.

`embedded` is the base that travels inside the package; any other name is a local folder in the Hugging Face
layout. Weights are safetensors alone: a pickled checkpoint can run code when it is opened, so it is refused.
"""

import hashlib
from pathlib import Path

from tunetrial.core import manifest
from tunetrial.core.errors import IntegrityError, ModelError
from tunetrial.core.records import Record

EMBEDDED = Path(__file__).parent / "embedded" / "base"


class PinnedModel(Record):
    """A base model whose files were found and checked.

    `fingerprint` is the SHA-256 over the sorted `name:SHA-256` lines of its safetensors files: equal for equal
    weights in equal files, whatever the folder is called.
    """

    name: str
    folder: Path
    fingerprint: str


def resolve(base_model: str) -> PinnedModel:
    """Find a base model and check its files against its manifest, if it has one (`embedded` always has).

    Args:
        base_model: "embedded", or a folder with `config.json` and `*.safetensors`.
    Raises:
        ModelError: No such folder, or it lacks a config or safetensors weights.
        IntegrityError: A file is missing, truncated or altered (the message names it and its expected
            SHA-256), or its manifest does not list the config or the weights.
    """
    folder = EMBEDDED if base_model == "embedded" else Path(base_model).expanduser()
    if not folder.is_dir():
        raise ModelError(f"base_model: no such folder, got {base_model!r}; name a local folder, or 'embedded'")
    sealed = folder == EMBEDDED or (folder / manifest.NAME).exists()
    digests = manifest.check_manifest(folder) if sealed else {}
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder}: no config.json; name a folder in the Hugging Face layout")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        kinds = sorted({path.suffix for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".gguf")})
        found = f"weights in {', '.join(kinds)}" if kinds else "no weights"
        raise ModelError(f"{folder}: no *.safetensors, got {found}; save the model as safetensors first")
    for path in (folder / "config.json", *weights) if sealed else ():
        if path.name not in digests:
            raise IntegrityError(f"{path}: not listed in {manifest.NAME}; restore the folder or remove the file")
    lines = [f"{path.name}:{digests.get(path.name) or manifest.sha256(path)}" for path in weights]
    fingerprint = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return PinnedModel(name=base_model, folder=folder, fingerprint=fingerprint)
