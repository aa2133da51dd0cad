"""How long documents take to extract, by the clock and by the processor, and how alike the editions of one book are.

    python -m benchmarks.extraction FILE... [--same BOOK.pdf BOOK.epub BOOK.html]

Likeness is difflib's ratio over words: twice the words that match in order, by the words of both. Words are runs of
letters. Not counted are kvcli's page marks, and what only one edition has: a printed table of contents (lines with
dot leaders) and addresses in brackets behind links. With ``--all`` everything counts. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import time
from difflib import SequenceMatcher
from itertools import combinations
from pathlib import Path

from kvcli import documents
from kvcli.documents import quality
from kvcli.errors import KvcliError


def words(name: str, *, everything: bool = True) -> list[str]:
    """The words of a file as the model would read them; or the letters of its body alone."""
    document = documents.read([name])
    text = "".join(document.text[s.body : s.end] for s in document.spans)
    text = text.replace("’", "'").replace("‘", "'").replace("“", '"').replace("”", '"')
    if everything:
        return re.findall(r"\w+|[^\w\s#|]", text)
    text = re.sub(r"\[https?://[^\]]*\]", " ", re.sub(r"(?m)^.*( … |  )[\divxl]+$", "", text))
    return re.findall(r"[^\W\d_]+", text)


def _work() -> float:
    """Seconds of processor time of this process and of the readers it has started."""
    return sum(os.times()[:4])


def one(name: str) -> dict[str, object]:
    """Time, size and quality of one extraction."""
    start, work = time.perf_counter(), _work()
    try:
        document = documents.read([name])
    except KvcliError as error:
        return {"file": Path(name).name, "exit": error.exit, "said": error.message.replace(name, Path(name).name)}
    seconds, work = time.perf_counter() - start, _work() - work
    found = quality.measure(document)
    return {
        "file": Path(name).name,
        "exit": 0,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(work, 2),
        "pages": document.pages,
        "characters": found.characters,
        "empty": len(document.without_text),
        "odd": sum(found.odd.values()),
        "warnings": len(document.warnings),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*")
    parser.add_argument("--same", nargs="+", default=[])
    parser.add_argument("--all", action="store_true")
    args = parser.parse_args()
    rows = []
    for name in args.files:
        rows.append(one(name))
        print(json.dumps(rows[-1]), flush=True)
    texts = {Path(name).name: words(name, everything=args.all) for name in args.same}
    alike = []
    for a, b in combinations(texts, 2):
        ratio = SequenceMatcher(None, texts[a], texts[b], autojunk=False).ratio()
        alike.append({"a": a, "b": b, "ratio": round(ratio, 4), "words": [len(texts[a]), len(texts[b])]})
        print(json.dumps(alike[-1]), flush=True)
    print(json.dumps({"files": rows, "alike": alike}))


if __name__ == "__main__":
    main()
