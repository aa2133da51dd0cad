"""Nothing here touches a person's own files: caches live in a folder of the test run unless one is given."""

import os
import tempfile

os.environ.setdefault("KVCLI_CACHE_DIR", tempfile.mkdtemp(prefix="kvcli-tests-"))
