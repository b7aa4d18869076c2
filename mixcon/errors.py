"""The one exception for what a user can put right, and what it says of a misspelt name."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input, said in one paragraph that names the argument and the way out.

    The command line prints the message without a traceback and exits with 2; library callers
    can catch it as the `ValueError` that it is.
    """


def close_names(wrong: str, valid: Iterable[str]) -> list[str]:
    """The valid names, three at most, that a misspelt one may have meant."""
    return difflib.get_close_matches(wrong, sorted(valid), n=3, cutoff=0.5)


def nearest(wrong: str, valid: Iterable[str]) -> str:
    """Sentence that offers the valid names closest to a misspelt one.

    Example:
      >>> nearest("cosin", ["cosine", "linear"])
      'did you mean cosine?'
    """
    valid = sorted(valid)
    close = close_names(wrong, valid)
    return f"did you mean {' or '.join(close)}?" if close else f"valid names: {', '.join(valid) or 'none'}."
