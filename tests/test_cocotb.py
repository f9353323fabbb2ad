"""The benches in `tb`: every slice in Icarus and in Verilator, driven by cocotb."""
import pathlib

import pytest

pytest.importorskip("cocotb", reason="cocotb is not installed; pip install cocotb")

from tb import build  # noqa: E402 - needs cocotb

#: Tests of every bench module; parametrised ones count once per value.
TESTS = {"bench_const": 7, "bench_host": 14, "bench_icu": 26, "bench_kv": 17, "bench_mem": 11, "bench_mxm": 15,
         "bench_perm": 7, "bench_red": 22, "bench_sample": 18, "bench_seq": 11, "bench_vxm": 16}


def test_every_bench_is_listed():
    found = pathlib.Path(build.__file__).parent.glob("bench_*.py")
    assert {path.stem for path in found} == set(TESTS) and min(TESTS.values()) > 0


@pytest.mark.slow
@pytest.mark.parametrize("simulator", build.SIMULATORS)
@pytest.mark.parametrize("module", TESTS)
def test_bench(module, simulator):
    missing = build.unavailable(simulator)
    if missing:
        pytest.skip(missing)
    counts, log = build.run(simulator, module)
    assert counts == (TESTS[module], 0), log[-8000:]
