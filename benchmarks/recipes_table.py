"""Every recipe on the same texts: the rows of the table in docs/results/recipes.md.

    OMP_NUM_THREADS=1 python -m benchmarks.recipes_table frankenstein.txt --squad squad.json --out recipes.jsonl

A text of 4K tokens hides four facts and four pass keys. All are asked for after one prefill with 1,024 units; with 256
units only the distance from full attention is measured (:mod:`kvcli.evaluate.fidelity`). A text of 16K has as many
questions; recipes that keep all units cannot read it. A text of 2K is paragraphs of SQuAD with eight of their
questions, read with 512 units. A query-aware policy reads the text once per question, so it is asked ``--aware`` of
them, the kinds in turn. Seconds are those of the process, so other programs disturb ratios little; use one thread.

Each recipe's result on a text is kept in ``--out``; a second run goes on. ``--minutes`` ends a run before a text that
might take longer. Then rows for docs/results/data are printed.
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

from benchmarks.provenance import provenance
from kvcli.engine.batched_step import Paused, step_together
from kvcli.errors import ModelError
from kvcli.evaluate import datasets, vocabulary
from kvcli.evaluate.case import Case, CaseQuestion, CaseRequest, PassagePool
from kvcli.evaluate.fidelity import divergence, log_probs
from kvcli.evaluate.haystack import Haystack
from kvcli.evaluate.intervals import estimate
from kvcli.evaluate.metrics import score
from kvcli.evaluate.tasks import needle
from kvcli.evaluate.token_counter import TokenCounter
from kvcli.events import Answer, Prefill, Token
from kvcli.pipeline import DocumentContext, Pipeline
from kvcli.prompt_cache.directory import CacheDirectory
from kvcli.recipe import Recipe, parse

Row = dict[str, Any]

SCORED = "sinks=48, stabilizers=64"
POLICIES = {
    **dict.fromkeys(("locret", "keydiff", "snapkv", "knorm", "random", "subgen"), SCORED),
    **dict.fromkeys(("h2o", "streaming", "pyramidkv", "vlcache", "kvmerger", "sirllm"), "sinks=48"),
    **dict.fromkeys(("cascade", "corm", "elastic", "keyformer"), "sinks=48"),
}
SHARED = "0_1_2_3_4_5_6_7_8_9_10_11_12_13_14_15_16_17_18_11_20_11_22_23_24_25_26_11_11_29"
EVICTING = [
    *(f"{name}({fields})" for name, fields in POLICIES.items()),
    f"locret({SCORED}, victims=match)",
    "h2o(sinks=48)+less",
    "h2o(sinks=48)+clustergen",
]
WHOLE = [
    "full",
    "full+int8",
    "full+kivi",
    "full+turbo",
    "full+think",
    "full+lorc",
    "full+quest(pages=38)",
    "full+infllm(block=64, blocks=8, sinks=32, local=256)",
    "full+shadowkv(rank=64, chunks=32, outliers=8)",
    "full+infinigen(partial=0.5)",
    f"full+kvsharer(map={SHARED})",
    "full+minicache",
    "full+minference(vertical=256, slash=128)",
]
LENGTHS = {"2K": 2048, "4K": 4096, "16K": 16384}
BUDGETS = {"2K": (512,), "4K": (1024, 256), "16K": (1024,)}
KINDS = (("passkey", "4K"), ("passkey", "16K"), ("needle", "4K"), ("needle", "16K"), ("squad", "2K"))
TOKENS = 24


@dataclass(frozen=True)
class Text:
    """A text with questions; ``kinds`` has a word for each question."""

    length: str
    number: int
    case: Case
    kinds: tuple[str, ...]

    def asked(self, most: int | None) -> list[int]:
        """The questions that are asked: all, or ``most`` of them, the kinds in turn."""
        n = len(self.kinds)
        turns = sorted(range(n), key=lambda i: (i % max(1, n // 2), i))
        return list(range(n)) if most is None else turns[:most]


def hidden(length: str, number: int, counter: TokenCounter, haystack: Haystack) -> Text:
    """A text that hides four facts and four pass keys."""
    request = CaseRequest("recipes", number, LENGTHS[length], 0, counter, haystack)
    rng = random.Random(f"pass keys {length} {number}")
    keys = vocabulary.fresh(lambda: vocabulary.number(rng, 5), 4, ())
    places = vocabulary.fresh(lambda: rng.choice(vocabulary.PLACES), 4, ())
    others = [
        (
            f"The pass key of {place} is {key}. Remember it. {key} is the pass key of {place}.",
            CaseQuestion(f"What is the pass key of {place}?", (key,), "first_number"),
        )
        for place, key in zip(places, keys, strict=True)
    ]
    return Text(length, number, needle.multiquery(request, 4, others), ("needle",) * 4 + ("passkey",) * 4)


def squad(number: int, counter: TokenCounter, pool: PassagePool, count: int = 8) -> Text:
    """A text of paragraphs, with questions about ``count`` of them."""
    rng, taken = random.Random(f"squad {number}"), []
    for passage in rng.sample(pool.all, len(pool.all)):
        text = "".join(p.show(i) for i, p in enumerate([*taken, passage], 1))
        if counter.document(text) > LENGTHS["2K"]:
            break
        taken.append(passage)
    answered = [(q, a) for q, a in (rng.choice(p.asked) for p in taken if p.asked) if a]
    questions = tuple(CaseQuestion(q, a, "any") for q, a in rng.sample(answered, min(count, len(answered))))
    text = "".join(p.show(i) for i, p in enumerate(taken, 1))
    return Text("2K", number, Case(text, questions), ("squad",) * len(questions))


def recipes_of(length: str, evicting: Sequence[str], whole: Sequence[str]) -> Iterator[tuple[str, Recipe]]:
    """The recipes for texts of a length, with their names in the table; the reference first."""
    if length != "16K":
        yield from ((name, parse(name)) for name in whole)
    yield from ((name, parse(name).with_budget(units)) for units in BUDGETS[length] for name in evicting)


class Measurement:
    """One text under one recipe after another."""

    def __init__(self, pipeline: Pipeline, text: Text, aware: int) -> None:
        self.pipeline, self.text, self.aware = pipeline, text, aware
        self.source = pipeline.tokenize(text.case.text)
        self.full: dict[int, tuple[list[int], Any]] = {}

    def row(self, name: str, recipe: Recipe) -> Row:
        """Read the text and ask; of ``full``, remember what it says and how probable each token was."""
        asked = self.text.asked(self.aware if recipe.policy.query_aware else None)
        ids = [self.pipeline.prompt.question(question.text) for question in self.text.case.questions]
        found: Row = {"scores": [], "kl": [], "same": [], "answers": []}
        read_s, steps = 0.0, list[float]()
        context: DocumentContext | None = None
        for group in [[i] for i in asked] if recipe.policy.query_aware else [asked]:
            context, seconds = self._read(recipe, self.text.case.questions[group[0]].text)
            read_s += seconds
            if recipe.policy.budget != BUDGETS["4K"][1]:
                first, times = self._alone(context, ids[group[0]])
                steps += times
                said = [first, *self._together(context, [ids[i] for i in group[1:]])]
                found["answers"] += [answer.text for answer in said]
                found["scores"] += [
                    score(answer.text, self.text.case.questions[i]) for i, answer in zip(group, said, strict=True)
                ]
                if name == "full" and self.text.length == "4K":
                    for i, answer in zip(group, said, strict=True):
                        self.full[i] = answer.ids, log_probs(self.pipeline, context.context, ids[i], answer.ids)
            for i in (i for i in group if i in self.full):
                forced, wanted = self.full[i]
                kl, same = divergence(wanted, log_probs(self.pipeline, context.context, ids[i], forced))
                found["kl"].append(round(kl, 6))
                found["same"].append(round(same, 6))
        assert context is not None
        assert context.context is not None
        kept = context.context
        return {
            "length": self.text.length,
            "number": self.text.number,
            "name": name,
            "budget": recipe.policy.budget,
            "recipe": str(context.recipe),
            "kinds": [self.text.kinds[i] for i in asked],
            **found,
            "tokens": context.tokens,
            "kept": kept.kept,
            "device_bytes": kept.nbytes,
            "host_bytes": kept.host_nbytes,
            "read_s": round(read_s / (len(asked) if recipe.policy.query_aware else 1), 3),
            "loaded": context.reused > 0,
            "step_s": round(median(steps), 4) if steps else None,
        }

    def _read(self, recipe: Recipe, question: str) -> tuple[DocumentContext, float]:
        pipeline, began = self.pipeline, process_time()
        end = began
        if recipe.policy.uses_surprise and recipe.policy.budget:  # a chunk is kept until the next one
            pipeline = Pipeline(pipeline.model, chunk_size=recipe.policy.budget // 2)
        elif recipe.policy.budget:
            pipeline = Pipeline(pipeline.model, chunk_size=pipeline.chunk_size)  # saves nothing
        reading = pipeline.prefill_events(self.source, recipe=recipe, question=question, max_tokens=TOKENS)
        while True:
            try:
                event = next(reading)
            except StopIteration as stop:
                return stop.value, end - began
            if isinstance(event, Prefill):
                end = process_time()

    def _alone(self, context: DocumentContext, ids: Sequence[int]) -> tuple[Said, list[float]]:
        """An answer, and the seconds of each step; of the first ones some are spent on compiling."""
        said, times = Said(), list[float]()
        for event in self._asking(context, ids):
            if said.take(event):
                times.append(process_time())
        return said, [b - a for a, b in pairwise(times)]

    def _together(self, context: DocumentContext, questions: Sequence[Sequence[int]]) -> list[Said]:
        """Answers whose steps are computed together, which is faster and changes none."""
        answers = [Said() for _ in questions]
        running = [
            (said, self._asking(context, ids, together=True)) for said, ids in zip(answers, questions, strict=True)
        ]
        while running:
            waiting, steps = [], []
            for said, events in running:
                for event in events:
                    if isinstance(event, Paused):
                        steps.append(event.step)
                        waiting.append((said, events))
                        break
                    said.take(event)
            step_together(steps)
            running = waiting
        return answers

    def _asking(self, context: DocumentContext, ids: Sequence[int], *, together: bool = False) -> Iterator[Any]:
        return self.pipeline.ask(
            context, ids, max_tokens=TOKENS, allow_repetition=True, drafts=False, together=together
        )


@dataclass
class Said:
    """An answer while it is written."""

    text: str = ""
    ids: list[int] = field(default_factory=list)

    def take(self, event: object) -> bool:
        """Note an event; whether it is a token."""
        if isinstance(event, Answer):
            self.text = event.text
        elif isinstance(event, Token) and event.id >= 0:
            self.ids.append(event.id)
            return True
        return False


def _possible(pipeline: Pipeline, names: Sequence[str]) -> list[str]:
    """The recipes that the model can run; says why another is left out."""
    found = []
    for name in names:
        try:
            parse(name).for_model(pipeline.model.spec)
        except ModelError as problem:
            print(f"left out: {name}: {problem}", file=sys.stderr)
        else:
            found.append(name)
    return found


def measure(
    pipeline: Pipeline,
    texts: Sequence[Text],
    out: Path,
    *,
    evicting: Sequence[str] = tuple(EVICTING),
    whole: Sequence[str] = tuple(WHOLE),
    aware: int = 2,
    minutes: float = 1e9,
) -> list[Row]:
    """Measure what ``out`` does not have yet, and return all of its rows.

    A text is not begun if the longest one of its length so far would end after ``minutes``.
    """
    evicting, whole = (_possible(pipeline, names) for names in (evicting, whole))
    rows = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    done = {(row["length"], row["number"], row["name"], row["budget"]) for row in rows}
    began, longest = perf_counter(), dict.fromkeys(LENGTHS, 0.0)
    for text in texts:
        wanted = list(recipes_of(text.length, evicting, whole))
        key = (text.length, text.number)
        missing = [(name, recipe) for name, recipe in wanted if (*key, name, recipe.policy.budget) not in done]
        start = perf_counter()
        if not missing or start - began + longest[text.length] > 60 * minutes:
            continue
        with tempfile.TemporaryDirectory(prefix="kvcli-recipes-") as folder:  # storages share the prefill of `full`
            saving = Pipeline(pipeline.model, chunk_size=pipeline.chunk_size, cache=CacheDirectory(Path(folder)))
            measurement = Measurement(saving, text, aware)
            if text.length == "4K" and missing[0][0] != "full":
                measurement.row("full", parse("full"))
            for name, recipe in missing:
                rows.append(measurement.row(name, recipe))
                with out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(rows[-1], ensure_ascii=False) + "\n")
                print(*key, rows[-1]["recipe"], rows[-1]["read_s"], rows[-1]["scores"], file=sys.stderr, flush=True)
        longest[text.length] = max(longest[text.length], perf_counter() - start)
    return rows


def summarize(rows: Sequence[Row], command: str) -> list[Row]:
    """Rows of the table, by KL with 1,024 units or all; of each length the texts count that most recipes have read."""
    counts = Counter((row["length"], row["number"]) for row in rows)
    most = {key: max((n for (length, _), n in counts.items() if length == key), default=0) for key in LENGTHS}
    rows = [row for row in rows if counts[row["length"], row["number"]] == most[row["length"]]]
    compared, full = ([r for r in rows if r["name"] == "full" and r["length"] == key] for key in ("4K", "2K"))
    found = []
    for name in dict.fromkeys(row["name"] for row in rows):
        mine = [row for row in rows if row["name"] == name]
        made: Row = {"table": "recipes", "recipe": short(name)}
        at_4k = [row for row in mine if row["length"] == "4K" and row["budget"] != BUDGETS["4K"][1]]
        for column, chosen in (("kl", at_4k), ("kl_256", [r for r in mine if r["budget"] == BUDGETS["4K"][1]])):
            made |= _estimate(column, [kl for row in chosen for kl in row["kl"]], 1, 3)
        for kind, length in KINDS:
            scores = [
                value
                for row in mine
                if row["length"] == length
                for value, of in zip(row["scores"], row["kinds"], strict=False)
                if of == kind
            ]
            made |= _estimate(f"{kind}_{length}", scores, 100, 0)
        made["asked"] = " · ".join(str(made.pop(f"{k}_n", "–")) for k in ("passkey_4K", "passkey_16K", "squad_2K"))
        made = {key: value for key, value in made.items() if not key.endswith("_n")}
        made["bytes"] = round(_mean([row["device_bytes"] / row["tokens"] for row in at_4k]))
        if not any(row["loaded"] for row in at_4k):
            made["prefill"] = round(_mean([r["read_s"] for r in compared]) / _mean([r["read_s"] for r in at_4k]), 2)
        if steps := [row["step_s"] for row in mine if row["length"] == "2K"]:
            made["decode"] = round(median(row["step_s"] for row in full) / median(steps), 2)
        found.append(made | provenance(command, n=len(compared)))
    return sorted(found, key=lambda row: row["kl"])


def short(name: str) -> str:
    """A recipe without the fields that all recipes of its kind have."""
    for fields in (SCORED, "sinks=48", f"map={SHARED}"):
        name = name.replace(f"({fields})", "").replace(f"{fields}, ", "")
    return name


def _estimate(column: str, values: Sequence[float], factor: float, digits: int) -> Row:
    """Mean and interval of a column; each question is a draw."""
    if not values:
        return {}
    found = estimate([[value] for value in values], shares=not column.startswith("kl"))
    numbers = {"": found.mean, "_low": found.low, "_high": found.high}
    made = {f"{column}{end}": round(factor * v, digits or None) for end, v in numbers.items() if v is not None}
    return made | {f"{column}_n": len(values)}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def add_texts(parser: argparse.ArgumentParser) -> None:
    """Options that say which texts there are."""
    parser.add_argument("text", type=Path)
    parser.add_argument("--squad", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cases", type=int, default=3, help="texts of 4K and of 2K tokens")
    parser.add_argument("--long", type=int, default=1, help="texts of 16K tokens")
    parser.add_argument("--aware", type=int, default=2)


def load(options: argparse.Namespace) -> tuple[Pipeline, list[Text]]:
    """The default model with its heads, and the texts."""
    from benchmarks.passkey import load as load_model
    from kvcli.retaining_heads import discovery

    model = load_model("smollm2-135m")
    discovery.attach(model, None)
    pipeline = Pipeline(model)
    counter = TokenCounter(pipeline.prompt)
    haystack = Haystack(counter, options.text.read_text(encoding="utf-8"), options.text.name)
    pool = datasets.passages(datasets.read([options.squad]))
    texts = []
    for number in range(max(options.cases, options.long)):
        if number < options.cases:
            texts += [hidden("4K", number, counter, haystack), squad(number, counter, pool)]
        if number < options.long:
            texts.append(hidden("16K", number, counter, haystack))
    return pipeline, texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_texts(parser)
    parser.add_argument("--minutes", type=float, default=1e9)
    options = parser.parse_args()
    pipeline, texts = load(options)
    rows = measure(pipeline, texts, options.out, aware=options.aware, minutes=options.minutes)
    command = shlex.join(["python", "-m", "benchmarks.recipes_table", *sys.argv[1:]])
    for row in summarize(rows, command):
        print(json.dumps(row, ensure_ascii=False))


if __name__ == "__main__":
    main()
