"""The type of tiles in memory, shared by those who read and those who classify them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

#: Tiles of one size as uint8 [n, h, w, 3], or a list of uint8 [h, w, 3] where sizes vary.
Tiles = NDArray[np.uint8] | Sequence[NDArray[np.uint8]]
