"""The ULX3S board: pins, PLL and configuration flash around `hdl.board.Board`.

Ref: Lattice FPGA-TN-02200 (ECP5 sysCLOCK PLL), FPGA-TN-02039 (ECP5 sysCONFIG, USRMCLK); pins from
`amaranth_boards.ulx3s`, which follow the board's constraint file.
"""
from amaranth import ClockDomain, ClockSignal, Elaboratable, Instance, Module, ResetSignal, Signal
from amaranth.lib.cdc import FFSynchronizer

from arch.boards import BoardSpec
from hdl.board import Board

#: Frequencies that the PLL takes and makes inside, in Hz (data sheet FPGA-DS-02012, table 3.25).
PHASE_HZ = (3_125_000, 400_000_000)
VCO_HZ = (400_000_000, 800_000_000)
DIVIDER_MAX = 128
#: Cycles from the lock of the PLL to the clock: more than flip-flops take to leave the reset of the
#: configuration, which comes at no particular time.
GATE_STAGES = 8
#: A button counts once it has kept its level for 2**BUTTON_BITS cycles.
BUTTON_BITS = 18


def pll_dividers(input_hz: int, output_hz: int) -> tuple:
    """Dividers of input, feedback and output: ``output = input * feedback / input divider``.

    The smallest input divider, for the fastest phase comparison; then the slowest VCO.

    Raises
    ------
    ValueError
        If no dividers give exactly this output.
    """
    for divider in range(1, DIVIDER_MAX + 1):
        feedback, rest = divmod(output_hz * divider, input_hz)
        if rest or not 1 <= feedback <= DIVIDER_MAX:
            continue
        if not PHASE_HZ[0] <= input_hz // divider <= PHASE_HZ[1]:
            continue
        for output in range(1, DIVIDER_MAX + 1):
            if VCO_HZ[0] <= output_hz * output <= VCO_HZ[1]:
                return divider, feedback, output
    raise ValueError(f"the PLL cannot make {output_hz!r} Hz from {input_hz!r} Hz")


class Ulx3s(Elaboratable):
    """Top of a bitstream.

    Lamps 0 to 4: alive, running, fault, serial line, speaking (`hdl.board.Board`). Button FIRE 1
    starts a new story.

    Parameters
    ----------
    spec : BoardSpec
    build : int
        64 bits by which the host knows the RTL.
    """

    def __init__(self, spec: BoardSpec, build: int):
        self._spec, self._build = spec, build

    def elaborate(self, platform):
        m = Module()
        spec = self._spec
        self._clock(m, platform)
        m.submodules.board = board = Board(config=spec.config, clock_hz=spec.clock_hz,
                                           baud=spec.baud, vendor=True, build=self._build)
        uart = platform.request("uart", 0)
        m.d.comb += [board.uart_rx.eq(uart.rx.i), uart.tx.o.eq(board.uart_tx)]
        lamps = (board.led_alive, board.led_running, board.led_fault, board.led_line,
                 board.led_speaking)
        for number, lamp in enumerate(lamps):
            m.d.comb += platform.request("led", number).o.eq(lamp)
        m.d.comb += board.button.eq(self._button(m, platform.request("button_fire", 0).i))
        flash = platform.request("spi_flash", 0)
        m.d.comb += [flash.cs.o.eq(board.flash_select), flash.copi.o.eq(board.flash_out),
                     board.flash_in.eq(flash.cipo.i), flash.hold.o.eq(0), flash.wp.o.eq(0)]
        # The clock pin of the flash belongs to the configuration logic.
        m.submodules.flash_clock = Instance("USRMCLK", a_keep=1, i_USRMCLKI=board.flash_clock,
                                            i_USRMCLKTS=0)
        return m

    def _clock(self, m, platform):
        """Domain sync from the PLL: its clock begins once the PLL has locked. It has no reset.

        Flip-flops start as the bitstream configures them, which is how a reset would leave them;
        a reset of the whole chip would be its slowest wire. The gate turns the clock on and off
        without a glitch. Should the PLL lose its lock, the clock stops until it is back.
        """
        spec = self._spec
        divider, feedback, output = pll_dividers(spec.oscillator_hz, spec.clock_hz)
        clock, locked, runs = Signal(), Signal(), Signal()
        m.domains.sync = ClockDomain()
        m.domains.oscillator = oscillator = ClockDomain(reset_less=True)
        # A network of its own would come between the pin and the PLL.
        oscillator.clk.attrs["noglobal"] = 1
        m.d.comb += [oscillator.clk.eq(platform.request("clk25", 0).i), ResetSignal().eq(0)]
        m.submodules.pll = Instance(
            "EHXPLLL", a_FREQUENCY_PIN_CLKI=str(spec.oscillator_hz / 1e6),
            a_FREQUENCY_PIN_CLKOP=str(spec.clock_hz / 1e6), a_ICP_CURRENT="12",
            a_LPF_RESISTOR="8", a_MFG_ENABLE_FILTEROPAMP="1", a_MFG_GMCREF_SEL="2",
            p_PLLRST_ENA="DISABLED", p_INTFB_WAKE="DISABLED", p_STDBY_ENABLE="DISABLED",
            p_DPHASE_SOURCE="DISABLED", p_OUTDIVIDER_MUXA="DIVA", p_OUTDIVIDER_MUXB="DIVB",
            p_OUTDIVIDER_MUXC="DIVC", p_OUTDIVIDER_MUXD="DIVD", p_FEEDBK_PATH="CLKOP",
            p_CLKI_DIV=divider, p_CLKFB_DIV=feedback, p_CLKOP_ENABLE="ENABLED",
            p_CLKOP_DIV=output, p_CLKOP_CPHASE=output - 1, p_CLKOP_FPHASE=0,
            i_CLKI=oscillator.clk, i_CLKFB=clock, o_CLKOP=clock, o_LOCK=locked,
            i_RST=0, i_STDBY=0, i_PHASESEL0=0, i_PHASESEL1=0, i_PHASEDIR=0, i_PHASESTEP=0,
            i_PHASELOADREG=0, i_PLLWAKESYNC=0, i_ENCLKOP=0)
        m.submodules.gate = Instance("DCCA", i_CLKI=clock, i_CE=runs, o_CLKO=ClockSignal())
        m.submodules.runs = FFSynchronizer(locked, runs, o_domain="oscillator", stages=GATE_STAGES)

    def _button(self, m, pin):
        """The button without its bounces."""
        level, seen, since = Signal(), Signal(), Signal(BUTTON_BITS)
        m.submodules.button = FFSynchronizer(pin, level)
        m.d.sync += since.eq(since + 1)
        with m.If(level == seen):
            m.d.sync += since.eq(0)
        with m.Elif(since.all()):
            m.d.sync += seen.eq(level)
        return seen
