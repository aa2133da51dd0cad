"""Nothing here touches a person's own files: caches live in a folder of the test run unless one is given."""

import os
import tempfile

# Tiny tensors gain nothing from threads, and on a busy machine they wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("KVCLI_CACHE_DIR", tempfile.mkdtemp(prefix="kvcli-tests-"))
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # as kvcli does, but before anything imports transformers
