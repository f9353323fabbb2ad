"""The CPU baseline: the same decoder in C++, compiled for this computer, on one core.

Plain loops over float32 as in llama2.c's ``run.c``, with every optimisation of the compiler
(``-Ofast -march=native``). It knows llama2.c files of version 0, as the built-in model is one.
"""
import pathlib
import statistics
import tempfile

from compiler.errors import MetronomeError
from sim import toolchain

SOURCE = pathlib.Path(__file__).with_suffix(".cpp")


def run(checkpoint, tokens: int, repeats: int = 9) -> tuple:
    """Generate greedily from token 1 (BOS) at position 0.

    Parameters
    ----------
    checkpoint : path of a llama2.c file, version 0
    tokens : int
        Steps of a run.
    repeats : int
        Runs; the result is their median.

    Returns
    -------
    list of int
        The tokens.
    float
        Tokens per second.

    Raises
    ------
    MetronomeError
        If there is no C++ compiler, or the file cannot be read.
    """
    compiler = toolchain.compiler()
    with tempfile.TemporaryDirectory(prefix="metronome-baseline-") as folder:
        program = pathlib.Path(folder) / "cpu_baseline"
        built = compiler.run("-std=c++17", "-Ofast", "-march=native", SOURCE, "-o", program)
        if built.returncode:
            raise MetronomeError(f"{compiler.name} refused {SOURCE.name}: "
                                 f"{(built.stderr.strip().splitlines() or ['no message'])[0]}")
        done = toolchain.Tool(program.name, "", (str(program),)).run(checkpoint, tokens, repeats)
    if done.returncode:
        raise MetronomeError(f"{checkpoint}: {done.stderr.strip()}")
    text, seconds = done.stdout.splitlines()
    return [int(token) for token in text.split()], tokens / statistics.median(map(float,
                                                                                seconds.split()))
