"""The HTTP interface: OpenAI's paths, on one :class:`~kvcli.server.service.Service`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, suppress
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from kvcli.errors import KvcliError
from kvcli.events import Answer, Prefill, Token
from kvcli.server import page, response_events
from kvcli.server.errors import ApiError, to_api_error
from kvcli.server.requests import CompletionRequest, parse_chat, parse_completion, parse_response
from kvcli.server.responses import ChatShape, TextShape, completion, sse, stream
from kvcli.server.scheduler import JobCancelled
from kvcli.server.security import Gate
from kvcli.server.service import Answering, Service, joined, new_answering
from kvcli.utils.version import __version__

LARGEST = 256 << 20
"""Bytes of a request's body, an uploaded file included."""

Events = AsyncIterator[Prefill | Token | Answer]


def build(service: Service, *, hosts: frozenset[str] | None, token: str | None, largest: int = LARGEST) -> Gate:
    """The ASGI application.

    Args:
        service: answers the requests.
        hosts: names under which the server may be addressed; ``None`` for any name.
        token: what requests must carry; ``None`` for no check.
        largest: bytes of a request's body.
    """
    routes = Routes(service)
    app = Starlette(
        routes=[
            Route("/", page.show, methods=["GET"]),
            Route("/health", routes.health, methods=["GET"]),
            Route("/v1/models", routes.models, methods=["GET"]),
            Route("/v1/models/{name:path}", routes.model, methods=["GET"]),
            Route("/v1/chat/completions", routes.chat, methods=["POST"]),
            Route("/v1/responses", routes.responses, methods=["POST"]),
            Route("/v1/completions", routes.completions, methods=["POST"]),
            Route("/v1/files", routes.files, methods=["GET", "POST"]),
            Route("/v1/files/{file_id}", routes.file, methods=["GET", "DELETE"]),
            Route("/v1/files/{file_id}/prefill", routes.prefill, methods=["POST"]),
            Route("/v1/files/{file_id}/passage", routes.passage, methods=["GET"]),
            Route("/v1/files/{file_id}/pages/{page:int}", routes.picture, methods=["GET"]),
        ],
        exception_handlers={
            ApiError: _failed,
            KvcliError: _failed,
            JobCancelled: _stopping,
            ClientLeft: _client_left,
            HTTPException: _http_error,
            Exception: _failed,
        },
    )
    return Gate(app, hosts=hosts, token=token, largest=largest)


class Routes:
    """One method for each path."""

    def __init__(self, service: Service) -> None:
        self.service = service

    async def health(self, _request: Request) -> Response:
        return JSONResponse({"status": "ok", "kvcli": __version__, "model": self.service.names[0]})

    async def models(self, _request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        if request.path_params["name"] not in self.service.names:
            raise ApiError(404, f"the model here is {self.service.names[0]}", code="model_not_found", param="model")
        return JSONResponse(self._model())

    def _model(self) -> dict[str, Any]:
        name, created = self.service.names[0], self.service.created
        return {"id": name, "object": "model", "created": created, "owned_by": "kvcli"}

    async def chat(self, request: Request) -> Response:
        whole, parts = partial(completion, ChatShape), partial(stream, ChatShape)
        return await self._complete(request, parse_chat, ChatShape.prefix, whole, parts)

    async def completions(self, request: Request) -> Response:
        whole, parts = partial(completion, TextShape), partial(stream, TextShape)
        return await self._complete(request, parse_completion, TextShape.prefix, whole, parts)

    async def responses(self, request: Request) -> Response:
        how = response_events
        return await self._complete(request, parse_response, how.PREFIX, how.response, how.stream)

    async def _complete(
        self,
        request: Request,
        parse: Callable[[dict[str, Any]], CompletionRequest],
        prefix: str,
        whole: Callable[[str, Answering], dict[str, Any]],
        parts: Callable[..., AsyncIterator[bytes]],
    ) -> Response:
        wanted = parse(await _json(request))
        self.service.check(wanted)
        answering = new_answering(prefix)
        model = self.service.names[0]
        events = self.service.answer(wanted, answering)
        if not wanted.stream:
            await _unless_client_leaves(request, _drained(events))
            return JSONResponse(whole(model, answering))
        begun = await _unless_client_leaves(request, _begun(events))
        return StreamingResponse(
            parts(model, answering, begun, include_usage=wanted.include_usage),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store"},
        )

    async def files(self, request: Request) -> Response:
        uploads = self.service.uploads
        if request.method == "GET":
            return JSONResponse({"object": "list", "data": [file.facts for file in uploads], "has_more": False})
        async with request.form(max_files=1, max_fields=8) as form:
            part = form.get("file")
            if not isinstance(part, UploadFile):
                raise ApiError(400, "'file' is missing: send it as multipart/form-data", param="file")
            data, name = await part.read(), part.filename or "upload"
        if not data:
            raise ApiError(400, f"{name} is empty: 0 bytes", code="empty_file", param="file")
        return JSONResponse((await asyncio.to_thread(uploads.read, data, name)).facts)

    async def file(self, request: Request) -> Response:
        file_id = request.path_params["file_id"]
        if request.method == "GET":
            return JSONResponse(self.service.uploads.get(file_id).facts)
        self.service.uploads.delete(file_id)
        return JSONResponse({"id": file_id, "object": "file", "deleted": True})

    async def prefill(self, request: Request) -> Response:
        """Progress of the prefill as server-sent events; the prefill stops if its only client leaves.

        Ids with commas between them are one document, as in ``documents`` of a question.
        """
        document, _ = joined([self.service.uploads.get(name) for name in request.path_params["file_id"].split(",")])
        self.service.check_queue()

        async def events() -> AsyncIterator[bytes]:
            found = self.service.prefill_events(document)
            try:
                async with _closing(found):
                    async for event in found:
                        yield sse(event)
            except Exception as error:
                yield sse(to_api_error(error).body)

        return StreamingResponse(events(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    async def passage(self, request: Request) -> Response:
        return JSONResponse(self.service.uploads.passage(request.path_params["file_id"], *_range(request)))

    async def picture(self, request: Request) -> Response:
        where = request.path_params
        drawn = await asyncio.to_thread(
            self.service.uploads.picture, where["file_id"], where["page"], *_range(request, 0)
        )
        return Response(drawn, media_type="image/png", headers={"Cache-Control": "no-store", **page.NO_SNIFF})


class ClientLeft(Exception):
    """The client closed the connection before its answer."""


def _range(request: Request, default: int | None = None) -> tuple[int, int]:
    """``start`` and ``end`` of the query: characters of a text."""
    found = []
    for name in ("start", "end"):
        text = request.query_params.get(name, "" if default is None else str(default))
        if not text.isascii() or not text.isdigit() or len(text) > 12:
            raise ApiError(400, f"'{name}' must be a number", code="invalid_value", param=name)
        found.append(int(text))
    return found[0], found[1]


async def _json(request: Request) -> dict[str, Any]:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # a web page may send other types without asking
        raise ApiError(415, "the body must be sent as application/json", code="wrong_content_type")
    try:
        body = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON: {error}", code="invalid_json") from None
    if not isinstance(body, dict):
        raise ApiError(400, "the body must be a JSON object", code="invalid_json")
    return body


async def _drained(events: Events) -> Events:
    async with _closing(events):
        async for _ in events:
            pass
    return events


async def _begun(events: Events) -> Events:
    """Wait for the first event, then return all: a wrong request is noticed before a header is sent."""
    first: list[Any] = []
    try:
        first.append(await anext(events))
    except StopAsyncIteration:
        pass
    except BaseException:
        with suppress(RuntimeError):
            await events.aclose()  # type: ignore[attr-defined]
        raise

    async def all_of_them() -> Events:
        async with _closing(events):
            for event in first:
                yield event
            async for event in events:
                yield event

    return all_of_them()


def _closing(events: Any) -> aclosing[Any]:
    return aclosing(events)


async def _unless_client_leaves(request: Request, work: Awaitable[Events]) -> Events:
    """Wait for ``work``; cancel it if the client closes the connection first."""
    task = asyncio.ensure_future(work)
    left = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({task, left}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            raise ClientLeft
        return await task
    finally:
        left.cancel()
        task.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _failed(_request: Request, error: Exception) -> Response:
    return to_api_error(error).response()


async def _stopping(_request: Request, _error: Exception) -> Response:
    return ApiError(503, "the server is stopping", code="stopping", headers={"Retry-After": "5"}).response()


async def _client_left(_request: Request, _error: Exception) -> Response:
    return Response(status_code=499)


async def _http_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return ApiError(error.status_code, str(error.detail), headers=dict(error.headers or {})).response()
