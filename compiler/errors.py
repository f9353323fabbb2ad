"""Errors that a user can cause; each message is one clear line."""


class MetronomeError(Exception):
    """Bad input: the command line prints the message and exits with status 2."""


class ModelError(MetronomeError):
    """A model or tokenizer file, or text given to it, that cannot be used."""


class CapacityError(ModelError):
    """A model that does not fit a machine: the message names the resource and the shortage."""
