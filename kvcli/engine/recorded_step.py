"""A decode step for CPUs, recorded once as a list of tensor operations and replayed without the model's Python.

With a small model, Python between operations takes longer than the operations. A step of constant shape
(:class:`kvcli.engine.static_step.StaticStep`) calls the same operations on the same memory for every token. The record
leaves out views and whatever depends on neither the token nor its position, and writes results where they were.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from kvcli.cache.decode_cache import DecodeCache
from kvcli.engine.static_step import StaticStep
from kvcli.engine.step_program import Instruction, compiled, instruction, of_task
from kvcli.models.model import Model
from kvcli_kernels import recording, team

_DYNAMIC = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape, torch.Tag.nondeterministic_seeded}
_READS = {"tolist", "item", "numpy", "cpu", "__array__", "__bool__", "__int__", "__float__", "__index__"}
"""Methods of tensors with which Python reads numbers."""

_aten = torch.ops.aten
_CONSTANT = 1024  # numbers of a constant that is looked at
_GROWTH = 256  # tokens, at least, by which a full cache grows
_PLAIN = 6  # steps before the one that is recorded

Call = Callable[[], object]


class Unrecordable(Exception):
    """A step reads numbers of tensors, so that its operations may differ from token to token."""


class RecordedStep(StaticStep):
    """Static steps on a CPU: one is recorded, the next compared with a plain one, and the others replayed.

    Recording takes as long as some steps save, so short answers go without.

    Arguments as for :class:`kvcli.engine.static_step.StaticStep`. The logits of a replayed step are overwritten by the
    next one.

    Attributes:
        calls: the operations of a step; ``None`` until one is recorded, and if none can be.
    """

    def __init__(self, model: Model, cache: DecodeCache) -> None:
        super().__init__(model, cache)
        self.calls: list[Call] | None = None
        self._memory: object = None  # what the record was made for
        self._context = cache.context
        self._plain = _PLAIN
        self._checked = self._failed = False
        self._compiles = True

    def __call__(self, token: Tensor) -> Tensor:
        with self.model.lock, torch.inference_mode():
            room = self.cache.layers[0].k.shape[1]
            if self.cache.length >= room:
                self.cache.reserve(room + max(_GROWTH, room // 2))
            self._set_inputs(token)
            memory = id(self.cache.context), [layer.k.data_ptr() for layer in self.cache.layers]
            if self._failed or self._plain:
                self._plain = max(0, self._plain - 1)
                return self._run()
            if self.calls is None or memory != self._memory:
                self._memory, self._context = memory, self.cache.context
                return self._record()
            with team.together():
                for call in self.calls:
                    call()
            return self.logits if self._checked else self._check()

    def _record(self) -> Tensor:
        recording = _Recording((self.token, self.position))
        try:
            self.logits = recording.record(self._run)
        except Unrecordable:
            self._failed = True
            return self._run()
        self.calls, self._checked = recording.calls(self.logits, compiles=self._compiles), False
        return self.logits

    def _check(self) -> Tensor:
        replayed, plain = self.logits, self._run()
        self._checked = torch.equal(replayed, plain)
        if not self._checked:
            self._failed, self._compiles, self.calls = not self._compiles, False, None  # torch rounds otherwise here
        return plain


@dataclass(frozen=True)
class _Entry:
    """An operation: its call, the storages that it reads and writes, and whether its results differ between steps."""

    call: Call
    given: set[int]
    results: set[int]
    changes: bool
    keep: Any  # tensors whose memory must not be given to others
    small: Instruction | None = None  # the same without torch


class _Recording(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Operations in order, with their arguments and results, all of which stay in memory.

    Args:
        inputs: tensors that differ from step to step.
    """

    frees = True

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._entries: list[_Entry] = []
        self._changing = {_storage(x) for x in inputs}
        self._made: set[int] = set()
        self._written: set[int] = set()
        self._shared: set[int] = set()  # results that stand for several operations, so that none may write to them
        self._known: dict[Any, Tensor] = {}  # results of operations that may come again
        self._readers: dict[int, list[Any]] = {}  # their keys, by the storages that they read and are in
        self._constants: dict[Any, float | None] = {}
        self._paused = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # torch's wrapper for its compiler takes a third of the time

    def record(self, step: Callable[[], Tensor]) -> Tensor:
        """Run a step and record it. Raises ``Unrecordable``."""
        token = recording.recorder.set(self)
        try:
            with _NoReads(), self:
                return step()
        finally:
            recording.recorder.reset(token)

    def calls(self, result: Tensor, *, compiles: bool = True) -> list[Call]:
        """The operations that a replay needs for a result, and for memory that the step has not made.

        With ``compiles``, small ones that follow each other are one call of a compiled loop.
        """
        live, found = {_storage(result)}, list[_Entry]()
        for entry in reversed(self._entries):
            wanted = bool(entry.results & live) or not entry.results <= self._made
            if wanted and (entry.changes or entry.results & self._written):
                live |= entry.given
                found.append(entry)
        made = list[Call]()
        for small, entries in groupby(found[::-1], key=lambda entry: compiles and entry.small is not None):
            if small:
                made.append(compiled([entry.small for entry in entries if entry.small is not None]))
            else:
                made += [entry.call for entry in entries]
        return made

    def call(self, work: Call, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        """See :class:`kvcli_kernels.recording.Recorder`."""
        if self._paused:  # a part of another one
            work()
            return
        self._paused = True
        try:
            work()
        finally:
            self._paused = False
        small = of_task(work) if isinstance(work, team.TeamTask) else None
        self._add(work, inputs, outputs, inputs, small)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._paused:
            return func(*args, **kwargs)
        kind = _kind(func)
        if kind.composite:
            with self:  # its parts are recorded
                return func.decompose(*args, **kwargs)
        if kind.view:
            return func(*args, **kwargs)
        if (
            func.namespace != "aten"
            or kind.dynamic
            or (kind.indexed and any(x.dtype in (torch.bool, torch.uint8) for x in _tensors(args[1])))
        ):
            raise Unrecordable(str(func))  # operators of others may do anything
        given = _tensors((*args, *kwargs.values()))
        if kind.written:
            return self._write(func, kind, args, kwargs, given)
        key = func, _identity(args), _identity(sorted(kwargs.items()))
        if key not in self._known and (same := self._neutral(func, args)) is not None:
            self._remember(key, same, given)
        if key in self._known:
            same = self._known[key]
            self._shared.add(_storage(same))
            return same
        out = func(*args, **kwargs)
        results = _tensors((out,))
        if results:
            self._made.update(map(_storage, results))
            small = instruction(func, args, kwargs, results)
            if func is _aten.mean.dim and results[0].dtype == args[0].dtype:
                self._add_mean(args, kwargs, given, results[0])
            else:
                self._add(_into(func, kind, args, kwargs, results), given, results, (args, kwargs, results), small)
            if isinstance(out, Tensor) and given and "empty" not in func.name():
                self._remember(key, out, given)
        return out

    def _remember(self, key: Any, result: Tensor, given: Sequence[Tensor]) -> None:
        self._known[key] = result
        for x in (*given, result):
            self._readers.setdefault(_storage(x), []).append(key)

    def _add_mean(self, args: Any, kwargs: Any, given: Sequence[Tensor], result: Tensor) -> None:
        """Add the sum and the division: ``mean`` makes a tensor of the count each time."""
        count = torch.tensor(args[0].numel() / result.numel(), dtype=result.dtype)
        self._add(partial(_aten.sum.IntList_out, *args, **kwargs, out=result), given, [result], (args, kwargs, result))
        small = instruction(_aten.div_.Tensor, (result, count), {}, [result])
        self._add(partial(_aten.div_.Tensor, result, count), [result], [result], count, small)

    def _write(self, func: Any, kind: _Kind, args: Any, kwargs: Any, given: Sequence[Tensor]) -> Any:
        named = {**dict(zip(kind.names, args, strict=False)), **kwargs}
        targets = _tensors([named[name] for name in kind.written])
        storages = {_storage(x) for x in targets}
        if storages & self._shared:
            raise Unrecordable(f"{func} writes to a result that stands for several")
        self._written |= storages
        self._constants.clear()
        for storage in storages:  # what was computed from the old content, or was the old content
            for key in self._readers.pop(storage, ()):
                self._known.pop(key, None)
        out = func(*args, **kwargs)
        small = instruction(func, args, kwargs, targets)
        self._add(partial(func, *args, **kwargs), given, targets, (args, kwargs), small)
        return out

    def _neutral(self, func: Any, args: Any) -> Tensor | None:
        """The result of a product with constant ones or zeros, or of a sum with constant zeros: RoPE of angle 0."""
        if func not in (_aten.mul.Tensor, _aten.add.Tensor) or not all(isinstance(x, Tensor) for x in args):
            return None
        for x, constant in (args, args[::-1]):
            shapes = zip(constant.shape[::-1], x.shape[::-1], strict=False)
            fits = constant.dim() <= x.dim() and all(a in (1, b) for a, b in shapes)
            if not fits or constant.numel() > _CONSTANT or x.dtype != constant.dtype or not x.is_floating_point():
                continue
            if _storage(constant) in self._changing:
                continue
            value = self._constant(constant)
            if func is _aten.mul.Tensor and value == 0:
                return torch.zeros_like(x)
            if value == (1 if func is _aten.mul.Tensor else 0):
                return x  # type: ignore[no-any-return]
        return None

    def _constant(self, x: Tensor) -> float | None:
        """The number that a tensor is full of, if there is one."""
        key = x.data_ptr(), x.shape
        if key not in self._constants:
            with torch._C.DisableTorchFunction():
                self._constants[key] = (
                    float(x.flatten()[0]) if x.numel() and bool((x == x.flatten()[0]).all()) else None
                )
        return self._constants[key]

    def _add(
        self,
        call: Call,
        given: Sequence[Tensor],
        results: Sequence[Tensor],
        keep: Any,
        small: Instruction | None = None,
    ) -> None:
        read, made = {_storage(x) for x in given}, {_storage(x) for x in results}
        changes = bool(read & self._changing)
        if changes:
            self._changing |= made
        self._entries.append(_Entry(call, read, made, changes, keep, small))


def _identity(value: Any) -> Any:
    """What makes two arguments the same."""
    if _is_tensor(type(value)):  # type: ignore[arg-type]
        return value.data_ptr(), tuple(value.shape), value.stride(), value.dtype
    if isinstance(value, tuple | list):
        return tuple(map(_identity, value))
    return value if value.__hash__ is not None else id(value)


class _NoReads(TorchFunctionMode):
    """Refuses methods that read numbers, which no operation shows on a CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in _READS:
            raise Unrecordable(f"Tensor.{func.__name__}")
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class _Kind:
    """An operation's schema: the names of its arguments and of those that it writes to. Also its variant that writes
    into given tensors, with their names.
    """

    view: bool
    dynamic: bool
    indexed: bool
    composite: bool
    names: list[str]
    written: list[str]
    variant: Any
    outs: list[str]


@cache
def _kind(func: Any) -> _Kind:
    arguments, packet = func._schema.arguments, func.overloadpacket
    written = [a.name for a in arguments if a.alias_info is not None and a.alias_info.is_write]
    indexed = packet in (torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_)
    composite = torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")
    variant, outs = None, list[str]()
    for name in () if written else packet.overloads():
        other = getattr(packet, name)
        outs = [a.name for a in other._schema.arguments if a.is_out]
        rest = [(a.name, str(a.type)) for a in other._schema.arguments if not a.is_out]
        if len(outs) == len(func._schema.returns) and rest == [(a.name, str(a.type)) for a in arguments]:
            variant = other
            break
    names = [a.name for a in arguments]
    return _Kind(func.is_view, bool(_DYNAMIC & set(func.tags)), indexed, composite, names, written, variant, outs)


def _into(func: Any, kind: _Kind, args: Any, kwargs: Any, results: Sequence[Tensor]) -> Call:
    """Make a function that returns new tensors write to existing ones."""
    if func is _aten._to_copy.default:
        return partial(results[0].copy_, args[0])
    if kind.variant is not None:
        return partial(kind.variant, *args, **kwargs, **dict(zip(kind.outs, results, strict=True)))

    def call() -> None:
        for old, new in zip(results, _tensors((func(*args, **kwargs),)), strict=True):
            old.copy_(new)

    return call


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    found: list[Tensor] = []
    for value in values:
        if _is_tensor(type(value)):  # type: ignore[arg-type]
            found.append(value)
        elif isinstance(value, tuple | list):
            found += _tensors(value)
    return found


@cache
def _is_tensor(kind: Hashable) -> bool:
    return isinstance(kind, type) and issubclass(kind, Tensor)


def _storage(x: Tensor) -> int:
    return x.data_ptr() - int(x.storage_offset()) * x.element_size()  # ``untyped_storage`` takes 60 µs
