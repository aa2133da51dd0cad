"""One default dtype for all tests, whatever this machine multiplies: ``KVCLI_TEST_DTYPE=bfloat16 make test``.

The laws must hold for each dtype, so a machine of one kind can check them for the other kind too.
"""

import os

NAME = os.environ.get("KVCLI_TEST_DTYPE")
"""``float32`` or ``bfloat16``; ``None`` is what the program chooses here."""

START = f"import runpy; runpy.run_path({__file__!r})['force'](); " if NAME else ""
"""What a ``python -c`` program of the tests begins with, so that it has the same default."""


def force() -> None:
    """Make ``NAME`` the program's default in this process, if there is one."""
    if NAME:
        from kvcli.models import defaults, load, spec

        for module in (defaults, load, spec):
            usual = module.default_dtype  # a GPU keeps its own
            module.default_dtype = lambda device, usual=usual: usual(device) if device.startswith("cuda") else NAME
