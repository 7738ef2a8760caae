"""What a GGUF says of itself at its beginning, read without loading what it holds. No torch."""

from pathlib import Path
from types import ModuleType
from typing import Any

from tunetrial.core.errors import ConfigError, ModelError
from tunetrial.core.loading import load
from tunetrial.models.adapters import FINGERPRINT

STATED = f"tunetrial.{FINGERPRINT}"  # GGUF keeps what it does not know: the base's weights, named in base and adapter


def package() -> ModuleType:
    """The package `gguf`, which writes and reads the format.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        return load("gguf")
    except ImportError:
        raise ConfigError("gguf: not installed, got no such package; pip install 'tunetrial[gguf]'") from None


def stated_base(path: Path) -> str | None:
    """The fingerprint of the base weights that a GGUF of ours was made of or for; None if it does not say.

    Raises:
        ModelError: It is not a GGUF, or its head is cut short.
    """
    stated = _stated(path, STATED)
    return None if stated is None else str(stated)


def stated_context(path: Path) -> int:
    """On how many tokens the model of a GGUF was trained.

    Raises:
        ModelError: As `stated_base`, or it does not say.
    """
    stated = _stated(path, f"{_stated(path, 'general.architecture')}.context_length")
    if stated is None:
        raise ModelError(f"{path}: states no length of context, got none; write it anew")
    return int(stated)


def _stated(path: Path, name: str) -> Any:
    try:
        field = package().GGUFReader(path).get_field(name)
    except (OSError, ValueError, IndexError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: not a GGUF that can be read, got {type(error).__name__}; write it anew") from None
    return None if field is None else field.contents()
