"""torch and transformers without the parts that kvcli's own processes never use: half of the time of their import.

The common modules of transformers import torch's compiler and its distributed tensors: 2,000 modules, three to five
seconds of processor time. torch imports operations on tensors without data, half a second; see :func:`complete`.
``install`` is for the processes that kvcli starts. A program that imports kvcli as a library gets both as they are.
"""

import importlib
import operator
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

from kvcli.models import class_list

_UNUSED = (
    "transformers.generation.continuous_batching",
    "transformers.generation.continuous_batching.cache",
    "torch._dynamo._trace_wrapped_higher_order_op",
    "sympy",
)
_SHAPES = "torch.fx.experimental.symbolic_shapes"
_LISTS = "transformers.utils.import_utils"
_META = ("torch._meta_registrations", "torch.distributed._meta_registrations")
_IMPORTED_BY_META = frozenset(
    f"torch.{name}" for name in ("_decomp", "_prims", "_prims_common.wrappers", "_refs", "utils._content_store")
)
"""What these import, in an order that others depend on."""

_IMPORTERS = frozenset(
    f"transformers.{name}"
    for name in ("activations", "cache_utils", "generation.utils", "integrations", "masking_utils", "modeling_utils")
)


def install() -> None:
    """From now on this process imports transformers without what it does not use. Imports nothing itself."""
    if not _installed():
        sys.meta_path.insert(0, _Finder())


def complete() -> bool:
    """Import torch's operations on tensors without data (``meta``) that are written in Python.

    Returns:
        whether they were missing: what failed for want of one may be tried again.
    """
    for finder in sys.meta_path:
        if isinstance(finder, _Finder):
            finder.active = False
    missing = [name for name in _META if isinstance(sys.modules.get(name), _Postponed)]
    for name in missing:
        del sys.modules[name]
    for name in missing:
        importlib.import_module(name)
    return bool(missing)


def _installed() -> bool:
    return any(isinstance(finder, _Finder) for finder in sys.meta_path)


class _Finder(MetaPathFinder):
    """Finds the modules that import the unused ones, and has them executed with stand-ins."""

    active = True

    def find_spec(self, name: str, path: Sequence[str] | None = None, _: ModuleType | None = None) -> ModuleSpec | None:
        if name in _META and self.active:
            return ModuleSpec(name, _NoLoader())
        loader: type[_Wrapped] | None = _Loader if name in _IMPORTERS else _ClassList if name == _LISTS else None
        if name in _IMPORTED_BY_META and self.active:
            loader = _AfterMeta
        spec = PathFinder.find_spec(name, path) if loader else None
        if loader is None or spec is None or spec.loader is None:
            return None
        spec.loader = loader(spec.loader)
        return spec


class _Postponed(ModuleType):
    """Stands for a module that is imported when somebody asks for one of its names."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        complete()
        return getattr(importlib.import_module(self.__name__), name)


class _NoLoader(Loader):
    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Postponed(spec.name)

    def exec_module(self, module: ModuleType) -> None:  # noqa: ARG002
        """Give torch's random generators their metaclass, which one of the postponed modules would; torch 2.13 asks."""
        torch = sys.modules["torch"]
        if hasattr(torch._C, "_set_generator_metaclass"):
            torch._C._set_generator_metaclass(importlib.import_module("torch._opaque_base").OpaqueBaseMeta)


class _Wrapped(Loader):
    """Loads a module by the loader that it has anyway."""

    def __init__(self, loader: Loader):
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)


class _AfterMeta(_Wrapped):
    """Loads a module by loading those that import it."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        complete()
        return importlib.import_module(spec.name)

    def exec_module(self, module: ModuleType) -> None: ...


class _ClassList(_Wrapped):
    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        class_list.keep(module)


class _Loader(_Wrapped):
    def exec_module(self, module: ModuleType) -> None:
        before = set(sys.modules)
        try:
            with without_compiler():
                self.loader.exec_module(module)
        except Exception:  # another transformers than those that were tried: import it whole
            for name in set(sys.modules) - before:
                if name.startswith("transformers."):
                    del sys.modules[name]
            self.loader.exec_module(module)


@contextmanager
def without_compiler() -> Iterator[None]:
    """Run the block without importing torch's compiler; for imports, and for models on the meta device.

    torch computes ranges and random numbers of a tensor without data by functions that ask the compiler to leave
    them alone. Does nothing if the compiler was imported before, or in a program that kvcli does not own.
    """
    if "torch._dynamo" in sys.modules or not _installed():
        yield
        return
    import torch
    from transformers import utils

    # for good: a module that was imported without torch.distributed must not be told later that it is there
    utils.is_torch_distributed_available = utils.import_utils.is_torch_distributed_available = lambda: False
    compiler = _Compiler("torch._dynamo")
    modules: dict[str, ModuleType] = {"torch._dynamo": compiler, _SHAPES: _Shapes(_SHAPES)}
    modules |= {name: _Unused(name) for name in _UNUSED}
    normal = torch.nn.init.normal_

    def normal_(tensor: Any, *args: Any, **options: Any) -> Any:
        return tensor if tensor.is_meta else normal(tensor, *args, **options)

    disable = torch.compiler.disable
    torch.compiler.disable, torch.nn.init.normal_ = compiler.disable, normal_
    sys.modules.update({name: own for name, own in modules.items() if name not in sys.modules})
    torch._dynamo = compiler
    try:
        yield
    finally:
        torch.compiler.disable, torch.nn.init.normal_ = disable, normal
        _withdraw()


def _withdraw() -> None:
    """Take all stand-ins away; what is imported from now on is real."""
    for name, module in list(sys.modules.items()):
        if isinstance(module, _Unused | _Compiler):
            del sys.modules[name]
    torch = sys.modules["torch"]
    if isinstance(vars(torch).get("_dynamo"), _Compiler):
        del torch._dynamo  # torch imports the real one when somebody asks for it


class _Compiler(ModuleType):
    """Stands for ``torch._dynamo``: each of its decorators leaves the function as it is."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda function=None, *_, **__: function if function is not None else lambda inner: inner


class _Unused(ModuleType):
    """Stands for a module of which names are imported and never used."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Name(self.__name__, name)


class _Shapes(_Unused):
    """Stands for torch's symbolic shapes, the part that sizes need which are numbers, as those of a model are."""

    expect_true = guard_or_false = guard_or_true = guard_size_oblivious = statically_known_true = staticmethod(bool)
    has_guarding_hint = is_concrete_int = staticmethod(lambda _: True)
    is_nested_int = is_symbolic = staticmethod(lambda _: False)
    sym_and, sym_or = staticmethod(lambda *x: all(x)), staticmethod(lambda *x: any(x))
    sym_eq = staticmethod(operator.eq)


class _Name:
    """Stands for a function or class. It is imported if it is called; no object is an instance of it before."""

    def __init__(self, module: str, name: str):
        self._module, self._name = module, name

    def __call__(self, *args: Any, **options: Any) -> Any:
        _withdraw()
        return getattr(importlib.import_module(self._module), self._name)(*args, **options)

    def __instancecheck__(self, thing: object) -> bool:
        kind = getattr(sys.modules.get(self._module), self._name, None)
        return isinstance(kind, type) and isinstance(thing, kind)

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        return ()

    def __or__(self, other: Any) -> Any:
        return Any

    __ror__ = __or__
