"""Host side of a slice: one access of the internal bus at a time, and a watch on its answers."""
from tb.checker import Mismatch
from tb.monitors import number

#: Cycles after which no answer comes any more: a bank of a program is walked to the word.
PATIENCE = 24


class BusMonitor:
    """Everybody keeps ``ack`` and ``r_data`` at 0 but for the one cycle of an answer."""

    def __init__(self, ack, r_data):
        self._ack, self._data = ack, r_data
        self.answers = []

    def sample(self, cycle: int) -> None:
        ack, word = number(self._ack, cycle), number(self._data, cycle)
        if ack:
            self.answers.append((cycle, word))
        elif word:
            raise Mismatch(f"{self._data._name}: cycle {cycle}: {word:#06x} without ack")


class HostBus:
    """Accesses the slice of a bench through its bus.

    Parameters
    ----------
    bench : `tb.bench.Bench`
    name : str
        Its port of `hdl.bus.BusSignature`.
    """

    def __init__(self, bench, name: str = "host"):
        self._bench = bench
        self._port = {member: bench.port(f"{name}__{member}")
                      for member in ("space", "address", "w_en", "r_en", "w_data")}
        self._monitor = BusMonitor(bench.port(f"{name}__ack"), bench.port(f"{name}__r_data"))
        bench.monitors.append(self._monitor)

    async def _access(self, space, address, word, request) -> int | None:
        bench, at = self._bench, self._bench.cycle + 1
        for name, value in (("space", int(space)), ("address", address), ("w_data", word)):
            bench.driver.set(at, self._port[name], value)
        bench.driver.pulse(at, self._port[request], 1, 0)
        before = len(self._monitor.answers)
        for _ in range(PATIENCE):
            await bench.run(1)
            if len(self._monitor.answers) > before:
                # Address and data are held to the answer, and the answer is one cycle long.
                await bench.run(1)
                break
        answers = self._monitor.answers[before:]
        if len(answers) > 1:
            raise Mismatch(f"two answers, {answers}, to {request} of {space!r} {address}")
        return answers[0][1] if answers else None

    async def write(self, space, address: int, word: int) -> None:
        answer = await self._access(space, address, word & 0xFFFF, "w_en")
        if answer != 0:
            raise Mismatch(f"write of {space!r} {address}: answer {answer}")

    async def read(self, space, address: int) -> int:
        answer = await self._access(space, address, 0, "r_en")
        if answer is None:
            raise Mismatch(f"read of {space!r} {address}: no answer")
        return answer

    async def is_ignored(self, space, address: int) -> bool:
        """Whether neither a read nor a write of an address is answered."""
        answers = [await self._access(space, address, 0x5A5A, request)
                   for request in ("r_en", "w_en")]
        return answers == [None, None]
