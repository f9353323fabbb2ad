"""The virtual board: the whole board's RTL, serial pins included, behind a pseudo-terminal.

Whatever drives a real board drives this one, by the same commands: it has a port to open, and
behind it every bit of the serial line is simulated.
"""
import ctypes
import os
import pathlib
import select
import threading
import tty

from arch.config import Config
from arch.flash import IMAGE_OFFSET
from sim import rtl, toolchain
from sim.verilator_build import LIBRARY, Options, Source, build

SHIM = pathlib.Path(__file__).with_name("board_shim.cpp")
#: Clock and baud rate that the virtual board is built for: four cycles a bit, since every cycle of a
#: slower line would be simulated.
CLOCK_HZ, BAUD = 80e6, 20e6
#: Cycles between two looks at the port.
SLICE = 4000


class VirtualBoard:
    """A board in simulation.

    Parameters
    ----------
    config : Config
    notify : callable
        Told in words when a build begins.
    flash : bytes
        What the flash holds from the model's place on (`arch.flash`).

    Attributes
    ----------
    port : str
        Path of the pseudo-terminal to open, while the board is running (as a context).
    """

    def __init__(self, config: Config, notify=lambda text: None, flash: bytes = b""):
        self.config, self.port, self._flash = config, None, flash
        made = rtl.generate_board(config, CLOCK_HZ, BAUD, notify)
        source = Source(f"the board of profile {config.name}", made.top, made.verilog, "", {}, SHIM)
        library = ctypes.CDLL(str(build(source, Options(), notify) / LIBRARY))
        library.board_new.restype = ctypes.c_void_p
        library.board_new.argtypes = [ctypes.c_double, ctypes.c_char_p, ctypes.c_uint64,
                                      ctypes.c_uint32]
        library.board_button.argtypes = [ctypes.c_void_p, ctypes.c_int]
        library.board_free.argtypes = [ctypes.c_void_p]
        library.board_run.restype = ctypes.c_uint64
        library.board_run.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint64,
                                      ctypes.c_uint64]
        library.board_take.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
        library.board_waiting.restype = ctypes.c_uint64
        library.board_waiting.argtypes = [ctypes.c_void_p]
        library.board_lamps.argtypes = [ctypes.c_void_p]
        self._library = library

    @staticmethod
    def unavailable() -> str | None:
        """Why there can be no virtual board here, in one line; else None."""
        return toolchain.missing(toolchain.verilator, toolchain.compiler, toolchain.amaranth,
                                 toolchain.yosys)

    def __enter__(self):
        self._board = self._library.board_new(CLOCK_HZ / BAUD, self._flash, len(self._flash),
                                              IMAGE_OFFSET)
        self._master, slave = os.openpty()
        tty.setraw(slave)
        self._slave, self.port = slave, os.ttyname(slave)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()
        os.close(self._master)
        os.close(self._slave)
        self._library.board_free(self._board)
        self.port = None

    @property
    def lamps(self) -> dict:
        """State of the lamps by name."""
        bits = self._library.board_lamps(self._board)
        return {name: bool(bits >> bit & 1)
                for bit, name in enumerate(("alive", "running", "fault", "line", "speaking"))}

    def press(self, level: bool) -> None:
        """Hold the button down, or let it go."""
        self._library.board_button(self._board, level)

    def _serve(self) -> None:
        """Carry bytes between the pseudo-terminal and the pins; the clock never stands still."""
        while not self._stop.is_set():
            ready, _, _ = select.select([self._master], [], [], 0)
            # No more than the line can carry in the meantime, so that the terminal pushes back.
            room = self._library.board_waiting(self._board) < SLICE * BAUD / CLOCK_HZ / 10
            data = os.read(self._master, 4096) if ready and room else b""
            count = self._library.board_run(self._board, data, len(data), SLICE)
            if count:
                buffer = ctypes.create_string_buffer(count)
                self._library.board_take(self._board, buffer)
                os.write(self._master, buffer.raw)
