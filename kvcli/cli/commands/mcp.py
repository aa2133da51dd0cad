"""``kvcli mcp --root DIR``: tools for other programs over the Model Context Protocol."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from kvcli.cli.option_groups import MAIN, OptionGroup, option, takes_groups
from kvcli.cli.options import CacheOptions, ModelOptions, OutputOptions, RecipeOptions, RunOptions
from kvcli.errors import UsageError

if TYPE_CHECKING:
    from kvcli.pipeline import Pipeline


@dataclass(frozen=True)
class RootOptions(OptionGroup):
    """Which files may be read."""

    PANEL: ClassVar[str] = "Documents"

    root: str | None = option("--root DIR", "Folder whose files may be read, and no others. Required.", None, MAIN)

    @property
    def folder(self) -> Path:
        if self.root is None:
            raise UsageError("kvcli mcp needs the folder whose files may be read", "kvcli mcp --root DIR")
        if not Path(self.root).is_dir():
            raise UsageError(f"--root {self.root} is not a folder", "--root .")
        return Path(self.root)


@takes_groups
def command(
    *,
    root: RootOptions,
    model: ModelOptions,
    recipe: RecipeOptions,
    cache: CacheOptions,
    output: OutputOptions,
) -> None:
    """Offer documents to other programs as tools, over the Model Context Protocol.

    The tools are read_document, ask_document and find_quote, over standard input and output. The model is loaded when
    the first document is read.
    """
    folder = root.folder
    if find_spec("mcp") is None:
        raise UsageError("kvcli mcp needs the package mcp", "pip install 'kvcli[mcp]'")
    options = RunOptions.of(model, recipe, cache, output)
    named = options.check()
    if named is not None and named.policy.query_aware:
        raise UsageError(f"'{named}' scores for one question, and documents are read for many", "--policy keydiff")

    def load() -> Pipeline:
        from kvcli.cli.model_loading import open_model
        from kvcli.prompt_cache.directory import CacheDirectory

        cache = CacheDirectory.default() if options.cache else None
        return options.pipeline(open_model(options).model, cache)

    from kvcli.server.mcp_tools import serve

    serve(folder, load)
