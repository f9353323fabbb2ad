"""The token at which a generation stops, from what a person writes."""
from compiler.errors import MetronomeError
from compiler.load import AnyTokenizer

#: As many tokens as an error names.
_SHOWN = 4


def stop_token(tokenizer: AnyTokenizer, vocabulary: int, stop: int | str | None) -> int | None:
    """The id of a stop token, None for none.

    Parameters
    ----------
    vocabulary : int
        Tokens of the model.
    stop : int, str or None
        An id; the text of one token; an empty text for none; None for the model's own end.

    Raises
    ------
    MetronomeError
        If there is no such token, or no single one.
    """
    if stop is None:
        return tokenizer.stop_id
    if isinstance(stop, int):
        if not 0 <= stop < vocabulary:
            raise MetronomeError(f"the stop token must be 0 to {vocabulary - 1}, not {stop}")
        return stop
    if not stop:
        return None
    wanted = stop.encode("utf-8", "surrogateescape")
    size = min(vocabulary, tokenizer.vocab_size)
    # Behind some text, because the first token of a text may lose a space.
    before = next((token for token in range(size) if tokenizer.stream(())(token)), 0)
    found = [token for token in range(size) if tokenizer.stream((before,))(token) == wanted]
    if len(found) == 1:
        return found[0]
    if not found:
        raise MetronomeError(f"the stop text {stop!r} is no token of the model's vocabulary; "
                             "give one that is, or the number of a token")
    names = ", ".join(map(str, found[:_SHOWN])) + (", ..." if len(found) > _SHOWN else "")
    raise MetronomeError(f"the stop text {stop!r} is each of the tokens {names}; give one number")
