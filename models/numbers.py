"""Numbers of a context: what a template shows is what was given, to the last digit."""

import math
from typing import Self


class Number(float):
    """A number that is shown as it was written, and calculated with as any other.

    Args:
        text: a number in JSON.

    Raises:
        OverflowError: it is too large to be calculated with.
    """

    def __new__(cls, text: str) -> Self:
        """Reads it."""
        number = super().__new__(cls, text)
        if math.isinf(number):
            raise OverflowError("the number is too large")
        return number

    def __init__(self, text: str) -> None:
        self._text = text

    def __str__(self) -> str:
        return self._text

    __repr__ = __str__
