"""Write the keys that recipes of other tools may have, read from those tools as installed: tests/recipe_keys.json.

    python -m venv keys && keys/bin/pip install axolotl llamafactory trl peft   # or their wheels on PYTHONPATH
    keys/bin/python tools/recipe_keys.py

Tests check every key that is written or looked for against it, so that none of them need be installed.
"""

import dataclasses
import datetime
import json
from importlib import import_module, metadata
from pathlib import Path

CLASSES = {
    "axolotl": ["axolotl.utils.schemas.config.AxolotlInputConfig", "axolotl.utils.schemas.datasets.SFTDataset"],
    "llamafactory": [
        "llamafactory.hparams.finetuning_args.FinetuningArguments",
        "llamafactory.hparams.data_args.DataArguments",
        "llamafactory.hparams.model_args.ModelArguments",
        "transformers.Seq2SeqTrainingArguments",
    ],
    "trl": [
        "trl.trainer.sft_config.SFTConfig",
        "trl.trainer.model_config.ModelConfig",
        "trl.scripts.utils.ScriptArguments",
    ],
    "peft": ["peft.LoraConfig"],
}
# Until transformers 5.2 it is warmup_ratio; llamafactory 0.9.5 asks for 4.55 to 5.6, of which 5.6 still reads it.
OLDER = {"llamafactory": ["warmup_ratio"]}


def keys(path: str) -> list[str]:
    """Names of the fields of a dataclass or of a pydantic model."""
    module, _, name = path.rpartition(".")
    found = getattr(import_module(module), name)
    return list(found.model_fields) if hasattr(found, "model_fields") else [f.name for f in dataclasses.fields(found)]


def main() -> None:
    written = {}
    for tool, paths in CLASSES.items():
        names = sorted({name for path in paths for name in keys(path)} | set(OLDER.get(tool, ())))
        read_on = datetime.date.today().isoformat()
        written[tool] = {"version": metadata.version(tool), "read_on": read_on, "keys": names}
    target = Path(__file__).parent.parent / "tests" / "recipe_keys.json"
    target.write_text(json.dumps(written, indent=0) + "\n")


if __name__ == "__main__":
    main()
