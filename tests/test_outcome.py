"""What operations make of tensors without storage, found out once: the same as when they are done."""

import pytest
import torch

from tunetrial.engine.outcome import apply

aten = torch.ops.aten


def empty(*sizes: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(*sizes, dtype=dtype, device="meta")


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize(
    ("operation", "args", "kwargs"),
    [
        (aten.mm.default, (empty(6, 4).T, empty(6, 5)), {}),
        (aten._to_copy.default, (empty(6, 4).T,), {"dtype": torch.bfloat16}),
        (aten.mul.Tensor, (empty(3, dtype=torch.int64), 1), {}),
        (aten.mul.Tensor, (empty(3, dtype=torch.int64), 1.0), {}),
        (aten.mul.Tensor, (empty(3, dtype=torch.bool), True), {}),
        (aten.cat.default, ([empty(2, 3), empty(4, 3)],), {}),
        (aten.native_layer_norm.default, (empty(2, 3), [3], None, None, 1e-5), {}),
    ],
)
def test_what_is_made_is_new_and_of_the_right_kind(operation, args, kwargs, times):
    for _ in range(times):
        found = apply(operation, args, kwargs)
    made = operation(*args, **kwargs)
    several = isinstance(made, tuple)
    for ours, theirs in zip(found if several else [found], made if several else [made], strict=True):
        assert (ours.shape, ours.stride(), ours.dtype) == (theirs.shape, theirs.stride(), theirs.dtype)
        storages = {one.untyped_storage()._cdata for one in args if isinstance(one, torch.Tensor)}
        assert ours.is_meta and ours.untyped_storage()._cdata not in storages


def test_what_is_written_into_is_given_back():
    a, b = empty(4, 4), empty(4, 4)
    for _ in range(2):
        assert apply(aten.add_.Tensor, (a, b), {}) is a
        assert apply(aten.mm.out, (a, b), {"out": b}) is b


def test_what_shares_storage_or_has_some_is_done_each_time():
    a = empty(4, 6)
    for _ in range(2):
        assert apply(aten._unsafe_view.default, (a, (24,)), {}).untyped_storage()._cdata == a.untyped_storage()._cdata
        assert apply(aten.add.Tensor, (torch.ones(2), 1), {}).tolist() == [2, 2]
        assert apply(aten.add.Tensor, (torch.zeros(2), 1), {}).tolist() == [1, 1]


def test_a_fault_is_raised_each_time():
    for _ in range(2):
        with pytest.raises(RuntimeError):
            apply(aten.mm.default, (empty(2, 3), empty(2, 3)), {})
