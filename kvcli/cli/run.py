"""One run of ``ask``: documents and a model in, answers out; what fails cheaply is tried first."""

import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from kvcli import documents
from kvcli.cli import render, usage
from kvcli.cli.budget import Budget
from kvcli.cli.exits import PARTLY_FAILED, STOPS, Interrupted, error_object, stop_code, understand
from kvcli.cli.output import Sink
from kvcli.cli.questions import Question, Request, standard_input
from kvcli.cli.report import Report
from kvcli.events import Answer, Prefill, Token

if TYPE_CHECKING:
    from kvcli.cache.context import Context
    from kvcli.hf.load import Model
    from kvcli.prompt import Prompt
    from kvcli.recipe import Recipe

T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """The options of ``ask`` that are about the run, checked as far as can be without a model."""

    model: str | None = None
    system: str | None = None
    raw: bool = False
    max_tokens: int = 2048
    sampling: dict[str, Any] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    policy: str | None = None
    budget: Budget | None = None
    heads: str | None = None
    chunk: int = 512
    device: str | None = None
    dtype: str | None = None
    offline: bool = False
    stats: bool = False
    quiet: bool = False
    verbose: bool = False


@contextmanager
def during(what: str) -> Iterator[None]:
    """Say of Ctrl-C and SIGTERM what they broke off."""
    try:
        yield
    except STOPS as stop:
        raise Interrupted(f"interrupted while {what}", "the same command again", cause=stop) from None


def _remember(events: Generator[Prefill, None, T], last: list[Prefill]) -> Generator[Prefill, None, T]:
    """``events``, with the newest one in ``last``."""
    while True:
        try:
            event = next(events)
        except StopIteration as end:
            value: T = end.value
            return value
        last[:] = [event]
        yield event


class Run:
    """State of a run: what was read, with which model, and where answers go."""

    model: "Model"
    recipe: "Recipe"
    prompt: "Prompt"

    def __init__(self, settings: Settings, request: Request, sink: Sink) -> None:
        self.settings = settings
        self.request = request
        self.sink = sink
        self.report = Report()
        self.ids: list[int] = []
        self.context: Context | None = None
        self.asked = 0

    # --- before the first answer ---

    def prepare(self, *, stdin_is_questions: bool) -> None:
        """Documents, model, token ids, recipe."""
        settings, report = self.settings, self.report
        named = self._check()
        start = time.perf_counter()
        with during("waiting for standard input"):
            stdin = standard_input(self.request, stdin_is_questions=stdin_is_questions, quiet=settings.quiet)
        if self.request.files or stdin is not None:
            report.document = documents.read(self.request.files, stdin)
        report.extract_s = time.perf_counter() - start
        for warning in report.document.warnings if report.document else ():
            self._warn(warning)
        self._load()
        spec = self.model.spec
        with during("splitting the document into tokens"):
            if report.document:
                self.ids = self.prompt.document(report.document.text)
        report.tokens = len(self.ids)
        from kvcli.recipe import default

        budget = None if settings.budget is None else settings.budget.units(spec, len(self.ids))
        if named is None:
            trained = self.model.heads is not None
            self.recipe = default(spec, questions=len(self.request.questions), budget=budget, heads=trained)
            if self.ids and not trained:
                render.note(
                    "heads", f"none for {spec.name}: reading with {self.recipe.keep.name}", quiet=settings.quiet
                )
        else:
            self.recipe = named if budget is None else named.with_budget(budget)
        report.recipe = str(self.recipe)
        report.budget = self.recipe.keep.budget

    def _check(self) -> "Recipe | None":
        """What can be wrong with the options, before anything is read."""
        recipe = None
        if self.settings.policy is not None:
            from kvcli.recipe import parse

            recipe = parse(self.settings.policy)
        if self.settings.sampling:
            from kvcli.sampling import Sampling

            Sampling(**self.settings.sampling)
        return recipe

    def _load(self) -> None:
        settings, report = self.settings, self.report
        with during("loading the model"):
            from kvcli.heads.find import attach
            from kvcli.hf.load import load
            from kvcli.hf.models import resolve
            from kvcli.prompt import Prompt

            report.baseline_bytes = usage.resident()
            source = render.follow(resolve(settings.model, offline=settings.offline), quiet=settings.quiet)
            start = time.perf_counter()
            self.model = load(source, device=settings.device, dtype=settings.dtype)
            card = attach(self.model, settings.heads, offline=settings.offline)
            report.load_s = time.perf_counter() - start
        spec = self.model.spec
        if spec.device.startswith("cuda"):
            report.baseline_bytes = 0
        report.model = asdict(spec)
        self.prompt = Prompt(self.model.tokenizer, system=settings.system, raw=settings.raw)
        report.model |= {"path": str(source.path), "notes": list(source.notes)}
        report.model["heads"] = (
            None if card is None else {"trained_for": card.model, "steps": card.steps, "made": card.made}
        )
        if settings.verbose:
            for text in (str(source.path), *source.notes):
                render.note("source", text, quiet=settings.quiet)

    def banner(self) -> None:
        """What is about to happen."""
        from kvcli import memory

        report, spec, quiet = self.report, self.model.spec, self.settings.quiet
        if report.document:
            named = report.document.files
            files = " ".join(named) if len(named) <= 3 else f"{named[0]} and {len(named) - 1} more"
            render.note("document", f"{files} · {report.tokens:,} tokens · nothing dropped", quiet=quiet)
            kept = max(memory.units(spec, self.recipe, report.tokens, i) for i in range(spec.layers))
            units = f"{kept:,} of {report.tokens:,} units kept ({render.share(kept, report.tokens)})"
            recipe = f"{report.recipe}, {units}"
        else:
            recipe = "no document"
        render.note("model", f"{spec.name} {spec.dtype} · {spec.device} · {recipe}", quiet=quiet)

    # --- questions ---

    def answer_all(self) -> None:
        """Every question in order. Raises ``typer.Exit`` where not all went well."""
        questions = self.request.questions
        failed = 0
        for n, question in enumerate(questions, 1):
            self.asked = n
            if len(questions) > 1:
                render.note("question", f"[{n}/{len(questions)}] {question.text}", quiet=self.settings.quiet)
            try:
                self._answer(question)
            except (typer.Exit, Interrupted, BrokenPipeError):
                raise
            except Exception as problem:
                if not self.request.batch:
                    raise
                failed += 1
                self._failed(question, problem)
        if failed:
            render.warn(f"{failed} of {len(questions)} questions failed")
            raise typer.Exit(PARTLY_FAILED)

    def _failed(self, question: Question, problem: Exception) -> None:
        """One question of a batch: said, and the next one is asked."""
        error = understand(problem)
        self.sink.abandon()
        if self.sink.as_json:
            name = {} if question.id is None else {"id": question.id}
            self.sink.end("", {**error_object(error), **name, "question": question.text})
        render.error(error)

    def _answer(self, question: Question) -> None:
        from kvcli import memory
        from kvcli.sampling import Sampling

        settings, report, model = self.settings, self.report, self.model
        ids = self.prompt.question(question.text, document=bool(self.ids))
        tokens = len(self.ids)
        room = memory.check_positions(model.spec, self.recipe, tokens=tokens, chunk=settings.chunk, question=len(ids))
        longest = min(settings.max_tokens, room)
        if self.context is None or self.recipe.keep.question:
            plan = memory.plan(model.spec, self.recipe, tokens=tokens, chunk=settings.chunk, tail=len(ids) + longest)
            report.planned_bytes = plan.total
            self.context = None
            plan.check(memory.available(model.spec.device), model.spec.device)
            if self.ids:
                self._read(ids, horizon=model.spec.max_positions - room + longest)
        sampling = Sampling(**settings.sampling)
        report.sampling = {**asdict(sampling), "max_tokens": settings.max_tokens, "stop": list(settings.stop)}
        answer, stopped = self._generate(ids, sampling, longest)
        report.peak_bytes = usage.peak(model.spec.device)
        if answer.finish_reason == "length":
            limit = "-n allows no more" if longest == settings.max_tokens else "the model's positions end there"
            hint = f"; try -n {2 * longest}" if longest == settings.max_tokens else ""
            self._warn(f"the answer was cut at {answer.completion_tokens:,} tokens: {limit}{hint}")
        self.sink.end(answer.text, report.answer(question, answer))
        self._aftermath(answer)
        if stopped is not None:
            raise typer.Exit(stop_code(stopped))

    def _read(self, question: list[int], horizon: int) -> None:
        """Prefill, with progress."""
        from kvcli.engine import read

        last: list[Prefill] = []
        probe = question if self.recipe.keep.question else None
        start = time.perf_counter()
        events = read(self.model, self.ids, self.recipe, chunk=self.settings.chunk, probe=probe, horizon=horizon)
        try:
            self.context = render.follow(
                _remember(events, last), quiet=self.settings.quiet, device=self.model.spec.device
            )
        except STOPS as stop:
            done = last[0].done if last else 0
            raise Interrupted(
                f"interrupted while reading, at {done:,} of {len(self.ids):,} tokens; what was read is lost, "
                "because this version does not save readings",
                "the same command again; it reads from the start",
                cause=stop,
            ) from None
        self.report.prefill_s = time.perf_counter() - start
        self.report.kept, self.report.kv_bytes = self.context.kept, self.context.nbytes
        self.report.bits = self.context.bits

    def _generate(self, ids: list[int], sampling: Any, longest: int) -> tuple[Answer, BaseException | None]:
        """The answer, streamed; where it was interrupted, what there is of it and what interrupted it."""
        from kvcli import engine

        start = time.perf_counter()
        first, parts, made = start, list[str](), 0
        tail = engine.begin(self.model, self.context)
        events = engine.ask(
            self.model,
            tail,
            ids,
            sampling=sampling,
            max_tokens=longest,
            stop=self.settings.stop,
            chunk=self.settings.chunk,
        )
        try:
            for event in events:
                if isinstance(event, Answer):
                    return event, None
                if isinstance(event, Token):
                    first = first if made else time.perf_counter()
                    made += event.id >= 0
                    parts.append(event.text)
                    self.sink.write(event.text)
        except STOPS as stop:
            text, now = "".join(parts), time.perf_counter()
            answer = Answer(text, "interrupted", len(ids), made, first - start, now - first)
            return answer, stop
        raise RuntimeError("the engine ended without an answer")

    def _aftermath(self, answer: Answer) -> None:
        """After the answer: read, kept, dropped, and statistics where they were asked for."""
        quiet = self.settings.quiet
        if self.report.document:
            render.note("read", self.report.reading(), quiet=quiet)
        if answer.finish_reason == "interrupted":
            made = answer.completion_tokens
            kept = f"after {render.plural(made, 'token')} of the answer" if made else "before the answer began"
            left = len(self.request.questions) - self.asked
            skipped = f"; {render.plural(left, 'question')} not asked" if left else ""
            render.note("stopped", f"interrupted {kept}{skipped}", quiet=quiet)
        if self.settings.stats:
            for label, text in self.report.statistics(answer):
                render.note(label, text)
        if self.settings.verbose:
            render.note("model", f"fingerprint {self.model.spec.fingerprint}", quiet=quiet)
        if self.sink.path is not None:
            render.note("answer", f"written to {self.sink.path}", quiet=quiet)

    def _warn(self, text: str) -> None:
        if text not in self.report.warnings:
            self.report.warnings.append(text)
        render.warn(text, quiet=self.settings.quiet)
