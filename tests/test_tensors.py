"""Tensors written one at a time are what safetensors reads."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tunetrial.engine import tensors


def test_what_is_written_is_what_safetensors_reads(tmp_path):
    drawn = torch.Generator().manual_seed(0)
    made = {
        "wide": torch.randn(3, 5, generator=drawn, dtype=torch.float64),
        "turned": torch.randn(4, 6, generator=drawn).t(),
        "half": torch.randn(7, generator=drawn).to(torch.bfloat16),
        "float16": torch.randn(2, 2, generator=drawn).half(),
        "step": torch.tensor(3.0),
        "none": torch.zeros(0, 4),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "count": torch.tensor([2**40]),
        "marks": torch.tensor([True, False]),
    }
    tensors.write(tmp_path / "a.safetensors", made, metadata={"format": "pt"})
    read = load_file(tmp_path / "a.safetensors")
    assert read.keys() == made.keys()
    assert all(read[name].dtype == made[name].dtype and torch.equal(read[name], made[name]) for name in made)
    content = (tmp_path / "a.safetensors").read_bytes()
    head = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert head["__metadata__"] == {"format": "pt"}


def test_dtypes_are_changed_on_the_way_and_the_tensors_are_not(tmp_path):
    made = {"w": torch.tensor([1.0, 1.001]), "head": torch.tensor([1.001], requires_grad=True)}
    tensors.write(tmp_path / "a.safetensors", made, dtypes={"w": torch.bfloat16})
    read = load_file(tmp_path / "a.safetensors")
    assert read["w"].dtype == torch.bfloat16 and torch.equal(read["w"], made["w"].to(torch.bfloat16))
    assert torch.equal(read["head"], made["head"]) and made["w"].dtype == torch.float32


def test_a_full_disk_is_said_by_its_number():
    """`/dev/full` takes nothing: ENOSPC, by which a full disk is told from other errors."""
    with pytest.raises(OSError, match="No space left") as refused:
        tensors.write("/dev/full", {"w": torch.zeros(100_000)})
    assert refused.value.errno == 28
