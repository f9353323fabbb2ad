"""What several commands share: reading files, compiling with progress, talking to stderr."""
import pathlib
import sys

import metronome
from metronome import Config, MetronomeError, profile


#: No context holds a longer prompt.
PROMPT_BYTES = 1 << 20


class CheckFailed(Exception):
    """A check did not hold: the message says where; the exit status is 1.

    Parameters
    ----------
    result : dict or None
        What ``--json`` prints all the same.
    """

    def __init__(self, message: str, result: dict | None = None):
        super().__init__(message)
        self.result = result


def say(message: str) -> None:
    """A line for the person at the terminal."""
    print(f"metronome: {message}", file=sys.stderr, flush=True)


def read_text(path: str) -> str:
    """The text of a UTF-8 file."""
    try:
        return pathlib.Path(path).read_bytes().decode()
    except OSError as error:
        raise MetronomeError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise MetronomeError(f"{path}: is not UTF-8 text (byte {error.start})") from None


def read_prompt(options) -> str:
    """The prompt, from ``--prompt`` or as it is in the file of ``--prompt-file``."""
    path = options.prompt_file
    if path is None:
        return options.prompt or ""
    if options.prompt is not None:
        raise MetronomeError("--prompt and --prompt-file exclude each other")
    name = "standard input" if path == "-" else path
    try:
        if path == "-":
            data = sys.stdin.buffer.read(PROMPT_BYTES + 1)
        else:
            with open(path, "rb") as file:
                data = file.read(PROMPT_BYTES + 1)
    except OSError as error:
        raise MetronomeError(f"{name}: cannot be read: {error.strerror}") from None
    if len(data) > PROMPT_BYTES:
        raise MetronomeError(f"{name}: has more than {PROMPT_BYTES} bytes, too many for a prompt")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise MetronomeError(f"{name}: is not UTF-8 text (byte {error.start})") from None


def write_file(path: str, data: bytes) -> None:
    """Write a whole file, or none."""
    metronome.write_file(path, data)


def config_of(options) -> Config:
    """The machine that ``--profile`` names."""
    return profile(options.profile or metronome.DEFAULT_PROFILE)


def calibration_of(options) -> str | None:
    return read_text(options.calibrate) if options.calibrate else None


def program_of(options) -> metronome.Program:
    """The program that the model or image options name, compiled if need be."""
    if getattr(options, "image", None):
        for flag in ("model", "tokenizer", "calibrate"):
            if getattr(options, flag):
                raise MetronomeError(f"--image and --{flag} exclude each other: "
                                     "the image is compiled already")
        program = metronome.load_program(options.image)
        if options.profile and options.profile != program.config.name:
            raise MetronomeError(f"{options.image}: is for profile {program.config.name}, "
                                 f"not {options.profile}")
        return program
    config = config_of(options)
    model = metronome.load_model(options.model, options.tokenizer, profile=config.name)
    sampling = _sampling(options)
    say(f"compiling {model.name} for {config.name}")
    return metronome.compile(model, config, calibration=calibration_of(options),
                             sampling=sampling)


def _sampling(options) -> tuple:
    """What the program is to be compiled for: as said, or as the settings of a run need."""
    if hasattr(options, "sampling"):
        return options.sampling
    if hasattr(options, "top_k"):
        return metronome.needed_sampling(options.temperature, options.top_k, options.top_p)
    return ()
