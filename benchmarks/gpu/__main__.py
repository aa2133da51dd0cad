"""The steps of ``benchmarks/gpu.sh``, one process each, until the time is up; then a table of all figures.

Every figure is written when it is measured. A step that fails or finds no time is a line of the table, and the next one
begins. With the same folder a later run takes up what is missing; changed code wants another folder.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.gpu.output import ROWS, STEP, recorded
from benchmarks.gpu.steps import STEPS, Step
from benchmarks.gpu.table import lines

LIMIT = 9 * 60 - 25
"""Seconds for all steps; what is left of nine minutes ends the last step and packs the logs."""

LEAST = 15
"""Seconds below which no step is begun."""

TOGETHER = 6
"""Files of tests that run at the same time."""


class Suite:
    """Steps, and the folder of their figures: ``rows.jsonl``, ``done.jsonl`` and a log for each step."""

    def __init__(self, folder: Path, limit: float, *, rehearse: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.rehearse = folder, rehearse
        self.rows, self.done = folder / "rows.jsonl", folder / "done.jsonl"
        self.end = time.monotonic() + limit

    def left(self) -> float:
        return self.end - time.monotonic()

    def run(self, step: Step) -> None:
        """Run a step if no earlier run ended it; write how it ended."""
        command = list(step.tests) or step.command(rehearse=self.rehearse)
        earlier = {(row["step"], row["command"]) for row in recorded(self.done) if row["code"] == 0}
        if (step.name, shlex.join(command)) in earlier:
            print(f"{step.name}: done before", flush=True)
            return
        limit = min(step.limit, self.left())
        print(f"{step.name}: at most {max(limit, 0):.0f} s", flush=True)
        began = time.monotonic()
        if limit < min(LEAST, step.limit):
            code = None
        elif step.tests:
            with ThreadPoolExecutor(TOGETHER) as pool:
                codes = list(pool.map(lambda file: self.test(step, file, limit), step.tests))
            code = max(codes)
        else:
            code = process([sys.executable, *command], self.log(step.name), limit, self.environment(step))
        row = {
            "step": step.name,
            "command": shlex.join(command),
            "code": code,
            "seconds": round(time.monotonic() - began),
        }
        append(self.done, {**row, "date": time.strftime("%Y-%m-%d %H:%M")})

    def test(self, step: Step, file: str, limit: float) -> int:
        """Run one file of tests and write a row about it."""
        if any(row.get("key") == file and row.get("code") == 0 for row in recorded(self.rows)):
            return 0
        log = self.log(f"{step.name} {Path(file).parent.name} {Path(file).stem}")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rfEs", "--durations=3", file]
        began = time.monotonic()
        code = process(command, log, limit, self.environment(step))
        text = log.read_text(errors="replace")
        found = re.findall(r"(\d+) (passed|failed|skipped|error)", text[-600:])
        counts = {word.replace("error", "errors"): int(n) for n, word in found}
        said = [line[:200] for line in text.splitlines() if line.startswith(("FAILED", "ERROR"))]
        row = {"step": step.name, "key": file, "code": code, "seconds": round(time.monotonic() - began), **counts}
        append(self.rows, {**row, "failures": said})
        return code

    def log(self, name: str) -> Path:
        return self.folder / f"{re.sub(r'[^a-z0-9]+', '-', name.lower())}.log"

    def environment(self, step: Step) -> dict[str, str]:
        root = Path(__file__).parents[2]
        paths = [str(root), str(root / "kernels"), os.environ.get("PYTHONPATH", "")]
        own = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
        own["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # tests fork, and a process that has asked CUDA itself must not
        return {**os.environ, **own, STEP: step.name, ROWS: str(self.rows.absolute())}


def process(command: list[str], log: Path, limit: float, environment: dict[str, str]) -> int:
    """The exit code of a process whose output goes to a file; 124 if it was ended with its children."""
    with log.open("a") as output:
        output.write(f"$ {shlex.join(command)}\n")
        output.flush()
        running = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
        try:
            return running.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGKILL)
            running.wait()
            return 124


def append(path: Path, row: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


def bring(folder: Path, out: Path) -> None:
    """Copy the figures, and pack the logs, into a folder from which only few files return."""
    out.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.jsonl"):
        shutil.copy(path, out / path.name)
    with tarfile.open(out / "logs.tar.gz", "w:gz") as packed:
        for path in sorted(folder.glob("*.log")):
            packed.add(path, path.name)


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("build/gpu/results"))
    parser.add_argument("--out", type=Path, help="copy the figures and the packed logs there after each step")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds for all steps")
    parser.add_argument("--only", nargs="*", help="names of steps; by default all")
    parser.add_argument("--rehearse", action="store_true", help="act the steps out on a CPU with a tiny model")
    parser.add_argument("--dry-run", action="store_true", help="print the commands")
    parser.add_argument("--table", action="store_true", help="print the table of a folder")
    options = parser.parse_args(words)
    steps = [step for step in STEPS if options.only is None or step.name in options.only]
    if unknown := set(options.only or ()) - {step.name for step in STEPS}:
        parser.error(f"unknown steps: {', '.join(sorted(unknown))}; the steps are: {', '.join(s.name for s in STEPS)}")
    if options.dry_run:
        for step in steps:
            print(f"{step.name}: at most {step.limit} s")
            for file in step.tests:
                print(f"  python -m pytest {file}")
            if step.module:
                print(f"  python {shlex.join(step.command())}")
        return 0
    if not options.table:
        if not options.rehearse:
            import torch

            if not torch.cuda.is_available():
                print("no CUDA GPU here: nothing was measured", file=sys.stderr)
                return 5
        suite = Suite(options.folder, options.limit, rehearse=options.rehearse)
        for step in steps:
            suite.run(step)
            if options.out is not None:
                bring(options.folder, options.out)
    print("\n".join(lines(recorded(options.folder / "rows.jsonl"), recorded(options.folder / "done.jsonl"))))
    ends = {row["step"]: row["code"] for row in recorded(options.folder / "done.jsonl")}
    return int(any(code not in (0, None, 124) for code in ends.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
