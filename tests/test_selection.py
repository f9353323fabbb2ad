"""Top-k and top-p against sorting, in integers and in real numbers, and their random draws."""
import math

import numpy as np
import pytest

from arch import numerics, selection
from arch.selection import STEPS, Selection
from sim.selection import Selector

LANES = 16
#: Below this much less than the largest logit, nothing is drawn.
FLOOR = -127 * 256


def chosen(logits, stages, **settings):
    """Mask of the tokens that may be drawn."""
    out = Selector(stages, LANES, 0)(np.asarray(logits), Selection(**settings))
    return out != numerics.MASKED


def sorted_top_k(logits, k):
    """The k largest, and what equals the last of them."""
    logits = np.asarray(logits, np.int64)
    least = np.sort(logits)[::-1][min(k, len(logits)) - 1]
    return (logits >= least) & (logits - logits.max() >= FLOOR)


def sorted_top_p(logits, p, among=None):
    """The least set of best tokens with more than p of the mass, at temperature 1."""
    logits = np.asarray(logits, np.int64)
    relative = np.maximum(logits - logits.max(), -32768)
    among = np.ones(len(logits), bool) if among is None else among
    # exp of a natural logarithm with 8 fraction bits, as docs/numerics.md defines it.
    powers = np.maximum(np.floor(relative * 23637 / 2**14 + 0.5), -32768).astype(np.int64)
    mass = np.where(among, numerics.exp2(powers, 0, 14), 0)
    target = np.floor(mass * round(p * 32768) / 32768 + 0.5).sum() if p < 1 else mass.sum()
    order = np.argsort(-relative, kind="stable")
    enough = np.flatnonzero(np.cumsum(mass[order]) > target)
    least = relative[order[enough[0]]] if len(enough) else FLOOR
    return (relative >= least) & among & (relative >= FLOOR)


def random_logits(rng):
    """Vectors of many shapes: peaked, flat, tied, shifted far from zero, at the ends of int16."""
    count = int(rng.choice([1, 2, 5, 16, 17, 43, 68, 512]))
    width = rng.choice([0, 1, 3, 40, 400, 2000, 12000])
    shift = rng.choice([0, -32768, -9000, 7000, 32767])
    logits = rng.normal(0, width, count) + shift
    if rng.random() < 0.3:
        logits[rng.integers(count)] += 3000
    return np.clip(np.round(logits), -32768, 32767).astype(np.int64)


def test_the_step():
    """exp2 at the highest shift is 1 up to `REACH` below its argument, then 0 for ever."""
    u = np.arange(65536)
    values = np.where(u < 32768, numerics.exp2(-np.minimum(u, 32768), 0, selection.INSIDE_POST), 0)
    assert selection.REACH == 253
    assert np.array_equal(values, u <= 253)
    assert numerics.exp2(-32768, 32767, selection.INSIDE_POST) == 0


@pytest.mark.parametrize("seed", range(16))
def test_top_k_is_that_of_sorting(seed):
    rng = np.random.default_rng(seed)
    for _ in range(5):
        logits = random_logits(rng)
        for k in {1, 2, len(logits), int(rng.integers(1, len(logits) + 1)), 40, 40000}:
            for temperature in (0.0625, 1.0, 100.0):
                found = chosen(logits, ("top-k",), top_k=k, temperature=temperature)
                expected = sorted_top_k(logits, k)
                if temperature < 1:
                    # Scaled, here by 16, it may saturate at the number that means never.
                    expected &= (logits - logits.max()) * 16 > -32768
                assert np.array_equal(found, expected), (k, temperature)


@pytest.mark.parametrize("seed", range(16))
def test_top_p_is_that_of_sorting(seed):
    rng = np.random.default_rng(100 + seed)
    for _ in range(5):
        logits = random_logits(rng)
        for p in (1e-9, 0.01, 0.5, 0.9, 0.999, 1.0, float(rng.uniform(0, 1))):
            found = chosen(logits, ("top-p",), top_p=p, temperature=1.0)
            assert np.array_equal(found, sorted_top_p(logits, p)), p


@pytest.mark.parametrize("seed", range(10))
def test_top_p_shares_out_what_top_k_leaves(seed):
    rng = np.random.default_rng(200 + seed)
    for _ in range(5):
        logits = random_logits(rng)
        k, p = int(rng.integers(1, len(logits) + 1)), float(rng.uniform(0.05, 1))
        found = chosen(logits, ("top-k", "top-p"), top_k=k, top_p=p, temperature=1.0)
        assert np.array_equal(found, sorted_top_p(logits, p, sorted_top_k(logits, k)))


def test_ties():
    logits = [300, 500, 500, -20, 300, 500]
    assert chosen(logits, ("top-k",), top_k=1).tolist() == [0, 1, 1, 0, 0, 1]
    assert chosen(logits, ("top-k",), top_k=3).tolist() == [0, 1, 1, 0, 0, 1]
    assert chosen(logits, ("top-k",), top_k=4).tolist() == [1, 1, 1, 0, 1, 1]
    flat = [7] * 40
    assert chosen(flat, ("top-p",), top_p=0.1, temperature=1.0).all()


def test_off_keeps_everything():
    logits = np.linspace(-15000, 9000, 43).astype(int)
    for temperature in (1.0, 30.0):
        assert chosen(logits, ("top-k", "top-p"), temperature=temperature).all()


@pytest.mark.parametrize("temperature", [0.25, 0.7, 1.0, 1.5, 3.0])
def test_top_p_in_real_numbers(temperature):
    """Mass inside is at least p, and without the least likely chosen ones at most p."""
    rng = np.random.default_rng(1)
    for _ in range(8):
        logits = np.round(rng.normal(0, 500, 512)).astype(int)
        weights = np.exp((logits - logits.max()) / 256 / temperature)
        share = weights / weights.sum()
        for p in (0.3, 0.9, 0.97):
            found = chosen(logits, ("top-p",), top_p=p, temperature=temperature)
            # Logits over the temperature are whole 1/256; masses 1/32512 of the largest.
            assert share[found].sum() > p - 0.004
            least = share[found].min()
            assert share[found & (share > least * 1.005)].sum() < p + 0.004


@pytest.mark.parametrize("settings, kept", [
    (dict(top_k=3), (0, 1, 2)), (dict(top_p=0.65), (0, 1)), (dict(top_k=4, top_p=0.8), (0, 1, 2))])
def test_draws_follow_the_distribution(settings, kept):
    """A chi-squared test over fixed seeds, of all that is kept; nothing else is ever drawn."""
    share = np.array([0.4, 0.3, 0.16, 0.1, 0.03, 0.01])
    logits = np.round(256 * np.log(share)).astype(int)
    choice = Selection(temperature=1.0, **settings)
    keys = Selector(choice.stages, LANES, 0)(logits, choice)
    draws, found = 2000, np.zeros(6)
    for seed in range(draws):
        found[np.argmax(numerics.sampling_keys(keys, choice.register, seed, 7))] += 1
    assert found[[token for token in range(6) if token not in kept]].sum() == 0
    expected = draws * share[list(kept)] / share[list(kept)].sum()
    statistic = ((found[list(kept)] - expected)**2 / expected).sum()
    # 99.9 % point for two degrees of freedom, the most there are.
    assert statistic < 13.8


def test_greedy_takes_the_best_token():
    rng = np.random.default_rng(3)
    for _ in range(50):
        logits = random_logits(rng)
        choice = Selection(top_k=5, top_p=0.5)
        keys = Selector(choice.stages, LANES, 0)(logits, choice)
        assert np.argmax(numerics.sampling_keys(keys, choice.register, 1, 2)) == np.argmax(logits)


def test_temperature_words():
    """Within the 12 bits of a mantissa of the inverse temperature."""
    for temperature in (0.0625, 0.1, 0.5, 0.8, 1.0, 1.3, 7.0, 100.0):
        mantissa, shift = numerics.float12_fields(Selection(temperature).temperature_word)
        value = mantissa / 2.0**(selection.TEMPERATURE_POST + shift)
        assert math.isclose(value, 1 / temperature, rel_tol=2**-12)
    assert Selection(0).temperature_word == Selection(1.0).temperature_word


@pytest.mark.parametrize("settings, message", [
    (dict(top_k=-1), "top_k must be 0 (off) or a number of tokens, not -1"),
    (dict(top_k=1.5), "top_k must be 0 (off) or a number of tokens, not 1.5"),
    (dict(top_p=0), "top_p must be above 0 and at most 1 (off), not 0"),
    (dict(top_p=1.01), "top_p must be above 0 and at most 1 (off), not 1.01"),
    (dict(top_p=float("nan")), "top_p must be above 0 and at most 1 (off), not nan"),
    (dict(temperature=0.01), "temperature must be 0 or 0.0625 to 100, not 0.01")])
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError) as error:
        Selection(**settings)
    assert str(error.value) == message


def test_stages():
    assert Selection().stages == ()
    assert Selection(top_k=3).stages == ("top-k",)
    assert Selection(top_k=3, top_p=0.9).stages == ("top-k", "top-p")
    assert (len(STEPS["top-k"]), len(STEPS["top-p"])) == (15, 12)
