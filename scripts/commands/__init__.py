"""One file per command (or pair of commands); each has ``run(options) -> dict`` for ``--json``."""
