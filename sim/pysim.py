"""The engine on Amaranth's own simulator: the machine itself, no Verilog in between. Slow."""
import numpy as np

from arch.config import Config
from arch.queues import QUEUES
from arch.timing import timing
from sim import backdoor, rtl, toolchain
from sim.engine import EngineError, write_log_type
from sim.host_engine import HostEngine


def memories_of(fragment, path: tuple = ()) -> dict:
    """Memories of an elaborated design by dotted path, as in `sim.rtl.memories_of`."""
    from amaranth.hdl import MemoryInstance  # private in spirit, public in name
    found = {}
    for sub, name, _ in fragment.subfragments:
        here = (*path, name)
        if isinstance(sub, MemoryInstance):
            found[".".join(here)] = sub._data
        else:
            found |= memories_of(sub, here)
    return found


class PysimEngine(HostEngine):
    """The machine in ``amaranth.sim``."""
    name = "pysim"

    @classmethod
    def unavailable(cls) -> str | None:
        return toolchain.missing(toolchain.amaranth)

    def __init__(self, config: Config):
        super().__init__(config)
        self._cycle, self._since = 0, 0
        self._outgoing, self._incoming = bytearray(), bytearray()
        self._barriers, self._log, self._logits, self._pokes = [], [], [], []
        self._trace = False

    def _reset(self) -> None:
        from amaranth.hdl import Fragment
        from amaranth.sim import Simulator
        from hdl.chip import Chip
        self._chip = Chip(config=self.config)
        fragment = Fragment.get(self._chip, None)
        self._memories = memories_of(fragment)
        self._simulator = Simulator(fragment)
        self._simulator.add_clock(1e-8)
        self._simulator.add_testbench(self._drive)

    async def _drive(self, ctx) -> None:
        """One round per cycle: set inputs, look at outputs, wait for the edge."""
        from amaranth.hdl import Value
        chip = self._chip
        ports = [[getattr(chip, f"trace_w{bank}_{member}")
                  for member in ("valid", "address", "halves", "data")]
                 for bank in range(self.config.mem_banks)]
        sample, skew = QUEUES["sample"].id, timing(self.config).sample_skew
        sampling = 0  # bit i: the sampler issued i cycles ago
        ctx.set(chip.tx.ready, 1)
        while True:
            for memory, index, value in self._pokes:
                ctx.set(Value.cast(memory[index]), value)
            self._pokes.clear()
            ctx.set(chip.rx.valid, bool(self._outgoing))
            if self._outgoing:
                ctx.set(chip.rx.payload, self._outgoing[0])
                if ctx.get(chip.rx.ready):
                    del self._outgoing[0]
            if ctx.get(chip.tx.valid):
                self._incoming.append(ctx.get(chip.tx.payload))
            if ctx.get(chip.o_barrier):
                self._barriers.append(self._cycle - self._since)
            if self._trace:
                for bank, (valid, address, halves, lanes) in enumerate(ports):
                    if ctx.get(valid):
                        self._log.append((self._cycle - self._since, bank, ctx.get(address),
                                          ctx.get(halves), ctx.get(lanes)))
                sampling = sampling << 1 | ctx.get(chip.trace_issue) >> sample & 1
                if sampling >> skew & 1:
                    lanes = rtl.lanes_of(ctx.get(chip.trace_v_data), 2 * self.config.lanes)[::2]
                    self._logits.append((self._cycle - self._since, lanes))
            self._cycle += 1
            await ctx.tick()

    def _advance(self, data: bytes, cycles: int, received: int) -> bytes:
        self._outgoing += data
        end = self._cycle + cycles
        while ((self._outgoing or len(self._incoming) < received) and self._cycle < end):
            self._simulator.advance()
        if self._outgoing:
            raise EngineError(f"pysim: the host port left {len(self._outgoing)} of {len(data)} "
                              f"bytes in {cycles} cycles")
        result = bytes(self._incoming)
        self._incoming.clear()
        return result

    def _poke_image(self, image) -> None:
        for name, words in backdoor.contents(image, self._memories).items():
            memory = self._memories[name]
            for index, word in enumerate(words):
                self._pokes.append((memory, index, int.from_bytes(word.tobytes(), "little")))
        end = self._cycle + 8
        while self._pokes or self._cycle < end:
            self._simulator.advance()

    def _start_counting(self, trace: bool) -> None:
        self._since, self._trace = self._cycle, trace
        self._barriers.clear()
        self._log.clear()
        self._logits.clear()

    def _counted(self) -> tuple:
        barriers = np.array(self._barriers, np.int64)
        writes = logits = None
        if self._trace:
            writes = np.zeros(len(self._log), write_log_type(self.config))
            for entry, (cycle, bank, address, halves, lanes) in zip(writes, self._log):
                entry["cycle"], entry["bank"], entry["address"] = cycle, bank, address
                entry["halves"] = halves
                entry["lanes"] = rtl.lanes_of(lanes, self.config.lanes)
            writes = rtl.place_writes(writes, barriers)
            logits = rtl.place_logits(
                np.array(self._logits, rtl.logits_log_type(self.config)), barriers)
        return np.diff(barriers).tolist(), self._cycle - self._since, writes, logits
