"""Numbers of the command line, for argparse."""

import argparse
from collections.abc import Callable

from ..errors import SaRAError
from ..numbers import described, read


def number(
    least: float | None = None, most: float | None = None, *, whole: bool = False, above: float | None = None
) -> Callable[[str], float]:
    """Reads a number, as numbers.read; what it may be is said of any other text, with what was read."""

    def parse(text: str) -> float:
        try:
            return read(text, "it", least, most, whole=whole, above=above)
        except SaRAError as error:
            hint = " (write it with a point, not a comma)" if "with a point" in str(error) else ""
            what = described(least, most, whole=whole, above=above).removeprefix("a ")
            raise argparse.ArgumentTypeError(f"'{text[:60]}' is no {what}{hint}") from error

    return parse
