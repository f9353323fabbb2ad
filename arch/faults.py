"""Causes of the sticky fault register, shared by schedule checker, machine model and hardware."""
import enum


class Fault(enum.IntEnum):
    """Why a step is wrong. The lowest-numbered cause wins when several arise in one cycle.

    Members
    -------
    NONE : no fault.
    OPERAND : a source stream carries no value on the cycle that takes it.
    COLLISION : two results reach one stream on the same cycle.
    CONFLICT : a run-time weight write meets a read of the same word in the same cycle, two vectors
        reach the sampler or the permutation closer than it can take them, or a MEM bank writes
        another stream than a bank of a lower number on wires that they share.
    ADDRESS : an address lies outside its memory.
    ENCODING : a reserved opcode, source or mode.
    PARITY : a word read back does not match the parity made at its writer.
    UNDERRUN : an instruction was not ready on its cycle of issue (``wait`` too short, count 0).
    LENGTH : the step ended before every queue had reached END.
    UNWRITTEN : a word never written was read (checker and machine model only).
    """
    NONE = 0
    OPERAND = 1
    COLLISION = 2
    CONFLICT = 3
    ADDRESS = 4
    ENCODING = 5
    PARITY = 6
    UNDERRUN = 7
    LENGTH = 8
    UNWRITTEN = 9


class ScheduleError(Exception):
    """An illegal schedule, with the cycle, the queue and the reason.

    Parameters
    ----------
    fault : Fault
    cycle : int
        Cycle in which the hardware sees it.
    queue : str
        Queue whose operation is at fault.
    detail : str
    """

    def __init__(self, fault: Fault, cycle: int, queue: str, detail: str):
        super().__init__(f"cycle {cycle}, {queue}: {fault.name.lower()}: {detail}")
        self.fault, self.cycle, self.queue, self.detail = fault, cycle, queue, detail
