"""``--ray [ADDRESS]``, whose value may be left out, and the workers that it names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from kvcli.cli.help import Command
from kvcli.cli.option_groups import MAIN, OptionGroup, option
from kvcli.errors import UsageError

if TYPE_CHECKING:
    from kvcli.corpus.ray_workers import RayWorkers
    from kvcli.corpus.task import Settings

LOCAL = "local"
_ADDRESS = re.compile(r"auto|local|(\w+://)?(\[[0-9a-fA-F:]+\]|[\w.-]+):\d+")


def words(args: Sequence[str]) -> list[str]:
    """The arguments with the value of ``--ray`` added if what follows is no address."""
    out, rest = list[str](), list(args)
    while rest:
        word = rest.pop(0)
        if word == "--":
            return [*out, word, *rest]
        if word == "--ray":
            word = f"--ray={rest.pop(0) if rest and _ADDRESS.fullmatch(rest[0]) else LOCAL}"
        out.append(word)
    return out


class RayCommand(Command):
    """A command with ``--ray [ADDRESS]``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, words(args))


@dataclass(frozen=True)
class RayOptions(OptionGroup):
    """Which workers answer."""

    PANEL: ClassVar[str] = "Workers"

    ray: str | None = option(
        "--ray [ADDRESS]", "Workers on Ray: of this machine, of auto, or of HOST:PORT.", None, MAIN
    )
    workers: int | None = option("--workers N", "Workers. Default: one per card, or one per core.", min=1)
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
        """Of a cluster; ``None`` for one on this machine."""
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


def cards() -> int:
    """Cards that this machine has, without importing torch."""
    try:
        import pynvml

        pynvml.nvmlInit()
        return int(pynvml.nvmlDeviceGetCount())
    except Exception:  # no driver
        return 0
