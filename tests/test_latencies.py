"""Every latency of `arch.timing`, measured on the RTL.

Nothing here takes a latency from `arch.timing`: the hardware is tried with one offset after the
other, and what it needs is found from its faults, tokens and sums. Only then the table is compared.
A new latency without a measurement fails.
"""
import dataclasses

import numpy as np
import pytest

from arch.faults import Fault
from arch.hostmap import Space, mem_address
from arch.timing import Timing, timing
from compiler.asm import assemble
from sim import engine as engines
from tests.rtl import CONFIGS, TINY, available

pytestmark = pytest.mark.slow
#: The operation in question is issued on cycle AT; what it needs is there long before.
AT = 100
OFFSETS = range(-3, 45)
#: Latency to the function that measures it.
MEASURES = {}


def measures(name):
    def keep(function):
        MEASURES[name] = function
        return function
    return keep


class Bench:
    """Runs programs on the hardware, and keeps what was measured so far."""

    def __init__(self, rtl):
        self.rtl, self.config, self.known = rtl, rtl.config, {}
        changes = [f"{field.name}={getattr(self.config, field.name)}"
                   for field in dataclasses.fields(self.config)
                   if getattr(self.config, field.name) != getattr(TINY, field.name)]
        self.head = f".profile tiny {' '.join(changes)}\n"

    def __getattr__(self, name):
        """A latency by name, measured when it is asked for first."""
        if name not in MEASURES:
            raise AttributeError(name)
        if name not in self.known:
            self.known[name] = MEASURES[name](self)
        return self.known[name]

    def run(self, length=240, first=0, more="", **queues):
        """One step at position ``first``; ``queues`` gives the instructions of each, in lines."""
        source = self.head + f".row * generate={length} prompt={length}\n{more}\n"
        for queue, lines in queues.items():
            source += f".queue {queue}\n{lines}\nEND\n"
        self.rtl.load(assemble(source))
        return self.rtl.run([0] * (first + 1), 1, first=first, vocabulary=16)

    def cause(self, **queues):
        fault = self.run(**queues).fault
        return fault and fault.cause

    def mem(self, bank, word):
        address = mem_address(self.config, bank, word, 0)
        words = self.rtl.read_space(Space.MEM, address, self.config.lanes)
        return np.asarray(words, np.uint16).view(np.int16)


def only(offsets, legal) -> int:
    """The one offset for which ``legal`` holds."""
    found = [offset for offset in offsets if legal(offset)]
    assert len(found) == 1, found
    return found[0]


def least(offsets, good) -> int:
    """The first offset from which on ``good`` holds; it must not hold before."""
    results = [bool(good(offset)) for offset in offsets]
    assert True in results and False in results, results
    place = results.index(True)
    assert all(results[place:]) and not any(results[:place]), results
    return offsets[place]


# From the issue to the stream: a consumer finds a value on one cycle only.

def steady_const(cycles=130):
    return f"READ at=4 n1={cycles}"


def taken_by_write(bench, stream, **producers):
    """How many cycles after AT a MEM write finds the one value on ``stream``."""
    return only(OFFSETS, lambda offset: bench.cause(
        **producers, w0=f"WRITE at={AT + offset} x={stream} halves=3") is None)


def taken_by_vxm(bench, stream, **producers):
    return only(OFFSETS, lambda offset: bench.cause(
        **producers, vxm=f"MAC at={AT + offset} a={stream}") is None)


@measures("const_read")
def _(bench):
    return taken_by_write(bench, "CONST", const=f"READ at={AT}")


@measures("mem_read")
def _(bench):
    return taken_by_vxm(bench, "M0", r0=f"READ at={AT}")


@measures("vxm")
def _(bench):
    return taken_by_write(bench, "VXM", vxm=f"MAC at={AT}")


@measures("perm")
def _(bench):
    return taken_by_write(bench, "PERM", const=steady_const(), perm=f"PERM at={AT} x=CONST")


@measures("perm_gap")
def _(bench):
    def fits(gap):
        cause = bench.cause(const=steady_const(), perm=f"PERM at={AT} n1=2 d1={gap} x=CONST")
        assert cause in (None, Fault.CONFLICT)
        return cause is None
    return least(range(1, 12), fits)


def of_reductions(bench, *ops):
    """The delay that some operations of the reduction share."""
    delays = {taken_by_write(bench, "RED", vxm="MAC at=4 n1=120", red=f"{op} at={AT} x=VXM")
              for op in ops}
    assert len(delays) == 1
    return delays.pop()


@measures("reduce")
def _(bench):
    return of_reductions(bench, "SUM", "MAX")


@measures("reduce_function")
def _(bench):
    return of_reductions(bench, "RECIP", "RSQRT")


@measures("drain")
def _(bench):
    return taken_by_vxm(bench, "ACC", drain=f"DRAIN at={AT}")


@measures("read_out")
def _(bench):
    # The last of a group; those before it put nothing on the stream.
    groups = bench.config.groups
    delay = taken_by_vxm(bench, "ACC", kv=f"READ_OUT at={AT - groups + 1} n1={groups}")
    assert delay == taken_by_vxm(bench, "ACC", kv=f"READ_OUT at={AT} n1=1")
    return delay


@measures("sample_skew")
def _(bench):
    return only(OFFSETS, lambda offset: bench.cause(
        vxm=f"MAC at={AT + offset - bench.vxm}", sample=f"ARGMAX at={AT} x=VXM") is None)


@measures("sample_gap")
def _(bench):
    def fits(gap):
        cause = bench.cause(vxm="MAC at=4 n1=150", sample=f"ARGMAX at={AT} n1=2 d1={gap} x=VXM")
        assert cause in (None, Fault.CONFLICT)
        return cause is None
    return least(range(1, 12), fits)


@measures("sample")
def _(bench):
    lanes, issue = bench.config.lanes, 40
    taken = issue + bench.sample_skew

    def token(length, best):
        """The token of a step of ``length``, where lane ``best`` has the largest logit."""
        result = bench.run(
            length, more=".const 0 " + " ".join("9" if lane == best else "0"
                                                for lane in range(lanes)),
            const=f"READ at={taken - bench.vxm - bench.const_read}",
            vxm=f"MAC at={taken - bench.vxm} a=CONST", sample=f"ARGMAX at={issue} x=VXM")
        assert result.fault is None
        return result.tokens[0]

    def in_time(length):
        # A step that is too short gives the token before.
        assert token(issue + 100, 0) == 0
        return token(length, lanes - 1) == lanes - 1
    # The last cycle of a step of n cycles is n - 1.
    return least(range(taken + 1, taken + 30), in_time) - 1 - issue


# Least distances: too early, something else is read.

@measures("mem_write_to_read")
def _(bench):
    def sees(offset):
        read = AT + offset + bench.mem_read
        result = bench.run(
            more=".const 0 1 2 3 4 5 6 7 8\n.const 1 -1 -2 -3 -4 -5 -6 -7 -8",
            const=f"READ at={20 - bench.const_read} address=1\n"
                  f"READ at={AT - bench.const_read} address=0",
            w0=f"WRITE at=20 x=CONST address=5 halves=3\nWRITE at={AT} x=CONST address=5 halves=3",
            r0=f"READ at={AT + offset} address=5", vxm=f"MAC at={read} a=M0",
            w1=f"WRITE at={read + bench.vxm} x=VXM halves=3")
        assert result.fault is None
        found = bench.mem(1, 0).tolist()
        assert found in ([1, 2, 3, 4, 5, 6, 7, 8], [-1, -2, -3, -4, -5, -6, -7, -8])
        return found[0] == 1
    return least(range(-3, 8), sees)


ONES = "\n.const 0 1 1 1 1 1 1 1 1\n.const 1 3 3 3 3 3 3 3 3"
#: Words 0 and 1 of the weights: ones, and twos.
WEIGHTS = ".weights 0 " + " ".join(["1"] * 32 + ["2"] * 32)


def drained(bench, cycle, vxm="", **queues):
    """The accumulators that a DRAIN issued on a cycle gives; a fault must be a CONFLICT. ``vxm``
    are lines of its queue before."""
    taken = cycle + bench.drain
    result = bench.run(more=WEIGHTS + ONES, drain=f"DRAIN at={cycle}",
                       vxm=f"{vxm}\nMAC at={taken} a=ACC",
                       w3=f"WRITE at={taken + bench.vxm} x=VXM halves=3", **queues)
    if result.fault:
        assert result.fault.cause == Fault.CONFLICT
        return None
    return bench.mem(3, 0).tolist()


@measures("matmul_to_drain")
def _(bench):
    # The entry holds the sum over twos before that over ones.
    steps = (f"MATMUL at=20 start=1 x0=CONST x1=CONST address=1\n"
             f"MATMUL at={AT} start=1 x0=CONST x1=CONST address=0")
    return least(OFFSETS, lambda offset: drained(
        bench, AT + offset, const=steady_const(), mxm=steps) == [4] * 8)


@measures("drain_to_matmul")
def _(bench):
    def intact(offset):
        steps = (f"MATMUL at=20 start=1 x0=CONST x1=CONST address=1\n"
                 f"MATMUL at={AT + offset} start=1 x0=CONST x1=CONST address=0")
        return drained(bench, AT, const=steady_const(), mxm=steps) == [8] * 8
    return least(range(-30, 4), intact)


#: What run-time writes take: stream VXM carries what CONST carries, around AT.
STEADY_VXM = "MAC at=50 n1=80 a=CONST"


def wave_and_write(bench, kind, position, matmul, write):
    """Sums of a MATMUL over ones, and a run-time write of threes, on any two cycles."""
    early = 20 - bench.const_read
    return drained(
        bench, 180, first=position, w0="WRITE at=20 x=CONST halves=3", r0="READ at=30 n1=140",
        const=f"READ at={early}\nREAD at={early + 10} address=1 n1=120", vxm=STEADY_VXM,
        mxm=f"MATMUL at={matmul} start=1 x0=M0 x1=M0", kv=f"WRITE_{kind} at={write} x=VXM")


def over_all_places(bench, measure) -> int:
    """The largest result over writes of the first and last column and row."""
    config = bench.config
    return max(measure(kind, position) for kind, position in (
        ("K", 0), ("K", config.columns - 1), ("V", 0), ("V", config.rows - 1)))


@measures("kv_write_to_matmul")
def _(bench):
    def seen(kind, position):
        expected = [6] * 8
        if kind == "K":
            expected = [12 if column == position else 4 for column in range(8)]
        return least(range(-12, 12), lambda offset: wave_and_write(
            bench, kind, position, AT + offset, AT) == expected)
    return over_all_places(bench, seen)


@measures("matmul_to_kv_write")
def _(bench):
    return over_all_places(bench, lambda kind, position: least(
        range(-12, 12), lambda offset: wave_and_write(
            bench, kind, position, AT, AT + offset) == [4] * 8))


def conflicts(bench) -> dict:
    """Fault cycles by the issue of the MATMUL, of a write to the first row issued on AT."""
    found = {}
    for issue in range(AT - 12, AT + 12):
        result = bench.run(
            more=WEIGHTS + ONES, w0="WRITE at=20 x=CONST halves=3", r0="READ at=30 n1=140",
            const=f"READ at={20 - bench.const_read}\nREAD at={30 - bench.const_read} n1=120",
            vxm=STEADY_VXM,
            mxm=f"MATMUL at={issue} start=1 x0=M0 x1=M0", kv=f"WRITE_V at={AT} x=VXM")
        if result.fault:
            assert result.fault.cause == Fault.CONFLICT
            found[issue] = result.fault.cycle
    return found


@measures("weight_write")
def _(bench):
    """A conflict is on the cycle on which the write lands, whenever the step was issued."""
    landing = set(conflicts(bench).values())
    assert len(landing) == 1
    return landing.pop() - AT


@measures("weight_read")
def _(bench):
    """Of the steps that meet the write the last one meets it in the first tile."""
    last = max(conflicts(bench))
    return AT + bench.weight_write - last


@measures("kv_write_to_read_out")
def _(bench):
    for offset in range(1, 10):
        taken = AT + offset + bench.read_out
        result = bench.run(
            more=WEIGHTS + ONES, const="READ at=4 n1=120 address=1",
            kv=f"WRITE_K at={AT} x=VXM\nREAD_OUT at={AT + offset}",
            vxm=f"MAC at=50 n1=50 a=CONST\nMAC at={taken} a=ACC",
            w3=f"WRITE at={taken + bench.vxm} x=VXM halves=3")
        assert result.fault is None
        if (bench.mem(3, 0)[:bench.config.rows] == 3).all():
            return offset
    raise AssertionError("the write is never seen")


# The test.

@pytest.fixture(scope="module", params=CONFIGS)
def bench(request):
    available("verilator")
    with engines.create("verilator", CONFIGS[request.param]) as rtl:
        yield Bench(rtl)


def test_every_latency_has_a_measurement():
    assert {field.name for field in dataclasses.fields(Timing)} <= set(MEASURES)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Timing)])
def test_latency(bench, name):
    assert getattr(bench, name) == getattr(timing(bench.config), name)
