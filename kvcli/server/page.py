"""The web page at ``/``: one file, with a policy that lets the browser run it and nothing else."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

NO_SNIFF = {"X-Content-Type-Options": "nosniff"}


@cache
def content() -> tuple[bytes, dict[str, str]]:
    """The page and its headers."""
    text = Path(__file__).with_name("page.html").read_text("utf-8")
    script, style = (_digest(text, tag) for tag in ("script", "style"))
    policy = (
        f"default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; img-src blob: data:;"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {
        "Content-Security-Policy": policy,
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cache-Control": "no-cache",
        **NO_SNIFF,
    }
    return text.encode(), headers


def _digest(text: str, tag: str) -> str:
    (inside,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()}'"


async def show(_request: Request) -> Response:
    body, headers = content()
    return Response(body, media_type="text/html", headers=headers)
