"""Which engine fits a command: the one whose program, user and surroundings are those of the command.

An engine takes arguments, streams, working directory, umask and environment from each command. What is fixed when a
process starts is part of its key instead. These are the packages, the user, the namespaces, the limits, and the
variables that libraries read while they are imported. Commands that differ in these never run in one engine.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from importlib.util import find_spec

from kvcli.utils.version import __version__

READ_ONCE = (
    "ACCELERATE_", "ATEN_", "BITSANDBYTES_", "BNB_", "CUBLAS_", "CUDA_", "CUDNN_", "GOMP_", "HF_", "HUGGINGFACE_",
    "KMP_", "LC_", "LD_", "MALLOC_", "MKL_", "NUMBA_", "NVIDIA_", "OMP_", "OPENBLAS_", "PYTHON", "PYTORCH_", "RAYON_",
    "SAFETENSORS_", "TORCH", "TRANSFORMERS_", "TRITON_", "XDG_CACHE_",
)  # fmt: skip
"""Beginnings of the names of variables that are read when a process starts or a library is imported."""

ALSO = ("HOME", "LANG", "PATH", "VIRTUAL_ENV", "http_proxy", "https_proxy", "no_proxy", "all_proxy")

_OURS = ("GOMP_SPINCOUNT", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_TELEMETRY", "TRANSFORMERS_VERBOSITY")
"""Set by kvcli itself if they are not set."""


def key() -> str:
    """16 hex digits."""
    return hashlib.sha256(repr((_program(), _user(), _variables())).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _program() -> list[object]:
    """Python, the packages, and kvcli's own files, so that an engine never runs code of before a change."""
    stamps = list[tuple[object, ...]]()
    for name in ("kvcli", "kvcli_kernels"):
        found = find_spec(name)
        stamps += [_newest(folder) for folder in found.submodule_search_locations or ()] if found else []
    for name in ("torch", "transformers"):  # a changed site-packages directory: something was installed
        found = find_spec(name)
        if found is not None and found.origin is not None:
            stamps.append(_stamp(os.path.dirname(os.path.dirname(found.origin))))
    return [__version__, sys.executable, sys.version, sys.prefix, stamps]


def _newest(folder: str) -> tuple[str, int, int]:
    """Path, number of modules and newest change of a package."""
    newest = count = 0
    folders = [folder]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders += [entry.path] if entry.name != "__pycache__" else []
                elif entry.name.endswith(".py"):
                    newest, count = max(newest, entry.stat().st_mtime_ns), count + 1
    return folder, count, newest


def _stamp(path: str) -> tuple[str, int]:
    return path, os.stat(path).st_mtime_ns


def _user() -> list[object]:
    """The user, the namespaces, and the limits under which the process runs."""
    import resource

    found: list[object] = [os.getuid(), os.getgid(), sorted(os.getgroups()), os.getpriority(os.PRIO_PROCESS, 0)]
    if hasattr(os, "sched_getaffinity"):
        found.append(sorted(os.sched_getaffinity(0)))
    found += [resource.getrlimit(kind) for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA, resource.RLIMIT_FSIZE)]
    for name in ("mnt", "pid", "user", "net"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"/proc/self/ns/{name}"))
    return found


def _variables() -> list[tuple[str, str]]:
    names = (name for name in os.environ if name.startswith(READ_ONCE) or name in ALSO or name.lower() in ALSO)
    return sorted((name, os.environ[name]) for name in names if name not in _OURS and name != "PYTHONIOENCODING")
