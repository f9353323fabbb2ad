"""Modules side by side in Verilator, two and two: the same inputs, every output compared.

For netlists and the RTL that they come from. Registers and memories start with their initial
values, which are 0 where there are none.
"""
import ctypes
import dataclasses
import pathlib
import re
import sys

import numpy as np

from sim.verilator_build import LIBRARY, Options, Source, build, mangle

SHIM = pathlib.Path(__file__).with_name("pair_shim.cpp")
TOP = "metronome_pair"
SIDES = ("first_", "second_")
CLOCK, RESET = "clk", "rst"
_PORT = re.compile(r"^  (input|output) (?:signed )?(?:\[(\d+):0\] )?(\\\S+|\w+) ?;", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Port:
    """A port of a module: its name without escape, whether it is an output, its bits."""
    name: str
    output: bool
    width: int


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What a run found; outputs are called ``<pair>.<port>``.

    Members
    -------
    different : outputs whose two sides differ, with the first cycle on which they do.
    moved, quiet : outputs that changed at all, and those that never did.
    """
    different: dict
    moved: tuple
    quiet: tuple


def ports_of(verilog: str, module: str) -> list:
    """Ports of a module of Verilog as Yosys writes it."""
    head = re.search(rf"^module {re.escape(module)} ?\((.*?)\);", verilog, re.MULTILINE | re.DOTALL)
    found = _PORT.findall(verilog[head.end():verilog.index("\nendmodule", head.end())])
    assert len(found) == len(head[1].split(",")), f"{module}: a port is declared in another way"
    return [Port(name.lstrip("\\"), kind == "output", int(high or 0) + 1)
            for kind, high, name in found]


def _escaped(name: str) -> str:
    return f"\\{name} "


def _declared(kind: str, name: str, width: int) -> str:
    return f"{kind} [{width - 1}:0] {_escaped(name)}" if width > 1 else f"{kind} {_escaped(name)}"


def _name(pair: str, port: Port, side: str = "") -> str:
    """Name of a port of the top; clock and reset are common to all."""
    return port.name if port.name in (CLOCK, RESET) else f"{pair}_{side}{port.name}"


def _top(pairs: dict, ports: dict) -> str:
    """A module with the inputs of every pair and the outputs of each of its modules."""
    names = [_declared("input", name, 1) for name in (CLOCK, RESET)]
    instances = []
    for pair, modules in pairs.items():
        names += [_declared("input", _name(pair, port), port.width) for port in ports[pair]
                  if not port.output and port.name not in (CLOCK, RESET)]
        for side, module in zip(SIDES, modules):
            names += [_declared("output", _name(pair, port, side), port.width)
                      for port in ports[pair] if port.output]
            wires = ",\n    ".join(
                f".{_escaped(port.name)}({_escaped(_name(pair, port, side * port.output))})"
                for port in ports[pair])
            instances.append(f"  {module} {pair}_{side}instance (\n    {wires});")
    joined = ",\n  ".join(names)
    return "\n".join([f"module {TOP}(\n  {joined});", *instances, "endmodule\n"])


def _drawn(ports: dict) -> list:
    """Pair and port of every input but clock and reset."""
    return [(pair, port) for pair, members in ports.items() for port in members
            if not port.output and port.name not in (CLOCK, RESET)]


def _header(ports: dict) -> str:
    """Names of the ports, as C++ macros for the shim."""
    outputs = [(pair, port) for pair, members in ports.items() for port in members if port.output]
    drawn = _drawn(ports)
    inputs = " ".join(f"X({number}, {mangle(_name(pair, port))}, {port.width})"
                      for number, (pair, port) in enumerate(drawn))
    both = " ".join(
        f"X({number}, {', '.join(mangle(_name(pair, port, side)) for side in SIDES)})"
        for number, (pair, port) in enumerate(outputs))
    words = max(-(-port.width // 32) for _, port in outputs)
    return (f"#define PORT_INPUTS {len(drawn)}\n#define PORT_OUTPUTS {len(outputs)}\n"
            f"#define PORT_BYTES {max(8, 4 * words)}\n"
            f"#define PORT_EACH_INPUT(X) {inputs}\n#define PORT_EACH_OUTPUT(X) {both}\n")


def _print(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


class Pairs:
    """Modules two and two, compiled together.

    Parameters
    ----------
    label : str
        For messages.
    verilog : str
        All modules, as Yosys writes them.
    pairs : dict of str to (str, str)
        Names of the two modules to compare, which have the same ports, by a name for both.
    notify : callable
        Told in words when a build begins.
    """

    def __init__(self, label: str, verilog: str, pairs: dict, notify=_print):
        ports = {}
        for pair, modules in pairs.items():
            ports[pair], other = (ports_of(verilog, module) for module in modules)
            if set(ports[pair]) != set(other):
                raise ValueError(f"{label}: {' and '.join(modules)} have different ports")
        self._inputs = {f"{pair}.{port.name}": number
                        for number, (pair, port) in enumerate(_drawn(ports))}
        self._outputs = [f"{pair}.{port.name}" for pair, members in ports.items()
                         for port in members if port.output]
        source = Source(label, TOP, verilog + _top(pairs, ports), _header(ports), {}, SHIM)
        folder = build(source, Options(quick=True), notify)
        self._run = ctypes.CDLL(str(folder / LIBRARY)).pair_run
        self._run.restype = None
        self._run.argtypes = ([ctypes.c_uint64] * 2 + [ctypes.c_void_p, ctypes.c_uint64]
                              + [ctypes.c_void_p] * 2)

    def run(self, cycles: int, seed: int = 1, orders: dict | None = None) -> Comparison:
        """Compare on so many cycles after a reset.

        Parameters
        ----------
        orders : dict of str to list of (int, str, int or None)
            Pair to rows ``(cycle, input, value)``, of which the last counts: the input has this
            value of up to 64 bits from that cycle on, or is drawn at random again (None).

        Raises
        ------
        ValueError
            If there is no such input.
        """
        rows = [(cycle, f"{pair}.{name}", value) for pair, part in (orders or {}).items()
                for cycle, name, value in part]
        unknown = {name for _, name, _ in rows} - set(self._inputs)
        if unknown:
            raise ValueError(f"there is no input {min(unknown)!r}")
        table = [(cycle, self._inputs[name], value is not None, value or 0)
                 for cycle, name, value in sorted(rows, key=lambda row: row[0])]
        given = np.array(table, np.uint64).reshape(-1, 4)
        different = np.zeros(len(self._outputs), np.uint64)
        moved = np.zeros(len(self._outputs), np.uint8)
        self._run(seed, cycles, given.ctypes.data, len(given), different.ctypes.data,
                  moved.ctypes.data)
        changed = [name for name, flag in zip(self._outputs, moved) if flag]
        return Comparison(
            {name: int(cycle) for name, cycle in zip(self._outputs, different) if cycle < cycles},
            tuple(changed), tuple(name for name in self._outputs if name not in changed))
