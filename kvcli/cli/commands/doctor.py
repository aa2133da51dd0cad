"""``kvcli doctor``: versions, devices, memory and the default model."""

import os
import platform
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from kvcli.cli.option_groups import annotation
from kvcli.cli.options import DEBUG, JSON
from kvcli.cli.ray_option import LOCAL, RayCommand
from kvcli.cli.views import terminal
from kvcli.corpus.record import installed, versions
from kvcli.errors import KvcliError
from kvcli.events import drain
from kvcli.utils import files
from kvcli.utils.sizes import format_bytes

ISA = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8", "asimd", "bf16", "sve")
"""CPU features that decide how fast bfloat16 arithmetic is."""


class Doctor(RayCommand):
    """``doctor``: the address of ``--ray`` may be left out."""


def command(
    as_json: JSON = False,
    ray: Annotated[
        str | None, annotation("--ray [ADDRESS]", "Show the machines of Ray too: auto or HOST:PORT.")
    ] = None,
    _debug: DEBUG = False,
) -> None:
    """Check the installation: versions, devices, memory, default model.

    Measures how fast each device multiplies. Exits with 1 if there is a problem. Uses no network."""
    found = examine()
    if ray is not None:
        found["ray"] = _ray(None if ray == LOCAL else ray, found["problems"])
    if as_json:
        terminal.print_json(**found)
    else:
        _show(found)
    if found["problems"]:
        raise typer.Exit(1)


def examine() -> dict[str, Any]:
    """Examine the installation; problems are listed under ``problems``."""
    problems: list[str] = []
    found = versions()
    problems += [f"{name} is not installed" for name, value in found.items() if value is None]
    devices = _devices(problems)
    cache = _cache(problems)
    return {
        "versions": found,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": _cpu(),
        "memory": _memory(),
        "devices": devices,
        "cache": cache,
        "default_model": _default_model(problems),
        "problems": problems,
    }


def _cpu() -> dict[str, Any]:
    from kvcli.models.defaults import cpu_flags

    name, flags = platform.processor() or platform.machine(), cpu_flags()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    numba = installed("numba")
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"name": name, "cores": usable, "isa": [f for f in ISA if f in flags], "numba": numba}


def _memory() -> dict[str, int]:
    import psutil

    memory = psutil.virtual_memory()
    return {"total_bytes": int(memory.total), "available_bytes": int(memory.available)}


def _devices(problems: list[str]) -> list[dict[str, Any]]:
    """The devices that torch can use, each with a quick measurement in the dtype that kvcli uses there."""
    try:
        from kvcli.models.devices import devices
    except Exception as error:  # a broken installation raises OSError, ImportError and worse
        problems.append(f"cannot import torch: {type(error).__name__}: {error}")
        return []
    found = []
    for device in devices():
        if device.problem is not None:
            problems.append(
                f"{device.name} cannot multiply {device.dtype} matrices: {terminal.oneline(device.problem)[:120]}"
            )
        facts = {k: v for k, v in asdict(device).items() if k != "problem"}
        found.append({k: v for k, v in facts.items() if v is not None or k == "gflops"})
    return found


def _cache(problems: list[str]) -> dict[str, Any]:
    """Path and size of the cache directory, and whether it can be written."""
    try:
        path = files.cache_dir()
    except KvcliError as error:
        problems.append(error.message)
        return {"path": None, "writable": False, "bytes": 0}
    writable = os.access(path, os.W_OK | os.X_OK)
    if not writable:
        problems.append(f"cannot write the cache directory {path}")
    used = sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
    return {"path": str(path), "writable": writable, "bytes": used}


def _default_model(problems: list[str]) -> dict[str, Any]:
    """The default model, and whether it is downloaded."""
    try:
        from kvcli.models import resolve
    except Exception as error:
        problems.append(f"cannot import transformers: {type(error).__name__}: {error}")
        return {"name": None, "present": False}
    name = resolve.default_name()
    try:
        return {"name": name, "present": True, "path": str(drain(resolve.resolve(name, offline=True)).path)}
    except Exception:  # `kvcli models pull` reports what is wrong
        return {"name": name, "present": False}


def _ray(address: str | None, problems: list[str]) -> dict[str, Any]:
    """The machines of a Ray cluster, each with its version of kvcli."""
    from kvcli.corpus.ray_cluster import cluster, nodes, refuse_version
    from kvcli.utils.version import __version__

    machines = list[dict[str, Any]]()
    try:
        with cluster(address) as ray:
            machines = nodes(ray)
            refuse_version(__version__, {node["host"]: node["kvcli"] for node in machines})
    except KvcliError as error:
        problems.append(error.message)
    return {"version": installed("ray"), "address": address, "nodes": machines}


def _show(found: dict[str, Any]) -> None:
    cpu, memory, cache, model = found["cpu"], found["memory"], found["cache"], found["default_model"]
    size = format_bytes
    numba = f"numba {cpu['numba']}" if cpu["numba"] else "no numba; for faster answers: pip install numba"
    rows = [
        ("versions", " · ".join(f"{k} {v}" for k, v in found["versions"].items())),
        ("system", found["system"]),
        ("cpu", " · ".join([cpu["name"], terminal.plural(cpu["cores"], "core"), *cpu["isa"], numba])),
        ("memory", f"{size(memory['available_bytes'])} of {size(memory['total_bytes'])} available"),
    ]
    for device in found["devices"]:
        parts = [device["name"]]
        if "card" in device:
            free = f"{size(device['free_bytes'])} of {size(device['total_bytes'])} free"
            parts += [device["card"], f"compute capability {device['capability']}", free]
        gflops, dtype = device["gflops"], device["dtype"]
        parts += [f"{gflops:,.0f} GFLOP/s in {dtype}" if gflops else f"no {dtype}"]
        rows.append(("device", " · ".join(parts)))
    writable = "" if cache["writable"] else " · cannot be written"
    rows.append(("cache", f"{cache['path']} · {size(cache['bytes'])} used{writable}"))
    present = "downloaded" if model["present"] else "not downloaded: kvcli models pull"
    rows.append(("model", f"{model['name']} · {present}"))
    for node in found.get("ray", {}).get("nodes", ()):
        parts = [node["host"], terminal.plural(node["cpus"], "core"), terminal.plural(node["gpus"], "GPU")]
        parts += [size(node["memory_bytes"]), f"kvcli {node['kvcli']}"]
        rows.append(("ray", " · ".join(parts)))
    terminal.facts([*rows, *(("problem", problem) for problem in found["problems"])], terminal.LABEL + 1)
    if not found["problems"]:
        print(f"{'result':<{terminal.LABEL}} ready")
