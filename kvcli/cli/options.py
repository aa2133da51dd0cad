"""Options that several commands share, each said once: its names, its value and its help."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvcli.documents import Options, pages
from kvcli.errors import UsageError
from kvcli.planning.budget import Budget
from kvcli.types import ANSWER_TOKENS
from kvcli.types import WEIGHTS as KINDS

if TYPE_CHECKING:
    from kvcli.recipe import Recipe


def _known(value: str) -> str:
    if value not in KINDS:
        raise UsageError(f"--weights {value}: there are {', '.join(KINDS)}", "--weights bf16")
    return value


BUDGET = Annotated[str | None, typer.Option("--budget", metavar="N|P%|SIZE", help="Units to keep: 16384, 12% or 2GiB.")]
CHUNK = Annotated[
    int | None,
    typer.Option("--chunk-size", metavar="N", min=1, help="Tokens read per step; 512.", show_default=False),
]
DEBUG = Annotated[bool, typer.Option("--debug", help="Show a traceback for an error.")]
DEVICE = Annotated[str | None, typer.Option("--device", metavar="NAME", help="cpu, cuda or cuda:N.")]
DTYPE = Annotated[str | None, typer.Option("--dtype", metavar="NAME", help="bfloat16, float16 or float32.")]
HEADS = Annotated[
    str | None,
    typer.Option("--heads", metavar="FILE|REPO", help="Retaining heads; by default those found for the model."),
]
JSON = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
KV_BITS = Annotated[
    int | None,
    typer.Option("--kv-bits", metavar="16|8|4|2", help="Bits of a kept number once it is read; scales come on top."),
]
MAX_TOKENS = Annotated[
    int | None,
    typer.Option(
        "-n",
        "--max-tokens",
        metavar="N",
        min=1,
        help="Maximum answer length in tokens. Default: 2,048, stopping early if the answer repeats itself.",
    ),
]
MIN_P = Annotated[
    float | None,
    typer.Option("--min-p", metavar="P", help="Drop tokens less probable than this, relatively."),
]
MODEL = Annotated[
    str | None,
    typer.Option("-m", "--model", metavar="NAME", help="A name, a directory or a hub repository."),
]
NO_CACHE = Annotated[bool, typer.Option("--no-cache", help="Save no reading and use no saved one.")]
OFFLINE = Annotated[bool, typer.Option("--offline", help="Use no network.")]
POLICY = Annotated[
    str | None,
    typer.Option("--policy", metavar="RECIPE", help="What to keep of the document: kvcli recipes."),
]
QUIET = Annotated[bool, typer.Option("-q", "--quiet", help="Nothing on stderr but errors.")]
REBUILD = Annotated[bool, typer.Option("--rebuild", help="Read again, and replace the saved reading.")]
SEED = Annotated[int | None, typer.Option("--seed", metavar="N", help="Seed of the sampling.")]
SYSTEM = Annotated[str | None, typer.Option("-s", "--system", metavar="TEXT", help="System message.")]
TOP_K = Annotated[int | None, typer.Option("--top-k", metavar="K", help="Sample from the k most probable tokens.")]
TOP_P = Annotated[float | None, typer.Option("--top-p", metavar="P", help="Nucleus sampling.")]
VERBOSE = Annotated[bool, typer.Option("-v", "--verbose", help="Say more on stderr.")]
PAGES = Annotated[str | None, typer.Option("--pages", metavar="RANGES", help="Pages to read, from 1: 1-40,55.")]
INCLUDE = Annotated[
    list[str] | None,
    typer.Option("--include", metavar="GLOB", help="Of a directory read only these files; repeatable."),
]
EXCLUDE = Annotated[
    list[str] | None,
    typer.Option("--exclude", metavar="GLOB", help="Of a directory leave these files out; repeatable."),
]
OCR = Annotated[bool, typer.Option("--ocr", help="Read scanned pages and pictures; needs kvcli[ocr].")]
WEIGHTS = Annotated[
    str,
    typer.Option(
        "--weights", metavar="bf16|int8|nf4", help="Hold the layers' matrices so; bf16 is as they are.", callback=_known
    ),
]


def reading_options(ranges: str | None, include: list[str] | None, exclude: list[str] | None, ocr: bool) -> Options:
    """The options that say how documents are read, checked. Raises ``UsageError``."""
    return Options(pages.parse(ranges) if ranges is not None else (), tuple(include or ()), tuple(exclude or ()), ocr)


@dataclass(frozen=True)
class RunOptions:
    """The options of a run, as far as they can be checked without a model; see the help of ``kvcli ask``."""

    model: str | None = None
    system: str | None = None
    raw: bool = False
    max_tokens: int = ANSWER_TOKENS
    allow_repetition: bool = False
    sampling: dict[str, Any] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    policy: str | None = None
    budget: Budget | None = None
    kv_bits: int | None = None
    heads: str | None = None
    query_aware: bool = False
    passages: int | None = None
    cite: str = "off"
    quotes: int = 3
    quotes_only: bool = False
    exit_status: bool = False
    chunk: int | None = None
    cache: bool = True
    rebuild: bool = False
    reading: Options = field(default_factory=Options)
    device: str | None = None
    dtype: str | None = None
    weights: str = "bf16"
    offline: bool = False
    stats: bool = False
    quiet: bool = False
    verbose: bool = False

    def check(self) -> Recipe | None:
        """Refuse a recipe, number of bits or sampling that cannot be; returns the recipe if one was named."""
        from kvcli.recipe import parse

        recipe = None if self.policy is None else parse(self.policy)
        if self.kv_bits is not None:
            (recipe or parse("full")).with_bits(self.kv_bits)
        if self.sampling:
            from kvcli.engine.sampling import Sampling

            Sampling(**self.sampling)
        return recipe
