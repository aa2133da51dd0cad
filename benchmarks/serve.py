"""Time from the shell to the first word, and to the end of a short answer: ``kvcli ask`` alone and by an engine.

    python -m benchmarks.serve BOOK [--repeat 5] [-m MODEL] >> docs/results/data/resident-engine.jsonl

The document is prefilled and saved first. Then each round asks the same question in a process of its own, in one that
imports all of transformers (:mod:`kvcli.models.light_imports`), and by a resident engine, one after the other, so that
all meet the same load. Prints one row for each way, with medians:
seconds until the first byte of the answer and until the end, seconds of processor time of the command itself, and the
machine's load. The answers must be equal.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

from benchmarks.provenance import provenance

QUESTION = "Who tells the story?"
WHOLE = """\
import sys
from kvcli.models import light_imports
light_imports.install = lambda: None
from kvcli.cli.app import main
main()
"""
PROGRAM = (str(Path(sys.executable).with_name("kvcli")),)
WAYS = {
    "by itself": (PROGRAM, "0"),
    "by itself, with all of transformers": ((sys.executable, "-P", "-c", WHOLE), "0"),
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("book")
    parser.add_argument("-m", "--model")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=20)
    options = parser.parse_args()
    model = ["-m", options.model] if options.model else []
    words = ["ask", "-q", *model, "-n", str(options.tokens), options.book, QUESTION]
    with tempfile.TemporaryDirectory() as runtime:
        base = {**os.environ, "XDG_RUNTIME_DIR": runtime}
        base.pop("CI", None)
        run(["prefill", "-q", *model, options.book], {**base, "KVCLI_KEEP_ALIVE": "0"})
        try:
            starting = run(words, {**base, "KVCLI_KEEP_ALIVE": WAYS["by the engine"][1]})
            found: dict[str, list[Run]] = {way: [] for way in WAYS}
            for _ in range(options.repeat):
                for way, (program, seconds) in WAYS.items():
                    found[way].append(run(words, {**base, "KVCLI_KEEP_ALIVE": seconds}, program))
        finally:
            run(["stop", "-q"], base)
    if len({one.answer for runs in found.values() for one in runs} | {starting.answer}) != 1:
        sys.exit("the answers differ")
    command = f"python -m benchmarks.serve {Path(options.book).name} --repeat {options.repeat}"
    for way, runs in {"by an engine that it starts": [starting], **found}.items():
        row = {"table": "resident-engine", "document": Path(options.book).name, "how": way}
        row |= {name: round(median(getattr(one, name) for one in runs), 2) for name in ("first_s", "end_s", "cpu_s")}
        load = round(os.getloadavg()[1], 1)
        print(json.dumps({**row, "load": load, **provenance(command, n=len(runs))}, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
