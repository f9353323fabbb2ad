"""The Verilator engine: the machine's Verilog as a shared library, driven through ctypes."""
import ctypes
import functools
import pathlib
import sys

import numpy as np

from arch.config import Config
from arch.queues import QUEUES
from arch.timing import timing
from sim import backdoor, rtl, toolchain
from sim.engine import EngineError, write_log_type
from sim.host_engine import HostEngine
from sim.verilator_build import LIBRARY, Options, Source, build, mangle

_U64 = ctypes.c_uint64
_SIGNATURES = {
    "machine_new": (ctypes.c_void_p, [ctypes.c_int64]),
    "machine_free": (None, [ctypes.c_void_p]),
    "machine_advance": (_U64, [ctypes.c_void_p, ctypes.c_char_p, _U64, _U64, _U64]),
    "machine_clock": (None, [ctypes.c_void_p, _U64]),
    "machine_take": (_U64, [ctypes.c_void_p, ctypes.c_char_p, _U64]),
    "machine_cycle": (_U64, [ctypes.c_void_p]),
    "machine_count": (None, [ctypes.c_void_p, ctypes.c_int]),
    "machine_barriers": (_U64, [ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p)]),
    "machine_writes": (_U64, [ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p),
                              ctypes.POINTER(_U64)]),
    "machine_logits": (_U64, [ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p),
                              ctypes.POINTER(_U64)]),
    "machine_memory_count": (_U64, [ctypes.c_void_p]),
    "machine_memory": (ctypes.c_char_p, [ctypes.c_void_p, _U64, ctypes.POINTER(ctypes.c_void_p),
                                         ctypes.POINTER(_U64), ctypes.POINTER(_U64)]),
    "machine_waves": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_char_p]),
}


@functools.cache
def _library(path: pathlib.Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def port_header(config: Config) -> str:
    """Names of the ports, as C++ macros for the shim."""
    names = {"LANES": str(config.lanes), "BARRIER": "o_barrier",
             "RX_VALID": "rx__valid", "RX_READY": "rx__ready", "RX_PAYLOAD": "rx__payload",
             "TX_VALID": "tx__valid", "TX_READY": "tx__ready", "TX_PAYLOAD": "tx__payload",
             "ISSUE": "trace_issue", "VXM_DATA": "trace_v_data",
             "SAMPLE_QUEUE": str(QUEUES["sample"].id),
             "SAMPLE_SKEW": str(timing(config).sample_skew)}
    lines = [f"#define PORT_{key} {mangle(name)}" for key, name in names.items()]
    lines.append("#define PORT_WRITE(t, b, member) t.trace_w##b##_##member")
    each = " ".join(f"X({bank})" for bank in range(config.mem_banks))
    return "\n".join([*lines, f"#define PORT_EACH_BANK(X) {each}", ""])


def _print(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


class VerilatorEngine(HostEngine):
    """The RTL, compiled to native code.

    Parameters
    ----------
    config : Config
    waves : str or None
        Path of an ``.fst`` or ``.vcd`` file to write; needs a build of its own.
    random_state_seed : int or None
        Start every register from random bits of this seed instead of its initial value: what the
        reset does not set must not matter.
    notify : callable
        Told in words when a build begins.
    """
    name = "verilator"
    #: Whether to compile quickly rather than well.
    _quick = False

    @classmethod
    def unavailable(cls) -> str | None:
        return toolchain.missing(toolchain.verilator, toolchain.compiler, toolchain.amaranth,
                                 toolchain.yosys)

    def __init__(self, config: Config, *, waves: str | None = None,
                 random_state_seed: int | None = None, notify=_print):
        super().__init__(config)
        self._waves, self._seed, self._notify = waves, random_state_seed, notify
        if waves is not None and pathlib.Path(waves).suffix not in (".fst", ".vcd"):
            raise EngineError(f"{waves}: a trace file must end in .fst or .vcd")
        self._machine = None

    def _reset(self) -> None:
        kind = pathlib.Path(self._waves).suffix[1:] if self._waves else None
        options = Options(kind, self._seed is not None, self._quick)
        folder = build(self._source(), options, self._notify)
        self._lib = _library(folder / LIBRARY)
        self._machine = self._lib.machine_new(-1 if self._seed is None else self._seed)
        if self._waves and self._lib.machine_waves(self._machine, str(self._waves).encode()):
            raise EngineError("this build cannot write waves")

    def _source(self) -> Source:
        """What is built."""
        made = rtl.generate(self.config, self._notify)
        verilog = made.verilog
        if self._seed is not None:
            verilog = rtl.without_initial_values(verilog)
        return Source(f"profile {self.config.name}", made.top, verilog, port_header(self.config),
                      made.memories)

    def close(self) -> None:
        if self._machine:
            self._lib.machine_free(self._machine)
            self._machine, self._ready = None, False

    def _advance(self, data: bytes, cycles: int, received: int) -> bytes:
        taken = self._lib.machine_advance(self._machine, data, len(data), received, cycles)
        if taken < len(data):
            raise EngineError(f"verilator: the host port took {taken} of {len(data)} bytes in "
                              f"{cycles} cycles")
        size = self._lib.machine_take(self._machine, None, 0)
        buffer = ctypes.create_string_buffer(size)
        self._lib.machine_take(self._machine, buffer, size)
        return buffer.raw

    def clock(self, cycles: int) -> None:
        """Let some cycles pass."""
        self._lib.machine_clock(self._machine, cycles)

    def _memories(self) -> dict:
        """Bytes of every memory, by name: uint8 arrays [depth, bytes] that write through."""
        memories = {}
        for index in range(self._lib.machine_memory_count(self._machine)):
            data, stride, depth = ctypes.c_void_p(), _U64(), _U64()
            name = self._lib.machine_memory(self._machine, index, data, stride, depth)
            size = stride.value * depth.value
            raw = (ctypes.c_uint8 * size).from_address(data.value)
            memories[name.decode()] = np.frombuffer(raw, np.uint8).reshape(depth.value,
                                                                           stride.value)
        return memories

    def _poke_image(self, image) -> None:
        memories = self._memories()
        for name, words in backdoor.contents(image, memories).items():
            target = memories[name]
            target[:len(words), :words.shape[1]] = words
            target[:len(words), words.shape[1]:] = 0
        # Reads that were in flight before the memories changed pass by.
        self.clock(8)

    def _start_counting(self, trace: bool) -> None:
        self._lib.machine_count(self._machine, trace)
        self._trace, self._since = trace, self._lib.machine_cycle(self._machine)

    def _barriers(self) -> np.ndarray:
        """The cycle before the first step, and the last one of every step."""
        pointer = ctypes.c_void_p()
        count = self._lib.machine_barriers(self._machine, pointer)
        return np.ctypeslib.as_array(ctypes.cast(pointer, ctypes.POINTER(_U64)),
                                     (count,)).astype(np.int64) if count else np.zeros(0, int)

    def _counted(self) -> tuple:
        barriers = self._barriers()
        simulated = self._lib.machine_cycle(self._machine) - self._since
        writes = logits = None
        if self._trace:
            log = self._log(self._lib.machine_writes, write_log_type(self.config))
            writes = rtl.place_writes(log, barriers)
            logits = rtl.place_logits(self._log(self._lib.machine_logits,
                                                rtl.logits_log_type(self.config)), barriers)
        return np.diff(barriers).tolist(), simulated, writes, logits

    def _log(self, function, kind: np.dtype) -> np.ndarray:
        """A log of the library as a structured array."""
        pointer, size = ctypes.c_void_p(), _U64()
        count = function(self._machine, pointer, size)
        if count and size.value != kind.itemsize:
            raise EngineError(f"the library logs {size.value} bytes, not {kind.itemsize}")
        raw = ctypes.string_at(pointer, count * size.value) if count else b""
        return np.frombuffer(raw, kind)
