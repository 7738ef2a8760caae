"""Base models: a name or folder in, a checked folder with a weight fingerprint out. No torch.

`embedded` is the base that travels inside the package; any other name is a local folder in the Hugging Face
layout. Weights are safetensors alone: a pickled checkpoint can run code when it is opened, so it is refused.
"""

import hashlib
import json
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


class ModelShape(Record):
    """The sizes of a decoder, from its `config.json`: enough to count weights without loading any.

    `projections` are the linear layers of one block: name -> (inputs, outputs).
    """

    model_type: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    context: int
    tied: bool
    bytes_per_weight: int
    projections: dict[str, tuple[int, int]]

    @property
    def block_parameters(self) -> int:
        """Weights of one block: its projections and two norms."""
        return sum(inputs * outputs for inputs, outputs in self.projections.values()) + 2 * self.hidden

    @property
    def backbone_parameters(self) -> int:
        """Embedding, blocks and the last norm; without the language-model head."""
        return self.vocabulary * self.hidden + self.layers * self.block_parameters + self.hidden

    @property
    def parameters(self) -> int:
        """All weights, a tied head counted once."""
        return self.backbone_parameters + (0 if self.tied else self.vocabulary * self.hidden)


def shape(folder: Path) -> ModelShape:
    """Read the shape of the model in `folder`.

    Raises:
        ModelError: `config.json` is not JSON, lacks a size, or is of a family that this version does not know.
    """
    where = folder / "config.json"
    try:
        config = json.loads(where.read_text(encoding="utf-8"))
        family = config.get("model_type")
        if family != "llama" or config.get("attention_bias") or config.get("mlp_bias"):
            kind = f"{family} with biases" if family == "llama" else repr(family)
            raise ModelError(f"{where}: model_type: not supported yet, got {kind}; use a model of the Llama family")
        return _llama_shape(config)
    except (ValueError, AttributeError, UnicodeDecodeError) as error:
        raise ModelError(f"{where}: not a model configuration, got {error}; restore the file") from None
    except KeyError as error:
        raise ModelError(f"{where}: {error.args[0]}: missing, got no such key; restore the file") from None
    except TypeError:
        raise ModelError(f"{where}: a size is not a number; restore the file") from None


def _llama_shape(config: dict) -> ModelShape:
    hidden, heads, intermediate = config["hidden_size"], config["num_attention_heads"], config["intermediate_size"]
    kv_heads = config.get("num_key_value_heads") or heads
    head_dim = config.get("head_dim") or hidden // heads
    dtype = config.get("dtype") or config.get("torch_dtype") or "float32"
    return ModelShape(
        model_type="llama",
        layers=config["num_hidden_layers"],
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate=intermediate,
        vocabulary=config["vocab_size"],
        context=config["max_position_embeddings"],
        tied=bool(config.get("tie_word_embeddings", False)),
        bytes_per_weight=4 if dtype == "float32" else 2,
        projections={
            "q_proj": (hidden, heads * head_dim),
            "k_proj": (hidden, kv_heads * head_dim),
            "v_proj": (hidden, kv_heads * head_dim),
            "o_proj": (heads * head_dim, hidden),
            "gate_proj": (hidden, intermediate),
            "up_proj": (hidden, intermediate),
            "down_proj": (intermediate, hidden),
        },
    )
