"""What the quotes of kvcli are compared with: BM25 of sentences, an embedding model alone, and the likely sources.

    python -m benchmarks.quote_rankings --data squad.json --cases 170 --rerank MODEL >> docs/results/data/quotes.jsonl

The cases are those of ``kvcli eval quotes`` with the same data, number and seed. Each ranking has three places: its
three best sentences, or three likely sources, which are whole paragraphs that the model attends to while it writes its
answer. For these the text is prefilled once, and each question is answered. Prints rows of two tasks, the first place
and one of three; ``characters`` is the mean length of a place.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.provenance import provenance
from kvcli import CacheDirectory, Pipeline, load_model
from kvcli.documents.document import Document
from kvcli.evaluate import datasets
from kvcli.evaluate.quotes import FIRST, THREE, QuoteCase, sample, squad_cases
from kvcli.models.encoder import Encoder, load_encoder
from kvcli.retrieval.sentences import sentence_index

if TYPE_CHECKING:
    from torch import Tensor

Spans = list[tuple[int, int]]
Ranking = Callable[[QuoteCase], Spans]


document_of = lru_cache(maxsize=1)(Document.of_text)


def sentences(case: QuoteCase, scores: Any) -> Spans:
    """The places of the three sentences with the highest scores."""
    index = sentence_index(document_of(case.text))
    best = torch.as_tensor(scores).argsort(descending=True, stable=True)[:3]
    return [(index.sentences[i].start, index.sentences[i].end) for i in best.tolist()]


def by_bm25(case: QuoteCase) -> Spans:
    """BM25 of the sentences' own words."""
    index = sentence_index(document_of(case.text))
    return sentences(case, index.scores(index.query(case.question)))


def by_vectors(encoder: Encoder, case: QuoteCase) -> Spans:
    """The cosine of each sentence's embedding with the question's."""
    return sentences(case, vectors(encoder, case.text) @ encoder.embed([case.question], question=True)[0])


@lru_cache(maxsize=1)
def vectors(encoder: Encoder, text: str) -> Tensor:
    """The embeddings of all sentences, ``[s, d]``."""
    return encoder.embed([text[s.start : s.end] for s in sentence_index(document_of(text)).sentences])


def by_quotes(pipeline: Pipeline, by_model: bool, case: QuoteCase) -> Spans:
    """The quotes of ``kvcli ask``."""
    found = pipeline.find_quotes(document_of(case.text), case.question, by_model=by_model)
    return [(q.char_start, q.char_end) for q in found.quotes]


def by_attention(pipeline: Pipeline, case: QuoteCase) -> Spans:
    """The likely sources of the answer that ``kvcli ask`` writes."""
    context = pipeline.prefill(document_of(case.text))
    found = pipeline.answer(context, case.question, likely_sources=True, max_tokens=48)
    return [(source.start, source.end) for source in found.citations.likely_sources]


def main() -> None:
    """Rank, judge, print rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, metavar="FILE", help="a SQuAD file")
    parser.add_argument("--cases", type=int, default=170)
    parser.add_argument("--rerank", required=True, metavar="MODEL", help="directory of an embedding model")
    parser.add_argument("--rankings", metavar="A,B,…", help="by default all")
    options = parser.parse_args()
    command = f"python -m benchmarks.quote_rankings --data {Path(options.data).name} --cases {options.cases}"
    command += f" --rerank {Path(options.rerank).parent.name}"
    command += f' --rankings "{options.rankings}"' if options.rankings else ""
    cases = sample(squad_cases(datasets.read([options.data])), options.cases, seed=0)
    encoder = load_encoder(options.rerank)
    pipeline = Pipeline(load_model(), cache=CacheDirectory.default())
    reranked = Pipeline(pipeline.model, rerank=options.rerank)
    rankings: dict[str, Ranking] = {
        "BM25": by_bm25,
        "embedding model": partial(by_vectors, encoder),
        "words": partial(by_quotes, pipeline, False),
        "words + model": partial(by_quotes, pipeline, True),
        "words + embedding model": partial(by_quotes, reranked, True),
        "likely sources": partial(by_attention, pipeline),
    }
    for name in options.rankings.split(",") if options.rankings else rankings:
        ranking = rankings[name]
        places = [(ranking(case), case) for case in cases]
        hits = [[any(s <= a and b <= e for a, b in case.gold) for s, e in spans] for spans, case in places]
        lengths = [e - s for spans, _ in places for s, e in spans]
        for task, right in ((FIRST, sum(any(h[:1]) for h in hits)), (THREE, sum(map(any, hits)))):
            row = {"table": "quotes", "task": task, "recipe": name, "right": right}
            row["characters"] = round(mean(lengths or [0]))
            print(json.dumps(row | provenance(command, n=len(cases))), flush=True)


if __name__ == "__main__":
    main()
