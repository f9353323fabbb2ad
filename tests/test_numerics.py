"""The numeric contract against real numbers: known answers, and the worst error of every function.

Each bound is the worst case over the whole range of arguments (or, for 48-bit sums, over all values
of the bits that select a result), measured against `math` and float64. They are part of the
contract's quality: a table that gets worse fails here.
"""
import math
from fractions import Fraction

import numpy as np
import pytest

from arch import numerics as n

LANES = np.arange(-32768, 32768)


def half_up(value):
    """Rounding of a rational number to the nearest integer, halves up, in exact arithmetic."""
    return math.floor(Fraction(value) + Fraction(1, 2))


@pytest.mark.parametrize("shift", [0, 1, 2, 5, 15, 31, 47])
def test_rshift(shift):
    values = [0, 1, -1, 2, 3, -3, 5, -5, 7, 100, -100, 32767, -32768, 2**31 - 1, -2**31, 2**45 + 1]
    values += [sign * (2**shift * k + more) // 2 for k in (1, 2, 3) for more in (-1, 0, 1)
               for sign in (1, -1)]
    assert n.rshift(values, shift).tolist() == [half_up(Fraction(value, 2**shift))
                                                for value in values]


def test_saturation_by_hand():
    assert n.saturate([32767, 32768, -32768, -32769, 2**40], 16).tolist() == [
        32767, 32767, -32768, -32768, 32767]
    assert n.saturate_symmetric([127, 128, -127, -128, 2**40], 8).tolist() == [
        127, 127, -127, -127, 127]
    # 1000 / 8 = 125; 1020 / 8 = 127.5 -> 128; -1020 / 8 = -127.5 -> -127; -1028 / 8 = -128.5.
    assert n.activation([1000, 1020, -1020, -1028], 3, 8).tolist() == [125, 127, -127, -127]
    assert n.activation([1000, 4092, -4092], 3, 10).tolist() == [125, 511, -511]
    assert n.as_lane([0x8000, 0xFFFF, 0x17FFF, -1, 5]).tolist() == [-32768, -1, 32767, -1, 5]


def test_mac_by_hand():
    # a' = sat18(rshift(2**31 - 1, 4)) = 131071; times 3, shifted by 2: 98303.25.
    assert n.mac(2**31 - 1, 3, 0, 4, 2) == 32767
    assert n.mac(2**31 - 1, 3, -98300, 4, 2, wide=True) == 3
    assert n.mac(-2**31, 2, 0, 0, 0, wide=True) == -262144
    assert n.mac(131071, 32767, 2**31 - 1, 0, 0, wide=True) == 2**31 - 1
    # float12 3 * 2**-2 (48 | 2): 10 * 3 / 4 = 7.5 -> 8; as a lane the largest is negative.
    assert n.mac(10, 50, 1, 0, 0, b_float=True) == 9
    assert n.mac(4096, n.as_lane(0xFFF0 | 12), 0, 0, 0, b_float=True) == 4095
    assert n.mac(-10, 50, 0, 0, 1, b_float=True) == -4
    assert n.lane_max(-10, 50, -3, 0, 1, b_float=True) == -3
    assert n.lane_max(131071, 32767, 5, 0, 0, wide=True) == 2**31 - 1
    assert n.lane_max(131071, 32767, 5, 0, 0) == 32767


# Worst error of exp2 in units of the result: 2**-14 steps down by powers of two.
@pytest.mark.parametrize("post, worst", [(14, 1.78), (15, 1.05), (16, 0.72), (18, 0.54),
                                         (20, 0.51), (22, 0.502), (26, 0.5004), (31, 0.249)])
def test_worst_error_of_exp2(post, worst):
    down = np.arange(32768)
    exact = 127 / 128 * 2.0**(29 - post) * np.exp2(-down / 256)
    assert exact[0] < 32767
    error = np.abs(n.exp2(-down, 0, post) - exact).max()
    assert 0.9 * worst < error < worst


def test_exp2_of_differences():
    assert n.exp2(5, 5, 22) == 127 and n.exp2(1000, -1000, 22) == 127
    # Arguments saturate to 16 bits, the difference to -32767.
    assert n.exp2(-2**31, 32767, 0) == n.exp2(-32768, -1, 0) == n.exp2(-32767, 0, 0) == 0
    assert (n.exp2(LANES, LANES, 15) == 16256).all()
    assert n.exp2(0, 0, 13) == 32767 and n.exp2(0, 0, 0) == 32767
    results = n.exp2(-np.arange(32768), 0, 15)
    assert (np.diff(results) <= 0).all()


def test_worst_error_of_silu():
    x = LANES / 2048
    error = np.abs(n.silu(LANES) - 2048 * x / (1 + np.exp(-x))).max()
    # 0.0027 in real numbers, where |x| crosses 8.
    assert 5 < error < 5.6
    near = np.abs(LANES) < 8 * 2048
    assert np.abs(n.silu(LANES) - 2048 * x / (1 + np.exp(-x)))[near].max() < 5.6


def test_worst_error_of_gelu():
    exact = [value / 2048 * 0.5 * math.erfc(-value / 2048 / math.sqrt(2)) for value in LANES]
    error = np.abs(n.gelu(LANES) - 2048 * np.array(exact)).max()
    # 0.0019 in real numbers.
    assert 3.5 < error < 3.95


@pytest.mark.parametrize("function", [n.silu, n.gelu])
def test_activations_are_relu_less_an_even_bump(function):
    bump = np.maximum(LANES, 0) - function(LANES)
    # The product rounds halves up, so a bump is the same for x and -x.
    assert (bump[1:32768] == bump[:32768:-1]).all() and (bump >= 0).all()
    assert function(0) == 0 and function(2**20) == 32767 and function(-2**20) == 0


def value(float12):
    mantissa, shift = n.float12_fields(float12)
    return mantissa * 2.0**-shift


def ends(bits):
    """First and last of all totals that share a leading one and ``bits`` bits behind it."""
    leading = np.arange(2**bits, 2**(bits + 1), dtype=np.int64)
    runs = [(leading * 2**more, (leading + 1) * 2**more - 1) for more in range(47 - bits)]
    small = np.arange(1, 2**bits)
    return tuple(np.concatenate([small, *side]) for side in zip(*runs))


@pytest.mark.parametrize("function, bits, power, worst", [(n.recip, 14, -1, 4.2e-4),
                                                          (n.rsqrt, 13, -0.5, 4.0e-4)])
def test_worst_error_over_all_totals(function, bits, power, worst):
    """All 2**47 totals: within a run of equal results the exact function is monotone."""
    first, last = ends(bits)
    assert first[0] == 1 and last[-1] == 2**47 - 1
    assert (np.sort(first)[1:] == np.sort(last)[:-1] + 1).all()
    found = 0
    for octave in range(47):
        inside = (first >> octave) == 1
        # The exponent that leaves all twelve bits of the mantissa in use.
        bias = octave if function is n.recip else octave // 2
        results = function(first[inside], bias)
        assert (function(last[inside], bias) == results).all()
        between = (first[inside] + last[inside]) // 2
        assert (function(between, bias) == results).all()
        for total in (first[inside], last[inside]):
            exact = np.array(total, float)**power * 2.0**bias
            found = max(found, np.abs(value(results) / exact - 1).max())
    assert 0.9 * worst < found < worst


def test_worst_error_of_recip():
    # All fractions at one exponent; then sums of any size, whose lower bits are cut off.
    total = np.arange(2**14, 2**15)
    error = np.abs(value(n.recip(total, 14)) * total / 2.0**14 - 1).max()
    assert 3.4e-4 < error < 3.63e-4
    total = np.exp2(np.random.default_rng(1).uniform(0, 46, 300_000)).astype(np.int64)
    exponent = np.floor(np.log2(total)).astype(np.int64)
    assert np.abs(value(n.recip(total, exponent)) * total / 2.0**exponent - 1).max() < 4.2e-4
    small = np.arange(1, 2**14)
    assert np.abs(value(n.recip(small, 10)) * small / 2.0**10 - 1).max() < 3.7e-4


def test_worst_error_of_rsqrt():
    total = np.arange(2**13, 2**15)
    error = np.abs(value(n.rsqrt(total, 8)) * np.sqrt(total) / 2.0**8 - 1).max()
    assert 3.3e-4 < error < 3.45e-4
    total = np.exp2(np.random.default_rng(2).uniform(0, 46, 300_000)).astype(np.int64)
    half = np.floor(np.log2(total)).astype(np.int64) // 2
    assert np.abs(value(n.rsqrt(total, half)) * np.sqrt(total) / 2.0**half - 1).max() < 4e-4


@pytest.mark.parametrize("function", [n.recip, n.rsqrt])
def test_functions_at_the_ends(function):
    # 0 and less: the largest float12, 4095 without a shift. Too large a bias likewise; too small a
    # bias shifts the mantissa out.
    assert value(function(0, 0)) == value(function(-5, 20)) == 4095
    assert value(function(1, 60)) == 4095
    assert value(function(2**46, 0)) == 0
    assert value(function(1, 0)) == 4095 / 4096 and value(function(1, 12)) == 4095
    assert value(function(4, 3)) == (2.0 if function is n.recip else 4.0) * 4095 / 4096
    assert all(-32768 <= int(function(total, 7)) <= 32767 for total in (0, 1, 3, 1000, 2**40))


# Random123's known answers (kat_vectors): counter, key, words.
PI = ((0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344))
ONES = ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF))
ZERO = ((0, 0), (0, 0))


@pytest.mark.parametrize("rounds, given, words", [
    (20, ZERO, (0x6B200159, 0x99BA4EFE)), (20, ONES, (0x1CB996FC, 0xBB002BE7)),
    (20, PI, (0xC4923A9C, 0x483DF7A0)), (13, ZERO, (0x9D1C5EC6, 0x8BD50731)),
    (13, ONES, (0xFD36D048, 0x2D17272C)), (13, PI, (0xBA3E4725, 0xF27D669E))])
def test_threefry_known_answers(rounds, given, words):
    counter, key = given
    assert tuple(map(int, n.threefry(*key, *counter, rounds))) == words


def structured_words():
    """All combinations of side, octave, piece and place, with the place that each stands for."""
    for side in (0, 1):
        for top in range(31):
            low = np.arange(2048)
            w = np.unique((1 << top) | (low >> (11 - top) if top < 11 else low << (top - 11)))
            yield side, top, w, np.where(side, (~w & 0x7FFFFFFF) | 1 << 31, w)


def test_worst_error_of_gumbel():
    worst, tail = {0: 0.0, 1: 0.0}, 0.0
    for side, top, w, r in structured_words():
        # The middle of the 32-bit cell: v = (r + 1/2) / 2**32; on side 1 that is 1 - w.
        middle = (w + 0.5) / 2**32
        exact = -np.log(-np.log1p(-middle) if side == 0 else -np.log(middle))
        error = np.abs(n.gumbel(r) - exact * 1024).max()
        if top >= 11:
            worst[side] = max(worst[side], error)
        tail = max(tail, error)
    # In units of 2**-10: 0.0028 for the upper side, 0.0012 for the lower one. In the tails, which
    # have a probability of 2**-20 in all, less than 0.41.
    assert 2.5 < worst[0] < 2.85 and 1.0 < worst[1] < 1.2 and tail < 420


def test_gumbel_is_monotone_and_bounded():
    words = np.unique(np.concatenate([r for _, _, _, r in structured_words()]))
    noise = n.gumbel(words)
    assert (np.diff(noise) <= 0).all()
    assert (noise.max(), noise.min()) == (22713, -3174)
    # A run over evenly spaced words has the mean (0.5772) and the variance (1.645) of the law.
    even = n.gumbel(np.arange(0, 2**32, 2**12)) / 1024
    assert abs(even.mean() - 0.5772) < 1e-3 and abs(even.var() - math.pi**2 / 6) < 2e-3


def test_sampling_draws_the_softmax():
    logits = np.array([0, 256, 512, -256, 100])
    weights = np.exp(logits / 256)
    drawn = np.bincount([int(np.argmax(n.sampling_keys(logits, 4096, 99, position)))
                         for position in range(20_000)], minlength=5) / 20_000
    expected = weights / weights.sum()
    assert np.abs(drawn - expected).max() < 4 * math.sqrt(0.25 / 20_000)


def test_sampling_keys_by_hand():
    logits = np.array([5, -7, 300])
    assert (n.sampling_keys(logits, 0, 123, 4) == logits).all()
    # Tokens 0 and 1 share a counter, token 2 has the next; the seed is the key, low word first.
    seed, position = 0x13198A2E_03707344, 9
    x = [n.threefry(0x03707344, 0x13198A2E, pair, position) for pair in (0, 1)]
    noise = [int(n.gumbel(int(x[0][0]))), int(n.gumbel(int(x[0][1]))), int(n.gumbel(int(x[1][0])))]
    # Half the temperature: 2 * 2**12; keys have 10 fraction bits, logits 8: times 8.
    assert n.sampling_keys(logits, 8192, seed, position).tolist() == [
        8 * logit + more for logit, more in zip(logits.tolist(), noise)]


def test_inverse_temperature():
    assert n.inverse_temperature(0) == 0 and n.inverse_temperature(1.0) == 4096
    assert n.inverse_temperature(0.0625) == 65535 and n.inverse_temperature(100) == 41
    for wrong in (-1, 0.05, 101, math.nan):
        with pytest.raises(ValueError, match="temperature must be 0 or 0.0625 to 100, not"):
            n.inverse_temperature(wrong)
