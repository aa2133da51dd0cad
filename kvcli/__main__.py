"""``python -m kvcli``."""

import os
import sys

# ``python -m`` puts the working directory first on the module path; ``python -P -m`` and the console script do not.
if not sys.flags.safe_path and os.path.realpath(sys.path[0] or os.curdir) == os.path.realpath(os.curdir):
    del sys.path[0]

from kvcli.cli.app import main

if __name__ == "__main__":
    main()
