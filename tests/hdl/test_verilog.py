"""The Verilog for the simulators: what is done to the text behind Yosys."""
import pytest

from hdl import verilog


@pytest.mark.parametrize("text, expected", [
    ("{ x[3], x[3], x[3], x }", "{ {3{x[3]}}, x }"),
    (r"{ \p$1 [7], \p$1 [7], \p$1 [7], \p$1 , q }", r"{ {3{\p$1 [7]}}, \p$1 , q }"),
    ("{ a, a, a, a, ab }", "{ {4{a}}, ab }"),
    ("{ s[1], s[1], s[1], s[1:0] }", "{ {3{s[1]}}, s[1:0] }"),
    ("{ b, b, b }, { c, c }", "{ {3{b}} }, { c, c }"),
    # No name ends within another one.
    ("{ foo_a, a, a }", "{ foo_a, a, a }"),
    ("{ a, a, ab }", "{ a, a, ab }"),
])
def test_repeated_bits(text, expected):
    assert verilog._replicate(text) == expected
