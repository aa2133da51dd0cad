"""How long a look-up of quotes by words takes, and the index of the sentences, in a text of some length.

    python -m benchmarks.lookup book.txt --characters 189000,4200000

The text is the file, repeated or cut. Questions are made of five words of a sentence each. Times are medians in ms.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path
from statistics import median
from time import perf_counter

from benchmarks.provenance import provenance
from kvcli.documents.document import Document
from kvcli.retrieval.quotes import QuoteSearch
from kvcli.retrieval.sentences import sentence_index

QUESTIONS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--characters", default="189000,4200000")
    options = parser.parse_args()
    body = options.file.read_text(encoding="utf-8")
    for length in map(int, options.characters.split(",")):
        document = Document.of_text((body * (length // len(body) + 1))[:length])
        began = perf_counter()
        index = sentence_index(document)
        built, rng, times = perf_counter() - began, random.Random(0), []
        for _ in range(QUESTIONS):
            start, end, _ = rng.choice(index.sentences)
            words = document.text[start:end].split()
            question = f"Who {' '.join(rng.sample(words, min(5, len(words))))}?"
            began = perf_counter()
            QuoteSearch(document, question).quotes()
            times.append(perf_counter() - began)
        row = {"table": "lookup", "characters": length, "sentences": len(index), "index_s": round(built, 2)}
        row |= {"lookup_ms": round(1000 * median(times)), "most_ms": round(1000 * max(times))}
        json.dump(row | provenance(f"python -m benchmarks.lookup {options.file.name}", n=QUESTIONS), sys.stdout)
        print()


if __name__ == "__main__":
    main()
