"""kvpress 0.5.5 beside kvcli: the same default model, prompts, questions and kept units, question-agnostic.

kvpress wants an older transformers, so it gets an environment of its own, which runs :mod:`presses_worker`:

    python -m venv peers && peers/bin/pip install "torch==2.13.0" "transformers<5.3" "kvpress==0.5.5"
    python -m benchmarks.peers.presses frankenstein.txt --python peers/bin/python --lengths 4K --out peers.jsonl

kvpress reads the whole text with full attention and evicts afterwards; kvcli evicts while it reads. Answers are
scored by ``kvcli eval``'s metrics. Finished cases are kept in ``--out``; a second run goes on. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks.passkey import _end, load
from kvcli.engine.prompt import Prompt
from kvcli.evaluate import build_cases, tasks
from kvcli.evaluate.case import Case
from kvcli.evaluate.haystack import Haystack
from kvcli.evaluate.intervals import estimate
from kvcli.evaluate.metrics import score
from kvcli.evaluate.run import answer_case
from kvcli.evaluate.token_counter import TokenCounter
from kvcli.pipeline import Pipeline
from kvcli.recipe import parse
from kvcli.retaining_heads import discovery

PRESSES = ["KVzip", "ExpectedAttention", "SnapKV", "KeyDiff", "TOVA", "Knorm"]
WORKER = Path(__file__).with_name("presses_worker.py")


class Peer:
    """A running worker."""

    def __init__(self, python: str, folder: str, threads: int) -> None:
        command = [python, str(WORKER), folder, str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def answers(self, prompt: Prompt, case: Case, press: str, keep: int) -> tuple[list[str], float]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        message = {
            "document": prompt.document(case.text),
            "questions": [prompt.question(question.text) for question in case.questions],
            "press": press.removesuffix("+question"),
            "aware": press.endswith("+question"),
            "keep": keep,
            "max_tokens": case.max_tokens,
        }
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the worker stopped with {self.process.wait()}")
        reply = json.loads(line)
        return reply["answers"], reply["seconds"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--python", required=True)
    parser.add_argument("--tasks", default="needle,multiquery")
    parser.add_argument("--lengths", default="4K,8K")
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--keep", type=int, default=1024)
    parser.add_argument("--recipes", nargs="*", default=["full", "locret(stabilizers=64, sinks=48)"])
    parser.add_argument("--presses", nargs="*", default=PRESSES)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()

    import torch

    torch.set_num_threads(options.threads)
    model = load("smollm2-135m")
    discovery.attach(model, None)
    pipeline = Pipeline(model)
    prompt = pipeline.prompt
    counter = TokenCounter(prompt)
    jobs = build_cases.case_specs(
        [tasks.lookup(name) for name in options.tasks.split(",")],
        counter=counter,
        haystack=Haystack(counter, options.text.read_text(encoding="utf-8"), options.text.name),
        data=None,
        lengths=build_cases.lengths(options.lengths),
        cases=options.cases,
        seed=0,
    )
    peer = Peer(options.python, model.module.config.name_or_path, options.threads)
    rows: list[dict[str, Any]] = []
    if options.out.exists():
        rows = [json.loads(line) for line in options.out.read_text().splitlines()]
    done = {(row["task"], row["length"], row["case"], row["method"]) for row in rows}
    with options.out.open("a") as file:
        for _, job in sorted(jobs, key=lambda pair: pair[1].number):
            case = job.make()
            for method in [*options.recipes, *options.presses]:
                if (job.task, job.length, job.number, method) in done:
                    continue
                if method in PRESSES:
                    given, seconds = peer.answers(prompt, case, method, options.keep)
                else:
                    recipe = parse(method)
                    recipe = recipe if recipe.policy.budget is None else recipe.with_budget(options.keep)
                    questions = [question.text for question in case.questions]
                    work = answer_case(pipeline, recipe, case.text, questions, max_tokens=case.max_tokens)
                    (reading,) = _end(work)
                    given, seconds = list(reading.answers), round(reading.read_s + reading.answer_s, 2)
                scores = [score(a, q) for a, q in zip(given, case.questions, strict=True)]
                row = {"task": job.task, "length": job.length, "case": job.number, "method": method}
                row |= {"scores": scores, "answers": given, "seconds": seconds}
                rows.append(row)
                file.write(json.dumps(row) + "\n")
                file.flush()
    cells: dict[str, dict[str, list[list[float]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        cells[row["method"]][f"{row['task']} {row['length']}"].append(row["scores"])
    found = {m: {cell: estimate(v).mean for cell, v in by.items()} for m, by in cells.items()}
    for method, by in found.items():
        print(f"{method:40}", *[f"{cell} {100 * mean:.0f}" for cell, mean in by.items()], sep="  ")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
