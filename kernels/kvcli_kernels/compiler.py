"""numba's ``njit``, without the file ``.numba_config.yaml`` of the working directory.

numba reads that file when it is imported and at every compilation. It may name the folder from which compiled
functions are loaded, and those are pickles: a downloaded folder with such a file would run its code.
"""

from numba import njit
from numba.core import config

config._config_fname = ""
config._env_reloader.update(force=True)

__all__ = ["njit"]
