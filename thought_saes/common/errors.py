"""What a person can put right, as an exception and as one line."""


class InputError(Exception):
    """Something the user can put right. The message says what is wrong, the value, and what would be right."""


class DamagedFile(InputError):
    """A file that is not what it should be. The message names it, and what is at fault."""


def one_line(message: object) -> str:
    return " ".join(str(message).split())


def shorten(text: str, n_characters: int) -> str:
    """`text`, or its beginning if it is longer than `n_characters`."""
    return text if len(text) <= n_characters else text[: n_characters - 1] + "…"
