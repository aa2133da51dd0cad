"""What a chat stands on: documents, model, recipe, and a reading whose fill is kept to absorb turns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import chdir, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvcli import documents
from kvcli.cli import inputs
from kvcli.cli.desk import ANSWER, QUESTION, Desk, Settings
from kvcli.cli.request import Request
from kvcli.cli.views import terminal
from kvcli.errors import InputError, UsageError
from kvcli.utils.sizes import format_bytes

if TYPE_CHECKING:
    from kvcli.cache.context import Context
    from kvcli.chat.conversation import ChatContext
    from kvcli.planning.memory import Plan
    from kvcli.prompt_cache.prefill import PrefillRequest
    from kvcli.recipe import Recipe

ROOM = 4096
"""Tokens that turns may take before they are absorbed, where the model's window allows it."""


class Parlour(Desk):
    """A desk for a conversation.

    Args:
        settings: as for ``ask``.
        files: what is read at first.
        added: what is read behind it.
        folder: where these names lead from.
    """

    def __init__(
        self, settings: Settings, files: Sequence[str], added: Sequence[str] = (), folder: Path | None = None
    ) -> None:
        super().__init__(settings, Request(tuple(files), (), False))
        self.added, self.folder = list(added), folder or Path()

    def furnish(self) -> None:
        """Documents, model, token ids and recipe; nothing is read by the model yet."""
        recipe = self._check()
        if recipe is not None and recipe.policy.query_aware:
            raise UsageError(f"'{recipe}' reads for one question, and a chat asks many", "--policy keydiff")
        with self._there():
            self._open(self.request.files, None)
        for name in self.added:
            self._join([name])
        self._load()
        self._settle()

    def named(self, name: str) -> str:
        """A further file as it is remembered: by the name that ``ask`` would read, where that leads to it."""
        path = Path(name).expanduser()
        return str(path if Path.cwd() == self.folder else path.absolute())

    def add(self, names: Sequence[str]) -> None:
        """Documents behind those that are there; the ground is then another one."""
        before = self.report.document
        self._join(names)
        try:
            self._settle()
        except BaseException:
            self.report.document = before
            raise
        self.added += names

    def take_back(self, document: documents.Document | None, added: Sequence[str]) -> None:
        """What was added could not be read: as before."""
        self.report.document, self.added = document, list(added)
        self._settle()

    def instruct(self, system: str | None) -> None:
        """Another system message; it stands before the document, so that the ground is another one."""
        self.given = replace(self.given, system=system)
        self.settings = replace(self.settings, system=system)
        self._settle()

    def _join(self, names: Sequence[str]) -> None:
        with self._there():
            more = documents.read(names, None, self.given.reading)
        for warning in more.warnings:
            self._warn(warning)
        document = self.report.document
        self.report.document = more if document is None else inputs.joined(document, more)

    @contextmanager
    def _there(self) -> Iterator[None]:
        """In the folder where the conversation was begun, so that names in the text are the same again."""
        if not self.folder.is_dir():
            raise InputError(
                f"the folder {self.folder} of this conversation does not exist", f"ls {self.folder.parent}"
            )
        with chdir(self.folder):
            yield

    def _job(self, recipe: Recipe, question: Sequence[int] = (), longest: int = 0) -> PrefillRequest:
        return replace(super()._job(recipe, question, longest), keep_cache=True, origin="ask")

    # --- the ground ---

    @property
    def endless(self) -> bool:
        """Whether turns can be evicted at all: a budget, and positions that are used again."""
        return self.recipe.policy.budget is not None and self.recipe.policy.positions == "compact"

    @property
    def slots(self) -> int:
        """Positions that the context takes at most, however long the conversation."""
        from kvcli.planning.positions import kept_units

        spec = self.model.spec
        endless = 2**31
        found = (kept_units(spec, self.recipe, endless, i) for i, w in enumerate(spec.sliding) if w is None)
        return max(found, default=0)

    def run(self) -> tuple[Plan, int]:
        """Memory at the peak, and tokens that turns may take at a time; the fill stays beside the context.

        Raises:
            TooLongError: the model's positions do not suffice.
        """
        from kvcli.planning import memory

        spec = self.model.spec
        longest = max(ROOM - QUESTION, self.settings.max_tokens) if self.endless else spec.max_positions
        made, longest = memory.plan_run(
            spec,
            self.recipe,
            tokens=self.planned,
            chunk=self.chunk,
            question=QUESTION,
            answer=longest,
            passages=self._passages([0] * QUESTION),
        )
        return memory.with_resident_cache(made, spec, self.recipe, tokens=self.planned), QUESTION + longest

    @property
    def planned(self) -> int:
        """Tokens that are read at least once there have been enough turns."""
        return max(len(self.ids), self.slots + self.chunk) if self.endless else len(self.ids)

    def outlook(self, tokens: int) -> str:
        """What reading so many tokens of this ground would take, for a person to decide."""
        from kvcli.planning import speed_history

        rate = speed_history.measured(self.model.spec, self.recipe).prefill
        time = f"about {terminal.duration(tokens / rate)}" if rate else "how long is not known here"
        keeps = f"{self.slots:,} units kept" if self.endless else "nothing is evicted"
        return f"{time} · {keeps} · {format_bytes(self.run()[0].total)} of memory at the peak"

    def ground(self) -> ChatContext:
        """Read the document, or take its reading up.

        Raises:
            KvcliError: it does not fit the model or the memory, or was interrupted.
        """
        from kvcli.chat.conversation import ChatContext
        from kvcli.engine.prefill import new_prefill_cache
        from kvcli.utils.process_memory import available

        spec, chunk = self.model.spec, self.chunk
        self.reader.drop()
        plan, room = self.run()
        plan.check(available(spec.device), spec.device)
        if self.ids:
            self._read([0] * QUESTION, room - QUESTION)
            work, context = self.reader.work, self.reader.context
            assert work is not None
            self.reader.drop()
        else:
            self.model.rotary.fix_length(
                min(spec.max_positions, max(self.planned, chunk) + max(room, QUESTION + ANSWER))
            )
            work, context = new_prefill_cache(self.model, self.recipe, 0, chunk=chunk), None
        if context is not None and (count := self._passages([0] * QUESTION)):
            passages = terminal.plural(count, "passage")
            terminal.note("look", f"{passages} of the text read again before each answer", quiet=self.settings.quiet)
        return ChatContext(
            prompt=self.prompt,
            recipe=self.recipe,
            chunk=chunk,
            work=work,
            context=context,
            room=room,
            total=None if self.endless else spec.max_positions,
            look=self._again,
        )

    def _again(self, context: Context, question: str) -> tuple[list[str], Context]:
        return self._look(context, question, self._passages([0] * QUESTION))

    def sampling(self) -> dict[str, Any]:
        """How answers are drawn where nobody says otherwise: the model's own generation settings."""
        from kvcli.models.generation import settings

        return settings(self.model)
