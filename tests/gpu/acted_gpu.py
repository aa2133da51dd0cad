"""A GPU that is acted out on the CPU: tensors that say ``cuda:0`` and hold their numbers in main memory.

Every operator checks that its tensors are on one device, as a GPU does. Triton's kernels run in the interpreter, on the
numbers themselves. So a tensor that was made on the wrong device, or read by the host without a copy, fails here too.
Speed, memory, streams and rounding are not acted out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

GPU, CPU = torch.device("cuda:0"), torch.device("cpu")
aten = torch.ops.aten

_INDEXED = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, Tensor.__getitem__, Tensor.__setitem__}
_ACROSS = {aten.copy_.default, aten._to_copy.default, Tensor.copy_, Tensor.to, Tensor.type_as, *_INDEXED}
"""Functions whose tensors may be on two devices."""

_MOVES = {Tensor.to, Tensor.cpu, Tensor.cuda, aten._to_copy.default}
_PASSED = {torch.device, torch._C._nn._parse_to, torch._has_compatible_shallow_copy_type}
_TENSORS = {"data", "T", "mT", "H", "mH", "real", "imag"}
"""Properties that are tensors; all others are those of the acted tensor."""

_MEMORY = 2**36

launched: set[str] = set()
"""Kernels of Triton that ran, as ``OPERATION.FUNCTION``."""


class Acted(Tensor):
    """A tensor on the acted GPU."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Acted:
        made: Acted = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=GPU,
        )
        made.inner = inner
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


def computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """A function of the numbers themselves, its result where a GPU would leave it."""
    kwargs = {name: value for name, value in kwargs.items() if name != "pin_memory"}
    leaves = tree_leaves((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    acted = [x for x in tensors if isinstance(x, Acted)]
    asked = [device for leaf in (*args, kwargs.get("device")) if (device := _device(leaf, func)) is not None]
    if not acted and not any(device.type == "cuda" for device in asked) and func is not Tensor.cuda:
        return func(*args, **kwargs)
    _check(func, args, tensors, acted)
    there = bool(acted)
    if asked or func in (Tensor.cpu, Tensor.cuda):
        there = asked[0].type == "cuda" if asked else func is Tensor.cuda
    elif func in _ACROSS:
        like = [x for x in args[1:2] if isinstance(x, Tensor) and func in (Tensor.to, Tensor.type_as)]
        there = isinstance([args[0], *like][-1], Acted)
    if func is Tensor.__iter__:
        return iter(args[0].unbind(0))
    if func is Tensor.cuda:
        func, args = Tensor.to, (args[0], CPU)

    def plain(value: Any) -> Any:
        if isinstance(value, Acted):
            return value.inner
        return CPU if _device(value, func) is not None else value

    out = func(*tree_map(plain, args), **tree_map(plain, kwargs))
    if func in _MOVES and there is not isinstance(args[0], Acted):
        out = out.clone()  # what is brought to another device is another tensor
    known = {id(x.inner): x for x in acted}

    def wrapped(value: Any) -> Any:
        if not isinstance(value, Tensor) or not there:
            return value
        return known[id(value)] if id(value) in known else Acted(value)

    return tree_map(wrapped, out)


def _device(value: Any, func: Any) -> torch.device | None:
    """The device that an argument names."""
    named = isinstance(value, str) and (value.startswith("cuda") or value == "cpu") and func is not torch.einsum
    return torch.device(value) if named or isinstance(value, torch.device) else None


def _check(func: Any, args: Any, tensors: list[Tensor], acted: list[Acted]) -> None:
    """Raise as a GPU does if tensors are on two devices. Numbers may come from the host."""
    mixed = [tuple(x.shape) for x in tensors if not isinstance(x, Acted) and x.dim()]
    if acted and mixed and func not in _ACROSS:
        raise RuntimeError(f"Expected all tensors to be on the same device: {func} got cuda:0 and cpu {mixed}")
    if func in _INDEXED and acted and not isinstance(args[0], Acted):
        raise RuntimeError(f"indices should be on the CPU, as the indexed tensor is: {func}")


class _Operators(TorchDispatchMode):
    """What is left of functions that are made of others."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not any(isinstance(x, Acted) or _device(x, func) == GPU for x in tree_leaves((args, kwargs))):
            return func(*args, **kwargs)
        with self:
            parts = func.decompose(*args, **kwargs)
        return computed(func, args, kwargs) if parts is NotImplemented else parts


class _Functions(TorchFunctionMode):
    """Functions of torch, before they ask for a GPU that a build for the CPU does not have."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        attribute = getattr(getattr(func, "__self__", None), "__name__", "") if func.__name__ == "__get__" else None
        if func in _PASSED or (attribute is not None and attribute not in _TENSORS):
            return func(*args, **kwargs)
        if func in (Tensor.numpy, Tensor.__array__) and isinstance(args[0], Acted):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")
        return computed(func, args, kwargs)


class _Stream:
    """A stream whose work is done at once."""

    def __init__(self, *_device: Any) -> None:
        self.device = GPU

    def wait_stream(self, other: Any) -> None: ...
    def wait_event(self, event: Any) -> None: ...
    def synchronize(self) -> None: ...
    def record_event(self) -> _Event:
        return _Event()


class _Event:
    def record(self, stream: Any = None) -> None: ...
    def synchronize(self) -> None: ...


@contextmanager
def acted_gpu() -> Iterator[torch.device]:
    """One GPU of 64 GiB, for this thread."""
    from triton.runtime.interpreter import GridExecutor

    torch._C._ensureCUDADeviceGuardSet()  # of a build without CUDA
    launch = GridExecutor.__call__

    def launch_plainly(self: Any, *args: Any, **kwargs: Any) -> Any:
        launched.add(f"{self.fn.__module__.split('.')[1]}.{self.fn.__name__}")
        numbers = tree_map(lambda x: x.inner if isinstance(x, Acted) else x, (args, kwargs))
        with torch._C._DisableTorchDispatch(), torch._C.DisableTorchFunctionSubclass():
            return launch(self, *numbers[0], **numbers[1])

    properties = SimpleNamespace(name="acted", total_memory=_MEMORY, major=8, minor=9, multi_processor_count=16)
    cuda = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "is_bf16_supported": lambda *_, **__: True,
        "mem_get_info": lambda *_: (_MEMORY, _MEMORY),
        "get_device_capability": lambda *_: (8, 9),
        "get_device_name": lambda *_: "acted",
        "get_device_properties": lambda *_: properties,
        "current_device": lambda: 0,
        "synchronize": lambda *_: None,
        "memory_allocated": lambda *_: 0,
        "max_memory_allocated": lambda *_: 0,
        "reset_peak_memory_stats": lambda *_: None,
        "empty_cache": lambda: None,
        "Stream": _Stream,
        "Event": _Event,
        "current_stream": _Stream,
        "stream": lambda _stream: ExitStack(),
    }
    future, generator = torch.__future__, torch.Generator
    with ExitStack() as stack:
        stack.callback(
            future.set_overwrite_module_params_on_conversion, future.get_overwrite_module_params_on_conversion()
        )
        future.set_overwrite_module_params_on_conversion(True)  # a parameter's numbers cannot change their device
        for name, value in cuda.items():
            stack.enter_context(patch.object(torch.cuda, name, value))
        stack.enter_context(patch.object(torch, "Generator", lambda *_: generator()))
        stack.enter_context(patch.object(GridExecutor, "__call__", launch_plainly))
        stack.enter_context(_Functions())
        stack.enter_context(_Operators())
        yield GPU
