"""``kvcli mcp`` with the client of the package ``mcp``, over standard input and output."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import mcp
import pytest

from tests.e2e.conftest import PROGRAM, Call

TEXT = "".join(f"House {n} is blue and the sky above it is number {n}. " for n in range(40))


def test_documents_of_one_folder_are_read_asked_and_quoted(
    tiny_model: Path, folder: Path, environment: dict[str, str]
) -> None:
    root = folder / "root"
    root.mkdir()
    (root / "house.txt").write_text(TEXT)
    (folder / "secret.txt").write_text(TEXT)
    (root / "link.txt").symlink_to(folder / "secret.txt")
    command, *args = [*PROGRAM, "mcp", "--root", "root", "-m", str(tiny_model), "--policy", "keydiff(budget=64)"]
    server = mcp.StdioServerParameters(command=command, args=args, env=environment, cwd=folder)

    async def session() -> None:
        async with mcp.Client(server) as client:

            async def call(tool: str, **arguments: Any) -> Any:
                result = await client.call_tool(tool, arguments)
                return None if result.is_error else result.structured_content

            tools = (await client.list_tools()).tools
            assert {tool.name for tool in tools} == {"read_document", "ask_document", "find_quote"}
            found = await call("find_quote", document="house.txt", quote="the sky “above” it is number 7")
            assert (found["status"], found["source"]) == ("repaired", "house.txt")
            found = await call("find_quote", document="house.txt", quote="the sky above it is number 7.")
            assert found["status"] == "verified"
            assert TEXT[found["char_start"] : found["char_end"]] == found["quote"]
            assert (await call("find_quote", document="house.txt", quote="no such words"))["status"] == "unverified"
            read = await call("read_document", path="house.txt")
            assert read["tokens"] > len(TEXT) > 64 == read["tokens_kept"]
            for name in ("house.txt", read["id"]):
                answer = await call("ask_document", document=name, question="What is blue?", max_tokens=5)
                assert len(answer["answer"]) == 5
                assert answer["quotes"][0]["source"] == "house.txt"
            for name in ("../secret.txt", "link.txt", str(folder / "secret.txt"), "none.txt", "/etc/passwd"):
                assert await call("read_document", path=name) is None
                assert await call("find_quote", document=name, quote="House 1 is blue") is None
            assert await call("ask_document", document="house.txt", question=" ") is None

    asyncio.run(asyncio.wait_for(session(), 300))


@pytest.mark.parametrize("options", [[], ["--root", "missing"], ["--root", ".", "--policy", "snapkv"]])
def test_wrong_options_of_mcp_are_said(call: Call, options: list[str]) -> None:
    outcome = call("mcp", *options)
    assert (outcome.code, outcome.out) == (2, "")
