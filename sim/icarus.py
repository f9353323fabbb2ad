"""The Icarus Verilog engine: four-state simulation, slow; an X that reaches the host is an error.

A generated test bench runs in ``vvp`` and takes commands on its standard input: bytes to send and
how long to clock. It answers in lines of text. Memories are loaded with ``$readmemh``.
"""
import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import tempfile

import numpy as np

from arch.config import Config
from arch.queues import QUEUES
from arch.timing import timing
from sim import backdoor, rtl, toolchain
from sim.engine import EngineError, write_log_type
from sim.host_engine import HostEngine

_STARTER = re.compile(r"^  reg (\\\$auto\$verilog_backend\S+ ) = 0;", re.MULTILINE)
#: A combinational process of a single assignment.
_ONE_LINE = re.compile(r"^  always @\*\n    ([^;\n]+ = [^;\n]+;)\n", re.MULTILINE)
_BENCH = """\
`timescale 1ns/1ps
module bench;
    localparam STDIN = 32'h8000_0000;
    reg clk = 0, rst = 1, rx_valid = 0;
    reg [7:0] rx_payload = 0;
    wire rx_ready, tx_valid, barrier;
    wire [7:0] tx_payload;
{wires}
    {top} dut (.clk(clk), .rst(rst), .o_barrier(barrier),
        .rx__payload(rx_payload), .rx__valid(rx_valid), .rx__ready(rx_ready),
        .tx__payload(tx_payload), .tx__valid(tx_valid), .tx__ready(1'b1){connections});

    integer cycles = 0, received = 0, taken, left, command, size, wanted, limit;
    reg tracing = 0;
    reg [63:0] sampling = 0;

    function integer number(input integer unused);
        integer digit;
        begin
            number = 0;
            for (digit = 0; digit < 4; digit = digit + 1)
                number = number << 8 | ($fgetc(STDIN) & 255);
        end
    endfunction

    // One cycle: inputs settle, outputs are looked at, then the edge.
    task step;
        begin
            #5;
            if (!rst && ^{barrier, tx_valid, rx_ready} === 1'bx)
                $display("X %b %b %b", barrier, tx_valid, rx_ready);
            if (barrier) $display("B %0d", cycles);
            if (tx_valid) begin
                $display("R %h", tx_payload);
                received = received + 1;
            end
            if (tracing) begin
{log}
                sampling = {sampling, issue[{sample}]};
                if (sampling[{skew}]) $display("V %0d %h", cycles, vxm_data);
            end
            clk = 1;
            #5;
            clk = 0;
            cycles = cycles + 1;
        end
    endtask

    initial begin
        repeat (4) step;
        rst = 0;
        command = $fgetc(STDIN);
        while (command == "A" || command == "L" || command == "T" || command == "N") begin
            taken = 0;
            case (command)
                "A": begin
                    size = number(0);
                    wanted = number(0);
                    limit = number(0);
                    received = 0;
                    left = limit;
                    while (taken < size && left > 0) begin
                        if (!rx_valid) rx_payload = $fgetc(STDIN);
                        rx_valid = 1;
                        #1;
                        if (rx_ready === 1'b1) begin
                            taken = taken + 1;
                            step;
                            rx_valid = 0;
                        end else step;
                        left = left - 1;
                    end
                    rx_valid = 0;
                    while (received < wanted && left > 0) begin
                        step;
                        left = left - 1;
                    end
                end
                "L": begin
{load}
                    repeat (8) step;
                end
                "T": tracing = 1;
                default: tracing = 0;
            endcase
            $display("D %0d %0d", taken, cycles);
            $fflush;
            command = $fgetc(STDIN);
        end
        $finish;
    end
endmodule
"""


def settled(verilog: str) -> str:
    """The same design with every combinational process run at time 0.

    Yosys has each of them read a register that it initialises, but Icarus initialises before the
    processes wait for a change. Here the register changes from X to 0 after they do. A process that
    only sets some bits of a signal reads no such register: it is run once by itself.
    """
    verilog = _STARTER.sub(r"  reg \1;\n  initial \1 <= 0;", verilog)
    return _ONE_LINE.sub(r"  initial #0 \1\n\g<0>", verilog)


def _escaped(path: tuple) -> str:
    return ".".join(f"\\{name} " for name in path)


def bench(config: Config, made: rtl.Rtl) -> str:
    """The test bench of a machine."""
    members = {"valid": 1, "address": config.mem_address_bits, "halves": 2,
               "data": 16 * config.lanes}
    wires, connections, log = [], [], []
    for bank in range(config.mem_banks):
        names = {member: f"w{bank}_{member}" for member in members}
        for member, width in members.items():
            wires.append(f"    wire [{width - 1}:0] {names[member]};")
            connections.append(f",\n        .trace_w{bank}_{member}({names[member]})")
        log.append(f'                if ({names["valid"]}) $display("W %0d {bank} %h %h %h", '
                   f'cycles, {names["address"]}, {names["halves"]}, {names["data"]});')
    load = [f'                    $readmemh("{name}.hex", dut.{_escaped(path)});'
            for name, path in made.memories.items()]
    for port, width, wire in (("trace_issue", len(QUEUES), "issue"),
                              ("trace_v_data", 32 * config.lanes, "vxm_data")):
        wires.append(f"    wire [{width - 1}:0] {wire};")
        connections.append(f",\n        .{port}({wire})")
    text = {"wires": wires, "connections": connections, "log": log, "load": load}
    result = _BENCH.replace("{top}", made.top)
    result = result.replace("{sample}", str(QUEUES["sample"].id))
    result = result.replace("{skew}", str(timing(config).sample_skew))
    for key, lines in text.items():
        result = result.replace("{" + key + "}",
                                ("" if key == "connections" else "\n").join(lines))
    return result


class IcarusEngine(HostEngine):
    """The RTL in Icarus Verilog."""
    name = "icarus"

    @classmethod
    def unavailable(cls) -> str | None:
        return toolchain.missing(toolchain.icarus, toolchain.amaranth, toolchain.yosys)

    def __init__(self, config: Config, *, notify=lambda message: None):
        super().__init__(config)
        self._notify = notify
        self._process = self._folder = None

    def _reset(self) -> None:
        made = rtl.generate(self.config, self._notify)
        self._memories = made.memories
        self._folder = tempfile.TemporaryDirectory(prefix="metronome-icarus-")
        compiled = _compiled(settled(made.verilog) + bench(self.config, made))
        self._process = subprocess.Popen(
            [*toolchain.icarus()[1].command, "-n", str(compiled)], cwd=self._folder.name,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self._cycle, self._barriers, self._trace = 0, [], False
        self._lines, self._logits = [], []

    def close(self) -> None:
        if self._process:
            self._process.stdin.close()
            self._process.stdout.close()
            self._process.kill()
            self._process.wait()
            self._folder.cleanup()
            self._process, self._ready = None, False

    def _command(self, data: bytes) -> tuple:
        """Send a command; returns the bytes received and how many of those sent were taken."""
        received = bytearray()
        try:
            self._process.stdin.write(data)
            self._process.stdin.flush()
        except BrokenPipeError:
            raise EngineError("icarus: the simulation stopped by itself") from None
        for line in self._process.stdout:
            kind, *fields = line.split()
            if kind == b"R":
                if not all(digit in b"0123456789abcdef" for digit in fields[0]):
                    raise EngineError(f"icarus: an X reached the host port at cycle {self._cycle}")
                received.append(int(fields[0], 16))
            elif kind == b"B":
                self._barriers.append(int(fields[0]))
            elif kind == b"W":
                self._lines.append(fields)
            elif kind == b"V":
                self._logits.append(fields)
            elif kind == b"X":
                names = zip(("o_barrier", "tx.valid", "rx.ready"), fields)
                unknown = [name for name, value in names if value == b"x"]
                raise EngineError(f"icarus: {' and '.join(unknown)} of the machine is X")
            elif kind == b"D":
                self._cycle = int(fields[1])
                return bytes(received), int(fields[0])
        raise EngineError("icarus: the simulation stopped by itself")

    def _advance(self, data: bytes, cycles: int, received: int) -> bytes:
        numbers = b"".join(n.to_bytes(4, "big") for n in (len(data), received, cycles))
        result, taken = self._command(b"A" + numbers + data)
        if taken < len(data):
            raise EngineError(f"icarus: the host port took {taken} of {len(data)} bytes in "
                              f"{cycles} cycles")
        return result

    def _poke_image(self, image) -> None:
        filled = backdoor.contents(image, self._memories)
        for name in self._memories:
            # A memory that the image does not fill reads an empty file and stays as it is.
            lines = [f"{int.from_bytes(word.tobytes(), 'little'):x}\n"
                     for word in filled.get(name, ())]
            pathlib.Path(self._folder.name, f"{name}.hex").write_text("".join(lines))
        self._command(b"L")

    def _start_counting(self, trace: bool) -> None:
        self._command(b"T" if trace else b"N")
        self._trace, self._since = trace, self._cycle
        self._barriers.clear()
        self._lines.clear()
        self._logits.clear()

    def _vector(self, digits: bytes, entry) -> int:
        """A packed vector from hexadecimal; a half that is not written may be unknown."""
        digits, size = digits.decode().lower(), 4 * self.config.half_columns
        halves = [digits[size:], digits[:size]]
        for number, half in enumerate(halves):
            if not entry["halves"] >> number & 1:
                halves[number] = "0" * size
            elif not set(half) <= set("0123456789abcdef"):
                raise EngineError(f"icarus: an X is written to MEM bank {entry['bank']}, address "
                                  f"{entry['address']}")
        return int(halves[1] + halves[0], 16)

    def _counted(self) -> tuple:
        barriers = np.array(self._barriers, np.int64)
        writes = logits = None
        if self._trace:
            writes = np.zeros(len(self._lines), write_log_type(self.config))
            for entry, (cycle, bank, address, halves, data) in zip(writes, self._lines):
                entry["cycle"], entry["bank"] = int(cycle), int(bank)
                entry["address"], entry["halves"] = int(address, 16), int(halves, 16)
                entry["lanes"] = rtl.lanes_of(self._vector(data, entry), self.config.lanes)
            writes = rtl.place_writes(writes, barriers)
            logits = rtl.place_logits(np.array(
                [(int(cycle), _low_halves(data.decode(), self.config.lanes))
                 for cycle, data in self._logits], rtl.logits_log_type(self.config)), barriers)
        return np.diff(barriers).tolist(), self._cycle - self._since, writes, logits


def _low_halves(digits: str, lanes: int) -> np.ndarray:
    """The low 16 bits of 32-bit lanes, lane 0 lowest, from hexadecimal."""
    if set(digits) - set("0123456789abcdef"):
        raise EngineError("icarus: an X reached the sampler")
    return rtl.lanes_of(int(digits, 16), 2 * lanes)[::2]


def _compiled(text: str) -> pathlib.Path:
    """The test bench and the machine, compiled once for ``vvp`` and kept in the cache."""
    iverilog = toolchain.icarus()[0]
    digest = hashlib.sha256(f"{iverilog.version}\0{text}".encode()).hexdigest()[:24]
    home = toolchain.cache_folder() / "icarus"
    home.mkdir(parents=True, exist_ok=True)
    result = home / f"{digest}.vvp"
    if not result.exists():
        with tempfile.TemporaryDirectory(dir=home, prefix="building-") as folder:
            (pathlib.Path(folder) / "machine.v").write_text(text)
            done = iverilog.run("-g2012", "-s", "bench", "-o", "bench.vvp", "machine.v",
                                cwd=folder)
            if done.returncode:
                raise EngineError(f"Icarus refused the machine: "
                                  f"{(done.stderr.splitlines() or ['no message'])[0]}")
            shutil.copy(pathlib.Path(folder) / "bench.vvp", pathlib.Path(folder) / "done.vvp")
            os.replace(pathlib.Path(folder) / "done.vvp", result)
    return result
