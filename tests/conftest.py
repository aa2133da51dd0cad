"""Nothing here touches a person's own files: caches live in a folder of the test run unless one is given."""

import os
import signal
import tempfile

from tests import dtype

# Tiny tensors gain nothing from threads, and on a busy machine they wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("KVCLI_CACHE_DIR", tempfile.mkdtemp(prefix="kvcli-tests-"))
os.environ["KVCLI_CONFIG"] = os.path.join(os.environ["KVCLI_CACHE_DIR"], "no-config.toml")  # noqa: PTH118
os.environ["KVCLI_KEEP_ALIVE"] = "0"  # no engine stays after a command; tests of engines say otherwise
os.environ["XDG_RUNTIME_DIR"] = os.environ["KVCLI_CACHE_DIR"]  # nor is an engine of this user met
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # as kvcli does, but before anything imports transformers
dtype.force()

# A shell that runs the tests in the background has told them to ignore Ctrl-C, and children inherit that; the programs
# that are tested here must get it.
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
