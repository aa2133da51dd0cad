"""The library object: prefill, ask, answer, cite."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from kvcli import recipe as recipes
from kvcli.documents.cited_answer import cite_answer
from kvcli.documents.document import Document
from kvcli.documents.quotes import QuoteIndex
from kvcli.engine.answer_format import AnswerFormat
from kvcli.engine.drafts import as_ids
from kvcli.engine.generate import generate, new_decode_cache
from kvcli.engine.kept_tokens import KeptTokens
from kvcli.engine.prompt import ANSWER_RULE, PLAIN_STOPS, Prompt, usual
from kvcli.engine.query_aware import query_aware
from kvcli.engine.sampling import Sampling
from kvcli.errors import InputError, ModelError, UsageError
from kvcli.events import Answer, CacheHit, Checkpoint, Event, Notice, Prefill, Quote, Quotes, Reread, Token, drain
from kvcli.models import defaults
from kvcli.pipeline.results import AnswerResult, Citations, DocumentContext, RecipeChoice, TokenizedDocument, Usage
from kvcli.planning import memory
from kvcli.planning.budget import Budget
from kvcli.planning.positions import max_position
from kvcli.prompt_cache.directory import CacheDirectory
from kvcli.prompt_cache.prefill import cached_prefill, is_prefilled
from kvcli.prompt_cache.request import PrefillRequest, request_key
from kvcli.retaining_heads import calibration
from kvcli.retrieval.answer_span import answer_span
from kvcli.retrieval.attribution import LikelySource, attribute
from kvcli.retrieval.passages import retrieve_passages
from kvcli.retrieval.quotes import QuoteSearch
from kvcli.retrieval.sentences import STORED_FROM, sentence_index
from kvcli.types import ANSWER_TOKENS, QUESTION_TOKENS

if TYPE_CHECKING:
    from kvcli.models.model import Model
    from kvcli.planning.memory import Plan
    from kvcli.recipe import Recipe

EXAMPLE_SENTENCES = 3
"""Sentences that an answer from quotes alone is written from."""

_RESERVED = [0] * QUESTION_TOKENS  # in place of a question that is not known yet


class Pipeline:
    """Prefill, retrieval, generation and citation with one model.

    Args:
        model: from :func:`load_model`.
        recipe: eviction policy and storage, as text or parsed; by default the best measured one for the model.
        cache: where prefills are saved and looked up; ``None`` saves nothing.
        budget: units to keep per KV head: a number, ``12%`` or ``2GiB``.
        kv_bits: bits of a kept number: 16, 8, 4 or 2.
        chunk_size: tokens per forward pass of prefill.
        system: system message.
        raw: no chat template: the text, then the question.
        before, after: text before and after each question; by default none, and a line that asks for the exact words
            of the text.
        rerank: an embedding model or a cross-encoder that ranks quotes in the place of the model. It is a directory, or
            a hub id in the hub's cache, and is never fetched.

    Raises:
        UsageError: the recipe, budget or number of bits is not valid.
        ModelError: the recipe needs a calibration that does not exist, or the encoder is not on this machine.
    """

    def __init__(
        self,
        model: Model,
        recipe: str | Recipe | None = None,
        *,
        cache: CacheDirectory | None = None,
        budget: str | int | Budget | None = None,
        kv_bits: int | None = None,
        chunk_size: int | None = None,
        system: str | None = None,
        raw: bool = False,
        before: str = "",
        after: str = ANSWER_RULE,
        rerank: str | None = None,
    ) -> None:
        self.model = model
        named = recipes.parse(recipe) if isinstance(recipe, str) else recipe
        self.recipe = None if named is None else named.for_model(model.spec)
        self.cache, self.texts = cache, None if cache is None else cache.texts
        self.budget = budget if budget is None or isinstance(budget, Budget) else Budget.parse(str(budget))
        self.kv_bits = kv_bits
        self.named = any(given is not None for given in (recipe, budget, kv_bits))
        published = model.heads_card if self.recipe is None else None
        self.chunk_size = chunk_size or getattr(published, "chunk", 0) or defaults.default_chunk(model.spec)
        self.prompt = Prompt(model.tokenizer, system=system, raw=raw, before=before, after=after)
        self.encoder = None
        if rerank is not None:
            from kvcli.models.encoder import load_encoder

            self.encoder = load_encoder(rerank, device=model.spec.device)
        if kv_bits is not None:
            (self.recipe or recipes.parse("full")).with_bits(kv_bits)

    # --- before prefill ---

    def tokenize(self, document: Document | TokenizedDocument | str) -> TokenizedDocument:
        """The token ids that prefill reads, of a document or of plain text.

        Raises:
            ResourceError: too many.
            ModelError: the document has pictures, and the model was loaded without a vision tower.
        """
        if isinstance(document, TokenizedDocument):
            return document
        if isinstance(document, str):
            document = Document.of_text(document)
        memory.check_text(document.text, lambda text: len(self.prompt.document(text)))
        if not document.pictures:
            return TokenizedDocument(document, self.prompt.document(document.text))
        if self.model.pictures is None:
            raise ModelError(
                f"{self.model.name} was loaded without a vision tower, and the document has pictures",
                "kvcli.load_model(name, pictures=True)",
            )
        made = TokenizedDocument(document, [], self.model.pictures.read(document.pictures, self.prompt.encode))
        return replace(made, ids=self.prompt_for(made).document(document.text))

    def prompt_for(self, source: TokenizedDocument | None) -> Prompt:
        """The prompt of a document: pictures precede its text."""
        if source is None or source.pictures is None:
            return self.prompt
        return self.prompt.with_pictures(source.pictures.ids, text=bool(source.document.text))

    def choose_recipe(
        self, source: TokenizedDocument | None, *, questions: int = 0, saved: bool = True
    ) -> RecipeChoice:
        """The recipe for a document: the pipeline's own, or the best measured one for the model.

        Args:
            source: the document, or ``None``.
            questions: how many will be asked; 0 if unknown. A single one may get a policy that reads for it alone.
            saved: prefer a saved prefill for any question over reading for this one.

        Raises:
            ModelError: the recipe needs retaining heads or a calibration that do not exist.
        """
        spec, trained = self.model.spec, self.model.heads is not None
        units = None if self.budget is None else self.budget.units(spec, 0 if source is None else len(source.ids))
        published = getattr(self.model.heads_card, "recipe", "")
        chosen = partial(recipes.choose, spec, self.recipe, budget=units, bits=self.kv_bits, heads=trained)
        recipe = chosen(questions=questions, published=published)
        free = self.recipe is None and source is not None
        if free and source and recipe.policy.query_aware and saved and self.cache is not None:
            general = chosen(questions=0)
            if is_prefilled(self.cache.path(request_key(self.model, self._request(source, general)))):
                recipe = general
        calibrated = None if recipe.storage.calibrated == "never" else calibration.attach(self.model, [recipe])
        return RecipeChoice(recipe, free and not trained, calibrated)

    def plan(
        self,
        source: TokenizedDocument | None,
        recipe: Recipe,
        *,
        question: Sequence[int] = _RESERVED,
        max_tokens: int = ANSWER_TOKENS,
        passages: int = 0,
    ) -> tuple[Plan, int]:
        """Memory of one question, and the maximum length of its answer in tokens.

        Raises:
            TooLongError: the model has too few positions under this recipe.
        """
        return memory.plan_run(
            self.model.spec,
            recipe,
            tokens=0 if source is None else len(source.ids),
            chunk=self.chunk_size,
            question=len(question),
            answer=max_tokens,
            passages=passages,
        )

    def default_passages(self, source: TokenizedDocument | None, recipe: Recipe, question: Sequence[int]) -> int:
        """How many passages are read again before an answer if the caller does not say."""
        if source is None or self.prompt.raw or not source.document.text:
            return 0
        return memory.default_passages(
            self.model.spec, recipe, tokens=len(source.ids), chunk=self.chunk_size, question=len(question)
        )

    # --- prefill ---

    def prefill(
        self,
        document: Document | TokenizedDocument | str | None,
        *,
        on_event: Callable[[Event], None] | None = None,
        **options: Any,
    ) -> DocumentContext:
        """Read a document, or load its saved prefill; see :meth:`prefill_events` for the options.

        Args:
            document: from :func:`read_document`; ``None`` for questions without one.
            on_event: receives progress events.
        """
        return drain(self.prefill_events(document, **options), on_event)

    def prefill_events(
        self,
        document: Document | TokenizedDocument | str | None,
        *,
        recipe: Recipe | None = None,
        question: str | Sequence[int] | None = None,
        query_aware: bool = False,
        max_tokens: int = ANSWER_TOKENS,
        passages: int = 0,
        plan: Plan | None = None,
        keep_cache: bool = False,
        origin: str = "ask",
        path: Path | None = None,
        base: Path | None = None,
        rebuild: bool = False,
        stop: Callable[[], bool] = lambda: False,
    ) -> Generator[Prefill | CacheHit | Checkpoint | Notice, None, DocumentContext]:
        """Read a document, or load its saved prefill.

        Args:
            document: the text; ``None`` for questions without one.
            recipe: overrides :meth:`choose_recipe`.
            question: what will be asked, as text or token ids. Needed by policies that read for one question.
            query_aware: put the question before the text too.
            max_tokens: longest answer that must fit.
            passages: passages that will be read again before the answer.
            plan: memory that was planned otherwise; refused if it is not available.
            keep_cache: keep the prefill cache, into which a chat evicts its turns.
            origin: command that reads; stored in the saved prefill.
            path: file to save to if the pipeline has no cache directory.
            base: a saved prefill that must fit: of this text or of its beginning.
            rebuild: ignore saved prefills.
            stop: asked after each chunk; if true, progress is saved and :class:`PrefillInterrupted` is raised.

        Yields:
            :class:`Prefill` after each chunk, :class:`CacheHit` if a saved prefill is used, :class:`Checkpoint` if
            progress was saved, :class:`Notice` if saving or loading failed.

        Raises:
            InputError: the recipe depends on the question and there is none.
            TooLongError: the text does not fit the model's positions under this recipe.
            ResourceError: not enough memory.
            PrefillInterrupted: ``stop`` returned true.
        """
        source = None if document is None else self.tokenize(document)
        if recipe is None:
            recipe = self.choose_recipe(source, questions=0 if question is None else 1, saved=not rebuild).recipe
        recipe = recipe.for_model(self.model.spec)
        if source is not None and recipe.policy.query_aware and question is None:
            raise InputError(f"'{recipe}' depends on the question, and none was given", "--policy keydiff")
        if source is not None and query_aware:
            source, recipe = self._with_question_first(source, recipe, str(question or ""))
        asked = _RESERVED if question is None else self._ids(question, source)
        planned, longest = self.plan(source, recipe, question=asked, max_tokens=max_tokens, passages=passages)
        (plan or planned).check_devices(self.model.spec)
        if source is None:
            return DocumentContext(None, recipe, None, planned)
        request = self._request(
            source,
            recipe,
            probe=asked,
            longest=longest,
            first=str(question) if query_aware else None,
            origin=origin,
            keep_cache=keep_cache,
        )
        key, began = request_key(self.model, request), perf_counter()
        place = path if self.cache is None else self.cache.path(key)
        result = yield from cached_prefill(
            self.model,
            request,
            key=key,
            place=place,
            library=self.cache,
            base=base,
            rebuild=rebuild,
            stop=stop,
        )
        seconds = perf_counter() - began
        reuse_s = result.seconds if result.reused else 0.0
        if self.texts is not None and result.cache != "hit" and len(source.document.text) >= STORED_FROM:
            sentence_index(source.document, self.texts)  # stored beside the prefill
        return DocumentContext(
            source,
            recipe,
            result.context,
            plan or planned,
            key,
            result.cache,
            result.reused,
            reuse_s,
            0.0 if result.cache == "hit" else seconds - reuse_s,
            result.path,
            result.work,
        )

    def unread(
        self,
        document: Document | TokenizedDocument | str,
        question: str,
        recipe: Recipe | None = None,
        earlier: Sequence[str] = (),
        *,
        default: bool = False,
    ) -> DocumentContext | None:
        """A document without prefill, for an answer from quotes alone; ``None`` if no sentence seems to answer.

        Args:
            document: the text.
            question: what will be asked of it, with ``from_quotes``.
            recipe: overrides :meth:`choose_recipe`.
            earlier: as for :meth:`ask`.
            default: ``None`` too unless :meth:`asks_by_examples` and units would be evicted.
        """
        source = self.tokenize(document)
        recipe = recipe or self.choose_recipe(source).recipe
        evicts = (recipe.policy.budget or len(source.ids)) < len(source.ids)
        if default and not (evicts and self.asks_by_examples(source, question)):
            return None
        if not QuoteSearch(source.document, question, earlier, kept=self.texts).found:
            return None
        return DocumentContext(source, recipe, None, self.plan(None, recipe)[0])

    def fits(self, context: DocumentContext, question: str | Sequence[int], *, max_tokens: int = ANSWER_TOKENS) -> bool:
        """Whether a question can be answered from a context, or the document must be read again for it."""
        if context.source is None:
            return True
        asked = self._ids(question, context.source)
        _, longest = self.plan(context.source, context.recipe, question=asked, max_tokens=max_tokens)
        request = self._request(context.source, context.recipe, probe=asked, longest=longest)
        return request_key(self.model, request) == context.key

    # --- answers ---

    def ask(
        self,
        context: DocumentContext,
        question: str | Sequence[int],
        *,
        sampling: Sampling | None = None,
        max_tokens: int = ANSWER_TOKENS,
        stop: Sequence[str] = (),
        passages: int | None = None,
        history: Sequence[tuple[str, str]] = (),
        allow_repetition: bool = False,
        quotes: int = 0,
        by_model: bool = True,
        earlier: Sequence[str] = (),
        from_quotes: bool | None = False,
        verbatim: bool | None = None,
        drafts: bool = True,
        answer_format: AnswerFormat | None = None,
        kept: KeptTokens | None = None,
        again: Sequence[str] = (),
        together: bool = False,
    ) -> Iterator[Reread | Quotes | Token | Answer]:
        """Answer a question, token by token.

        Args:
            context: from :meth:`prefill`.
            question: what is asked, as text or token ids; with ids no passages are read again.
            sampling: greedy by default.
            max_tokens: longest answer; less if the model's positions end before.
            stop: texts that end the answer and are not part of it.
            passages: passages of the document to read again before the answer; by default as planned.
            history: questions about this context and their answers, before this question; not with token ids.
            allow_repetition: let a greedy answer repeat itself until ``max_tokens``.
            quotes: sentences of the document to name that may answer the question; needs the question as text.
            by_model: the model ranks the quotes too, in one forward pass after the answer.
            earlier: of a conversation, the last question and quote, which quotes for a follow-up take names from.
            from_quotes: answer in one line from the three best sentences alone, after worked examples. If no sentence
                seems to answer, from the context as usual. ``None`` does so if :meth:`asks_by_examples` and no unit was
                evicted.
            verbatim: with ``from_quotes``: the answer is the likeliest successive words of one of these sentences.
                ``None`` does so for models of :data:`kvcli.models.defaults.ASKED_BY_EXAMPLES`.
            drafts: on a CPU, look up drafts of the next tokens in the document, and decode several tokens at once if
                the answer repeats it. Answers are the same.
            answer_format: JSON of a schema, or one of several texts. The model is told of it after a question as text.
                An answer that ``max_tokens`` cuts ends with ``length`` and is not of this form.
            kept: tokens of an earlier question and its answer about this context. What both questions begin with is
                not read again, unless passages are. Keeps this question and its answer in their place.
            again: texts to read after the context, before the question; then no passages are looked for.
            together: as for :func:`kvcli.engine.generate.generate`.

        Yields:
            :class:`Quotes` if quotes are wanted: ranked by words before the answer; after the last token again, first
            those that support it. :class:`Reread` if passages are read again. A :class:`Token` for each token; then one
            :class:`Answer`.

        Raises:
            TooLongError: the question does not fit the model's positions.
            UsageError: an answer format with ``stop`` or ``from_quotes``, which would cut it. Also a document that was
                not read, unless ``from_quotes`` is given and a sentence seems to answer.
        """
        if answer_format is not None and (stop or from_quotes):
            raise UsageError(
                "an answer of a given form takes neither stop texts nor worked examples", "leave out --stop"
            )
        document, visible = context.document, context.context
        by_default = from_quotes is None
        if by_default:
            plain = not (history or again or stop or answer_format) and isinstance(question, str)
            evicted = visible is not None and visible.kept < context.tokens
            from_quotes = plain and not evicted and self.asks_by_examples(context.source, str(question))

        def encoded(*texts: str) -> list[int]:
            asked, end = question, list[int]()
            if answer_format is not None:
                asked = question + answer_format.rule if isinstance(question, str) else question
                end = self.prompt.no_reasoning()
            return self._ids(asked, context.source, history=history, passages=texts) + end

        ids = encoded(*again)
        count = self.default_passages(context.source, context.recipe, ids) if passages is None else passages
        count = 0 if visible is None or again or not isinstance(question, str) else count
        read = None if visible is None else context.source
        _, longest = self.plan(read, context.recipe, question=ids, max_tokens=max_tokens, passages=count)
        search: QuoteSearch | None = None
        reread: Reread | None = None
        if (quotes or from_quotes) and document is not None and isinstance(question, str):
            search = QuoteSearch(document, question, earlier, count=quotes, kept=self.texts)
            if quotes:
                yield search.quotes()
        if from_quotes and search is not None and search.found:
            began = perf_counter()
            if by_model and not by_default:  # words choose as well, and the answer need not wait
                self._rank(search)
            spans, texts = search.best(EXAMPLE_SENTENCES)
            ids, visible, count = self.prompt.worked_examples(texts, str(question)), None, 0
            reread = Reread(spans, sum(map(len, texts)), perf_counter() - began, alone=True)
            yield reread
            free = stop or (sampling is not None and sampling.temperature)
            if verbatim or (verbatim is None and not free and self.model.name in defaults.ASKED_BY_EXAMPLES):
                began, shares = perf_counter(), [c.share for c in search.candidates[: len(texts)]][::-1]
                language = search.index.language
                if span := answer_span(self.model, self.prompt, str(question), texts, shares, longest, language):
                    seconds = perf_counter() - began
                    yield Token(-1, span.text)
                    if quotes:
                        yield self._settled(search, span.text, by_model=by_model)
                    yield Answer(span.text, "stop", len(ids), span.tokens, seconds, 0.0)
                    return
            stop = (*stop, "\n")
        elif document is not None and visible is None:
            raise UsageError("the document was not read, and no sentence seems to answer", "use Pipeline.prefill")
        if count and isinstance(question, str) and document is not None and visible is not None:
            began = perf_counter()
            found = retrieve_passages(
                self.model,
                self.prompt_for(context.source),
                visible,
                search or QuoteSearch(document, question, earlier, kept=self.texts),
                count=count,
                tokens=context.tokens,
            )
            visible, texts = found.context, found.texts(document.text)
            ids = encoded(*texts) if texts else ids
            spans = tuple((p.start, p.end) for p in found.passages)
            yield Reread(spans, sum(map(len, texts)), perf_counter() - began)
        if self.prompt.plain and answer_format is None:
            stop = (*stop, *PLAIN_STOPS)
        same = kept is not None and visible is context.context
        blank = reread is not None or self.prompt.plain  # what continues "Answer:" begins with a blank
        begun = not blank
        cache = kept.begin(self.model, visible, ids) if kept and same else new_decode_cache(self.model, visible)
        said = list(ids)
        try:
            for event in generate(
                self.model,
                cache,
                ids[cache.length :],
                sampling=sampling,
                max_tokens=longest,
                stop=stop,
                chunk=self.chunk_size,
                allow_repetition=allow_repetition,
                drafts=None if not drafts else as_ids(()) if context.source is None else context.source.draft_ids,
                answer_format=answer_format,
                together=together,
            ):
                if isinstance(event, Answer):
                    text = event.text.lstrip() if blank else event.text
                    event = replace(event, text=text, prompt_tokens=len(ids))
                    if search is not None and quotes:
                        yield self._settled(search, event.text, by_model=by_model)
                elif event.id >= 0:
                    said.append(event.id)
                if not begun and isinstance(event, Token):
                    event = replace(event, text=event.text.lstrip())
                    begun = bool(event.text)
                yield event
        finally:
            if kept is not None and same:
                kept.end(cache, said)

    def asks_by_examples(self, source: TokenizedDocument | None, question: str) -> bool:
        """Whether worked examples over the likeliest sentences were measured to be better than the chat template.

        That is so for a model of :data:`kvcli.models.defaults.ASKED_BY_EXAMPLES`, with nothing of the caller's around
        the question and no recipe, budget or bits of the caller's. What does not end with a question mark is an
        instruction: three sentences are few for it.
        """
        if self.named or self.model.name not in defaults.ASKED_BY_EXAMPLES or source is None or source.pictures:
            return False
        return usual(self.prompt, question)

    def quotes(
        self, document: DocumentContext | TokenizedDocument | Document | str, question: str, **options: Any
    ) -> list[Quote]:
        """The sentences of a document that may answer a question; options as for :meth:`find_quotes`."""
        return list(self.find_quotes(document, question, **options).quotes)

    def find_quotes(
        self,
        document: DocumentContext | TokenizedDocument | Document | str,
        question: str,
        *,
        answer: str | None = None,
        count: int = 3,
        by_model: bool = True,
        earlier: Sequence[str] = (),
    ) -> Quotes:
        """The sentences of a document that may answer a question, the likeliest first. Nothing need have been read.

        Args:
            document: the text, read or not.
            question: what is asked.
            answer: what was written; quotes that support it are then first.
            count: how many at most; fewer if fewer sentences share a word with the question.
            by_model: the model ranks the best by words, in one forward pass.
            earlier: of a conversation, the last question and quote, which a follow-up question takes names from.

        Returns:
            quotes, and the probability that the text answers; no quotes without a text.
        """
        if isinstance(document, str):
            document = Document.of_text(document)
        text = document if isinstance(document, Document) else document.document
        if text is None:
            return Quotes((), False, 0.0, 0.0, False)
        search = QuoteSearch(text, question, earlier, count=count, kept=self.texts)
        if by_model:
            self._rank(search)
        return search.quotes(answer)

    def _settled(self, search: QuoteSearch, answer: str, *, by_model: bool) -> Quotes:
        """The quotes of an answer, ranked by the model unless words alone are wanted."""
        if by_model and not search.by_model:
            self._rank(search)
        return search.quotes(answer)

    def _rank(self, search: QuoteSearch) -> None:
        if self.encoder is not None:
            search.rank_by_encoder(self.encoder)
        else:
            search.rank_by_model(self.model, self.prompt)

    def answer(
        self,
        context: DocumentContext,
        question: str,
        *,
        cite: bool = True,
        likely_sources: bool = False,
        **options: Any,
    ) -> AnswerResult:
        """A complete answer with its citations; options as for :meth:`ask`.

        Args:
            context: from :meth:`prefill`.
            question: what is asked.
            cite: look up the answer's quotes in the document.
            likely_sources: name the pages that the answer attends to most.
        """
        passages: tuple[tuple[int, int], ...] = ()
        end: Answer | None = None
        for event in self.ask(context, question, **options):
            if isinstance(event, Reread):
                passages = event.passages
            elif isinstance(event, Answer):
                end = event
        assert end is not None
        found = self.cite(context, question, end.text, likely_sources=likely_sources) if cite else Citations()
        usage = Usage(context.tokens + end.prompt_tokens, end.completion_tokens)
        return AnswerResult(end.text, end.finish_reason, usage, found, passages, end.first_token_s, end.decode_tps)

    def cite(
        self,
        context: DocumentContext,
        question: str,
        answer: str,
        *,
        likely_sources: bool | None = None,
        index: QuoteIndex | None = None,
    ) -> Citations:
        """Where an answer's words are in the document.

        Args:
            context: from :meth:`prefill`.
            question: what was asked.
            answer: the answer's text.
            likely_sources: look for pages that the answer attends to; by default if no quote is verified.
            index: of the document's text, if the caller has one.
        """
        document = context.document
        if document is None:
            return Citations()
        text, quotes = cite_answer(index or QuoteIndex(document), answer, question)
        grounded = any(quote.status == "verified" for quote in quotes)
        likely: Sequence[LikelySource] = ()
        if context.context is not None and (likely_sources or (likely_sources is None and not grounded)):
            prompt = self.prompt_for(context.source)
            likely = attribute(self.model, prompt, context.context, document, question, answer)
        return Citations(tuple(quotes), tuple(likely), grounded, text)

    # --- within ---

    def _ids(self, question: str | Sequence[int], source: TokenizedDocument | None, **before: Any) -> list[int]:
        if not isinstance(question, str):
            return list(question)
        return self.prompt_for(source).question(question, document=source is not None, **before)

    def _request(
        self,
        source: TokenizedDocument,
        recipe: Recipe,
        *,
        probe: Sequence[int] = (),
        longest: int = 0,
        first: str | None = None,
        origin: str = "ask",
        keep_cache: bool = False,
    ) -> PrefillRequest:
        after = max(QUESTION_TOKENS + ANSWER_TOKENS, len(probe) + longest)
        tokens, chunk = len(source.ids), self.chunk_size
        return PrefillRequest(
            ids=source.ids,
            recipe=recipe,
            chunk=chunk,
            horizon=max_position(self.model.spec, recipe, tokens=tokens, chunk=chunk, after=after),
            head=self.prompt_for(source).document("", question=first),
            text=source.document.text,
            document=source.facts,
            probe=probe if recipe.policy.query_aware else (),
            origin=origin,
            system=self.prompt.system,
            raw=self.prompt.raw,
            keep_cache=keep_cache,
            ids_digest=source.digest,
            pictures=source.pictures,
        )

    def _with_question_first(
        self, source: TokenizedDocument, recipe: Recipe, question: str
    ) -> tuple[TokenizedDocument, Recipe]:
        ids, protected = query_aware(self.prompt_for(source), recipe, source.document.text, question)
        return replace(source, ids=ids), protected
