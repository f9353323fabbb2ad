"""The registers of `arch.hostmap.Register`: settings, commands and what can be read back."""
from amaranth import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from arch.config import Config
from arch.hostmap import (ABORT, CLEAR, IDENTITY_MAGIC, NO_TOKEN, PROTOCOL_VERSION, RUN, Register,
                          Space)
from hdl.bus import BusSignature


class Registers(wiring.Component):
    """Register file of the host. Writing one that is read only, or none, has no effect.

    Parameters
    ----------
    config : Config
    build : int
        What BUILD0 to BUILD3 hold.

    Members
    -------
    host : REGISTERS; answers a write two cycles after the request, a read three.
    run, clear : high for the cycle after the command was written.
    abort : ABORT was written since the last RUN.
    first, prompt, limit, vocabulary, halt_token, temperature, seed : settings; ``halt_token`` is
        STOP.
    running, fault, cause, queue, fault_cycle, position, length : to be read.
    """

    def __init__(self, *, config: Config, build: int = 0):
        self._config, self._build = config, build
        super().__init__({
            "host": In(BusSignature()), "run": Out(1), "clear": Out(1), "abort": Out(1),
            **{name: Out(16) for name in ("first", "prompt", "limit", "vocabulary", "temperature")},
            "halt_token": Out(16, init=NO_TOKEN), "seed": Out(64),
            "running": In(1), "fault": In(1), "cause": In(4), "queue": In(8),
            "fault_cycle": In(16), "position": In(config.position_bits), "length": In(16)})

    def elaborate(self, platform):
        m = Module()
        host = self.host
        writes, reads, found = Signal(), Signal(), Signal()
        read_word = Signal(16)
        selected = (host.space == Space.REGISTERS) & (host.address[6:] == 0)
        here = host.space == Space.REGISTERS
        m.d.sync += [writes.eq(host.w_en & here), reads.eq(host.r_en & here),
                     found.eq(reads), host.ack.eq(writes | found), host.r_data.eq(0),
                     self.run.eq(0), self.clear.eq(0)]

        time, high = Signal(64), Signal(48)
        m.d.sync += time.eq(time + 1)
        with m.If(host.r_en & selected & (host.address[:6] == Register.TIME0)):
            # The other three are read later: keep what belongs to this one.
            m.d.sync += high.eq(time[16:])
        digest = int.from_bytes(self._config.digest(), "little")
        settings = {Register.FIRST: self.first, Register.PROMPT: self.prompt,
                    Register.LIMIT: self.limit, Register.VOCABULARY: self.vocabulary,
                    Register.STOP: self.halt_token, Register.TEMPERATURE: self.temperature,
                    **{Register.SEED0 + n: self.seed[16 * n:16 * n + 16] for n in range(4)}}
        values = settings | {
            Register.STATUS: self.running | self.fault << 1, Register.FAULT_CAUSE: self.cause,
            Register.FAULT_QUEUE: self.queue, Register.FAULT_CYCLE0: self.fault_cycle,
            Register.POSITION: self.position, Register.CYCLES0: self.length,
            Register.TIME0: time[:16], **{Register.TIME1 + n: high[16 * n:16 * n + 16]
                                          for n in range(3)},
            Register.MAGIC: IDENTITY_MAGIC, Register.PROTOCOL: PROTOCOL_VERSION,
            **{Register.DIGEST0 + n: digest >> 16 * n & 0xFFFF for n in range(4)},
            **{Register.BUILD0 + n: self._build >> 16 * n & 0xFFFF for n in range(4)}}

        # A read: on the cycle of the request a word of every eight is chosen, by the low bits of the
        # address, one of these on the next, given two cycles later.
        m.d.sync += read_word.eq(0)
        for eight in sorted({int(register) >> 3 for register in values}):
            near = Signal(16, name=f"near_{eight}")
            m.d.sync += near.eq(0)
            with m.Switch(host.address[:3]):
                for register, value in values.items():
                    if int(register) >> 3 == eight:
                        with m.Case(int(register) & 7):
                            m.d.sync += near.eq(value)
            with m.If(selected & (host.address[3:6] == eight)):
                m.d.sync += read_word.eq(near)
        with m.If(found):
            m.d.sync += host.r_data.eq(read_word)
        with m.If(host.w_en & selected):
            with m.Switch(host.address[:6]):
                for register, value in settings.items():
                    with m.Case(int(register)):
                        m.d.sync += value.eq(host.w_data)
                with m.Case(int(Register.COMMAND)):
                    m.d.sync += [self.run.eq((host.w_data & RUN) != 0),
                                 self.clear.eq((host.w_data & CLEAR) != 0)]
                    with m.If(host.w_data & ABORT):
                        m.d.sync += self.abort.eq(1)
        with m.If(self.run & ~self.running):
            m.d.sync += self.abort.eq(0)
        return m
