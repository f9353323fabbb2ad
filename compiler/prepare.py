"""What comes before lowering: is the model of a size that any machine holds, and its integers."""
from __future__ import annotations

import numpy as np

from arch.config import PROFILES, Config
from compiler import calibrate
from compiler.checkpoint import Checkpoint, ModelConfig
from compiler.errors import CapacityError, ModelError
from compiler.layout import too_large
from compiler.quantise import quantise
from compiler.quantised import QuantModel

__all__ = ["prepare"]


def prepare(checkpoint: Checkpoint, config: Config, calibration_tokens=None, bos: int = 1,
            seed: int = 0) -> QuantModel:
    """Quantise a checkpoint, on text that it samples itself if there is none.

    Parameters
    ----------
    calibration_tokens : int array [sequences, length], optional
    bos : int
        First token of self-sampled text.

    Raises
    ------
    ModelError
        If no machine has room for the model, or its values fit no fixed-point format.
    """
    _check_size(checkpoint.config, config)
    context = min(config.context, checkpoint.config.seq_len)
    try:
        # What overflows here is found out of range below.
        with np.errstate(all="ignore"):
            if calibration_tokens is None:
                calibration_tokens = calibrate.self_sampled(checkpoint, bos, seed)
            return quantise(checkpoint, config, np.asarray(calibration_tokens), context)
    except (ValueError, ArithmeticError) as error:
        raise ModelError("the model cannot be quantised: some of its activations are 0, tiny or "
                         f"beyond float32 ({error})") from error


def _check_size(model: ModelConfig, config: Config) -> None:
    """Refuse, before any work, a model that is too large for every machine."""
    for what, need, room in (
            ("token ids", model.vocab_size, lambda machine: machine.vocab_max),
            ("weights", model.weights, lambda machine: machine.weight_depth
             * machine.macs_per_cycle)):
        if need > max(map(room, [config, *PROFILES.values()])):
            raise CapacityError(f"{too_large(config, what, need, room(config))}; "
                                "it fits no profile")
