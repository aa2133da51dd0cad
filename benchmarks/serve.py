"""Time from the shell to the first word, and to the end of a short answer: ``kvcli ask`` alone and by an engine.

    python -m benchmarks.serve BOOK [--repeat 20] [-m MODEL] >> docs/results/data/resident-engine.jsonl
    python -m benchmarks.serve BOOK --llama-server PATH --gguf FILE    # and llama.cpp's server, with a slot restored
    python -m benchmarks.serve BOOK --kill      # kill -9 of kvcli serve in the middle of a prefill: what is lost
    python -m benchmarks.serve BOOK --clients 32    # many clients at once (:mod:`benchmarks.serve_load`)

The document is prefilled and saved first. Then each round asks the same question in a process of its own, with
``--whole`` in one that imports all of transformers (:mod:`kvcli.models.partial_imports`), by a resident engine, and by
``curl`` of ``kvcli serve``, one after the other, so that all meet the same load. Prints one row for each way, with
medians: seconds until
the first byte of the answer and until the end, and the machine's load; of a command its processor time, of a server the
tokens of the prompt that it computed. The commands' answers must be equal.

llama.cpp's server reads the document before the question, saves its slot, and is started anew; the slot is restored
before each question, and the time of that is given apart. The file's weights should be those of the model. A document
beyond the model's window needs ``--llama-options "--rope-scaling yarn --rope-scale N --override-kv …"``.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import httpx

from benchmarks import http_servers, serve_load
from benchmarks.http_servers import PATIENCE, Asked
from benchmarks.provenance import provenance

QUESTION = "Who tells the story?"
WHOLE = """\
import sys
from kvcli.models import partial_imports
partial_imports.install = lambda: None
from kvcli.cli.app import main
main()
"""
PROGRAM = (str(Path(sys.executable).with_name("kvcli")),)
OF_ALL = "by itself, with all of transformers"
WAYS = {
    "by itself": (PROGRAM, "0"),
    OF_ALL: ((sys.executable, "-P", "-c", WHOLE), "0"),
    "by the engine": (PROGRAM, "10m"),
}
"""The program, and how long an engine stays."""


@dataclass(frozen=True)
class Run:
    """Seconds of one run, and its answer."""

    first_s: float
    end_s: float
    cpu_s: float
    answer: bytes


def run(words: list[str], environment: dict[str, str], program: tuple[str, ...] = PROGRAM) -> Run:
    """Run ``kvcli WORDS`` and time it. Raises ``RuntimeError`` if it fails."""
    start = perf_counter()
    process = subprocess.Popen(
        [*program, *words],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
    )
    assert process.stdout is not None
    answer = process.stdout.read(1) or b""
    first = perf_counter() - start
    answer += process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    end = perf_counter() - start
    process.stdout.close()
    if process.returncode:
        raise RuntimeError(f"kvcli {' '.join(words)} ended with {process.returncode}")
    return Run(first, end, used.ru_utime + used.ru_stime, answer)


class LlamaServer:
    """llama.cpp's server, started anew after it has read the document and saved its slot."""

    name = "llama.cpp's server, slot restored, curl"

    def __init__(self, options: argparse.Namespace, folder: Path, closing: ExitStack) -> None:
        text = Path(options.book).read_text(encoding="utf-8")
        self.body = {"messages": [{"role": "user", "content": f"{text}\n\n{QUESTION}"}], "max_tokens": options.tokens}
        threads = len(os.sched_getaffinity(0))
        more = shlex.split(options.llama_options)
        how = (options.llama_server, options.gguf, folder, options.context, threads, more)
        with http_servers.llama_server(*how) as url:
            before = {**self.body, "messages": [{"role": "user", "content": text}], "max_tokens": 1}
            start = perf_counter()
            httpx.post(f"{url}/v1/chat/completions", json=before, timeout=PATIENCE).raise_for_status()
            self.read_s = perf_counter() - start
            http_servers.slot(url, "save")
        self.url = closing.enter_context(http_servers.llama_server(*how))
        self.restored: list[float] = []

    def ask(self) -> Asked:
        http_servers.slot(self.url, "erase")
        self.restored.append(http_servers.slot(self.url, "restore"))
        return http_servers.ask(self.url, dict(self.body))


def measure(options: argparse.Namespace, base: dict[str, str], folder: Path) -> Iterator[dict[str, Any]]:
    """The rows of all ways."""
    model = ["-m", options.model] if options.model else []
    words = ["ask", "-q", *model, "-n", str(options.tokens), options.book, QUESTION]
    run(["prefill", "-q", *model, options.book], {**base, "KVCLI_KEEP_ALIVE": "0"})
    ways = {way: how for way, how in WAYS.items() if way != OF_ALL or options.whole}
    found: dict[str, list[Run]] = {way: [] for way in ways}
    asked: dict[str, list[Asked]] = {"kvcli serve, curl": []}
    with ExitStack() as closing:
        llama = LlamaServer(options, folder, closing) if options.llama_server else None
        _, url = closing.enter_context(http_servers.kvcli_serve([*model, options.book], base))
        file = httpx.get(f"{url}/v1/files", timeout=60).json()["data"][0]["id"]
        body = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": options.tokens, "documents": [file]}
        if llama is not None:
            asked[llama.name] = []
        closing.callback(run, ["stop", "-q"], base)
        starting = run(words, {**base, "KVCLI_KEEP_ALIVE": WAYS["by the engine"][1]})
        for _ in range(options.repeat):
            for way, (program, seconds) in ways.items():
                found[way].append(run(words, {**base, "KVCLI_KEEP_ALIVE": seconds}, program))
            asked["kvcli serve, curl"].append(http_servers.ask(url, dict(body)))
            if llama is not None:
                asked[llama.name].append(llama.ask())
    if len({one.answer for runs in found.values() for one in runs} | {starting.answer}) != 1:
        sys.exit("the answers differ")
    for way, runs in {"by an engine that it starts": [starting], **found}.items():
        row = {name: round(median(getattr(one, name) for one in runs), 2) for name in ("first_s", "end_s", "cpu_s")}
        yield {"how": way, **row, "n": len(runs)}
    for way, ones in asked.items():
        row = {name: round(median(getattr(one, name) for one in ones), 2) for name in ("first_s", "end_s")}
        row["computed"] = int(median(one.computed for one in ones))
        if llama is not None and way == llama.name:
            row |= {"restore_s": round(median(llama.restored), 2), "read_s": round(llama.read_s, 1)}
        yield {"how": way, **row, "n": len(ones)}


def kill(options: argparse.Namespace, base: dict[str, str], _folder: Path) -> Iterator[dict[str, Any]]:
    """Kill the server at the given share of a prefill; the next server says what it need not read again."""
    words, name = ["-m", options.model] if options.model else [], Path(options.book).name
    for _ in range(options.repeat):
        data = f"Copy {uuid.uuid4()}.\n".encode() + Path(options.book).read_bytes()  # nothing of it was read before
        done = total = 0
        with http_servers.kvcli_serve(words, base) as (server, url):
            try:
                for event in _prefill(url, name, data):
                    done, total = event["done"], event["total"]
                    if done >= options.share * total:
                        server.send_signal(signal.SIGKILL)
            except httpx.HTTPError:
                pass
        if not 0 < done < total:
            sys.exit("the prefill ended before the server was killed: a longer document is needed")
        with http_servers.kvcli_serve(words, base) as (_, url):
            *_, end = _prefill(url, name, data)
        lost = done - end["cached"]
        yield {"total": total, "killed_at": done, "resumed_at": end["cached"], "lost": lost, "n": 1}


def _prefill(url: str, name: str, data: bytes) -> Iterator[dict[str, Any]]:
    file = httpx.post(f"{url}/v1/files", files={"file": (name, data)}, timeout=PATIENCE).json()["id"]
    with httpx.stream("POST", f"{url}/v1/files/{file}/prefill", timeout=PATIENCE) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: "):
                yield json.loads(line[6:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("book")
    parser.add_argument("-m", "--model")
    parser.add_argument("--repeat", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=20)
    parser.add_argument("--whole", action="store_true", help="also import all of transformers")
    parser.add_argument("--llama-server", metavar="PATH", help="the program; with --gguf")
    parser.add_argument("--gguf", metavar="FILE", help="the same model for llama.cpp")
    parser.add_argument("--context", type=int, default=8192, help="tokens of llama.cpp's slot (8192)")
    parser.add_argument("--llama-options", default="", help="more options of the program, as one word")
    parser.add_argument("--clients", type=int, help="let so many ask at once instead")
    parser.add_argument("--seconds", type=float, default=300, help="that these ask for (300)")
    parser.add_argument("--kill", action="store_true", help="kill the server in the middle of a prefill instead")
    parser.add_argument("--share", type=float, default=0.5, help="of the prefill at which it is killed (0.5)")
    options = parser.parse_args()
    if bool(options.llama_server) != bool(options.gguf):
        parser.error("--llama-server and --gguf belong together")
    command = f"python -m benchmarks.serve {Path(options.book).name}"
    table, way = "resident-engine", measure
    if options.clients:
        table, way = "serve-load", serve_load.load
        command += f" --clients {options.clients} --seconds {options.seconds:g}"
    else:
        command += f" --repeat {options.repeat}" + " --whole" * options.whole
    if options.kill:
        table, way = "resident-kill", kill
        command += f" --kill --share {options.share:g}"
    if options.gguf:
        command += f" --llama-server PATH --gguf {Path(options.gguf).name} --context {options.context}"
    if options.llama_options:
        command += f" --llama-options '{options.llama_options}'"
    with tempfile.TemporaryDirectory() as folder:
        base = {**os.environ, "XDG_RUNTIME_DIR": folder}
        base.pop("CI", None)
        for row in way(options, base, Path(folder)):
            n, load = row.pop("n"), round(os.getloadavg()[1], 1)
            row = {"table": table, "document": Path(options.book).name, **row, "load": load}
            print(json.dumps({**row, **provenance(command, n=n)}, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
