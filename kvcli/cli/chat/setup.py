"""What a chat is about: documents, model, recipe and system message; documents and message may change."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import chdir, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvcli import documents
from kvcli.cli import setup
from kvcli.cli.inputs import Inputs, open_documents
from kvcli.cli.options import RunOptions
from kvcli.cli.report import Report
from kvcli.cli.views import terminal
from kvcli.documents.document import join_documents
from kvcli.errors import InputError, UsageError
from kvcli.types import QUESTION_TOKENS
from kvcli.utils.sizes import format_bytes

if TYPE_CHECKING:
    from kvcli.chat.conversation import ChatContext
    from kvcli.engine.prompt import Prompt
    from kvcli.models.model import Model
    from kvcli.pipeline import DocumentContext
    from kvcli.recipe import Recipe


class ChatSetup:
    """The documents, model and recipe of a chat.

    Args:
        options: as for ``ask``.
        files: what is read first.
        added: what is read after it.
        folder: directory that relative names start from.

    Attributes:
        run: everything before prefill; replaced if documents or the system message change.
        report: numbers of the last prefill.
    """

    def __init__(self, options: RunOptions, files: Sequence[str], added: Sequence[str], folder: Path) -> None:
        recipe = options.check()
        if recipe is not None and recipe.policy.query_aware:
            raise UsageError(f"'{recipe}' reads for one question, and a chat asks many", "--policy keydiff")
        self.added, self.folder = list(added), folder
        with self._in_folder():
            inputs = open_documents(options, files)
        for text in inputs.document.warnings if inputs.document and added else ():
            terminal.warn(text, quiet=options.quiet)
        for name in added:
            inputs = self._joined(inputs, [name])
        loaded = setup.open_model(inputs.options, inputs.saved)
        self.run = setup.open_run(inputs, loaded, questions=0)
        self.report = Report()

    # --- what there is ---

    @property
    def options(self) -> RunOptions:
        return self.run.options

    @property
    def model(self) -> Model:
        return self.run.model

    @property
    def prompt(self) -> Prompt:
        return self.run.pipeline.prompt

    @property
    def recipe(self) -> Recipe:
        return self.run.recipe

    @property
    def document(self) -> documents.Document | None:
        return self.run.document

    @property
    def tokens(self) -> int:
        """Tokens of the documents, template included."""
        return 0 if self.run.source is None else len(self.run.source.ids)

    def banner(self) -> None:
        """What is about to be read, on stderr."""
        setup.banner(self.run, self.tokens, self.recipe)

    def sampling(self) -> dict[str, Any]:
        """How answers are drawn by default: the model's own generation settings."""
        from kvcli.models.generation import settings

        return settings(self.model)

    # --- changes ---

    def remembered(self, name: str) -> str:
        """A file's name as the session stores it: as ``ask`` would read it, if that leads to it."""
        path = Path(name).expanduser()
        return str(path if Path.cwd() == self.folder else path.absolute())

    def add(self, names: Sequence[str]) -> None:
        """Add documents after those that there are."""
        inputs = self._joined(self.run.inputs, names)
        self.run = setup.open_run(inputs, self.run.loaded, questions=0)
        self.added += names

    def restore(self, run: setup.OpenRun, added: Sequence[str]) -> None:
        """Go back to an earlier state, because what was added could not be read."""
        self.run, self.added = run, list(added)

    def set_system(self, system: str | None) -> None:
        """Another system message; it is before the document, so the document must be read again."""
        inputs = replace(self.run.inputs, options=replace(self.options, system=system))
        self.run = setup.open_run(inputs, self.run.loaded, questions=0, warn=False)

    def _joined(self, inputs: Inputs, names: Sequence[str]) -> Inputs:
        with self._in_folder():
            more = documents.read(names, None, inputs.options.reading)
        document = more if inputs.document is None else join_documents(inputs.document, more)
        return replace(inputs, document=document)

    @contextmanager
    def _in_folder(self) -> Iterator[None]:
        """Change to the directory in which the chat was started, so relative paths resolve."""
        if not self.folder.is_dir():
            raise InputError(
                f"the folder {self.folder} of this conversation does not exist", f"ls {self.folder.parent}"
            )
        with chdir(self.folder):
            yield

    # --- prefill ---

    def estimate(self, tokens: int) -> str:
        """What prefill of so many tokens would take, in one line."""
        from kvcli.chat.setup import evicts_turns, most_units, plan_chat
        from kvcli.planning import speed_history

        run, spec = self.run, self.model.spec
        rate = speed_history.measured(spec, self.recipe).prefill
        time = f"about {terminal.duration(tokens / rate)}" if rate else "how long is not known here"
        units = most_units(spec, self.recipe)
        keeps = f"{units:,} units kept" if evicts_turns(self.recipe) else "nothing is evicted"
        planned = plan_chat(run.pipeline, run.source, self.recipe, max_tokens=self.options.max_tokens)
        return f"{time} · {keeps} · {format_bytes(planned.plan.total)} of memory at the peak"

    def context(self) -> ChatContext:
        """Read the documents, or load their saved prefill.

        Raises:
            KvcliError: they do not fit the model or the memory, or prefill was interrupted.
        """
        from kvcli.chat.setup import chat_context

        run = self.run
        found = chat_context(
            run.pipeline,
            run.source,
            self.recipe,
            max_tokens=self.options.max_tokens,
            prefill=partial(self._prefill, run),
        )
        count = run.pipeline.default_passages(run.source, self.recipe, range(QUESTION_TOKENS))
        if found.context is not None and count:
            passages = terminal.plural(count, "passage")
            terminal.note("reread", f"{passages} of the text read again before each answer", quiet=run.options.quiet)
        return found

    def _prefill(self, run: setup.OpenRun, **options: Any) -> DocumentContext:
        read = setup.prefill_with_progress(run, **options)
        self.report = Report.of(run, read)  # numbers only: the context itself belongs to the conversation
        return read
