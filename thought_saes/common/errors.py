"""What a person can put right, as an exception and as one line."""


class InputError(Exception):
    """Something the user can put right. The message says what is wrong, the value, and what would be right."""


def one_line(message: object) -> str:
    return " ".join(str(message).split())
