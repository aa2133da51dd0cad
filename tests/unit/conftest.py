"""Models for holds, built once per session."""

from functools import cache

import pytest

from kvcli.models.model import Model
from tests import tiny


@pytest.fixture(scope="session")
def model():
    """``model(family)`` is a tiny random model that has passed the probe."""

    @cache
    def load(family: str = "llama") -> Model:
        return tiny.load(family)

    return load
