"""Numpy models: float reference, bit-exact reference and cycle-accurate machine."""
