"""A Ray cluster (extra ``kvcli[ray]``): started or connected to, and what its machines say about themselves."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvcli.errors import ResourceError, UsageError
from kvcli.planning.speed_history import Rates
from kvcli.utils import child_process

if TYPE_CHECKING:
    from kvcli.corpus.task import Settings
    from kvcli.recipe import Recipe
    from kvcli.types import ModelSpec

ANSWERS_S, HEALTH_S = 5.0, 30.0
"""Seconds for an address to take a connection, and for Ray there to say that it is well."""

VERSION_S = 180.0
"""Seconds for a machine to say its version. Ray may start a process for that, and gives it 60 s on a busy machine."""


@contextlib.contextmanager
def cluster(address: str | None, *, cpus: int | None = None) -> Iterator[Any]:
    """Ray, connected; gives the module. A cluster that is started here ends with it.

    The working directory is an empty one while Ray starts: Ray would put it on the module path of every worker, which
    would then import the modules in it.

    Args:
        address: of a cluster; ``None`` starts one on this machine.
        cpus: cores of the one that is started; by default those of this process.

    Raises:
        ResourceError: Ray is not installed, or does not answer.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
        from ray.job_config import JobConfig
    except ImportError:
        raise ResourceError("Ray is not installed", "pip install 'kvcli[ray]'") from None
    if address is not None and address != "auto":
        _check_address(address)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if address is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        place = str(Path(__file__).resolve().parents[2])
        options |= {"address": "local", "num_cpus": cpus or cores, "include_dashboard": False}
        options["job_config"] = JobConfig(_py_driver_sys_path=[place])
    else:
        options["address"] = address
    with tempfile.TemporaryDirectory(prefix="kvcli-") as folder:
        with contextlib.chdir(folder):
            try:
                ray.init(**options)
            except (ConnectionError, OSError, RuntimeError, ValueError) as error:
                where = "on this machine" if address is None else f"at {address}"
                raise ResourceError(f"Ray does not start {where}: {_first_line(error)}", "kvcli doctor --ray") from None
        ray._private.worker.print_worker_logs = _print_nothing  # it prints deaths to stdout, between the answers
        try:
            yield ray
        finally:
            ray.shutdown()


def _print_nothing(*_: Any) -> None:
    """In the place of Ray's own messages: kvcli says what happened."""


def _first_line(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]


def _check_address(address: str) -> None:
    """Refuse an address at which no Ray answers, before Ray waits for it.

    Raises ``UsageError`` or ``ResourceError``.
    """
    host, _, port = address.rpartition(":")
    if not host or "/" in address or not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError(f"--ray {address} is not an address", "--ray HOST:6379, --ray auto, or --ray alone")
    hint = "ray status, or --ray alone for workers on this machine"
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWERS_S).close()
    except OSError as error:
        raise ResourceError(f"nothing answers at {address}: {error.strerror or error}", hint) from None
    command = child_process.library_module("ray.scripts.scripts", "health-check", "--address", address)
    with child_process.running(command, stdout=subprocess.DEVNULL) as process:
        try:
            well = process.wait(HEALTH_S) == 0
        except subprocess.TimeoutExpired:
            well = False
    if not well:
        raise ResourceError(f"what answers at {address} is not Ray, or not the same version of it", hint)


def nodes(ray: Any) -> list[dict[str, Any]]:
    """The machines of a cluster: name, cores, GPUs, bytes of memory, and the version of kvcli there."""
    found = []
    for node, version in _ask_nodes(ray, _version):
        resources = node["Resources"]
        found.append(
            {
                "host": node["NodeManagerHostname"],
                "cpus": int(resources.get("CPU", 0)),
                "gpus": int(resources.get("GPU", 0)),
                "memory_bytes": int(resources.get("memory", 0)),
                "kvcli": f"none ({last_line(version)})" if isinstance(version, Exception) else version,
            }
        )
    return found


def rates(
    ray: Any, spec: ModelSpec, recipe: Recipe, own: Settings, *, workers: int | None, cpus: int
) -> list[tuple[str, int, Rates]]:
    """Each machine's name, its number of workers, and the speeds that kvcli measured there.

    Args:
        ray: from :func:`cluster`.
        spec, recipe: of the run.
        own: has the device and the dtype that were asked for.
        workers, cpus: as of :class:`RayWorkers`.
    """
    found, left = [], workers
    for node, measured in _ask_nodes(ray, _rates, spec, recipe, own.device, own.dtype):
        resources = node["Resources"]
        gpus = int(resources.get("GPU", 0)) if own.device in (None, "cuda") else 0
        count = gpus or int(resources.get("CPU", 0)) // cpus
        if left is not None:
            count = min(count, left)
            left -= count
        if count:
            known = Rates() if isinstance(measured, Exception) else measured
            found.append((str(node["NodeManagerHostname"]), count, known))
    return found


def _ask_nodes(ray: Any, function: Callable[..., Any], *given: Any) -> Iterator[tuple[dict[str, Any], Any]]:
    """Run a function on each machine that is alive; return its results and errors."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    for node in ray.nodes():
        if node["Alive"]:
            strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            own = ray.remote(function).options(num_cpus=0, scheduling_strategy=strategy)
            try:
                yield node, ray.get(own.remote(*given), timeout=VERSION_S)
            except Exception as error:  # whatever the machine lacks
                yield node, error


def _rates(spec: ModelSpec, recipe: Recipe, device: str | None, dtype: str | None) -> Rates:
    from kvcli.models.load import placed
    from kvcli.planning import speed_history

    device, dtype = placed(device, dtype)
    return speed_history.measured(replace(spec, device=device, dtype=dtype), recipe)


def _version() -> str:
    from kvcli.utils.version import __version__ as here

    return here


def refuse_version(wanted: str, found: dict[str, str]) -> None:
    """Refuse machines (by name) whose version of kvcli is another one. Raises ``ResourceError``."""
    for host, version in found.items():
        if version != wanted:
            raise ResourceError(
                f"{host} has kvcli {version}, and this machine has {wanted}",
                f"on {host}: pip install kvcli=={wanted}",
            )


def last_line(error: BaseException) -> str:
    """The end of an error's text; its kind if it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[-1][:200]
