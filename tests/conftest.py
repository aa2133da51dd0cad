"""Nothing here touches a person's own files: caches live in a folder of the test run unless one is given."""

import gc
import os
import signal
import sys
import tempfile

from hypothesis import HealthCheck, settings

from tests import dtype

# A process that finds no bytecode of torch and transformers compiles them: 20 s of processor time for a start, not 10.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# Tiny tensors gain nothing from threads, and on a busy machine they wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("KVCLI_CACHE_DIR", tempfile.mkdtemp(prefix="kvcli-tests-"))
os.environ["KVCLI_CONFIG"] = os.path.join(os.environ["KVCLI_CACHE_DIR"], "no-config.toml")  # noqa: PTH118
os.environ["KVCLI_KEEP_ALIVE"] = "0"  # no engine stays after a command; tests of engines say otherwise
os.environ["XDG_RUNTIME_DIR"] = os.environ["KVCLI_CACHE_DIR"]  # nor is an engine of this user met
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # as kvcli does, but before anything imports transformers
dtype.force()

# The same examples in every run, so that a change is judged by what it changes; `make fuzz` draws new ones. A busy
# machine draws and runs slowly, which is no fault.
settings.register_profile("same", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("fuzz", max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fuzz" if os.environ.get("KVCLI_FUZZ") else "same")

# A shell that runs the tests in the background has told them to ignore Ctrl-C, and children inherit that; the programs
# that are tested here must get it.
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def pytest_collection_finish() -> None:
    """Leave what imports have made out of later garbage collections: a million objects, half a second each time."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """As before, so that nothing that is frozen is reported as a leak when Python ends."""
    gc.unfreeze()
