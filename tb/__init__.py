"""Benches in cocotb: every slice in Icarus and Verilator, against numpy and `arch.timing`."""
