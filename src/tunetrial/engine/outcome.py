"""What operations make of tensors without storage, found out once for tensors of the same kinds.

torch's own formulas for this are Python's and take longer than anything else in a trace, most of whose operations it
has met before: in another layer, pass or micro-batch.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import torch

# Of a tensor on the meta device: shape, strides, dtype; of a number its type too, since 1 == 1.0 == True.
Kind = tuple
PLAIN = (type(None), str, torch.dtype, torch.device, torch.memory_format, torch.layout)
META = torch.device("meta")


def apply(func: Callable, args: Sequence, kwargs: Mapping[str, object]) -> object:
    """Do an operation, or a function of several, that is no view: what it makes is new, or an argument that it wrote
    into."""
    try:
        given = tuple(map(_kind, args)), tuple((name, _kind(value)) for name, value in kwargs.items())
    except _Unknown:
        return func(*args, **kwargs)
    found = _outcome(func, *given)
    if found is None:
        return func(*args, **kwargs)
    many, results = found
    made = [_result(one, args, kwargs) for one in results]
    return tuple(made) if many else made[0]


class _Unknown(Exception):
    """An argument whose kind does not say what comes of it."""


def _kind(value: object) -> Kind:
    if isinstance(value, torch.Tensor):
        if value.device.type != "meta" or type(value) not in (torch.Tensor, torch.nn.Parameter):
            raise _Unknown
        return torch.Tensor, value.shape, value.stride(), value.dtype
    if isinstance(value, bool | int | float):
        return type(value), value
    if isinstance(value, list | tuple):
        return list, tuple(map(_kind, value))
    if isinstance(value, PLAIN):
        return type(value), value
    raise _Unknown


def _example(kind: Kind) -> object:
    """An argument of a kind."""
    if kind[0] is torch.Tensor:
        return torch.empty_strided(kind[1], kind[2], dtype=kind[3], device=META)
    return list(map(_example, kind[1])) if kind[0] is list else kind[1]


@lru_cache(maxsize=2**14)
def _outcome(func: Callable, args: tuple[Kind, ...], kwargs: tuple[tuple[str, Kind], ...]) -> tuple | None:
    """Whether there are several results, and each one's kind or which argument it is; None where that is not all that
    there is to say of one, or no tensor is given."""
    given = {number: _example(kind) for number, kind in enumerate(args)}
    given |= {name: _example(kind) for name, kind in kwargs}
    tensors = {id(value): name for name, value in given.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        return None
    made = func(*(given[number] for number in range(len(args))), **{name: given[name] for name, _ in kwargs})
    many = isinstance(made, list | tuple)
    storages = {given[name].untyped_storage()._cdata for name in tensors.values()}
    results = []
    for one in made if many else [made]:
        if id(one) in tensors:
            results.append(tensors[id(one)])
        elif not isinstance(one, torch.Tensor) or not one.is_meta or one.untyped_storage()._cdata in storages:
            return None
        else:
            results.append(_kind(one))
    return many, tuple(results)


def _result(found: Kind | int | str, args: Sequence, kwargs: Mapping[str, object]) -> torch.Tensor:
    if isinstance(found, int):
        return args[found]
    return kwargs[found] if isinstance(found, str) else _example(found)
