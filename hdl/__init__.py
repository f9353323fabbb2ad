"""The machine in Amaranth: one file per slice, then the chip."""
