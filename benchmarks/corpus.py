"""Many documents: one process, two workers on Ray, a worker killed every minute, and a run that was interrupted.

    python -m benchmarks.corpus BOOK… --folder DIR [--runs one,two] [--first 50] [--minutes 30] [--rows FILE]

Documents of 2,000 to 20,000 tokens are cut from the books (four characters stand for a token). Each is asked the same
questions, with ``kvcli map --ordered``, and prefills are not saved. The runs:

    default   one process, with as many threads as it takes by itself
    one       one process with one thread
    two       two workers on Ray, with one thread each
    killed    the same; every ``--kill`` seconds a worker gets signal 9
    resumed   the same; interrupted by Ctrl-C when half of the answers are written, and started again

A run that is over adds a row to ``--rows`` (a table of docs/results/data). Its seconds are those of the whole command,
so they include loading, and those of every part if it was stopped by ``--minutes`` or Ctrl-C. The same command goes on:
DIR keeps documents, answers and seconds. ``same`` says whether the answers equal those of the run ``one`` byte for
byte (or their beginning, if one run has fewer documents), and ``times`` compares its tokens per second with those of
``one``, which therefore comes first. ``default`` is not compared byte for byte: more threads add in another order.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.provenance import provenance

QUESTIONS = ("Who is the most important person in this text?", "Where does it take place?")
SHORTEST, LONGEST = 2_000, 20_000
CHARACTERS = 4
RUNS = ("one", "two", "killed", "resumed", "default")
DONE, FAILED, INTERRUPTED = 0, 8, 130


@dataclass
class State:
    """What a run took until now: seconds, how often it was started, workers killed, and whether it is over."""

    seconds: float = 0.0
    starts: int = 0
    killed: int = 0
    over: bool = False


def documents(books: Sequence[Path], folder: Path, count: int, scale: float) -> list[Path]:
    """Write ``count`` pieces of the books, each of another length and from another place; the same ones each time."""
    rng, texts, paths = random.Random(0), [book.read_text("utf-8") for book in books], []
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(count):
        text = texts[n % len(texts)]
        length = int(scale * CHARACTERS * rng.randint(SHORTEST, LONGEST))
        at = rng.randrange(max(1, len(text) - length))
        paths.append(folder / f"{n:04}.txt")
        paths[-1].write_text(text[at : at + length], "utf-8")
    return paths


class Run:
    """One run in a folder: its file of answers and its state.

    Args:
        name: one of :data:`RUNS`.
        files: the documents.
        chosen: the options of this program.
    """

    def __init__(self, name: str, files: Sequence[Path], chosen: argparse.Namespace) -> None:
        self.name, self.files, self.chosen = name, files, chosen
        self.answers = chosen.folder / f"{name}-{len(files)}.jsonl"
        self._state = chosen.folder / f"{name}-{len(files)}.json"
        self.state = State(**json.loads(self._state.read_text())) if self._state.exists() else State()
        self.total = chosen.questions * len(files)

    def go_on(self, until: float) -> bool:
        """Start the command, again if the run is ``resumed``, until it is over or the clock shows ``until``."""
        half = self.total / 2
        if self.name == "resumed" and self._written() < half and not self._start(until, half):
            return False
        if not self._start(until, None):
            return False
        self.state.over = True
        self._save()
        return True

    def row(self, one: Run | None) -> dict[str, Any]:
        """The figures of a run that is over, compared with the run ``one``."""
        records = [json.loads(line) for line in self.answers.read_text("utf-8").splitlines()]
        answers = [record for record in records if "error" not in record]
        tokens = sum({record["file"]: record["document"]["tokens"] for record in answers}.values())
        seconds, count = self.state.seconds, len(self.files)
        row = {"run": self.name, "documents": count, "tokens": tokens, "answers": len(answers)}
        row |= {"missing": self.total - len(answers), "seconds": round(seconds), "starts": self.state.starts}
        row |= {"killed": self.state.killed, "per_hour": round(3600 * count / seconds), "tps": round(tokens / seconds)}
        if one is not None:
            mine, other = self.answers.read_bytes(), one.answers.read_bytes()
            if self.name != "default":  # more threads add in another order
                row["same"] = "yes" if mine.startswith(other) or other.startswith(mine) else "no"
            row["times"] = round(tokens / seconds / one.row(None)["tps"], 2)
        return row

    def _start(self, until: float, wanted: float | None) -> bool:
        """One start of the command, stopped by SIGINT at ``until`` or when ``wanted`` answers are written.

        Returns whether it came as far as it was wanted to.

        Raises:
            SystemExit: the command failed.
        """
        began = last = time.monotonic()
        self.state.starts += 1
        code, enough = None, False
        environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
        environment |= {} if self.name == "default" else {"OMP_NUM_THREADS": "1"}
        process = psutil.Popen(self._command(), env=environment, start_new_session=True)
        try:
            while (code := process.poll()) is None:
                time.sleep(0.5)
                now = time.monotonic()
                if self.name == "killed" and now - last > self.chosen.kill:
                    last = now
                    self.state.killed += _kill_one(process)
                enough = wanted is not None and self._written() >= wanted
                if enough or now > until:
                    process.send_signal(signal.SIGINT)
                    code = process.wait()
                    break
        finally:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGINT)
            process.wait()
            self.state.seconds += time.monotonic() - began
            self._save()
        if code not in (DONE, FAILED, INTERRUPTED):
            raise SystemExit(f"kvcli map ended with {code}; its answers are in {self.answers}")
        return enough or code in (DONE, FAILED)

    def _command(self) -> list[str]:
        asked = [word for question in QUESTIONS[: self.chosen.questions] for word in ("-e", question)]
        program = [str(Path(sys.executable).with_name("kvcli")), "map", *map(str, self.files), *asked]
        options = ["--no-cache", "--ordered", "-q", "-n", str(self.chosen.max_tokens), "-o", str(self.answers)]
        options += ["-m", self.chosen.model] if self.chosen.model else []
        options += [] if self.name in ("one", "default") else ["--ray", "--workers", str(self.chosen.workers)]
        return [*program, *options]

    def _written(self) -> int:
        return self.answers.read_bytes().count(b"\n") if self.answers.exists() else 0

    def _save(self) -> None:
        self._state.write_text(json.dumps(asdict(self.state)))


def _kill_one(process: psutil.Process) -> int:
    """Kill a worker of a run, with signal 9; returns how many."""
    for child in random.sample(children := process.children(recursive=True), len(children)):
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if "RemoteWorker" in " ".join(child.cmdline()):
                child.kill()
                return 1
    return 0


def command(chosen: argparse.Namespace, run: Run) -> str:
    """The command of a row, without the folders of this machine."""
    books = [book.name for book in chosen.books]
    words = ["python -m benchmarks.corpus", *books, "--folder DIR", "--runs", run.name]
    words += ["--documents", str(chosen.documents), "--questions", str(chosen.questions), "-n", str(chosen.max_tokens)]
    words += ["--first", str(chosen.first)] if chosen.first else []
    words += ["--scale", str(chosen.scale)] if chosen.scale != 1 else []
    words += ["--workers", str(chosen.workers)] if run.name not in ("one", "default") else []
    words += ["-m", chosen.model] if chosen.model else []
    return " ".join(words)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("books", nargs="+", type=Path)
    parser.add_argument("--folder", type=Path, required=True, help="keeps documents, answers and seconds")
    parser.add_argument("--runs", default=",".join(RUNS), help="which runs, in this order")
    parser.add_argument("--documents", type=int, default=200)
    parser.add_argument("--first", type=int, help="ask only about the first documents")
    parser.add_argument("--questions", type=int, default=1, choices=range(1, len(QUESTIONS) + 1))
    parser.add_argument("--minutes", type=float, default=1e6, help="stop after this time; the same command goes on")
    parser.add_argument("--rows", type=Path, help="file of rows, such as docs/results/data/corpus.jsonl")
    parser.add_argument("-m", "--model")
    parser.add_argument("-n", "--max-tokens", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kill", type=float, default=60, help="seconds between two workers that are killed")
    parser.add_argument("--scale", type=float, default=1.0, help="0.1 makes documents of a tenth of the length")
    chosen = parser.parse_args()
    names = chosen.runs.split(",")
    if wrong := [name for name in names if name not in RUNS]:
        parser.error(f"there is no run {wrong[0]}; there are {', '.join(RUNS)}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    until = time.monotonic() + 60 * chosen.minutes
    chosen.folder = chosen.folder.absolute()
    made = documents(chosen.books, chosen.folder / "documents", chosen.documents, chosen.scale)
    settings = {name: getattr(chosen, name) for name in ("documents", "questions", "max_tokens", "scale", "model")}
    kept = chosen.folder / "settings.json"
    if kept.exists() and json.loads(kept.read_text()) != settings:
        parser.error(f"{chosen.folder} has a run with other settings: {kept.read_text()}")
    kept.write_text(json.dumps(settings))
    for name in names:
        run = Run(name, made[: chosen.first], chosen)
        if run.state.over:
            print(f"{name}: over before", flush=True)
            continue
        if not run.go_on(until):
            print(f"{name}: stopped after {run.state.seconds:.0f} s; the same command goes on", flush=True)
            break
        row = run.row(None if name == "one" else _one(made, chosen))
        print(" · ".join(f"{key} {value}" for key, value in row.items()), flush=True)
        if chosen.rows is not None:
            with chosen.rows.open("a") as file:
                whole = {"table": "corpus", **row, **provenance(command(chosen, run), n=row["documents"])}
                file.write(json.dumps(whole) + "\n")


def _one(made: Sequence[Path], chosen: argparse.Namespace) -> Run | None:
    """The largest run ``one`` of the folder that is over."""
    found = (Run("one", made[:n], chosen) for n in range(len(made), 0, -1))
    return next((run for run in found if run.state.over), None)


if __name__ == "__main__":
    main()
