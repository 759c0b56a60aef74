"""What a button of the page does: work whose report, or error, is shown beside it."""

from collections.abc import Callable
from typing import Any

from sara_core.errors import SaRAError

from .tools import Report
from .view import report, sentence


def reported(work: Callable[..., Report]) -> Callable[..., str]:
    """What a button does: the report of `work` as HTML, or its error in one sentence."""

    def answer(*values: Any) -> str:
        try:
            return report(*work(*values))
        except SaRAError as error:
            return sentence(str(error), is_error=True)

    return answer
