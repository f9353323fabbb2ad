"""Images for tests that make their instruction words themselves: zeros in every memory."""
import numpy as np

from arch.config import Config
from arch.image import Image


def empty_image(config: Config, program: dict, length: int) -> Image:
    """A program over memories of zeros; all steps take ``length`` cycles."""
    rows = np.zeros((config.param_rows, 6), np.int64)
    rows[:, 4:] = length
    return Image(config, program, {}, rows, np.zeros((config.patterns, config.lanes), np.int64),
                 np.zeros((config.const_depth, config.lanes), np.int16),
                 np.zeros((config.weight_depth, config.rows, config.columns), np.int8))
