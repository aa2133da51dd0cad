"""Setup of a chat: memory plan, maximum length of turns, and the initial context.

chat = open_chat(pipeline, kvcli.read_document("book.txt"))
for event in chat.ask("Who tells the story?"): ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kvcli.chat.conversation import ChatContext, Conversation
from kvcli.engine.prefill import new_prefill_cache
from kvcli.errors import UsageError
from kvcli.planning import memory
from kvcli.planning.positions import kept_units
from kvcli.retrieval.passages import retrieve_passages
from kvcli.retrieval.quotes import QuoteSearch
from kvcli.types import ANSWER_TOKENS, QUESTION_TOKENS

if TYPE_CHECKING:
    from kvcli.cache.context import Context
    from kvcli.documents import Document
    from kvcli.events import Event
    from kvcli.pipeline import DocumentContext, Pipeline, TokenizedDocument
    from kvcli.planning.memory import Plan
    from kvcli.recipe import Recipe
    from kvcli.types import ModelSpec

ROOM = 4096
"""Maximum tokens of turns before they are evicted, if the model's window allows it."""


@dataclass(frozen=True)
class ChatPlan:
    """Peak memory of a chat, and the maximum tokens of its turns before they are evicted."""

    plan: Plan
    room: int


def evicts_turns(recipe: Recipe) -> bool:
    """Whether turns can be evicted: the recipe has a budget and reuses positions."""
    return recipe.policy.budget is not None and recipe.policy.positions == "compact"


def most_units(spec: ModelSpec, recipe: Recipe) -> int:
    """Return the maximum units per KV head of the context, however long the chat becomes."""
    endless = 2**31
    units = (kept_units(spec, recipe, endless, i) for i, window in enumerate(spec.sliding) if window is None)
    return max(units, default=0)


def _tokens(pipeline: Pipeline, source: TokenizedDocument | None, recipe: Recipe) -> int:
    """Return the minimum number of tokens that prefill reads, once there have been enough turns."""
    read = 0 if source is None else len(source.ids)
    if not evicts_turns(recipe):
        return read
    return max(read, most_units(pipeline.model.spec, recipe) + pipeline.chunk_size)


def plan_chat(
    pipeline: Pipeline, source: TokenizedDocument | None, recipe: Recipe, *, max_tokens: int = ANSWER_TOKENS
) -> ChatPlan:
    """Plan the memory of a chat, whose prefill cache stays beside the context.

    Raises:
        TooLongError: the model has too few positions.
    """
    spec, tokens = pipeline.model.spec, _tokens(pipeline, source, recipe)
    longest = max(ROOM - QUESTION_TOKENS, max_tokens) if evicts_turns(recipe) else spec.max_positions
    made, longest = memory.plan_run(
        spec,
        recipe,
        tokens=tokens,
        chunk=pipeline.chunk_size,
        question=QUESTION_TOKENS,
        answer=longest,
        passages=pipeline.default_passages(source, recipe, range(QUESTION_TOKENS)),
    )
    return ChatPlan(memory.with_resident_cache(made, spec, recipe, tokens=tokens), QUESTION_TOKENS + longest)


def chat_context(
    pipeline: Pipeline,
    source: TokenizedDocument | None,
    recipe: Recipe,
    *,
    max_tokens: int = ANSWER_TOKENS,
    prefill: Callable[..., DocumentContext] | None = None,
) -> ChatContext:
    """Prefill the document for a chat, or load its saved prefill.

    Args:
        pipeline, source, recipe: the model, the document and its recipe.
        max_tokens: maximum answer length that must fit.
        prefill: called with the options of :meth:`Pipeline.prefill_events`; by default the pipeline's own.

    Raises:
        UsageError: the recipe is query-aware.
        KvcliError: it does not fit the model or the memory, or was interrupted.
    """
    if recipe.policy.query_aware:
        raise UsageError(f"'{recipe}' depends on the question, and a chat asks many", "--policy keydiff")
    spec, chunk = pipeline.model.spec, pipeline.chunk_size
    planned = plan_chat(pipeline, source, recipe, max_tokens=max_tokens)
    plan, room = planned.plan, planned.room
    plan.check_devices(spec)
    count = pipeline.default_passages(source, recipe, range(QUESTION_TOKENS))
    context: Context | None = None
    prompt = pipeline.prompt_for(source)
    if source is None:
        work = new_prefill_cache(pipeline.model, recipe, 0, chunk=chunk)
        tokens = max(_tokens(pipeline, source, recipe), chunk)
        work.max_position = min(spec.max_positions, tokens + max(room, QUESTION_TOKENS + ANSWER_TOKENS))
    else:
        options: dict[str, Any] = {
            "recipe": recipe,
            "max_tokens": room - QUESTION_TOKENS,
            "plan": plan,
            "keep_cache": True,
        }
        read = prefill(**options) if prefill is not None else pipeline.prefill(source, **options)
        assert read.prefill_cache is not None
        work, context = read.prefill_cache, read.context

    def reread(context: Context, question: str) -> tuple[Sequence[str], Context]:
        if source is None or not count:
            return [], context
        text = source.document.text
        search = QuoteSearch(source.document, question, kept=pipeline.texts)
        found = retrieve_passages(pipeline.model, prompt, context, search, count=count, tokens=len(source.ids))
        return found.texts(text), found.context

    def by_quotes(question: str, earlier: Sequence[str], **how: Any) -> Iterator[Event] | None:
        if source is None or not pipeline.asks_by_examples(source, question):
            return None
        read = pipeline.unread(source, question, recipe, earlier)
        return None if read is None else pipeline.ask(read, question, earlier=earlier, from_quotes=None, **how)

    return ChatContext(
        prompt=prompt,
        recipe=recipe,
        chunk=chunk,
        work=work,
        context=context,
        room=room,
        total=None if evicts_turns(recipe) else spec.max_positions,
        reread=reread,
        by_quotes=by_quotes,
        draft_ids=() if source is None else source.draft_ids,
    )


def open_chat(pipeline: Pipeline, document: Document | None = None, *, max_tokens: int = ANSWER_TOKENS) -> Conversation:
    """Start a conversation with or without a document; prefill runs at the first question."""
    source = None if document is None else pipeline.tokenize(document)
    recipe = pipeline.choose_recipe(source).recipe
    return Conversation(pipeline.model, lambda: chat_context(pipeline, source, recipe, max_tokens=max_tokens))
