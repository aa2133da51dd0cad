"""Many clients of ``kvcli serve`` at once: requests, seconds per request, errors and memory.

    python -m benchmarks.serve_load BOOK [--clients 32] [--seconds 300] [-m MODEL]

Half of the clients ask about the document, half ask without it. Each sends its next request when it has its answer.
Prints one row with the median, the 99th percentile, errors by status, and the server's resident memory after the first
and the last quarter of the time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic, sleep

import httpx
import psutil

from benchmarks import http_servers
from benchmarks.provenance import provenance


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("book")
    parser.add_argument("-m", "--model")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--tokens", type=int, default=8)
    options = parser.parse_args()
    model = ["-m", options.model] if options.model else []
    with http_servers.kvcli_serve([*model, options.book], dict(os.environ)) as (server, url):
        row = _load(server, url, options)
    words = f"python -m benchmarks.serve_load {Path(options.book).name}"
    words += f" --clients {options.clients} --seconds {options.seconds:g}"
    print(json.dumps({**row, "load": round(os.getloadavg()[1], 1), **provenance(words, n=row["requests"])}))


def _load(server: subprocess.Popen[bytes], url: str, options: argparse.Namespace) -> dict[str, object]:
    file = httpx.get(f"{url}/v1/files", timeout=60).json()["data"][0]["id"]
    end, times, errors = monotonic() + options.seconds, list[float](), Counter[str]()

    def client(n: int) -> None:
        body = {"max_tokens": options.tokens, "messages": [{"role": "user", "content": f"Who is number {n}?"}]}
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
        "table": "serve-load",
        "document": Path(options.book).name,
        "clients": options.clients,
        "requests": len(times),
        "p50_s": round(times[len(times) // 2], 2),
        "p99_s": round(times[len(times) * 99 // 100], 2),
        "errors": errors.total(),
        "statuses": dict(errors),
        "rss_first": round(memory[0] / 2**20),
        "rss_last": round(memory[-1] / 2**20),
    }


if __name__ == "__main__":
    main()
