"""The board engine: a board on a serial port, real or virtual, driven through its host port.

Nothing here knows whether there is silicon behind the port. Cycles are those that the machine
counts itself: nothing outside of it sees its barriers.
"""
import time

import serial

from arch.config import Config
from sim.engine import EngineError
from sim.host_engine import HostEngine

#: Clock of the slowest board, for time limits that are counted in cycles; a virtual board is slower.
CLOCK_HZ = 25e6
#: Seconds that any answer may take besides: scheduling, USB latency, a simulation's speed.
PATIENCE_S = 20.0
BAUD = 3_000_000


class BoardEngine(HostEngine):
    """A board.

    Parameters
    ----------
    config : Config
    port : str
        Device of the serial port.
    """
    name = "board"

    @classmethod
    def unavailable(cls) -> str | None:
        return None

    def __init__(self, config: Config, *, port: str | None = None):
        super().__init__(config)
        if not port:
            raise EngineError("engine board needs the serial port of a board: --port DEV")
        self._port, self._line = port, None

    def _reset(self) -> None:
        try:
            self._line = serial.Serial(self._port, BAUD, timeout=0.05, write_timeout=PATIENCE_S)
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
        limit = time.monotonic() + PATIENCE_S + cycles / CLOCK_HZ
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
