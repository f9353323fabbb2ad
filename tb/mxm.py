"""What the benches of the MXM share: its bench, which schedules instructions of three queues."""
import numpy as np

from arch.hostmap import weight_address
from arch.isa import Order
from arch.queues import Stream
from tb.bench import Bench
from tb.checker import ANYTHING
from tb.model_mxm import Model, expand, takes
from tb.top import CONFIG

LANES, ROWS, COLUMNS = CONFIG.lanes, CONFIG.rows, CONFIG.columns
#: Words that the benches load; accumulators and weights outlive a reset.
WORDS = 16


class MxmBench(Bench):
    """Issues instructions and records them in a `Model`; `settle` tells the checkers."""

    def __init__(self, dut):
        super().__init__(dut, "mxm")
        self.issues = {unit: self.add_issue(f"issue_{unit}", unit)
                       for unit in ("mxm", "drain", "kv")}
        self.streams = self.add_streams()
        self.acc = self.add_result("o_acc", Stream.ACC)
        self.faults = {unit: self.add_faults(f"fault_{unit}") for unit in self.issues}
        self.model, self.vectors = None, {}

    async def start(self, seed=5, weights=None, position=0, token=0):
        """Reset and load the first words by the host port; returns the first free cycle."""
        await super().start()
        if weights is None:
            weights = np.random.default_rng(seed).integers(-127, 128, (WORDS, ROWS, COLUMNS))
        self.model = Model(self.config, self.time, np.array(weights, np.int64), position, token)
        self.driver.set(0, self.port("position"), position)
        self.driver.set(0, self.port("token"), token)
        self.driver.set(0, self.port("host__r_en"), 0)
        at = 1
        for word, rows in enumerate(self.model.weights.tolist()):
            for column in range(COLUMNS):
                for pair in range(CONFIG.pairs):
                    low, high = rows[2 * pair][column], rows[2 * pair + 1][column]
                    self.host_write(at, weight_address(CONFIG, word, column, pair),
                                    low & 0xFF | (high & 0xFF) << 8)
                    at += 1
        await self.until(at)
        return at + 2

    def host_write(self, cycle, address, word):
        self.driver.set(cycle, self.port("host__address"), address)
        self.driver.set(cycle, self.port("host__w_data"), word)
        self.driver.pulse(cycle, self.port("host__w_en"), 1, 0)

    def vector(self, cycle, stream, lanes=None, rng=None):
        """What ``stream`` carries on a cycle; put there at the first call."""
        key = cycle, Stream(stream)
        if key not in self.vectors:
            if lanes is None:
                lanes = rng.integers(-400, 401, LANES)
            self.vectors[key] = np.array(lanes, np.int64)
            self.streams.put(cycle, stream, lanes)
        return self.vectors[key]

    def matmul(self, cycle, lanes=None, rng=None, order=Order.HOLD, half0=0, start=1, shift=0,
               accumulator=0, x0=Stream.M0, x1=Stream.M0, **repeats):
        """One instruction; ``lanes`` are on both sources at every take, or random ones.

        Returns the cycle of the last issue.
        """
        held = None
        for at, members in expand(cycle, **repeats):
            i, j = members["i"], members["j"]
            if takes(self.config, order, half0, i, j):
                held = np.stack([self.vector(at, source, lanes, rng) for source in (x0, x1)])
            k, tile = (j, i) if order == Order.K_INNER else (i, j)
            self.issues["mxm"].send(at, "MATMUL", order=order, half0=half0, start=start, x0=x0,
                                    x1=x1, shift=shift, accumulator=accumulator, **members)
            self.model.step(at, members["address"], accumulator + tile, start and k == 0, held,
                            (half0 + k) % CONFIG.groups, shift)
        return at

    def drain(self, cycle, accumulator=0, n1=1, d1=1):
        for at, members in expand(cycle, n1=n1, d1=d1):
            members.pop("address")
            self.issues["drain"].send(at, "DRAIN", accumulator=accumulator, **members)
            self.model.drain(at, accumulator + members["j"])
        return at

    def write(self, cycle, op, lanes=None, rng=None, half0=0, x=Stream.VXM, **repeats):
        """WRITE_K or WRITE_V; the vectors as in `matmul`."""
        for at, members in expand(cycle, **repeats):
            vector = self.vector(at, x, lanes, rng)
            self.issues["kv"].send(at, op, half0=half0, x=x, **members)
            if op == "WRITE_K":
                self.model.write_k(at, members["address"], (half0 + members["j"]) % CONFIG.groups,
                                   vector)
            else:
                self.model.write_v(at, members["address"], vector)
        return at

    def read_out(self, cycle, n1=CONFIG.groups, **repeats):
        group = []
        for at, members in expand(cycle, n1=n1, **repeats):
            self.issues["kv"].send(at, "READ_OUT", **members)
            group.append((at, members["address"]))
            if len(group) == CONFIG.groups or members["j_last"]:
                self.model.read_out(group)
                group = []
        return at

    async def settle(self):
        """Let everything scheduled happen, and compare."""
        for cycle, lanes in self.model.predict().items():
            self.acc.expect(cycle, ANYTHING if lanes is None else lanes)
        last = max([0, *self.model.predict(), *(cycle for cycle, _ in self.vectors)])
        await self.until(max(last, self.cycle))
        await self.finish()
