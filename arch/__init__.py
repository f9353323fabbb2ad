"""The contract of Metronome in plain Python: sizes, instructions, timing, numbers, image format."""
