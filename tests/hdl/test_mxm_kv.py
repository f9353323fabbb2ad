"""Run-time writes, read-out and host access of the weight banks against numpy."""
import numpy as np
import pytest

from arch.faults import Fault
from arch.hostmap import weight_address
from arch.isa import Order
from arch.queues import Stream
from hdl.kv_port import HOST_READ_LATENCY
from tests.hdl.mxm_bench import MxmBench, Reference, check
from tests.hdl.mxm_programs import (CONFIGS, TINY, feed, random_kv, random_program,
                                    random_weights)


@CONFIGS
def test_random_writes_and_read_outs(config):
    rng = np.random.default_rng(5)
    bench = MxmBench(config, random_weights(rng, config))
    bench.position = int(rng.integers(0, config.context))
    bench.token = int(rng.integers(0, config.vocab_max))
    random_kv(bench, rng, 400)
    assert len(check(bench, 420)) > 10


@CONFIGS
@pytest.mark.parametrize("position", [0, 7, 13])
def test_writes_among_matmuls(config, position):
    """Whatever is written is used by steps before, during and after; what conflicts is left out."""
    bench, rng, cycles = random_program(config, position)
    bench.position = bench.token = position
    at = 3
    while at < 250:
        op, address = str(rng.choice(["WRITE_K", "WRITE_V"])), int(rng.integers(0, 24))
        bench.issue(at, "kv", op, address=address, x=Stream.VXM, half0=int(rng.integers(0, 4)))
        if any(fault == Fault.CONFLICT for _, _, fault in Reference(bench).run(cycles)[1]):
            port = bench._schedule[at - 1]
            for name, (signal, _, idle) in list(port.items()):
                if signal.name.startswith("issue_kv"):
                    del port[name]
            del bench.issues["kv"][at]
        else:
            feed(bench, rng, at, Stream.VXM)
        at += int(rng.integers(1, 9))
    assert len(bench.issues["kv"]) > 20
    check(bench, cycles)


def test_host_reads_and_writes():
    rng = np.random.default_rng(11)
    config = TINY
    weights = random_weights(rng, config)
    bench = MxmBench(config, weights)
    memory = {}
    for word in range(config.weight_depth):
        for column in range(config.columns):
            for pair in range(config.pairs):
                low, high = (int(value) & 255 for value in weights[word, 2 * pair:2 * pair + 2,
                                                                   column])
                memory[weight_address(config, word, column, pair)] = low | high << 8
    wanted, space = {}, 1 << (config.weight_depth * config.columns * config.pairs - 1).bit_length()
    for at in range(2, 600):
        address = int(rng.integers(0, space) if rng.random() < 0.5 else rng.integers(0, 20))
        if rng.random() < 0.4:
            bench.host(at, address, value := int(rng.integers(0, 65536)))
            if address in memory:
                memory[address] = value
        else:
            bench.host(at, address)
            if address in memory:
                wanted[at + HOST_READ_LATENCY] = memory[address]
    # The array sees what the host wrote.
    bench.issue(602, "mxm", "MATMUL", address=0, order=Order.HOLD, x0=Stream.M0, x1=Stream.M0)
    bench.stream(602, Stream.M0, [1] * 8)
    bench.issue(620, "drain", "DRAIN")
    acc, faults, host = bench.run(630)
    assert not faults and len(wanted) > 100
    assert {at: host[at] for at in wanted} == wanted
    word = [[memory[weight_address(config, 0, column, pair)] for column in range(config.columns)]
            for pair in range(config.pairs)]
    parts = np.array([[value & 255, value >> 8] for row in word for value in row])
    sums = np.where(parts > 127, parts - 256, parts).sum(1).reshape(config.pairs, -1).sum(0)
    np.testing.assert_array_equal(acc[622], sums)


def test_the_host_reads_wrong_parity():
    """PARITY of queue kv, of the column that has it alone; the word comes as it is."""
    bench = MxmBench(TINY, random_weights(np.random.default_rng(12), TINY))
    init = list(bench.dut.bank(3, 1).memory.init)
    init[30] ^= 1
    bench.dut.bank(3, 1).memory.init = init
    for at, (word, column) in enumerate([(30, 3), (30, 2), (29, 3)], 4):
        bench.host(at, weight_address(TINY, word, column, 1))
    _, faults, host = bench.run(20)
    assert host[4 + HOST_READ_LATENCY] == (init[30] & 0xFF | init[30] >> 9 << 8 & 0xFF00)
    assert faults == {(4 + HOST_READ_LATENCY + 1, "kv", Fault.PARITY)}
