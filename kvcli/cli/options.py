"""The options of the commands, in groups, and what a run makes of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from kvcli.cli import completion
from kvcli.cli.option_groups import MAIN, OptionGroup, annotation, option
from kvcli.cli.request import require_utf8
from kvcli.corpus.task import Settings
from kvcli.documents import Options, pages
from kvcli.engine.prompt import ANSWER_RULE
from kvcli.errors import UsageError
from kvcli.planning.budget import Budget
from kvcli.types import AMX_CHUNK, ANSWER_TOKENS, CHUNK, GPU_CHUNK
from kvcli.types import WEIGHTS as PRECISIONS

if TYPE_CHECKING:
    from kvcli.cli.templates import Template
    from kvcli.corpus.parts import Over
    from kvcli.models.model import Model
    from kvcli.pipeline import Pipeline
    from kvcli.prompt_cache.directory import CacheDirectory
    from kvcli.recipe import Recipe

RECIPE_HELP = "What to keep, and how to store it: kvcli recipes"
BUDGET_HELP = "KV pairs to keep per head: 16384, 12% or 2GiB"

_NAMED_FILES = ("-f, --file, --context FILE", "Document; repeat for more.")
_JSON = ("--json", "Print JSON.")
_QUIET = ("-q, --quiet", "Print only errors to stderr.")
_DEBUG = ("--debug", "Show a traceback for an error.")
_OFFLINE = ("--offline", "Do not access the network.")
_HEADS = ("--heads FILE|REPO", "Retaining heads. Default: those for the model.")
_CHUNK = (
    "--chunk-size N",
    f"Tokens per prefill step. [default: {CHUNK}; on CPUs with AMX {AMX_CHUNK}, on a GPU {GPU_CHUNK}]",
)
KV_BITS = ("--kv-bits 16|8|4|2", "Bits per stored number after prefill.")

JSON = Annotated[bool, annotation(*_JSON, MAIN)]
QUIET = Annotated[bool, annotation(*_QUIET, "Output")]
DEBUG = Annotated[bool, annotation(*_DEBUG, "Output")]
OFFLINE = Annotated[bool, annotation(*_OFFLINE, "Model")]
FILES = Annotated[
    list[str] | None, typer.Argument(metavar="FILE", help="Documents; - is standard input.", show_default=False)
]


def named_files() -> Any:
    """``-f``, for a group."""
    return option(*_NAMED_FILES, None, MAIN)


def as_json() -> Any:
    """``--json``, for a group."""
    return option(*_JSON, False, MAIN)


@dataclass(frozen=True)
class LoadOptions(OptionGroup):
    """Which model, and where it runs."""

    PANEL: ClassVar[str] = "Model"

    model: str | None = option(
        "-m, --model NAME", "Alias, Hugging Face id, folder or .gguf.", None, MAIN, autocompletion=completion.models
    )
    device: str | None = option("--device NAME", "cpu, cuda or cuda:N. Default: the first GPU.")
    dtype: str | None = option("--dtype NAME", "bfloat16, float16 or float32.")
    offline: bool = option(*_OFFLINE, False)


@dataclass(frozen=True)
class ModelOptions(LoadOptions):
    """... and the precision of its weights."""

    weights: str = option("--weights KIND", "Weights: bf16 (as stored), int8 or nf4.", "bf16")

    def __post_init__(self) -> None:
        if self.weights not in PRECISIONS:
            raise UsageError(f"--weights {self.weights}: expected one of {', '.join(PRECISIONS)}", "--weights bf16")


@dataclass(frozen=True)
class PolicyOptions(OptionGroup):
    """Options of eviction and storage."""

    PANEL: ClassVar[str] = "KV cache"

    policy: str | None = option("--policy RECIPE", f"{RECIPE_HELP}.", autocompletion=completion.recipes)
    budget: str | None = option("--budget N|P%|SIZE", f"{BUDGET_HELP}.", None, MAIN)
    kv_bits: int | None = option(*KV_BITS)
    chunk: int | None = option(*_CHUNK, min=1)

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "budget": None if self.budget is None else Budget.parse(self.budget)}


@dataclass(frozen=True)
class RecipeOptions(PolicyOptions):
    """... and the retaining heads that score it."""

    heads: str | None = option(*_HEADS)


@dataclass(frozen=True)
class ComparisonOptions(OptionGroup):
    """Several recipes and budgets, each measured."""

    PANEL: ClassVar[str] = "KV cache"

    policies: list[str] | None = option("--policy RECIPE", f"{RECIPE_HELP}; repeatable.", None, MAIN)
    budgets: list[str] | None = option("--budget N|P%|SIZE", f"{BUDGET_HELP}; repeatable.", None, MAIN)
    heads: str | None = option(*_HEADS)
    chunk: int | None = option(*_CHUNK, min=1)

    def parsed(self) -> tuple[list[Recipe], list[Budget]]:
        """Recipes and budgets. Raises ``UsageError``, also if no recipe takes a budget and there is one."""
        from kvcli.recipe import parse

        budgets = [Budget.parse(text) for text in self.budgets or ()]
        recipes = [parse(text) for text in self.policies or ()]
        if budgets and recipes and all(recipe.policy.budget is None for recipe in recipes):
            recipes[0].with_budget(1)  # raises its own error
        return recipes, budgets


@dataclass(frozen=True)
class PromptOptions(OptionGroup):
    """Options of the prompt around document and question."""

    PANEL: ClassVar[str] = "Prompt"

    system: str | None = option("-s, --system TEXT", "System prompt.")
    raw: bool = option("-r, --raw", "No chat template: document, then question.", False)

    def __post_init__(self) -> None:
        if self.raw and self.system:
            raise UsageError("--system has no effect with --raw", "leave out --raw or --system")
        if self.system is not None:
            require_utf8(self.system, "the system prompt")

    def under(self, task: Template) -> PromptOptions:
        """These options, with the system prompt of a template if none was given."""
        return self if self.raw else replace(self, system=self.system or task.system)


@dataclass(frozen=True)
class DocumentOptions(OptionGroup):
    """Which parts of the documents are read, and how."""

    PANEL: ClassVar[str] = "Documents"

    pages: str | None = option("--pages RANGES", "Pages to read: 1-40,55.", None, MAIN)
    include: list[str] | None = option("--include GLOB", "Only matching files of a directory; repeatable.")
    exclude: list[str] | None = option("--exclude GLOB", "No matching files of a directory; repeatable.")
    ocr: bool = option("--ocr", "Read scans and images; needs kvcli[ocr].", False)
    allow_private: bool = option(
        "--allow-private", "Fetch web addresses of this computer and its own network too.", False
    )

    def reading(self) -> Options:
        """Raises ``UsageError`` for page ranges that are not valid."""
        ranges = pages.parse(self.pages) if self.pages is not None else ()
        return Options(ranges, tuple(self.include or ()), tuple(self.exclude or ()), self.ocr)

    def settings(self) -> dict[str, Any]:
        return {"reading": self.reading(), "allow_private": self.allow_private}


@dataclass(frozen=True)
class PictureOptions(OptionGroup):
    """Pictures for a model that reads them."""

    PANEL: ClassVar[str] = "Documents"

    image: list[str] | None = option("--image FILE", "Picture before the text, for models that read them; repeatable.")
    pages_as_images: str | None = option("--pages-as-images RANGES", "Pages of PDFs to read as pictures too: 3,7.")

    def settings(self) -> dict[str, Any]:
        """Raises ``UsageError`` for page ranges that are not valid."""
        shown = pages.parse(self.pages_as_images, "--pages-as-images") if self.pages_as_images is not None else ()
        return {"images": tuple(self.image or ()), "image_pages": shown}


@dataclass(frozen=True)
class CacheOptions(OptionGroup):
    """Whether prefills are saved and used again."""

    PANEL: ClassVar[str] = "Saved prefills"

    no_cache: bool = option("--no-cache", "Neither use nor save a prefill.", False)
    rebuild: bool = option("--rebuild", "Prefill again and replace the saved prefill.", False)

    def settings(self) -> dict[str, Any]:
        return {"cache": not self.no_cache, "rebuild": self.rebuild}


@dataclass(frozen=True)
class ReadOptions(OptionGroup):
    """Options of commands that read documents."""

    model: ModelOptions
    document: DocumentOptions
    recipe: RecipeOptions
    prompt: PromptOptions
    cache: CacheOptions


@dataclass(frozen=True)
class AnswerOptions(OptionGroup):
    """How answers are generated. ``None`` is greedy in ``ask`` and the model's own setting in ``chat``."""

    PANEL: ClassVar[str] = "Answer"

    max_tokens: int | None = option(
        "-n, --max-tokens N",
        f"Longest answer in tokens. [default: {ANSWER_TOKENS:,}]",
        None,
        MAIN,
        min=1,
    )
    allow_repetition: bool = option("--allow-repetition", "Do not end a greedy answer that repeats itself.", False)
    temp: float | None = option("--temp T", "Sampling temperature; 0 is greedy, the default of ask.", min=0.0)
    top_p: float | None = option("--top-p P", "Sample from the likeliest tokens, P in total.")
    top_k: int | None = option("--top-k K", "Sample from the K likeliest tokens.")
    min_p: float | None = option("--min-p P", "Drop tokens below P times the likeliest one.")
    seed: int | None = option("--seed N", "Random seed for sampling.")
    repeat_penalty: float | None = option(
        "--repeat-penalty R", "Make tokens that the answer has already less likely: 1 is off, 1.1 is usual.", min=1.0
    )

    @property
    def sampling(self) -> dict[str, Any]:
        """The fields of :class:`kvcli.engine.sampling.Sampling` that were given."""
        given = {"temperature": self.temp, "top_p": self.top_p, "top_k": self.top_k, "min_p": self.min_p}
        given |= {"seed": self.seed, "repeat_penalty": self.repeat_penalty}
        return {name: value for name, value in given.items() if value is not None}

    def refuse_unused(self) -> None:
        """Raise ``UsageError`` for a sampling option that has no effect because the temperature is 0."""
        given = {"--top-p": self.top_p, "--top-k": self.top_k, "--min-p": self.min_p}
        unused = [name for name, value in given.items() if value is not None]
        if unused and not self.temp:
            verb = "has" if len(unused) == 1 else "have"
            raise UsageError(f"{' and '.join(unused)} {verb} no effect at temperature 0", f"--temp 0.7 {unused[0]} …")

    def settings(self) -> dict[str, Any]:
        limit = self.max_tokens or ANSWER_TOKENS
        return {"max_tokens": limit, "allow_repetition": self.allow_repetition, "sampling": self.sampling}


@dataclass(frozen=True)
class EngineOptions(OptionGroup):
    """Which process runs the command; :mod:`kvcli.cli.resident.client` looks for the option first."""

    PANEL: ClassVar[str] = "Output"

    no_server: bool = option("--no-server", "Use no engine that stays for the next question, and start none.", False)


@dataclass(frozen=True)
class PlainOutput(OptionGroup):
    """How much is printed to stderr."""

    PANEL: ClassVar[str] = "Output"

    quiet: bool = option(*_QUIET, False)
    debug: bool = option(*_DEBUG, False)


@dataclass(frozen=True)
class OutputOptions(PlainOutput):
    """... and more of it."""

    verbose: bool = option("-v, --verbose", "Print more to stderr.", False)

    def settings(self) -> dict[str, Any]:
        return {"quiet": self.quiet, "verbose": self.verbose}


@dataclass(frozen=True)
class RunOptions(Settings):
    """The options of a run, as far as they can be checked without a model; see the help of ``kvcli ask``.

    Attributes:
        strict: warn of an answer without a verified quote.
        brought: recipe, chunk size and dtype are those of a saved prefill, and nobody named others.
        images, image_pages: image files, and pages of PDFs, that the model reads as pictures.
        rerank: an encoder that ranks quotes, as of :class:`kvcli.Pipeline`.
    """

    after: str = ANSWER_RULE
    cite: bool = False
    quotes: int = 3
    rerank: str | None = None
    strict: bool = False
    over: Over | None = None
    join: str | None = None
    exit_status: bool = False
    covered: float = 0.0
    allow_private: bool = False
    brought: bool = False
    images: tuple[str, ...] = ()
    image_pages: pages.Ranges = ()
    log: bool = False
    history: tuple[tuple[str, str], ...] = ()
    previous: int | None = None
    stats: bool = False
    quiet: bool = False
    verbose: bool = False

    @classmethod
    def of(cls, *groups: OptionGroup, **more: Any) -> RunOptions:
        """The settings of all ``groups``, and ``more`` by name."""
        return cls(**{name: value for group in groups for name, value in group.settings().items()}, **more)

    def under(self, task: Template, longest: int | None) -> RunOptions:
        """These options with what a template puts around a question; ``longest`` is the answer's limit, if given."""
        limit = longest or task.max_tokens or ANSWER_TOKENS
        return replace(self, before=task.before, after=f"\n{task.after}" * bool(task.after), max_tokens=limit)

    def pipeline(self, model: Model, cache: CacheDirectory | None) -> Pipeline:
        """The pipeline of these options, with the encoder of ``rerank``."""
        made = super().pipeline(model, cache)
        made.named = made.named and not self.brought
        if self.rerank is not None:
            from kvcli.models.encoder import load_encoder

            made.encoder = load_encoder(self.rerank, device=model.spec.device)
        return made

    @property
    def usual(self) -> bool:
        if self.brought:
            return replace(self, brought=False, policy=None, chunk=None).usual
        return super().usual and not self.history and self.over is None

    def check(self) -> Recipe | None:
        """Refuse what is not valid: recipe, number of bits, sampling, encoder. Returns the recipe if one was named."""
        from kvcli.recipe import parse

        recipe = None if self.policy is None else parse(self.policy)
        if self.kv_bits is not None:
            (recipe or parse("full")).with_bits(self.kv_bits)
        if recipe is not None and recipe.policy.budget is None and self.budget is not None:
            recipe.with_budget(1)  # raises if it takes none
        if self.sampling:
            from kvcli.engine.sampling import Sampling

            Sampling(**self.sampling)
        if self.rerank is not None:
            from kvcli.models.resolve import here

            here(self.rerank, "encoder")
        return recipe
