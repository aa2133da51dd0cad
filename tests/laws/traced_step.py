"""A substitute for a CUDA graph on machines without a GPU: a step is traced once and replayed from the trace.

A replay runs none of the step's Python. Each operator is called with the very tensors and numbers it was recorded
with, and what it returns goes where it went; so a tensor that a step replaces instead of writing to it, a place that is
a Python number, or a shape that depends on the data shows as it would on a GPU. What a GPU's host would have to wait
for is refused while recording.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kvcli.cache.decode_cache import DecodeCache
from kvcli.engine.static_step import StaticStep
from kvcli.models.model import Model
from kvcli.utils.copy_stream import CopyStream
from kvcli_kernels import recording

_TAGS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
_INDEXED = {torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default}
_BROUGHT = {torch.ops.aten.lift_fresh.default, torch.ops.aten.bincount.default}
_EMPTY = {torch.ops.aten.empty.memory_format, torch.ops.aten.empty_like.default, torch.ops.aten.empty_strided.default}
_TO_HOST = {"tolist", "item", "numpy", "cpu", "__array__", "__bool__", "__int__", "__float__", "__index__"}


_Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], Any]


class Waits(AssertionError):
    """A step asks the device for something."""


class Trace(TorchDispatchMode):
    """Operators in order, with their arguments and results."""

    current: Trace | None = None
    frees = False

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[_Call] = []
        self.copied: list[_Call] = []
        self.paused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.paused:
            return func(*args, **kwargs)
        refuse(func, args)
        with self:  # what is made of other operators is recorded as these
            parts = func.decompose(*args, **kwargs)
        if parts is not NotImplemented:
            return parts
        out = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, out))
        return out

    def call(self, work: Callable[[], Any], _inputs: Any, _outputs: Any) -> None:
        """See :class:`kvcli_kernels.recording.Recorder`: a kernel of the CPU stands for one of a GPU."""
        kernel(work)()

    @contextmanager
    def recording(self) -> Iterator[None]:
        Trace.current, token = self, recording.recorder.set(self)
        try:
            with _Asked(self), self:
                yield
        finally:
            Trace.current = None
            recording.recorder.reset(token)

    def again(self) -> None:
        """Everything once more, in the same memory."""
        for func, args, kwargs, out in self.calls:
            if func in _EMPTY:
                continue
            for old, new in zip(tree_leaves(out), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, Tensor) and old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
                    if old.shape != new.shape:
                        raise Waits(f"{func} gives {tuple(new.shape)} where it gave {tuple(old.shape)}")
                    old.copy_(new)


class LateStream(CopyStream):
    """A second stream of a trace: in a replay its work comes as late as it may."""

    @contextmanager
    def run(self) -> Iterator[None]:
        trace = Trace.current
        if trace is None:
            yield
            return
        before, trace.calls = trace.calls, trace.copied
        try:
            yield
        finally:
            trace.calls = before

    def mark(self) -> int:
        return len(Trace.current.copied) if Trace.current else 0

    def join(self, mark: int) -> None:
        if trace := Trace.current:
            trace.calls += trace.copied[:mark]
            del trace.copied[:mark]


class _Asked(TorchFunctionMode):
    """Refuses what never reaches an operator on a CPU."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.trace = trace

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        elsewhere = name == "to" and any(isinstance(x, (str, torch.device)) for x in (*args[1:], *kwargs.values()))
        if not self.trace.paused and (name in _TO_HOST or elsewhere):
            raise Waits(f"Tensor.{name} waits for the device")
        return func(*args, **kwargs)


def refuse(func: Any, args: Any) -> None:
    """Raises where a GPU's host would wait, or where a shape depends on the data."""
    if func in _INDEXED:
        if any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1]):
            raise Waits(f"{func} with a mask waits for the device")
    elif func in _BROUGHT or _TAGS & set(func.tags):
        raise Waits(f"{func} waits for the device")


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that is one kernel on a GPU: recorded as it is called, whatever it does within."""

    def traced(*args: Any, **kwargs: Any) -> Any:
        trace = Trace.current
        if trace is None or trace.paused:
            return function(*args, **kwargs)
        trace.paused = True
        try:
            out = function(*args, **kwargs)
        finally:
            trace.paused = False
        trace.calls.append((function, args, kwargs, out))
        return out

    return traced


class TracedStep(StaticStep):
    """Steps as :class:`kvcli.engine.static_step.CudaGraphStep` takes them: warmed up, recorded, done again."""

    def __init__(self, model: Model, tail: DecodeCache) -> None:
        super().__init__(model, tail)
        self.position.fill_(tail.length)
        self.trace = Trace()
        with torch.inference_mode():
            for _ in range(2):
                self._run()
            with self.trace.recording():
                self.logits = self._run()
        if self.trace.copied:
            raise Waits("the step ends before the work of the second stream")

    def __call__(self, token: Tensor) -> Tensor:
        self._set_inputs(token)
        self.trace.again()
        return self.logits
