"""A combination of adapters into a folder: a PEFT adapter with its card, whole or not at all."""

from pathlib import Path
from typing import TYPE_CHECKING

from tunetrial import methods
from tunetrial.core import files, manifest
from tunetrial.core.combination import Combination, called
from tunetrial.core.records import digest
from tunetrial.core.study import Lock
from tunetrial.engine import combine, merge
from tunetrial.models import PinnedModel
from tunetrial.models.adapters import read_adapter
from tunetrial.report import combination as report
from tunetrial.report.text import escape
from tunetrial.ship.shipped import Shipped

if TYPE_CHECKING:
    from tunetrial.engine.combine import Adapter

RECORD = "combination.json"
LONGEST = 200


def write(found: Combination, adapter: "Adapter", *, lock: Lock, base: PinnedModel, like: Path, to: Path) -> None:
    """Write the combination that is kept, what was found of it, and `tunetrial.json`, as `ship` does.

    Args:
        like: The folder of an adapter that it was made of.
    Raises:
        StoreError: `to` holds something already, or cannot be written; nothing is left there then.
        IntegrityError: What was made is not finite, or changes nothing.
    """
    name = lock.study.base_of(found.arm)
    place = name.partition("@")[0] if base.revision else str(base.folder)
    with files.new_folder(to.absolute()) as folder:
        combine.write(adapter, like, folder, base=base, place=place)
        merge.adapter_weights(read_adapter(folder), base)
        (folder / RECORD).write_text(found.model_dump_json(indent=1) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(_card(found, lock, base), encoding="utf-8")
        stated = {"base_fingerprint": base.fingerprint, "study": lock.digest, "trial": _name(found, lock)}
        stated["base_bytes"] = sum(path.stat().st_size for path in base.folder.glob("*.safetensors"))
        Shipped(format="adapter", arm=called(found.arm, found.written), verdict=_verdict(found), **stated).write(folder)
        manifest.seal(folder)


def _name(found: Combination, lock: Lock) -> str:
    """A name for these weights, in place of a trial's: the same for the same request of the same study."""
    made = found.of(found.written)
    asked = [made.recipe.model_dump(mode="json"), made.chosen.setting.model_dump(mode="json"), found.seed]
    return digest([lock.digest, found.arm, *asked])[:16]


def _verdict(found: Combination) -> str:
    """What was decided against each task's own adapter."""
    own, written = {f"{found.arm} of {task}" for task in found.metrics}, called(found.arm, found.written)
    beside = (one for one in found.comparisons if one.candidate == written and one.reference in own)
    text = "; ".join(f"{one.task}: {one.words}" for one in beside)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _card(found: Combination, lock: Lock, base: PinnedModel) -> str:
    tasks, storage = ", ".join(found.metrics), methods.find(lock.study.arm(found.arm)).storage
    beside = (
        f"- Trained and scored beside a base in {storage}; on the base itself it computes nearly, not exactly, what "
        "was scored.\n"
    )
    return (
        f"# {called(found.arm, found.written)}, for {tasks}\n\n"
        f"A PEFT adapter that serves several tasks, made and chosen by a tunetrial study. "
        f"Question: {escape(lock.study.question)}\n\n"
        f"{report.text(found)}\n"
        f"- base fingerprint: {base.fingerprint}\n- study: {lock.digest}\n"
        f"{'' if storage == 'plain' else beside}"
        "- Results hold for rows like those of the study. The results are means over seeds; this is one of them.\n"
        "- The base's licence holds for what is made of it: look it up before you pass this on.\n"
    )
