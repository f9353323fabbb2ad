"""``metronome export``: a model in another format."""
import metronome
from scripts.commands.common import say


def run(options) -> dict:
    model = metronome.load_model(options.model, options.tokenizer)
    written = metronome.export(model, options.output, options.format)
    if not options.json:
        for path in written:
            say(f"wrote {path}")
    return {"format": options.format, "files": written}
