"""Many documents with one process, with two workers on Ray, with a worker killed every minute, and resumed.

    python -m benchmarks.corpus BOOK… [--documents 200] [--workers 2] [--kill 60] [-m MODEL]

Documents of 2,000 to 20,000 tokens are cut from the books (four characters stand for a token), the same ones in every
run. Each is asked two questions. Prints a row for each run: documents, seconds, documents per hour, workers killed, and
whether the file of answers equals that of the first run byte for byte. The last line is JSON. ``--scale 0.1`` makes
documents of a tenth of the length; ``--only one,resumed`` leaves runs out. Prefills are not saved.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from benchmarks.provenance import provenance

QUESTIONS = ("Who is the most important person in this text?", "Where does it take place?")
SHORTEST, LONGEST = 2_000, 20_000
CHARACTERS = 4


def documents(books: Sequence[Path], folder: Path, count: int, scale: float) -> None:
    """Write ``count`` pieces of the books, each of another length and from another place."""
    rng, texts = random.Random(0), [book.read_text("utf-8") for book in books]
    for n in range(count):
        text = texts[n % len(texts)]
        length = int(scale * CHARACTERS * rng.randint(SHORTEST, LONGEST))
        at = rng.randrange(max(1, len(text) - length))
        (folder / f"{n:04}.txt").write_text(text[at : at + length], "utf-8")


def run(folder: Path, out: Path, options: Sequence[str], *, kill: float = 0, stop: float = 0) -> tuple[float, int]:
    """One run of ``kvcli map``: seconds, and how many workers were killed.

    Args:
        folder: of the documents.
        out: the file of answers.
        options: of the command.
        kill: seconds between two workers that are killed.
        stop: share of the answers after which Ctrl-C is sent.
    """
    asked = [word for question in QUESTIONS for word in ("-e", question)]
    program = [str(Path(sys.executable).with_name("kvcli")), "map", str(folder)]
    command = [*program, *asked, "--no-cache", "--ordered", "-o", str(out), *options]
    began = last = time.monotonic()
    killed, total = 0, len(QUESTIONS) * len(list(folder.iterdir()))
    with subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}) as process:
        while process.poll() is None:
            time.sleep(0.5)
            if kill and time.monotonic() - last > kill:
                last = time.monotonic()
                killed += _kill_one(process.pid)
            if stop and out.exists() and out.read_bytes().count(b"\n") >= stop * total:
                process.send_signal(signal.SIGINT)
                stop = 0
    return time.monotonic() - began, killed


def _kill_one(parent: int) -> int:
    """Kill a worker of a run, with signal 9; returns how many."""
    for process in psutil.process_iter(["name", "cmdline"]):
        title = " ".join(process.info["cmdline"] or [process.info["name"]])
        if "RemoteWorker" in title and parent in [above.pid for above in process.parents()]:
            process.kill()
            return 1
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("books", nargs="+", type=Path)
    parser.add_argument("-m", "--model")
    parser.add_argument("-n", "--max-tokens", type=int, default=32)
    parser.add_argument("--documents", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kill", type=float, default=60)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--only", default="one,two,killed,resumed")
    chosen = parser.parse_args()
    options = ["-q", "-n", str(chosen.max_tokens), *(["-m", chosen.model] if chosen.model else [])]
    ray = ["--ray", "--workers", str(chosen.workers)]
    rows = list[dict[str, object]]()
    with tempfile.TemporaryDirectory(prefix="kvcli-corpus-") as temporary:
        folder = Path(temporary) / "documents"
        folder.mkdir()
        documents(chosen.books, folder, chosen.documents, chosen.scale)
        first: bytes | None = None
        for name in chosen.only.split(","):
            out = Path(temporary) / f"{name}.jsonl"
            own = [*options, *ray] if name in ("two", "killed") else options
            if name == "resumed":
                run(folder, out, own, stop=0.5)
            seconds, killed = run(folder, out, own, kill=chosen.kill if name == "killed" else 0)
            found = out.read_bytes()
            first = found if first is None else first
            row = {"run": name, "documents": chosen.documents, "answers": found.count(b"\n")}
            row |= {"seconds": round(seconds, 1), "per_hour": round(3600 * chosen.documents / seconds)}
            row |= {"killed": killed, "same_bytes": found == first}
            rows.append(row)
            print(" · ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    print(json.dumps({**provenance(" ".join(["python -m benchmarks.corpus", *sys.argv[1:]]), n=1), "runs": rows}))


if __name__ == "__main__":
    main()
