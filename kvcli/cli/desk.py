"""Before the first answer: documents or a saved reading, model, recipe, context; what fails cheaply comes first."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvcli import documents, types
from kvcli.cli import inputs
from kvcli.cli.budget import Budget
from kvcli.cli.reading import Reader
from kvcli.cli.report import Report
from kvcli.cli.request import Request, standard_input
from kvcli.cli.signals import INTERRUPTS, Interrupted
from kvcli.cli.views import terminal
from kvcli.cli.views.progress import run_with_progress
from kvcli.errors import DamagedError, ResourceError, UsageError
from kvcli.utils import process_memory

if TYPE_CHECKING:
    from kvcli.cache.context import Context
    from kvcli.documents import Document
    from kvcli.engine.prompt import Prompt
    from kvcli.models.model import Model
    from kvcli.prompt_cache.directory import CacheDirectory
    from kvcli.prompt_cache.file_format import Meta
    from kvcli.prompt_cache.prefill import PrefillRequest
    from kvcli.recipe import Recipe

QUESTION, ANSWER = 256, 2048
"""Tokens that a reading leaves room for behind it, where it matters (models whose RoPE depends on the length)."""


@dataclass(frozen=True)
class Settings:
    """The options of ``ask`` that are about the run, checked as far as can be without a model."""

    model: str | None = None
    system: str | None = None
    raw: bool = False
    max_tokens: int = ANSWER
    circles: bool = False
    sampling: dict[str, Any] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    policy: str | None = None
    budget: Budget | None = None
    kv_bits: int | None = None
    heads: str | None = None
    focus: bool = False
    again: int | None = None
    cite: str = "off"
    exit_status: bool = False
    chunk: int | None = None
    cache: bool = True
    rebuild: bool = False
    reading: documents.Options = field(default_factory=documents.Options)
    device: str | None = None
    dtype: str | None = None
    weights: str = "bf16"
    offline: bool = False
    stats: bool = False
    quiet: bool = False
    verbose: bool = False


def _way_back(meta: "Meta") -> str:
    """The options with which a reading was made."""
    held = meta.identity.model.partition("-")[2]
    return f"-m {meta.model}" + (f" --weights {held}" if held else "")


@contextmanager
def during(what: str) -> Iterator[None]:
    """Say of Ctrl-C and SIGTERM what they broke off."""
    try:
        yield
    except INTERRUPTS as stop:
        raise Interrupted(f"interrupted while {what}", "the same command again", cause=stop) from None


class Desk:
    """What a run works with: the document, the model, how it is read, and the context it leaves."""

    model: "Model"
    recipe: "Recipe"
    prompt: "Prompt"

    def __init__(self, settings: Settings, request: Request) -> None:
        self.settings = self.given = settings
        self.request = request
        self.report = Report()
        self.base: inputs.Saved | None = None
        self.ids: list[int] = []
        self.focus: str | None = None

    # --- before the first answer ---

    def prepare(self, *, stdin_is_questions: bool = False) -> None:
        """Documents, model, token ids, recipe."""
        self._check()
        with during("waiting for standard input"):
            stdin = standard_input(self.request, stdin_is_questions=stdin_is_questions, quiet=self.settings.quiet)
        self._open(self.request.files, stdin)
        self._load()
        self._settle()

    def _open(self, files: Sequence[str], stdin: bytes | None) -> None:
        """The document, or the saved reading that was named instead; it brings its own options along."""
        report, start = self.report, time.perf_counter()

        def load(names: Sequence[str]) -> "Document | None":
            return documents.read(names, stdin, self.given.reading) if names or stdin is not None else None

        self.base, report.document = inputs.read(files, load, self.given.reading)
        if self.base is not None and self.given.rebuild:
            raise UsageError(
                f"{self.base.path} is a saved reading, which --rebuild cannot read again", "name the document"
            )
        if self.base is not None and self.given.focus:
            raise UsageError(
                f"{self.base.path} is a saved reading: --focus reads for one question, and this was read for any",
                "leave out --focus, or name the document",
            )
        report.extract_s = time.perf_counter() - start
        for warning in report.document.warnings if report.document else ():
            self._warn(warning)
        self.settings = self.given
        if self.base is not None:
            meta, given = self.base.header.meta, self.given
            self.settings = replace(
                given,
                policy=given.policy or (meta.recipe if given.kv_bits is None else "") or meta.identity.recipe,
                chunk=given.chunk or meta.identity.chunk,
                dtype=given.dtype or meta.identity.dtype,
                system=given.system or meta.system,
                raw=given.raw or meta.raw,
            )

    def _settle(self) -> None:
        """Token ids, recipe, and where the reading may come from."""
        from kvcli.engine.prompt import Prompt
        from kvcli.recipe import default

        settings, report, spec = self.settings, self.report, self.model.spec
        self.prompt = Prompt(self.model.tokenizer, system=settings.system, raw=settings.raw)
        self.ids = []
        with during("splitting the document into tokens"):
            if report.document:
                self.ids = self.prompt.document(report.document.text)
        report.tokens = len(self.ids)
        self.reader = Reader(
            self.model,
            report,
            self._warn,
            quiet=settings.quiet,
            library=self._library() if self.ids else None,
            rebuild=settings.rebuild,
            base=None if self.base is None else self.base.path,
        )
        named = self._check()
        budget = None if settings.budget is None else settings.budget.units(spec, len(self.ids))
        if named is None:
            trained = self.model.heads is not None
            self.recipe = default(spec, questions=len(self.request.questions), budget=budget, heads=trained)
            if self.ids and self.recipe.policy.query_aware:
                any_question = default(spec, questions=0, budget=budget, heads=trained)
                if self.reader.was_asked_for(self._job(any_question)):
                    self.recipe = any_question
            if self.ids and not trained:
                terminal.note(
                    "heads", f"none for {spec.name}: reading with {self.recipe.policy.name}", quiet=settings.quiet
                )
        else:
            self.recipe = named if budget is None else named.with_budget(budget)
        if settings.kv_bits is not None:
            self.recipe = self.recipe.with_bits(settings.kv_bits)
        from kvcli.retaining_heads import calibration

        if notice := calibration.attach(self.model, [self.recipe]):
            terminal.note("skew", notice, quiet=settings.quiet)
        self.agnostic = self.recipe
        report.recipe = str(self.recipe)
        report.budget = self.recipe.policy.budget

    def _aim(self, question: str) -> None:
        """Put a question in front of the document, where this run reads for each question alone."""
        if not (self.settings.focus and self.report.document):
            return
        from kvcli.engine.query_aware import query_aware

        self.focus = question
        self.ids, self.recipe = query_aware(self.prompt, self.agnostic, self.report.document.text, question)
        self.report.tokens, self.report.recipe = len(self.ids), str(self.recipe)

    def _passages(self, question: Sequence[int]) -> int:
        """How many passages are to be read again before a question: as was asked for, else as is planned."""
        if not self.report.document:
            return 0
        if self.settings.again is not None:
            return self.settings.again
        if self.settings.raw:
            return 0
        from kvcli.planning import memory

        work = {"tokens": len(self.ids), "chunk": self.chunk, "question": len(question)}
        return memory.default_passages(self.model.spec, self.recipe, **work)

    def _look(self, context: "Context", question: str, count: int) -> "tuple[list[str], Context]":
        """Passages of the document, to be read again behind it, and what to see of it meanwhile."""
        document = self.report.document
        self.report.looked, self.report.look_s = [], 0.0
        if not (count and document):
            return [], context
        from kvcli.retrieval.passages import retrieve_passages

        start = time.perf_counter()
        about = self.model, self.prompt, context, document.text, question
        found = retrieve_passages(*about, count=count, tokens=len(self.ids))
        self.report.looked = [(p.start, p.end) for p in found.passages]
        self.report.look_s = time.perf_counter() - start
        return found.texts(document.text), found.context

    def _library(self) -> "CacheDirectory | None":
        if not self.settings.cache:
            return None
        from kvcli.prompt_cache.directory import CacheDirectory

        try:
            return CacheDirectory.default()
        except ResourceError as error:
            self._warn(f"readings are not saved: {error.message}")
            return None

    def _check(self) -> "Recipe | None":
        """What can be wrong with the options, before anything is read."""
        recipe, bits = None, self.settings.kv_bits
        if self.settings.policy is not None or bits is not None:
            from kvcli.recipe import parse

            recipe = None if self.settings.policy is None else parse(self.settings.policy)
            if bits is not None:
                (recipe or parse("full")).with_bits(bits)
        if self.settings.sampling:
            from kvcli.engine.sampling import Sampling

            Sampling(**self.settings.sampling)
        return recipe

    def _load(self) -> None:
        settings, report = self.settings, self.report
        with during("loading the model"):
            from kvcli.models.load import load
            from kvcli.models.resolve import resolve
            from kvcli.models.spec import fingerprint
            from kvcli.retaining_heads.discovery import attach

            source = run_with_progress(resolve(settings.model, offline=settings.offline), quiet=settings.quiet)
            self._same_model(fingerprint(source, settings.weights))
            start = time.perf_counter()

            def ready() -> None:
                report.baseline_bytes = process_memory.resident()

            place = {"device": settings.device, "dtype": settings.dtype}
            say = partial(terminal.note, "weights", quiet=settings.quiet)
            self.model = load(source, **place, weights=settings.weights, ready=ready, announce=say)
            card = attach(self.model, settings.heads, offline=settings.offline)
            report.load_s = time.perf_counter() - start
        spec = self.model.spec
        if spec.device.startswith("cuda"):
            report.baseline_bytes = 0
        report.model = asdict(spec)
        report.model |= {"path": str(source.path), "notes": list(source.notes)}
        report.model["heads"] = (
            None if card is None else {"trained_for": card.model, "steps": card.steps, "made": card.made}
        )
        if settings.verbose:
            for text in (str(source.path), *source.notes):
                terminal.note("source", text, quiet=settings.quiet)

    def _same_model(self, fingerprint: str) -> None:
        """Refuse another model than the saved reading's before it is loaded."""
        if self.base is not None and fingerprint != self.base.header.meta.identity.model:
            theirs = self.base.header.meta
            raise DamagedError(
                f"{self.base.path} does not fit: its model is {theirs.model} (fingerprint {theirs.identity.model}),"
                f" and this one's fingerprint is {fingerprint}",
                _way_back(theirs),
            )

    def banner(self) -> None:
        """What is about to happen."""
        from kvcli.planning.positions import kept_units

        report, spec, quiet = self.report, self.model.spec, self.settings.quiet
        if report.document:
            label = "book" if report.document.pages else "document"
            title = terminal.title(report.document)
            terminal.note(label, f"{title} · {report.tokens:,} tokens · nothing dropped", quiet=quiet)
            kept = max(kept_units(spec, self.recipe, report.tokens, i) for i in range(spec.layers))
            units = f"{kept:,} of {report.tokens:,} units kept ({terminal.share(kept, report.tokens)})"
            recipe = f"{report.recipe}, {units}"
        else:
            recipe = "no document"
        held = spec.dtype if self.settings.weights == "bf16" else self.settings.weights
        terminal.note("model", f"{spec.name} {held} · {spec.device} · {recipe}", quiet=quiet)

    # --- the context ---

    def _read(self, question: Sequence[int], longest: int, out: Path | None = None, *, passages: int = 0) -> int:
        """See to it that the context is there; returns how long the answer behind ``passages`` may become."""
        from kvcli.planning import memory
        from kvcli.utils.process_memory import available

        report, model, chunk = self.report, self.model, self.chunk
        tokens = len(self.ids)
        plan, longest = memory.plan_run(
            model.spec,
            self.recipe,
            tokens=tokens,
            chunk=chunk,
            question=len(question),
            answer=longest,
            passages=passages,
        )
        job = self._job(self.recipe, question, longest) if self.ids else None
        if job is None or not self.reader.has(job):
            report.planned_bytes = plan.total
            self.reader.drop()
            plan.check(available(model.spec.device), model.spec.device)
            if job is not None:
                self.reader.read(job, out)
        return longest

    @property
    def chunk(self) -> int:
        """Tokens read per step."""
        return self.settings.chunk or types.CHUNK

    def _job(self, recipe: "Recipe", question: Sequence[int] = (), longest: int = 0) -> "PrefillRequest":
        """What is read of the document under a recipe."""
        from kvcli.planning.positions import max_position
        from kvcli.prompt_cache.prefill import PrefillRequest

        spec, document = self.model.spec, self.report.document
        assert document is not None
        behind = max(QUESTION + ANSWER, len(question) + longest)
        return PrefillRequest(
            ids=self.ids,
            recipe=recipe,
            chunk=self.chunk,
            horizon=max_position(spec, recipe, tokens=len(self.ids), chunk=self.chunk, behind=behind),
            head=self.prompt.document("", focus=self.focus),
            text=document.text,
            document=inputs.about(document),
            probe=question,
            origin="ask" if self.request.questions else "prefill",
            system=self.settings.system,
            raw=self.settings.raw,
        )

    def prefill(self, out: Path | None) -> None:
        """Read the document for questions to come, and see to it that it is saved.

        Raises:
            ResourceError: it was read and could not be saved.
        """
        from kvcli.prompt_cache import file_format

        self._read([0] * QUESTION, ANSWER, None if self.settings.cache else out)
        path = self.reader.path
        try:
            if path is None:
                raise ResourceError(
                    "the text was read and is not saved", "kvcli cache prune, then the same command again"
                )
            header = file_format.header(path)
            if header.meta.origin != "prefill" and path == self.reader.place:
                file_format.update_metadata(header, replace(header.meta, origin="prefill"))
            if out is not None and path != out:
                file_format.copy(path, out)
                self.reader.path = out
        except OSError as error:
            raise ResourceError(f"{out or path} cannot be written: {error.strerror}", "another name for -o") from None

    def _warn(self, text: str) -> None:
        if text not in self.report.warnings:
            self.report.warnings.append(text)
        terminal.warn(text, quiet=self.settings.quiet)
