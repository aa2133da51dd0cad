"""``kvcli eval TASK [FILE…]``: scores on tasks with known answers, by recipe, budget and length."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from kvcli.cli.evaluation import CaseOptions, Evaluation, FidelityEvaluation, QuotesEvaluation
from kvcli.cli.help import Command
from kvcli.cli.option_groups import takes_groups
from kvcli.cli.options import DEBUG, JSON, QUIET, ComparisonOptions, ModelOptions
from kvcli.cli.views import terminal
from kvcli.corpus.record import versions


class Eval(Command):
    """``eval``: the first argument names tasks, the others are files."""

    usage = ("TASK[,TASK]...", "[FILE]...")


@takes_groups
def command(
    words: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
    *,
    options: CaseOptions,
    model: ModelOptions,
    compared: ComparisonOptions,
    as_json: JSON = False,
    quiet: QUIET = False,
    _debug: DEBUG = False,
) -> None:
    """Evaluate answer quality on tasks with known answers.

    Compares recipes, budgets and lengths. Facts are hidden in FILE, or in generated text. Prints a table of mean
    scores in per cent with 95 % intervals. In a pipe the last line is JSON; --json prints only that. Several tasks
    are joined with commas.

    \b
    needle      one invented fact: a number, a name or a word
    multikey    four facts of one kind, one of them asked for
    multivalue  four values of one thing, all asked for at once
    multiquery  eight facts, each asked for separately
    passkey     a five-digit pass key
    number      a ten-digit number
    kv          the value of a key among random JSON pairs
    variables   all variables of a chain of assignments
    common      the ten most common words of a list
    frequent    the three most frequent words of a coded text
    multidoc    a question on one of many passages (--data)
    gold        the same questions, given only the right passage
    quotes      whether the sentences that are quoted hold the answer
    fidelity    token probabilities along the answers of full attention
    data        benchmark files: L-Eval, LongBench, InfiniteBench, SQuAD
    """
    kinds = {"quotes": QuotesEvaluation, "fidelity": FidelityEvaluation}
    run = kinds.get((words or [""])[0].strip().lower(), Evaluation)(words or [], options, compared, quiet=quiet)
    run.load(model, compared.heads)
    run.prepare()
    skipped = run.measure()
    found = run.cells(skipped)
    if not any(cell.rows for cell in found):
        raise skipped[0].problem
    if not as_json:
        columns, body, notes = run.table(found)
        terminal.table(columns, body)
        for text in [*notes, *run.notes()]:
            terminal.write(sys.stdout, terminal.oneline(text))
    if not as_json and terminal.is_terminal(sys.stdout):
        return
    terminal.print_json(
        settings=run.rows.settings,
        cells=[cell.numbers() | run.numbers(cell) for cell in found],
        **run.facts(),
        out=None if options.out is None else str(options.out),
        versions=versions(),
    )
