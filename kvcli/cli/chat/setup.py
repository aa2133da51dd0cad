"""Documents, model, recipe and system prompt of a chat; documents and prompt may change."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import chdir, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvcli import documents
from kvcli.cli import model_loading, setup
from kvcli.cli.inputs import Inputs, open_documents, read_documents
from kvcli.cli.options import RunOptions
from kvcli.cli.report import reading
from kvcli.cli.views import terminal
from kvcli.documents.document import join_documents
from kvcli.documents.reader import is_url
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
        files: the first documents.
        added: documents after those.
        folder: directory that relative names start from.

    Attributes:
        run: everything before prefill; replaced if documents or the system message change.
        reading: what the last prefill read and kept, in one line.
    """

    def __init__(self, options: RunOptions, files: Sequence[str], added: Sequence[str], folder: Path) -> None:
        recipe = model_loading.check(options)
        if recipe is not None and recipe.policy.query_aware:
            raise UsageError(f"'{recipe}' scores for one question and cannot be used in a chat", "--policy keydiff")
        self.added, self.folder = list(added), folder
        with self._in_folder():
            inputs = open_documents(options, files)
        for text in inputs.document.warnings if inputs.document and added else ():
            terminal.warn(text, quiet=options.quiet)
        for name in added:
            inputs = self._joined(inputs, [name])
        loaded = model_loading.open_model(inputs.options, inputs.saved, inputs)
        self.run = setup.open_run(inputs, loaded, questions=0)
        self.reading = ""

    # --- what there is ---

    @property
    def options(self) -> RunOptions:
        return self.run.options

    @property
    def model(self) -> Model:
        return self.run.model

    @property
    def prompt(self) -> Prompt:
        return self.run.prompt

    @property
    def recipe(self) -> Recipe:
        return self.run.recipe

    @property
    def document(self) -> documents.Document | None:
        return self.run.document

    @property
    def tokens(self) -> int:
        return self.run.tokens

    def sampling(self) -> dict[str, Any]:
        """The generation settings of the model."""
        from kvcli.models.generation import settings

        return settings(self.model)

    # --- changes ---

    def remembered(self, name: str) -> str:
        """The name of a file as the session stores it."""
        path = Path(name).expanduser()
        if is_url(name):
            return name
        return str(path if Path.cwd() == self.folder else path.absolute())

    def add(self, names: Sequence[str]) -> None:
        """Add documents after the others."""
        inputs = self._joined(self.run.inputs, names)
        self.run = setup.open_run(inputs, self.run.loaded, questions=0)
        self.added += names

    def restore(self, run: setup.OpenRun, added: Sequence[str]) -> None:
        """Return to an earlier state."""
        self.run, self.added = run, list(added)

    def set_system(self, system: str | None) -> None:
        """Change the system prompt. It precedes the document, which must be processed again."""
        inputs = replace(self.run.inputs, options=replace(self.options, system=system))
        self.run = setup.open_run(inputs, self.run.loaded, questions=0, notes=False)

    def _joined(self, inputs: Inputs, names: Sequence[str]) -> Inputs:
        with self._in_folder():
            more = read_documents(inputs.options, names)
        document = more if inputs.document is None else join_documents(inputs.document, more)
        return replace(inputs, document=document)

    @contextmanager
    def _in_folder(self) -> Iterator[None]:
        """Change to the directory in which the chat was started, so relative paths resolve."""
        if not self.folder.is_dir():
            raise InputError(
                f"the directory {self.folder} of this conversation does not exist", f"ls {self.folder.parent}"
            )
        with chdir(self.folder):
            yield

    # --- prefill ---

    def estimate(self, tokens: int) -> str:
        """Time and memory of a prefill of ``tokens``, in one line."""
        from kvcli.chat.setup import evicts_turns, most_units, plan_chat
        from kvcli.planning import speed_history

        run, spec = self.run, self.model.spec
        rate = speed_history.measured(spec, self.recipe).prefill
        time = f"about {terminal.duration(tokens / rate)}" if rate else "time unknown"
        units = most_units(spec, self.recipe)
        keeps = f"keeping {units:,} tokens" if evicts_turns(self.recipe) else "nothing is evicted"
        planned = plan_chat(run.pipeline, run.source, self.recipe, max_tokens=self.options.max_tokens)
        return f"{time} · {keeps} · {format_bytes(planned.plan.total)} at the peak"

    def context(self) -> ChatContext:
        """Process the documents, or load their saved prefill.

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
            alone = run.pipeline.asks_by_examples(run.source, "?")
            when = " that is not words of a sentence" * alone
            terminal.note("reread", f"{passages} before each answer{when}", quiet=run.options.quiet)
        return found

    def _prefill(self, run: setup.OpenRun, **options: Any) -> DocumentContext:
        read = setup.prefill_with_progress(run, **options)
        self.reading = reading(read)
        return read
