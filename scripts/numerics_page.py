"""Figures of ``docs/numerics.md``: the worst errors of every approximated function.

Every figure compares `arch.numerics` with the exact function in float64, over all arguments where
they can be listed, else over a fixed dense set.
"""
import math

import numpy as np

from arch import numerics
from scripts.pages import table

_ALL16 = np.arange(-32768, 32768)


def exp2_error(bits: int) -> float:
    """Worst error of EXP2 in steps of the result, ``bits`` bits with sign, over all differences."""
    post = 29 - (bits - 1)
    d = np.arange(-32767, 1)
    exact = 127 / 128 * 2.0**(bits - 1) * 2.0**(d / 256)
    return float(np.abs(numerics.exp2(d, 0, post) - exact).max())


def activation_error(name: str) -> float:
    """Worst error of SILU or GELU in steps of 2**-11, over all int16 arguments."""
    x = _ALL16 / 2.0**numerics.ACT_FRACTION
    if name == "silu":
        exact = x / (1 + np.exp(-x))
    else:
        exact = x * np.array([math.erfc(-v / math.sqrt(2)) / 2 for v in x])
    seen = getattr(numerics, name)(_ALL16)
    return float(np.abs(seen - exact * 2.0**numerics.ACT_FRACTION).max())


def totals(name: str) -> np.ndarray:
    """Sums that have the worst error of RECIP or RSQRT among them.

    Bits below the 14 (13) behind the leading one do not change the result, and the exact function
    falls: so over each run of equal results the error is worst at one of its ends.
    """
    bits = 14 if name == "recip" else 13
    leading = np.arange(1 << bits, 2 << bits)
    ends = [end for more in range(1, 47 - bits)
            for end in (leading << more, (leading + 1 << more) - 1)]
    return np.concatenate([np.arange(1, 2 << bits), *ends])


def reciprocal_error(name: str) -> float:
    """Worst relative error of RECIP or RSQRT over all sums, the exponent within the format."""
    total = totals(name)
    exact = 1.0 / total if name == "recip" else total**-0.5
    # A bias that leaves the shift of the float12 at 1 to 15 for every total.
    worst = 0.0
    for low in range(0, 47, 12):
        part = (total >= 2.0**low) & (total < 2.0**(low + 12))
        bias = low + 10 if name == "recip" else low // 2 + 10
        mantissa, shift = numerics.float12_fields(getattr(numerics, name)(total[part], bias))
        value = mantissa * 2.0**-shift.astype(np.float64) * 2.0**-bias
        worst = max(worst, float(np.abs(value / exact[part] - 1).max()))
    return worst


def gumbel_error() -> float:
    """Worst error of the Gumbel noise in steps of 2**-10, tails of 2**-20 left out."""
    r = np.arange(1 << 12, (1 << 32) - (1 << 12), 65537, dtype=np.int64)
    v = (r + 0.5) / 2.0**32
    exact = -np.log(-np.log1p(-v)) * 2.0**numerics.GUMBEL_FRACTION
    return float(np.abs(numerics.gumbel(r) - exact).max())


def errors() -> dict:
    """Function to (error, unit, arguments)."""
    step = "steps of the result"
    return {
        "EXP2, 8-bit result": (exp2_error(8), step, "all 32,768 differences"),
        "EXP2, 10-bit result": (exp2_error(10), step, "all 32,768 differences"),
        "SILU": (activation_error("silu"), "steps of 2**-11", "all int16"),
        "GELU": (activation_error("gelu"), "steps of 2**-11", "all int16"),
        "RECIP": (reciprocal_error("recip"), "relative", "all sums below 2**47"),
        "RSQRT": (reciprocal_error("rsqrt"), "relative", "all sums below 2**47"),
        "Gumbel noise": (gumbel_error(), "steps of 2**-10", "65,535 words"),
    }


def _tables() -> str:
    def extent(*arrays):
        return (f"{sum(map(len, arrays))}", f"{min(int(a.min()) for a in arrays)} .. "
                f"{max(int(a.max()) for a in arrays)}")
    n = numerics
    rows = [["EXP2", "two factors: 2**-(i/16) and 2**-(i/256)",
             *extent(n.EXP_HIGH, n.EXP_LOW)],
            ["SILU", f"{n.ACT_SEGMENTS} segments of 1/8, base and slope",
             *extent(n.SILU_BASE, n.SILU_SLOPE)],
            ["GELU", f"{n.ACT_SEGMENTS} segments of 1/8, base and slope",
             *extent(n.GELU_BASE, n.GELU_SLOPE)],
            ["RECIP", f"{n.FUNCTION_SEGMENTS} segments of [1, 2), base and slope",
             *extent(n.RECIP_BASE, n.RECIP_SLOPE)],
            ["RSQRT", "32 segments of [1, 2) and 32 of [2, 4), base and slope",
             *extent(n.RSQRT_BASE, n.RSQRT_SLOPE)],
            ["Gumbel", "two sides, 32 octaves, 8 pieces, base and slope",
             *extent(n.GUMBEL_BASE, n.GUMBEL_SLOPE)]]
    return table(["function", "tables", "entries", "values"],
                 [[cell.replace("**", "\\*\\*") for cell in row] for row in rows])


def blocks() -> dict:
    """Blocks of ``docs/numerics.md``."""
    rows = []
    for name, (error, unit, arguments) in errors().items():
        shown = f"2**{math.log2(error):.2f}" if unit == "relative" else f"{error:.2f}"
        rows.append([name, shown.replace("**", "\\*\\*"), unit.replace("**", "\\*\\*"),
                     arguments.replace("**", "\\*\\*")])
    return {"errors": table(["function", "worst error", "unit", "over"], rows),
            "tables": _tables()}
