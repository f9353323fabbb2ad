"""The board engine: a board on a serial port, real or virtual, driven through its host port.

Nothing here knows whether there is silicon behind the port. Cycles are those that the machine
counts itself: nothing outside of it sees its barriers.
"""
import os
import secrets
import time

import serial

from arch.config import Config
from sim.engine import EngineError
from sim.host_engine import HostEngine

#: Clock of the slowest board, for time limits that are counted in cycles.
CLOCK_HZ = 25e6
#: Seconds that any answer may take besides: scheduling and the latency of USB; a simulation's speed
#: where the port is a pseudo-terminal.
PATIENCE_S, PATIENCE_VIRTUAL_S = 1.0, 20.0
BAUD = 3_000_000


class BoardEngine(HostEngine):
    """A board.

    Parameters
    ----------
    config : Config
    port : str
        Device of the serial port.
    patience : float or None
        Seconds after which an answer counts as lost; None for what suits the port.
    """
    name = "board"
    _wears = True

    @classmethod
    def unavailable(cls) -> str | None:
        return None

    def __init__(self, config: Config, *, port: str | None = None, patience: float | None = None):
        super().__init__(config)
        if not port:
            raise EngineError("engine board needs the serial port of a board: --port DEV")
        self._port, self._line = port, None
        virtual = os.path.realpath(port).startswith("/dev/pts/")
        self._patience = patience or (PATIENCE_VIRTUAL_S if virtual else PATIENCE_S)
        # Frames of somebody who used the port before are most likely none of the next ones.
        self._first_tag = secrets.randbelow(256)

    def _reset(self) -> None:
        try:
            self._line = serial.Serial(self._port, BAUD, timeout=0.05,
                                       write_timeout=self._patience)
        except (serial.SerialException, ValueError, OSError) as error:
            reason = str(error).split(":")[-1].strip()
            raise EngineError(f"cannot open port {self._port}: {reason}") from None
        self._line.reset_input_buffer()

    def close(self) -> None:
        if self._line is not None:
            self._line.close()
            self._line, self._ready = None, False

    def _advance(self, data: bytes, cycles: int, received: int) -> bytes:
        got = bytearray()
        limit = time.monotonic() + self._patience + cycles / CLOCK_HZ
        try:
            self._line.write(data)
            while len(got) < received and time.monotonic() < limit:
                got += self._line.read(max(received - len(got), self._line.in_waiting))
        except (serial.SerialException, OSError) as error:
            raise EngineError(f"port {self._port}: {error}") from None
        return bytes(got)

    def load(self, image, backdoor: bool = False) -> None:
        """Load through the host port: a board has no back door."""
        super().load(image, backdoor=False)

    def _poke_image(self, image) -> None:
        raise AssertionError("a board has no back door")

    def _start_counting(self, trace: bool) -> None:
        if trace:
            raise EngineError("a board cannot show what it writes to MEM; leave out --check, or "
                              "use a simulation")

    def _counted(self) -> tuple:
        return None, 0, None, None
