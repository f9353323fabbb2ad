"""The numeric contract: every rounding, saturation, table and random bit of the machine, once.

All functions are pure numpy on integers (int64 inside) and vectorised over any shape. The hardware
instantiates the tables from here; reference and machine model call the functions.

Formats
-------
int16 lane, int32 accumulator, int8 weight (-127 .. 127). A *float12* is 16 bits, a mantissa of 12
bits above a right shift of 4 bits: value ``mantissa * 2**-shift``. Function arguments carry
``EXP_FRACTION`` or ``ACT_FRACTION`` fraction bits; logits carry ``LOGIT_FRACTION``.
"""
import math

import numpy as np

LANE_BITS = 16
PRODUCT_INPUT_BITS = 18
EXP_FRACTION = 8
ACT_FRACTION = 11
LOGIT_FRACTION = 8
MASKED = -32768


# Rounding and saturation.

def rshift(x, shift):
    """``floor(x / 2**shift + 1/2)``: arithmetic right shift, halves rounded up."""
    x, shift = np.asarray(x, np.int64), np.asarray(shift, np.int64)
    # Half of the last place; a shift of 63 must not pass through the sign bit of 1 << 63.
    half = np.where(shift > 0, np.int64(1) << np.maximum(shift - 1, 0), 0)
    return (x + half) >> shift


def saturate(x, bits):
    """Clamp to a signed field of ``bits`` bits."""
    return np.clip(np.asarray(x, np.int64), -(1 << bits - 1), (1 << bits - 1) - 1)


def saturate_symmetric(x, bits):
    """Clamp to ``-(2**(bits-1) - 1) .. 2**(bits-1) - 1``: weights, activations and KV entries."""
    limit = (1 << bits - 1) - 1
    return np.clip(np.asarray(x, np.int64), -limit, limit)


def activation(x, shift, bits):
    """What the MXM feed makes of an int16 lane: shift-rounded, saturated to ``bits`` bits."""
    return saturate_symmetric(rshift(x, shift), bits)


# The multiply-accumulate pass of the VXM.

def mac(a, b, c, pre, post, b_float=False, wide=False):
    """``sat(rshift(sat18(rshift(a, pre)) * b, post) + c)``.

    With ``b_float`` the low 16 bits of b are a float12: its mantissa multiplies and its shift adds
    to ``post``. ``wide`` saturates to 32 bits, else 16.
    """
    a = saturate(rshift(a, pre), PRODUCT_INPUT_BITS)
    b = np.asarray(b, np.int64)
    if b_float:
        mantissa, exponent = float12_fields(b)
        product = rshift(a * mantissa, post + exponent)
    else:
        product = rshift(a * b, post)
    return saturate(product + np.asarray(c, np.int64), 32 if wide else LANE_BITS)


def lane_max(a, b, c, pre, post, b_float=False, wide=False):
    """The MAX pass: like `mac` with ``max(product, c)`` in place of the sum."""
    product = mac(a, b, 0, pre, post, b_float, wide=True)
    return saturate(np.maximum(product, np.asarray(c, np.int64)), 32 if wide else LANE_BITS)


# exp: the product of two tables of 16 entries.

#: 2**-(i/16) with 15 fraction bits, scaled by 127/128 so that exp(0) is exactly 127 at 7 bits.
EXP_HIGH = np.array([round(127 / 128 * 2**15 * 2**(-i / 16)) for i in range(16)], np.int64)
#: 2**-(i/256) with 14 fraction bits.
EXP_LOW = np.array([round(2**14 * 2**(-i / 256)) for i in range(16)], np.int64)


def exp2(a, c, post):
    """``127/128 * 2**(29 - post) * 2**(d / 256)`` with ``d = min(sat16(a) - c, 0)``, saturated.

    ``d`` is clamped to -32767. Parameters: int16 ``a`` and ``c``; ``post`` 0 to 31.
    """
    u = np.clip(np.asarray(c, np.int64) - saturate(a, LANE_BITS), 0, 32767)
    product = EXP_HIGH[u >> 4 & 15] * EXP_LOW[u & 15]
    # A shift of 32 or more leaves nothing of a 30-bit product.
    return saturate(rshift(product, np.minimum(post + (u >> 8), 32)), LANE_BITS)


# SiLU and GELU: relu(x) minus an even bump, by linear interpolation over 64 segments of 1/8.

ACT_SEGMENTS, ACT_FRAC_BITS = 64, 8


def _segments(function):
    """Base and slope per segment of ``function`` on [0, 8], the last knot forced to 0."""
    knots = [round(function(i / 8) * 2**ACT_FRACTION) for i in range(ACT_SEGMENTS)] + [0]
    return (np.array(knots[:-1], np.int64), np.diff(np.array(knots, np.int64)))


SILU_BASE, SILU_SLOPE = _segments(lambda u: u / (1 + math.exp(u)))
GELU_BASE, GELU_SLOPE = _segments(lambda u: u * 0.5 * math.erfc(u / math.sqrt(2)))


def _act(x, base, slope):
    x = saturate(x, LANE_BITS)
    u = np.abs(x)
    segment = np.minimum(u >> ACT_FRAC_BITS, ACT_SEGMENTS - 1)
    inside = u < ACT_SEGMENTS << ACT_FRAC_BITS
    product = np.where(inside, slope[segment] * (u & (1 << ACT_FRAC_BITS) - 1), 0)
    bump = np.where(inside, base[segment], 0)
    # The adder takes relu(x) - base as its addend; the product enters negated.
    return saturate(rshift(-product, ACT_FRAC_BITS) + np.maximum(x, 0) - bump, LANE_BITS)


def silu(x):
    """``x * sigmoid(x)``; argument and result have `ACT_FRACTION` fraction bits."""
    return _act(x, SILU_BASE, SILU_SLOPE)


def gelu(x):
    """``x * Phi(x)`` (the exact, erf form); formats as in `silu`."""
    return _act(x, GELU_BASE, GELU_SLOPE)


# Reciprocal and reciprocal square root of a sum: normalise, interpolate, float12.

SUM_BITS = 48
FUNCTION_SEGMENTS, FUNCTION_FRAC_BITS, FUNCTION_BITS = 64, 8, 14


def _function_tables():
    """Base and slope with `FUNCTION_BITS` fraction bits, `FUNCTION_SEGMENTS` each.

    RECIP: 1/m, m in [1, 2), 64 segments. RSQRT: 1/sqrt(m), m in [1, 4): segments 0 to 31 cover
    [1, 2), 32 to 63 cover [2, 4).
    """
    def pieces(function, starts, widths):
        base = [round(function(s) * 2**FUNCTION_BITS) for s in starts]
        end = [round(function(s + w) * 2**FUNCTION_BITS) for s, w in zip(starts, widths)]
        return np.array(base, np.int64), np.array(end, np.int64) - np.array(base, np.int64)
    recip = pieces(lambda m: 1 / m, [1 + i / 64 for i in range(64)], [1 / 64] * 64)
    starts = [1 + i / 32 for i in range(32)] + [2 + i / 16 for i in range(32)]
    rsqrt = pieces(lambda m: m**-0.5, starts, [1 / 32] * 32 + [1 / 16] * 32)
    return recip + rsqrt


RECIP_BASE, RECIP_SLOPE, RSQRT_BASE, RSQRT_SLOPE = _function_tables()


def _float12(mantissa14, exponent):
    """Pack a value ``mantissa14 / 2**14 * 2**-exponent``, mantissa14 in (2**13, 2**14].

    The shift field is clamped: below 0 the largest value, above 15 the mantissa shifts out.
    """
    mantissa = np.minimum(rshift(mantissa14, 2), 4095)
    over = np.clip(exponent - 15, 0, 12)
    mantissa = np.where(exponent < 0, 4095, mantissa >> over)
    return mantissa << 4 | np.clip(exponent, 0, 15)


def float12_fields(x):
    """``(mantissa, shift)`` of a float12 held in the low 16 bits of x."""
    bits = np.asarray(x, np.int64) & 0xFFFF
    return bits >> 4, bits & 15


def as_lane(x):
    """The low 16 bits as a signed lane: how vector SRAM holds any value."""
    x = np.asarray(x, np.int64) & 0xFFFF
    return x - ((x & 0x8000) << 1)


def _leading(x):
    """Index of the highest set bit of each positive integer."""
    x = np.asarray(x, np.int64)
    index = np.zeros_like(x)
    for step in (32, 16, 8, 4, 2, 1):
        high = x >> step > 0
        index = np.where(high, index + step, index)
        x = np.where(high, x >> step, x)
    return index


def recip(total, bias):
    """float12 of ``1 / total * 2**bias``, as a signed lane. A total below 1 gives the largest value.

    The total is normalised to 14 fraction bits, the rest cut off; the top 6 select the segment.
    """
    total = np.asarray(total, np.int64)
    safe = np.maximum(total, 1)
    e = _leading(safe)
    fraction = np.where(e >= 14, safe >> np.maximum(e - 14, 0), safe << np.maximum(14 - e, 0))
    fraction = fraction & 0x3FFF
    segment, rest = fraction >> 8, fraction & 0xFF
    mantissa14 = RECIP_BASE[segment] + rshift(RECIP_SLOPE[segment] * rest, FUNCTION_FRAC_BITS)
    return as_lane(np.where(total < 1, 0xFFF0, _float12(mantissa14, 12 + e - bias)))


def rsqrt(total, bias):
    """float12 of ``1 / sqrt(total) * 2**bias``, as a signed lane; totals below 1 give the largest.

    The total is m * 4**e with m in [1, 4); m has 13 fraction bits below its leading one, cut off.
    """
    total = np.asarray(total, np.int64)
    safe = np.maximum(total, 1)
    top = _leading(safe)
    odd = top & 1
    fraction = np.where(top >= 13, safe >> np.maximum(top - 13, 0), safe << np.maximum(13 - top, 0))
    fraction = fraction & 0x1FFF
    segment, rest = odd << 5 | fraction >> 8, fraction & 0xFF
    mantissa14 = RSQRT_BASE[segment] + rshift(RSQRT_SLOPE[segment] * rest, FUNCTION_FRAC_BITS)
    return as_lane(np.where(total < 1, 0xFFF0, _float12(mantissa14, 12 + (top >> 1) - bias)))


# Sampling: Gumbel-max with a counter-based generator.

THREEFRY_ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)
THREEFRY_PARITY = 0x1BD11BDA


def threefry(key0, key1, counter0, counter1, rounds=13):
    """Threefry-2x32: two 32-bit words of a 64-bit key and a 64-bit counter.

    Ref: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011, section 4.2.
    """
    mask = np.uint64(0xFFFFFFFF)
    as_word = lambda x: np.asarray(x, np.uint64) & mask  # noqa: E731
    keys = [as_word(key0), as_word(key1)]
    keys.append(keys[0] ^ keys[1] ^ np.uint64(THREEFRY_PARITY))
    x0, x1 = as_word(counter0) + keys[0] & mask, as_word(counter1) + keys[1] & mask
    for number in range(rounds):
        rotation = np.uint64(THREEFRY_ROTATIONS[number % 8])
        x0 = x0 + x1 & mask
        x1 = (x1 << rotation | x1 >> np.uint64(32) - rotation) & mask
        x1 = x1 ^ x0
        if number % 4 == 3:
            inject = number // 4 + 1
            x0 = x0 + keys[inject % 3] & mask
            x1 = x1 + keys[(inject + 1) % 3] + np.uint64(inject) & mask
    return x0, x1


GUMBEL_FRACTION, GUMBEL_FRAC_BITS = 10, 8


def _gumbel_tables():
    """Base and slope of the Gumbel quantile, 512 segments: side (1 bit), octave (5), piece (3).

    Side 0: w = v, side 1: w = 1 - v, where v = (r + 1/2) / 2**32 and the quantile is
    -ln(-ln(1 - v)). Octave o holds w in [2**-(o+2), 2**-(o+1)), eight pieces each.
    """
    def quantile(side, w):
        e = -math.log1p(-w) if side == 0 else -math.log(w)
        return -math.log(e)
    base, slope = [], []
    for segment in range(512):
        side, octave, piece = segment >> 8, segment >> 3 & 31, segment & 7
        low = 2.0**-(octave + 2) * (1 + piece / 8)
        high = min(2.0**-(octave + 2) * (1 + (piece + 1) / 8), 0.5)
        first, last = (round(quantile(side, w) * 2**GUMBEL_FRACTION) for w in (low, high))
        base.append(first)
        slope.append(last - first)
    return np.array(base, np.int64), np.array(slope, np.int64)


GUMBEL_BASE, GUMBEL_SLOPE = _gumbel_tables()


def gumbel(r):
    """Gumbel noise with `GUMBEL_FRACTION` fraction bits of a uniform 32-bit word.

    Bit 31 is the side; the other 31 bits, complemented when it is set, are w * 2**32. Its leading
    one gives the octave, the next three bits the piece, the next eight the place within.
    """
    r = np.asarray(r, np.int64)
    side = r >> 31
    w = np.where(side == 1, ~r, r) & 0x7FFFFFFF
    top = _leading(np.maximum(w, 1))
    fraction = np.where(w == 0, 0, w << np.maximum(31 - top, 0)) & 0x7FFFFFFF
    segment = side << 8 | (30 - top) << 3 | fraction >> 28
    rest = fraction >> 20 & 0xFF
    return GUMBEL_BASE[segment] + rshift(GUMBEL_SLOPE[segment] * rest, GUMBEL_FRAC_BITS)


INVERSE_TEMPERATURE_FRACTION = 12


def sampling_keys(logits, inverse_temperature, seed, position):
    """Keys whose largest (the first among equals) is the sampled token.

    Parameters
    ----------
    logits : int array, [vocab]
        With `LOGIT_FRACTION` fraction bits.
    inverse_temperature : int
        Unsigned 16 bits with `INVERSE_TEMPERATURE_FRACTION` fraction bits; 0 means greedy.
    seed : int
        64 bits. ``position`` is that of the step; the counter is (token // 2, position).
    """
    logits = np.asarray(logits, np.int64)
    if inverse_temperature == 0:
        return logits
    tokens = np.arange(len(logits), dtype=np.int64)
    x0, x1 = threefry(seed & 0xFFFFFFFF, seed >> 32, tokens >> 1, position)
    noise = gumbel(np.where(tokens & 1, x1, x0).astype(np.int64))
    scaled = rshift(logits * inverse_temperature,
                    LOGIT_FRACTION + INVERSE_TEMPERATURE_FRACTION - GUMBEL_FRACTION)
    return scaled + noise


def inverse_temperature(temperature: float) -> int:
    """Register value for a temperature; 0 (greedy) for 0.

    Raises
    ------
    ValueError
        Unless ``temperature`` is 0 or 0.0625 to 100.
    """
    if temperature == 0:
        return 0
    if not 0.0625 <= temperature <= 100:
        raise ValueError(f"temperature must be 0 or 0.0625 to 100, not {temperature!r}")
    return max(1, min(65535, round(2**INVERSE_TEMPERATURE_FRACTION / temperature)))
