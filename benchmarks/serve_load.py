"""Many clients of ``kvcli serve`` at once: requests, seconds per request, errors and memory.

    python -m benchmarks.serve BOOK --clients 32 [--seconds 300] [-m MODEL]

Half of the clients ask about the document, half ask without it. Each sends its next request when it has its answer.
The row has the median, the 99th percentile, errors by status, and the server's resident memory after the first
and the last quarter of the time.
"""

from __future__ import annotations

import argparse
import subprocess
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import httpx
import psutil

from benchmarks import http_servers

TOKENS = 8
"""Of an answer."""


def load(options: argparse.Namespace, base: dict[str, str], _folder: Path) -> Iterator[dict[str, Any]]:
    """The only row."""
    model = ["-m", options.model] if options.model else []
    with http_servers.kvcli_serve([*model, options.book], base) as (server, url):
        yield _load(server, url, options)


def _load(server: subprocess.Popen[bytes], url: str, options: argparse.Namespace) -> dict[str, Any]:
    file = httpx.get(f"{url}/v1/files", timeout=60).json()["data"][0]["id"]
    end, times, errors = monotonic() + options.seconds, list[float](), Counter[str]()

    def client(n: int) -> None:
        body = {"max_tokens": TOKENS, "messages": [{"role": "user", "content": f"Who is number {n}?"}]}
        body |= {"documents": [file]} if n % 2 else {}
        with httpx.Client(timeout=600) as http:
            while monotonic() < end:
                start = monotonic()
                try:
                    status = http.post(f"{url}/v1/chat/completions", json=body).status_code
                except httpx.HTTPError as error:
                    status = type(error).__name__
                if status == 200:
                    times.append(monotonic() - start)
                else:
                    errors[str(status)] += 1

    process, memory = psutil.Process(server.pid), list[int]()
    with ThreadPoolExecutor(options.clients) as pool:
        waiting = [pool.submit(client, n) for n in range(options.clients)]
        for _ in range(4):
            sleep(options.seconds / 4)
            memory.append(process.memory_info().rss)
        for one in waiting:
            one.result()
    times.sort()
    if not times:
        raise RuntimeError(f"no request was answered: {dict(errors)}")
    return {
        "clients": options.clients,
        "requests": len(times),
        "p50_s": round(times[len(times) // 2], 2),
        "p99_s": round(times[len(times) * 99 // 100], 2),
        "errors": errors.total(),
        "statuses": dict(errors),
        "rss_first": round(memory[0] / 2**20),
        "rss_last": round(memory[-1] / 2**20),
        "n": len(times),
    }
