"""What a base model is made of, from anything that names it: no weights, no GPU, and for many ids no network.

A model is named as `embedded`, a folder with `config.json`, such a file itself, an id of the Hub, or sizes written
inline (`written`). `known.json` holds the configurations of much-used models of the Hub, as far as they decide sizes,
memory and time, each with the number of weights that its publisher states; tests count both.
"""

import json
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from tunetrial.core.errors import ModelError
from tunetrial.core.records import Record
from tunetrial.models.bounds import Bound, bound
from tunetrial.models.families import FAMILIES
from tunetrial.models.hub import Repository, fetch
from tunetrial.models.sizes import ModelShape, read_config, shape_of, short
from tunetrial.models.written import EXAMPLE, IS_WRITTEN, read_written

EMBEDDED = Path(__file__).parent.parent / "embedded" / "base"
OF_THE_WHOLE = ("dtype", "torch_dtype", "tie_word_embeddings", "quantization_config")
KNOWN = Path(__file__).parent / "known.json"


class Described(Record):
    """A base model by its configuration alone: enough to plan, not enough to train.

    `config` is what `config.json` says, of a model with a part that reads images that of its language model. Where the
    family is known `shape` counts every weight and `bound` is None, else the other way round. `source` says where the
    configuration is from. `limit` says what the counts leave out or why the model cannot be trained as named; None
    where neither is known.
    """

    name: str
    config: dict[str, Any]
    shape: ModelShape | None = None
    bound: Bound | None = None
    source: str
    limit: str | None = None


def described(text: str, root: Path | None = None) -> Described:
    """Read the configuration of the model that the text names.

    Tried in this order: `embedded`, a folder or file, sizes written inline, an id of the Hub. Of an id `config.json`
    alone is fetched, through the Hub's cache; where that fails and the id, without a revision, is in `known.json`,
    what is known there serves, and `source` says so and why.

    Args:
        text: For example "embedded", "models/mine", "meta-llama/Llama-3.2-1B", or `written.EXAMPLE`.
        root: The folder that a relative path starts from; by default the current one.
    Raises:
        ModelError: Nothing of that name, or a configuration that is unreadable, incomplete or refused (`shape_of`).
    """
    if text == "embedded":
        return _of(text, read_config(EMBEDDED / "config.json"), "config.json", "in the package")
    path = _path(text, root or Path())
    if path is not None:
        file = path / "config.json" if path.is_dir() else path
        return _of(text, read_config(file), file, f"{'folder' if path.is_dir() else 'file'} {path}")
    if IS_WRITTEN.match(text):
        return _of(text, read_written(text), "model", "as written")
    repository = Repository.parse(text, "model")
    if repository is None:
        do = _nearest(text) or f"name a folder, a config.json, a model of the Hub as org/name, or sizes as in {EXAMPLE}"
        raise ModelError(f"model: no such folder or file, got {short(text)}; {do}")
    return _of_the_hub(text, repository)


def _path(text: str, root: Path) -> Path | None:
    """The folder or file of that name; None where there is none, or the text cannot be a path."""
    try:
        path = root / Path(text).expanduser()
        return path if text.strip() and (path.is_dir() or path.is_file()) else None
    except (OSError, ValueError, RuntimeError):
        return None


def _of_the_hub(text: str, repository: Repository) -> Described:
    try:
        folder, commit = fetch(repository, ("config.json",), ModelError)
    except ModelError as error:
        known = _known().get(text)
        if known is None:
            raise ModelError(f"model: {error}{_also_known(repository)}") from None
        reason = str(error).partition(", got ")[0]
        return _of(text, known, f"known offline: {text}", f"known offline since {_file()['date']}: {text}; {reason}")
    where = f"{repository.address}: config.json"
    if not (folder / "config.json").is_file():
        raise ModelError(f"{repository.address}: no config.json; name a model in the Hugging Face layout")
    return _of(text, read_config(folder / "config.json"), where, f"config.json of the Hub at commit {commit}")


def _of(name: str, config: dict[str, Any], where: object, source: str) -> Described:
    """Shape or bound of what a configuration says."""
    part, limit = _language_model(config)
    if isinstance(part.get("model_type"), str) and part["model_type"] in FAMILIES:
        return Described(name=name, config=part, shape=shape_of(part, where), source=source, limit=limit)
    unknown = f"unknown family, got {short(part.get('model_type'))}: its weights are bounded, not counted; not trained"
    limits = (limit, unknown) if limit else (unknown,)
    return Described(name=name, config=part, bound=bound(part, where), source=source, limit="; ".join(limits))


def _language_model(config: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
    """The part of a configuration that is of the language model, and what that leaves out."""
    text, family = config.get("text_config"), config.get("model_type")
    if not isinstance(text, dict) or family in FAMILIES:
        return config, None
    outer = {key: config[key] for key in OF_THE_WHOLE if key in config}
    limit = f"the language model of a {family} alone: its other parts are not counted, and it cannot be trained here"
    return outer | text, limit


@cache
def _file() -> dict[str, Any]:
    return json.loads(KNOWN.read_text(encoding="utf-8"))


@cache
def _known() -> dict[str, dict[str, Any]]:
    """Configurations by id: those that are listed under their own and those that share one."""
    return {id_: entry["config"] for name, entry in _file()["models"].items() for id_ in (name, *entry["same"])}


def _also_known(repository: Repository) -> str:
    if repository.repo in _known():
        return f"; or leave out the revision: {repository.repo} itself is known offline"
    near = _nearest(repository.repo)
    return f"; {near}" if near else ""


def _nearest(text: str) -> str:
    """Ids known offline that the text may have meant: by all of the id, or by what follows the organisation."""
    asked = text.lower()
    ids = {id_.lower(): id_ for id_ in _known()}
    names = {id_.partition("/")[2]: id_ for id_ in reversed(ids)}
    close = [names[name] for name in get_close_matches(asked.rpartition("/")[2], names, n=3, cutoff=0.6)]
    close += get_close_matches(asked, ids, n=3, cutoff=0.75)
    return f"known offline: {', '.join(list(dict.fromkeys(ids[id_] for id_ in close))[:3])}" if close else ""
