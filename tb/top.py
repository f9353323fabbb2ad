"""One top with an instance of every slice side by side, so that all benches share one build."""
import os
import unittest.mock

from amaranth import Module
from amaranth.back import verilog
from amaranth.lib import wiring
from amaranth.lib.wiring import Out, connect, flipped

from arch.config import Config, profile
from hdl.const import ConstBank
from hdl.host import HostPort
from hdl.mem import Mem
from hdl.mxm import Mxm
from hdl.perm import Perm
from hdl.reduce import Red
from hdl.sampler import Sampler
from hdl.sequencer import Sequencer
from hdl.vxm import Vxm
from sim import rtl, toolchain
from tb.hosted_queue import HostedQueue

TOP = "metronome_bench"
CONFIG = profile("tiny")
#: The MEM bank under test; not 0, so that the bank number in host addresses matters.
BANK = 2
#: Queues under test. Together their formats have and lack outer repeats, addresses and an index.
QUEUES = ("vxm", "drain", "kv", "r0")
#: Words with one bit flipped from the start, ``(word, bit)``: of the weight bank (column, pair), of
#: the parity of the MEM bank and of the constants.
DAMAGED_WEIGHTS = {(1, 0): (1023, 0), (6, 1): (1022, 17)}
DAMAGED_MEM, DAMAGED_CONST = (63, 5), (127, 8)


def slices(config: Config) -> dict:
    """Port prefix to component."""
    mxm, const = Mxm(config=config), ConstBank(config=config)
    mem = Mem(config=config)
    damaged = [(mxm.bank(*key).memory, place) for key, place in DAMAGED_WEIGHTS.items()]
    for store, (word, bit) in (*damaged, (mem.banks[BANK].checks, DAMAGED_MEM), (const.store, DAMAGED_CONST)):
        store.init = [1 << bit if number == word else 0 for number in range(store.depth)]
    return {
        "mxm": mxm, "vxm": Vxm(config=config), "mem": mem, "const": const,
        "perm": Perm(config=config), "red": Red(config=config), "sample": Sampler(config=config),
        "seq": Sequencer(config=config), "host": HostPort(config=config),
        **{f"icu_{queue}": HostedQueue(config=config, queue=queue) for queue in QUEUES}}


class BenchTop(wiring.Component):
    """The slices of `slices`, unconnected; a port ``p`` of a slice is ``<prefix>__p``."""

    def __init__(self, *, config: Config):
        self._slices = slices(config)
        super().__init__({name: Out(part.signature) for name, part in self._slices.items()})

    def elaborate(self, platform):
        m = Module()
        for name, part in self._slices.items():
            m.submodules[name] = part
            connect(m, flipped(getattr(self, name)), part)
        return m


def to_verilog() -> str:
    """Verilog of the top. No register has an initial value: what no reset sets starts as X."""
    yosys = toolchain.yosys()
    with unittest.mock.patch.dict(os.environ, AMARANTH_USE_YOSYS="system", YOSYS=yosys.command[0]):
        text = verilog.convert(BenchTop(config=CONFIG), name=TOP, emit_src=False,
                               strip_internal_attrs=True)
    return rtl.without_initial_values(text)
