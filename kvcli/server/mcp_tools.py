"""A server of the Model Context Protocol over standard input and output: documents of one folder, read and asked."""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import anyio
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError

from kvcli.documents.cited_answer import cite_answer
from kvcli.documents.quotes import QuoteIndex
from kvcli.errors import KvcliError
from kvcli.events import Prefill
from kvcli.pipeline import DocumentContext, Pipeline
from kvcli.server.errors import ApiError
from kvcli.server.uploads import UploadedFile, Uploads
from kvcli.utils.version import __version__

T = TypeVar("T")

KEPT = 4
"""Prefilled documents in memory; others are loaded from their saved prefills."""

INSTRUCTIONS = (
    "Ask long documents: read_document reads a file once, ask_document answers from it with citations,"
    " find_quote says where some words are in it. Paths are relative to the server's folder."
)


class DocumentTools:
    """The tools. Work of the model runs in a thread, one call at a time.

    Args:
        root: the folder whose files may be named.
        load: makes the pipeline; called once, when the first document is read.
    """

    def __init__(self, root: Path, load: Callable[[], Pipeline]) -> None:
        self.files = Uploads(root)
        self._load, self._loaded, self._one = load, list[Pipeline](), asyncio.Lock()
        self._contexts: OrderedDict[str, DocumentContext] = OrderedDict()

    async def read_document(self, path: str, ctx: Context) -> dict[str, Any]:
        """Read a document (PDF, EPUB, office, HTML, mail, text, source code) so that it can be asked.

        Later calls and later sessions use what was read.

        Args:
            path: of the file, relative to the server's folder.
        """
        file, context = await self._read(path, ctx)
        kept = 0 if context.context is None else context.context.kept
        return {
            "id": file.id,
            "name": file.name,
            "characters": len(file.document.text),
            "pages": file.document.pages,
            "tokens": context.tokens,
            "tokens_kept": kept,
            "warnings": list(file.document.warnings),
        }

    async def ask_document(self, document: str, question: str, ctx: Context, max_tokens: int = 512) -> dict[str, Any]:
        """Answer a question about a document, with the passages that the answer comes from.

        Args:
            document: its path, relative to the server's folder, or the id from read_document.
            question: one question.
            max_tokens: longest answer.
        """
        if not question.strip() or max_tokens < 1:
            raise ToolError("the question is empty, or max_tokens is below 1")
        file = await _in_thread(lambda: self.files.find(document))
        async with self._one:
            unread = await _in_thread(lambda: self._pipeline().unread(file.document, question, default=True))
        context = unread or (await self._read(document, ctx))[1]

        def answer() -> dict[str, Any]:
            pipeline = self._pipeline()
            found = pipeline.answer(context, question, max_tokens=max_tokens, from_quotes=None)
            quotes = pipeline.find_quotes(context, question, answer=found.text)
            return {
                "answer": found.text,
                "finish_reason": found.finish_reason,
                "document": file.name,
                **found.citations.to_json(),
                "quotes": [asdict(quote) for quote in quotes.quotes],
                "answer_in_text": quotes.likely,
            }

        async with self._one:
            return await _in_thread(answer)

    async def find_quote(self, document: str, quote: str) -> dict[str, Any]:
        """Say whether a document has these words, and where: page, line and the document's own wording. No model runs.

        Args:
            document: its path, relative to the server's folder, or the id from read_document.
            quote: the words, at least twelve characters.
        """
        file = await _in_thread(lambda: self.files.find(document))
        marked = f"“{quote.replace('“', '‟').replace('”', '‟')}”"
        found = await _in_thread(lambda: cite_answer(QuoteIndex(file.document), marked)[1])
        return found[0].to_json(1) if found else {"n": 1, "quote": quote, "status": "unverified"}

    def _pipeline(self) -> Pipeline:
        if not self._loaded:
            self._loaded.append(self._load())
        return self._loaded[0]

    async def _read(self, name: str, ctx: Context) -> tuple[UploadedFile, DocumentContext]:
        file = await _in_thread(lambda: self.files.find(name))
        left = threading.Event()

        def tell(event: Any) -> None:
            if isinstance(event, Prefill) and not left.is_set():
                anyio.from_thread.run(ctx.report_progress, event.done, event.total)

        def prefill() -> DocumentContext:
            return self._pipeline().prefill(file.document, on_event=tell, origin="mcp", stop=left.is_set)

        async with self._one:
            kept = self._contexts.get(file.id)
            try:
                context = await _in_thread(prefill) if kept is None else kept
            finally:
                left.set()  # a client that cancels its call stops the prefill, which is saved
            self._contexts[file.id] = context
            self._contexts.move_to_end(file.id)
            while len(self._contexts) > KEPT:
                self._contexts.popitem(last=False)
        return file, context


async def _in_thread(work: Callable[[], T]) -> T:
    try:
        return await anyio.to_thread.run_sync(work, abandon_on_cancel=True)
    except KvcliError as error:
        raise ToolError(error.message if error.hint is None else f"{error.message} ({error.hint})") from None
    except ApiError as error:
        raise ToolError(error.message) from None


def serve(root: Path, load: Callable[[], Pipeline]) -> None:
    """Serve until standard input ends; arguments as for :class:`DocumentTools`."""
    server: MCPServer[Any] = MCPServer("kvcli", version=__version__, instructions=INSTRUCTIONS, log_level="ERROR")
    tools = DocumentTools(root, load)
    for tool in (tools.read_document, tools.ask_document, tools.find_quote):
        server.tool()(tool)
    server.run("stdio")
