"""The one exception for what a user can put right."""


class InputError(ValueError):
    """Bad input, said in one paragraph that names the argument and the way out.

    The command line prints the message without a traceback and exits with 2; library callers
    can catch it as the `ValueError` that it is.
    """
