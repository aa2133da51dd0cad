"""The fixed suite on the real default model: what it has answered right it must go on answering right.

Greedy and seeded, so it says the same every time; a case is in here only after it was seen to pass.
"""

from __future__ import annotations

import pytest

from kvcli.cli.views.progress import run_with_progress
from kvcli.engine.prompt import Prompt
from kvcli.evaluate.build_cases import case_specs
from kvcli.evaluate.haystack import Haystack
from kvcli.evaluate.report import cells
from kvcli.evaluate.results_file import ResultsFile
from kvcli.evaluate.run import run, settings
from kvcli.evaluate.tasks import lookup
from kvcli.evaluate.token_counter import TokenCounter
from kvcli.models.load import load
from kvcli.models.resolve import resolve
from kvcli.recipe import parse
from tests.laws.helpers import drain

pytestmark = pytest.mark.real


def test_pass_keys_survive_half_of_the_cache() -> None:
    model = load(run_with_progress(resolve("smollm2-135m"), quiet=True))
    prompt = Prompt(model.tokenizer)
    counter = TokenCounter(prompt)
    found = case_specs(
        [lookup("passkey")], counter=counter, haystack=Haystack(counter), data=None, lengths=[1024], cases=3, seed=0
    )
    recipe = parse("keydiff(budget=512)")
    rows = ResultsFile(None, settings(model, prompt, seed=0, chunk=512, document=None, data=None))
    left = drain(run(model, prompt, [(job, [recipe]) for _, job in found], rows, chunk=512))
    (cell,) = cells(rows.done.values(), left, [("passkey", str(recipe), 1024, 0)])
    assert left == []
    assert [row.kept for row in cell.rows] == [512] * 3
    assert cell.estimate is not None
    assert cell.estimate.mean == 1.0, [row.answers for row in cell.rows]
