"""Tensors into a safetensors file, one at a time: as much memory as the largest of them, on host and device."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch

# Names of dtypes in the format's header (github.com/huggingface/safetensors, "Format").
NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
ALIGNED = 8


def write(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    *,
    dtypes: Mapping[str, torch.dtype] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write tensors, each as its own dtype or as `dtypes` says of it.

    `safetensors.torch.save_file` writes the same, but metadata in an order of chance, and holds a copy of all tensors
    of a GPU in the host's memory meanwhile: 12 bytes a weight for the state of full fine-tuning. Wider dtypes come
    first, so that all are aligned.

    Raises:
        OSError: The disk is full.
    """
    kinds = {name: (dtypes or {}).get(name, tensor.dtype) for name, tensor in tensors.items()}
    order = sorted(tensors, key=lambda name: (-kinds[name].itemsize, name))
    header, end = ({"__metadata__": dict(sorted(metadata.items()))} if metadata else {}), 0
    for name in order:
        start, end = end, end + tensors[name].numel() * kinds[name].itemsize
        shape = list(tensors[name].shape)
        header[name] = {"dtype": NAMES[kinds[name]], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNED)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            flat = tensors[name].detach().to("cpu", kinds[name]).contiguous().reshape(-1)
            file.write(flat.view(torch.uint8).numpy())
