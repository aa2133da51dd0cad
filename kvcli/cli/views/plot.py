"""``kvcli kv --plot``: the map as a plot, with matplotlib (an extra)."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from kvcli.errors import ResourceError, UsageError
from kvcli.utils import files

if TYPE_CHECKING:
    from kvcli.cli.views.retention import PageRetention

ENDINGS = (".png", ".svg", ".pdf")


def check(path: Path) -> None:
    """Refuse a path that cannot be written, before prefill. Raises ``UsageError``."""
    if path.suffix not in ENDINGS:
        raise UsageError(
            f"--plot {path}: the name must end in {', '.join(ENDINGS)}", f"--plot {path.stem or 'out'}.png"
        )
    if path.is_dir() or not path.parent.is_dir():
        raise UsageError(
            f"--plot {path}: {'this is a' if path.is_dir() else 'there is no such'} directory", "--plot out.png"
        )
    if find_spec("matplotlib") is None:
        raise UsageError("--plot needs matplotlib, which is not installed", "pip install 'kvcli[plot]'")


def draw(path: Path, heat: Sequence[Sequence[float]], pages: Sequence[PageRetention], tokens: int, title: str) -> None:
    """Draw layers by position above kept shares of pages, over the same tokens.

    Args:
        path: ``.png``, ``.svg`` or ``.pdf``.
        heat: kept shares ``[layers][columns]`` of columns of equal length.
        pages: in order.
        tokens: of the document.
        title: of the plot.

    Raises:
        ResourceError: it cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6), layout="constrained")
    FigureCanvasAgg(figure)  # opens no window
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    shown = above.imshow(
        [[100 * share for share in row] for row in heat],
        aspect="auto",
        interpolation="nearest",
        cmap="viridis",
        vmin=0,
        extent=(0, tokens, len(heat) - 0.5, -0.5),
    )
    above.set_ylabel("layer")
    above.set_title(title, fontsize="medium", parse_math=False)
    figure.colorbar(shown, ax=[above, below], label="kept, % (mean over KV heads)", pad=0.01)
    starts, widths = [p.start for p in pages], [p.end - p.start for p in pages]
    below.bar(starts, [100 * p.share for p in pages], widths, align="edge", edgecolor="white", linewidth=0.3)
    below.set_ylabel("kept, %")
    below.set_xlim(0, tokens)
    below.set_xlabel("token; a bar is a page" if pages and pages[0].block.span.page else "token; a bar is a section")
    try:
        with files.atomic_write(path) as temporary:
            figure.savefig(temporary, format=path.suffix[1:], dpi=150)
    except OSError as error:
        raise ResourceError(f"cannot write {path}: {error.strerror}", "--plot another/folder/out.png") from None
