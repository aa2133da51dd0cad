"""Errors in the shape that OpenAI's clients understand."""

from __future__ import annotations

from starlette.responses import JSONResponse

from kvcli.errors import InputError, KvcliError, ResourceError, TooLongError, UsageError


class ApiError(Exception):
    """A request that cannot be answered.

    Args:
        status: HTTP status code.
        message: what is wrong, for a person.
        code: for a program.
        param: the field of the request, if one is to blame.
        headers: of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = headers or {}

    @property
    def body(self) -> dict[str, object]:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(self.status, kind)
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body, self.status, self.headers)


def to_api_error(error: BaseException) -> ApiError:
    """Any failure as an :class:`ApiError`; an unexpected one says nothing about the inside."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, TooLongError):
        return ApiError(400, _line(error), code="context_length_exceeded", param="messages")
    if isinstance(error, ResourceError):
        return ApiError(503, _line(error), code="insufficient_memory", headers={"Retry-After": "30"})
    if isinstance(error, InputError | UsageError):
        return ApiError(400, _line(error), code=f"kvcli_{error.code}")
    if isinstance(error, KvcliError):
        return ApiError(500, _line(error), code=f"kvcli_{error.code}")
    return ApiError(500, f"internal error: {type(error).__name__}", code="internal_error")


def _line(error: KvcliError) -> str:
    return error.message if error.hint is None else f"{error.message} ({error.hint})"
