"""Top-k and top-p in integers: which tokens may be drawn, found by bisecting a threshold.

All of it is made of passes of the vector unit and of lane sums, so the machine needs no circuit for
it. Two tricks carry it:

- ``exp2(a, c, INSIDE_POST)`` is 1 for ``a >= c - REACH`` and 0 below: rounding cuts the exponential
  off to a step. Its sum over all lanes counts, or weighs, what lies above a threshold.
- ``max(excess * 32767, 0)`` saturates to 32767 for an excess of 1 or more, else it is 0: a decision
  that the next multiplication scales to the width of the bisection.

A *relative* logit is that less the largest one; a *scaled* one is relative and divided by the
temperature. Both have `arch.numerics.LOGIT_FRACTION` fraction bits and are 0 for the best token.
What lies 127 nats or more below the best token is never drawn.

Ref: Fan et al., "Hierarchical Neural Story Generation", ACL 2018 (top-k); Holtzman et al., "The
Curious Case of Neural Text Degeneration", ICLR 2020 (top-p).
"""
import dataclasses

import numpy as np

from arch import numerics

#: The stages that a program may have, in the order in which they narrow the choice.
STAGES = ("top-k", "top-p")
#: Shift at which exp2 is 1 or 0, and the largest difference at which it still is 1.
INSIDE_POST = 29
REACH = int(np.flatnonzero(numerics.exp2(-np.arange(512), 0, INSIDE_POST) == 0)[0]) - 1
#: A threshold below which nothing is drawn: where the bisections begin.
BASE = -127 << numerics.LOGIT_FRACTION
#: Where that of top-p begins: from about 11 nats below the best token on nothing has a mass.
MASS_BASE = -4000
#: What each round of a bisection may add to the threshold.
STEPS = {"top-k": tuple(1 << bit for bit in reversed(range(15))),
         "top-p": tuple(1 << bit for bit in reversed(range(12)))}
FULL = 32767
DECISION_POST = 15
#: A scaled logit to powers of two, and the mass of the best token: 32512 for 2**0.
LOG2E, LOG2E_POST, MASS_POST = round(2**14 / np.log(2)), 14, 14
SHARE_BITS = 15
#: Products with the temperature's float12 have this many fraction bits less.
TEMPERATURE_POST = 7
#: Register value at which the sampler adds noise to scaled logits: an inverse temperature of 1.
UNIT_TEMPERATURE = 1 << numerics.INVERSE_TEMPERATURE_FRACTION
TOP_K_MAX = 32767
#: The bound of what is masked, less the state of the bisection: see `outside`.
BOUND = -2 * REACH - 2


def start(base: int, stage: str) -> int:
    """State of a bisection before its first round: the first candidate, `REACH` added."""
    return base + REACH + STEPS[stage][0]


# The passes.

def relative(logits, peak):
    """Logits less the largest one."""
    return numerics.mac(peak, numerics.MASKED, logits, 0, 15)


def scaled(relative_logits, word):
    """Relative logits over the temperature, ``word`` being `temperature_word` of it."""
    return numerics.mac(relative_logits, word, 0, 0, TEMPERATURE_POST, b_float=True)


def mass(scaled_logits):
    """exp of scaled logits: 32512 for the best token, 0 from about 11 nats below it."""
    powers = numerics.mac(scaled_logits, LOG2E, 0, 0, LOG2E_POST)
    return numerics.exp2(powers, 0, MASS_POST)


def inside(values, state):
    """1 where a value is at or above the threshold of a state, else 0."""
    return numerics.exp2(values, state, INSIDE_POST)


def outside(values, state):
    """1 where a value is below the threshold of the last state, else 0."""
    return numerics.exp2(numerics.mac(state, 1, BOUND, 0, 0), values, INSIDE_POST)


def decision(excess):
    """`FULL` for an excess of 1 or more, else 0."""
    return numerics.lane_max(excess, FULL, 0, 0, 0)


def low_state(state, step):
    """The state of the next round if this one fails: the step off, the next one, its half, on."""
    return numerics.mac(step, numerics.MASKED, state, 0, 16)


def next_state(excess, step, low):
    """The state of the next round; behind the last one the threshold, `REACH` + 1 added.

    The last step has no half: the state gains 1 too much then.
    """
    return numerics.mac(decision(excess), step, low, 0, DECISION_POST)


# Settings.

@dataclasses.dataclass(frozen=True)
class Selection:
    """What a user chooses; a program is compiled for stages, the rest is set for each run.

    Parameters
    ----------
    temperature : float
        0 (the best token) or 0.0625 to 100.
    top_k : int
        Draw from the k best tokens and those equal to the last of them; 0: from all.
    top_p : float
        Draw from the least set of best tokens with more than this share of the probability, equal
        ones included; 1: from all. In a program with both stages: of the probability that top-k
        leaves.

    Raises
    ------
    ValueError
        If one is out of its range.
    """
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self):
        numerics.inverse_temperature(self.temperature)
        if self.top_k != int(self.top_k) or self.top_k < 0:
            raise ValueError(f"top_k must be 0 (off) or a number of tokens, not {self.top_k!r}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1 (off), not {self.top_p!r}")

    @property
    def stages(self) -> tuple:
        """The stages that the settings need."""
        wanted = {"top-k": self.top_k > 0, "top-p": self.top_p < 1}
        return tuple(stage for stage in STAGES if wanted[stage])

    @property
    def temperature_word(self) -> int:
        """Inverse temperature as a float12 lane; 1 when greedy."""
        return temperature_word(1 / self.temperature if self.temperature else 1.0)

    @property
    def top_k_word(self) -> int:
        """One less than k, negative: what the count of a round is compared with."""
        return 1 - min(self.top_k or TOP_K_MAX, TOP_K_MAX)

    @property
    def top_p_word(self) -> int:
        """The share, negative, with `SHARE_BITS` fraction bits."""
        return -max(1, round(self.top_p * 2**SHARE_BITS))

    @property
    def register(self) -> int:
        """Inverse temperature that the sampler applies to scaled logits."""
        return UNIT_TEMPERATURE if self.temperature else 0

    @property
    def top_p_start(self) -> int:
        """Start of the bisection of top-p; from the lowest base on nothing is masked when off."""
        return start(MASS_BASE if self.top_p < 1 else BASE, "top-p")

    def rows(self, words: dict, lanes: int) -> dict:
        """Constant vectors by address; ``words`` gives the address of each setting by its name."""
        vectors = {"temperature": np.full(lanes, self.temperature_word),
                   "top_k": np.eye(1, lanes, dtype=np.int64)[0] * self.top_k_word,
                   "top_p": np.full(lanes, self.top_p_word),
                   "top_p_start": np.full(lanes, self.top_p_start)}
        return {address: vectors[name].astype(np.int64) for name, address in words.items()}


def temperature_word(inverse: float) -> int:
    """float12 lane whose product, shifted by `TEMPERATURE_POST`, is that with ``inverse``."""
    shift = 0
    while round(inverse * 2**(TEMPERATURE_POST + shift + 1)) < 4096 and shift < 15:
        shift += 1
    mantissa = min(4095, round(inverse * 2**(TEMPERATURE_POST + shift)))
    return int(numerics.as_lane(mantissa << 4 | shift))
