"""Boards that a bitstream can be built for: the part, the clock, the serial line."""
import dataclasses

from arch.config import Config, profile


class BoardError(ValueError):
    """There is no such board."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BoardSpec:
    """One board.

    Parameters
    ----------
    name : str
    profile : str
        The machine that is built for it.
    part : str
        Name of the FPGA, as on its package.
    device : tuple of str
        What tells nextpnr the part.
    platform : str
        Class of `amaranth_boards.ulx3s` that knows the pins.
    programmer : str
        The board's name for openFPGALoader.
    oscillator_hz, clock_hz : int
        Of the crystal, and of the machine behind the PLL.
    baud : int
        Of the serial line.
    """
    name: str
    profile: str
    part: str
    device: tuple
    platform: str
    programmer: str = "ulx3s"
    oscillator_hz: int = 25_000_000
    clock_hz: int
    baud: int = 3_000_000

    @property
    def config(self) -> Config:
        return profile(self.profile)


_PACKAGE = ("--package", "CABGA381", "--speed", "6")
BOARDS = {spec.name: spec for spec in (
    BoardSpec(name="ulx3s-85f", profile="ecp5_85k", part="LFE5U-85F", device=("--85k", *_PACKAGE),
              platform="ULX3S_85F_Platform", clock_hz=80_000_000),
    BoardSpec(name="ulx3s-25f", profile="ecp5_25k", part="LFE5U-25F", device=("--25k", *_PACKAGE),
              platform="ULX3S_25F_Platform", clock_hz=80_000_000),
)}


def board(name: str) -> BoardSpec:
    """The board called ``name``.

    Raises
    ------
    BoardError
        If there is none; the message lists those that exist.
    """
    if name not in BOARDS:
        raise BoardError(f"unknown board {name!r}; there are {', '.join(BOARDS)}")
    return BOARDS[name]
