"""kvpress 0.5.5 on the texts of :mod:`benchmarks.recipes_table`, beside kvcli's recipes of the same systems.

    python -m venv peers && peers/bin/pip install "torch==2.13.0" "transformers<5.3" "kvpress==0.5.5"
    OMP_NUM_THREADS=1 python -m benchmarks.peers.recipes_table frankenstein.txt --squad squad.json \\
        --beside recipes.jsonl --python peers/bin/python --out peers.jsonl

As many units are kept. kvpress reads a whole text with full attention and evicts afterwards. A press whose name ends
with "+question" reads for one question, as kvcli's query-aware policies do, and is asked the same ones. A result is
kept in ``--out``; a second run goes on. Then rows for docs/results/data are printed, of texts that ``--beside`` has.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import recipes_table
from benchmarks.peers.presses import Peer
from benchmarks.provenance import provenance
from benchmarks.recipes_table import BUDGETS, TOKENS, Row, Text
from kvcli.engine.prompt import Prompt
from kvcli.evaluate.intervals import estimate
from kvcli.evaluate.metrics import score

SYSTEMS = {
    "SnapKV+question": "snapkv",
    "PyramidKV+question": "pyramidkv",
    "KeyDiff": "keydiff",
    "Knorm": "knorm",
    "StreamingLLM": "streaming",
    "Random": "random",
    "ThinK": "full+think",
    "SnapKV": "",
    "PyramidKV": "",
    "ExpectedAttention": "",
    "TOVA": "",
}
"""Presses and the recipes of the same systems, if there are any."""
COLUMNS = {"passkey": "4K", "needle": "4K", "squad": "2K"}


def measure(
    peer: Peer, prompt: Prompt, texts: Sequence[Text], presses: Sequence[str], out: Path, aware: int
) -> list[Row]:
    """Measure what ``out`` does not have yet, and return all of its rows."""
    rows = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    done = {(row["length"], row["number"], row["name"]) for row in rows}
    for text in texts:
        for press in presses:
            if (text.length, text.number, press) in done:
                continue
            asked = text.asked(aware if press.endswith("+question") else None)
            questions = [text.case.questions[i] for i in asked]
            case = dataclasses.replace(text.case, questions=tuple(questions), max_tokens=TOKENS)
            answers, seconds = peer.answers(prompt, case, press, BUDGETS[text.length][0])
            scores = [score(a, q) for a, q in zip(answers, questions, strict=True)]
            row: Row = {"length": text.length, "number": text.number, "name": press, "scores": scores}
            rows.append(row | {"kinds": [text.kinds[i] for i in asked], "answers": answers, "seconds": seconds})
            with out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(rows[-1], ensure_ascii=False) + "\n")
            print(text.length, text.number, press, seconds, scores, file=sys.stderr, flush=True)
    return rows


def summarize(theirs: Sequence[Row], ours: Sequence[Row], command: str) -> list[Row]:
    """One row for each press: its share of right answers, and that of the same system here, on the same texts."""
    found = []
    for press, system in SYSTEMS.items():
        mine = [row for row in theirs if row["name"] == press]
        beside = [row for row in ours if recipes_table.short(row["name"]) == system and row["scores"]]
        both = {(r["length"], r["number"]) for r in mine} & {(r["length"], r["number"]) for r in beside or mine}
        made: Row = {"table": "presses", "press": press, "recipe": system or "–"}
        for kind, length in COLUMNS.items():
            for end, rows in (("", mine), ("_ours", beside)):
                scores = [
                    value
                    for row in rows
                    if row["length"] == length and (length, row["number"]) in both
                    for value, of in zip(row["scores"], row["kinds"], strict=True)
                    if of == kind
                ]
                if scores:
                    e = estimate([[value] for value in scores])
                    made |= {f"{kind}{end}": round(100 * e.mean), f"{kind}{end}_n": len(scores)}
                    made |= {
                        f"{kind}{end}_low": round(100 * (e.low or 0)),
                        f"{kind}{end}_high": round(100 * (e.high or 0)),
                    }
        if both:
            found.append(made | provenance(command, n=len({number for length, number in both if length == "4K"})))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    recipes_table.add_texts(parser)
    parser.add_argument("--python", required=True)
    parser.add_argument("--beside", type=Path, required=True)
    parser.add_argument("--presses", nargs="*", default=list(SYSTEMS))
    options = parser.parse_args()
    pipeline, texts = recipes_table.load(options)
    short = [text for text in texts if text.length != "16K"]
    peer = Peer(options.python, pipeline.model.module.config.name_or_path, 1)
    rows = measure(peer, pipeline.prompt, short, options.presses, options.out, options.aware)
    ours = [json.loads(line) for line in options.beside.read_text().splitlines()]
    for row in summarize(rows, ours, shlex.join(["python", "-m", "benchmarks.peers.recipes_table", *sys.argv[1:]])):
        print(json.dumps(row, ensure_ascii=False))


if __name__ == "__main__":
    main()
