"""The sizes in the catalogue are those of the published models."""

from __future__ import annotations

import pytest

from kvcli.models import catalogue, spec


@pytest.mark.parametrize("alias", catalogue.ALIASES.values(), ids=lambda alias: alias.name)
def test_sizes_give_the_published_number_of_parameters(alias: catalogue.Alias) -> None:
    """A wrong layer, width or vocabulary is off by more than the small biases and norms that the count leaves out."""
    for dtype, size in (("bfloat16", 2), ("float32", 4)):
        found = spec.spec(alias.source(), device="cpu", dtype=dtype)
        assert found.weight_bytes == pytest.approx(size * alias.parameters, rel=2e-4)
        assert (found.max_positions, found.name) == (alias.window, alias.name)
    assert sum(width is None for width in found.sliding) == (
        alias.layers // alias.every if alias.sliding else alias.layers
    )


def test_names_and_repositories_are_unique() -> None:
    aliases = list(catalogue.ALIASES.values())
    assert len({alias.repo for alias in aliases}) == len(aliases)
    assert [alias.parameters for alias in aliases] == sorted(alias.parameters for alias in aliases)
    assert catalogue.DEFAULT in catalogue.ALIASES
