"""A whole model that was saved, asked as it was trained to be asked."""

from pathlib import Path

from safetensors import safe_open

from tunetrial.core.errors import ModelError
from tunetrial.core.evidence import TaskData
from tunetrial.core.study import Trial
from tunetrial.engine.readout import Readout
from tunetrial.engine.torch_engine import TorchEngine
from tunetrial.engine.untuned import UntunedRun
from tunetrial.models.adapters import READOUT


def open_saved(folder: Path, trial: Trial, data: TaskData) -> UntunedRun:
    """A run that answers by the model in `folder`, with the head that lies there if answers are read by one.

    Args:
        trial: Of the method `none`, with the controls that the model was trained under.
    Raises:
        ModelError: Its head is not one layer without a bias.
    """
    session = TorchEngine().open(folder, trial.controls.precision)
    [run] = session.start_pack([trial], data).runs
    if trial.controls.readout == "head":
        if session.shape.encoding is not None:
            raise ModelError(f"{folder}: only decoders are scored again, got {session.shape.model_type}; leave it out")
        with safe_open(folder / "model.safetensors", framework="pt") as file:
            head = file.get_tensor("score.weight")
        classifier = run.reader.model
        classifier.score.weight.data.copy_(head[None])
        run.reader.readout = classifier.readout = Readout.model_validate_json((folder / READOUT).read_bytes())
    return run
