"""Top-k and top-p of the numpy reference: the passes of `arch.selection`, round by round."""
import numpy as np

from arch import numerics, selection
from arch.selection import Selection


class Selector:
    """Narrows the choice of tokens.

    Parameters
    ----------
    stages : tuple of str
        What the program was compiled with, of `arch.selection.STAGES`.
    lanes : int
        Tokens are padded to whole vectors.
    first : int
        Number of the layer behind the last: that of the vectors kept in the first round.
    """

    def __init__(self, stages: tuple, lanes: int, first: int):
        self.stages, self.lanes, self.first = stages, lanes, first
        self._kept = None

    def _keep(self, label, values, round_=0):
        if self._kept is not None:
            values = np.broadcast_to(values, max(np.size(values), self.lanes))
            self._kept[label, self.first + round_] = np.asarray(values, np.int64).reshape(
                -1, self.lanes)

    def __call__(self, logits, settings: Selection, kept: dict | None = None) -> np.ndarray:
        """What the sampler takes: scaled logits, `arch.numerics.MASKED` where not to be drawn.

        Parameters
        ----------
        logits : int array, [vocab]
        kept : dict or None
            Receives the vectors that the machine stores, by label and layer.
        """
        self._kept = kept
        count, lanes = len(logits), self.lanes
        x = np.full(-(-count // lanes) * lanes, numerics.MASKED)
        x[:count] = logits
        self._keep("logits", x)
        self._keep("peak", x.max())
        relative = selection.relative(x, x.max())
        self._keep("relative", relative)
        # Lanes behind the vocabulary do not count, however low the logits are.
        relative[count:] = numerics.MASKED
        self._keep("relative lanes", relative[-lanes:])
        scaled = selection.scaled(relative, settings.temperature_word)
        # Lanes behind the vocabulary have no share at any temperature.
        scaled[count:] = numerics.MASKED
        self._keep("scaled", scaled)
        self._keep("temperature", settings.temperature_word)
        self._keep("full", selection.FULL)
        self._keep("lowest", numerics.MASKED)
        for stage in self.stages:
            if stage == "top-k":
                values, state = relative, selection.start(selection.BASE, stage)
                target = np.zeros(lanes, np.int64)
                target[0] = settings.top_k_word
                self._keep("target", target)
                weights = np.ones(len(x), np.int64)
            else:
                values, weights, state = scaled, selection.mass(scaled), settings.top_p_start
                powers = numerics.mac(scaled, selection.LOG2E, 0, 0, selection.LOG2E_POST)
                target = numerics.mac(weights, settings.top_p_word, 0, 0, selection.SHARE_BITS)
                self._keep("powers", powers)
                self._keep("mass", weights)
                self._keep("share", target)
            self._keep(f"{stage} start", state)
            state = self._bisect(stage, state, values, weights, target)
            self._keep(f"{stage} bound", state + selection.BOUND)
            outside = selection.outside(values, state)
            self._keep(f"{stage} outside", outside)
            scaled = numerics.mac(outside, numerics.MASKED, scaled, 0, 0)
            self._keep(f"{stage} masked", scaled)
        return scaled[:count]

    def _bisect(self, stage, state, values, weights, target) -> int:
        """State behind the last round: the largest threshold above which the weights exceed."""
        for round_, step in enumerate(selection.STEPS[stage]):
            inside = selection.inside(values, state)
            self._keep(f"{stage} inside", inside, round_)
            excess = numerics.saturate((inside * weights).sum() + target.sum(),
                                       numerics.LANE_BITS)
            self._keep(f"{stage} excess", excess, round_)
            low = selection.low_state(state, step)
            self._keep(f"{stage} low", low, round_)
            state = int(selection.next_state(excess, step, low))
            self._keep(f"{stage} state", state, round_)
        return state
