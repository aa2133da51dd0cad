"""``--ray [ADDRESS]``, whose value may be left out, and the workers that it names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kvcli.cli.help import Command
from kvcli.cli.option_groups import OptionGroup, option
from kvcli.errors import UsageError

if TYPE_CHECKING:
    from kvcli.corpus.ray_workers import RayWorkers
    from kvcli.corpus.task import Settings
    from kvcli.planning.speed_history import Rates
    from kvcli.recipe import Recipe
    from kvcli.types import ModelSpec

LOCAL = "local"
_ADDRESS = r"auto|local|(\w+://)?(\[[0-9a-fA-F:]+\]|[\w.-]+):\d+"


class RayCommand(Command):
    """A command with ``--ray [ADDRESS]``."""

    optional: ClassVar[dict[str, tuple[str, str]]] = {"--ray": (_ADDRESS, LOCAL)}


@dataclass(frozen=True)
class RayOptions(OptionGroup):
    """Which workers answer."""

    PANEL: ClassVar[str] = "Workers"

    ray: str | None = option(
        "--ray [ADDRESS]", "Use Ray workers: on this machine, or of the cluster at ADDRESS: auto or HOST:PORT."
    )
    workers: int | None = option("--workers N", "Workers. Default: one per GPU, or one per core.", min=1)
    cpus_per_worker: int = option("--cpus-per-worker N", "Cores of a worker.", 1, min=1)
    shared_paths: bool = option("--shared-paths", "Workers open the files themselves, at the same paths.", False)

    def __post_init__(self) -> None:
        used = {"--workers": self.workers, "--cpus-per-worker": self.cpus_per_worker > 1}
        used["--shared-paths"] = self.shared_paths
        for name, value in used.items():
            if value and self.ray is None:
                raise UsageError(f"{name} needs workers on Ray", f"--ray {name}")

    @property
    def address(self) -> str | None:
        """Address of the cluster; ``None`` if it is on this machine."""
        return None if self.ray in (None, LOCAL) else self.ray

    def make(self, settings: Settings, fingerprint: str) -> RayWorkers:
        """The workers; they start when they are entered."""
        from kvcli.corpus.ray_workers import RayWorkers

        return RayWorkers(
            settings,
            fingerprint,
            address=self.address,
            workers=self.workers,
            cpus=self.cpus_per_worker,
            shared_paths=self.shared_paths,
        )

    def rates(self, own: Settings, spec: ModelSpec, recipe: Recipe) -> list[tuple[str, int, Rates]]:
        """Each machine's name, number of workers and measured speeds. Asks the cluster; loads no model."""
        if self.ray is None:
            from kvcli.planning import speed_history

            return [("this machine", 1, speed_history.measured(spec, recipe))]
        from kvcli.corpus import ray_cluster

        started = None if self.workers is None else self.workers * self.cpus_per_worker
        with ray_cluster.cluster(self.address, cpus=started) as ray:
            return ray_cluster.rates(ray, spec, recipe, own, workers=self.workers, cpus=self.cpus_per_worker)


def gpus() -> int:
    """GPUs that this machine has, without importing torch."""
    try:
        import pynvml

        pynvml.nvmlInit()
        return int(pynvml.nvmlDeviceGetCount())
    except Exception:  # no driver
        return 0
