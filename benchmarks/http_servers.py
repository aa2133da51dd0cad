"""``kvcli serve`` and llama.cpp's ``llama-server`` as processes, and questions to them by ``curl``, timed."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, perf_counter, sleep
from typing import Any

import httpx

PATIENCE = 3600.0


@dataclass(frozen=True)
class Asked:
    """Seconds until the first word and until the end, and the tokens of the prompt that were computed."""

    first_s: float
    end_s: float
    computed: int


@contextmanager
def kvcli_serve(words: list[str], environment: dict[str, str]) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The process and address of ``kvcli serve --port 0 WORDS``, ready for requests."""
    command = [str(Path(sys.executable).with_name("kvcli")), "serve", "--port", "0", *words]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as server:
        try:
            assert server.stderr is not None
            for line in server.stderr:
                if found := re.search(rb"http://127\.0\.0\.1:\d+", line):
                    yield server, found[0].decode()
                    return
            raise RuntimeError("kvcli serve has ended")
        finally:
            server.terminate()


@contextmanager
def llama_server(program: str, gguf: str, slots: Path, tokens: int, threads: int, more: list[str]) -> Iterator[str]:
    """The address of a ``llama-server`` with one slot of ``tokens``, whose saved slots are in ``slots``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [program, "-m", gguf, "--host", "127.0.0.1", "--port", str(port), "-np", "1", "-c", str(tokens)]
    command += ["--slot-save-path", str(slots), "-t", str(threads), "-tb", str(threads), *more]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            url, end = f"http://127.0.0.1:{port}", monotonic() + 120
            while not _healthy(url):
                if server.poll() is not None or monotonic() > end:
                    raise RuntimeError(f"{program} did not start: {' '.join(command)}")
                sleep(0.05)
            yield url
        finally:
            server.terminate()


def _healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def ask(url: str, body: dict[str, Any]) -> Asked:
    """Ask by ``curl`` in a process of its own, streamed, from its start on."""
    body |= {"stream": True, "stream_options": {"include_usage": True}, "temperature": 0}
    command = ["curl", "-sN", f"{url}/v1/chat/completions", "-H", "Content-Type: application/json", "-d", "@-"]
    start, first, usage = perf_counter(), 0.0, None
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as curl:
        assert curl.stdin is not None
        assert curl.stdout is not None
        curl.stdin.write(json.dumps(body).encode())
        curl.stdin.close()
        for line in curl.stdout:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise RuntimeError(event["error"]["message"])
            if not first and any(choice["delta"].get("content") for choice in event["choices"]):
                first = perf_counter() - start
            usage = event.get("usage") or usage
    if not first or usage is None:
        raise RuntimeError(f"{url} gave no answer")
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    return Asked(first, perf_counter() - start, usage["prompt_tokens"] - cached)


def slot(url: str, action: str) -> float:
    """Let ``llama-server`` save, restore or erase its slot; returns the seconds."""
    start = perf_counter()
    answer = httpx.post(f"{url}/slots/0?action={action}", json={"filename": "slot.bin"}, timeout=PATIENCE)
    answer.raise_for_status()
    return perf_counter() - start
