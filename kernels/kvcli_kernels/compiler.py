"""numba's ``njit``, without the file ``.numba_config.yaml`` of the working directory.

numba reads that file when it is imported and at every compilation. It may name the folder from which compiled
functions are loaded, and those are pickles: a downloaded folder with such a file would run its code.
"""

import numpy as np
from numba import njit, types
from numba.core import config
from numba.extending import overload

config._config_fname = ""
config._env_reloader.update(force=True)

__all__ = ["njit", "number"]


def number(stored):  # only its overload is compiled
    raise NotImplementedError


@overload(number, inline="always")
def _number(stored):
    """A stored number as float32: a bfloat16 is in memory as the upper half of its bits."""
    if stored == types.uint16:
        return lambda stored: np.uint32(np.uint32(stored) << np.uint32(16)).view(np.float32)
    return lambda stored: stored
