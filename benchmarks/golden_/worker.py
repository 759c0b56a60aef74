"""One part of the results of the revision whose files are in the working directory.

    python -m golden_.worker PART INPUTS RESULTS HOST

The package is copied away from its repository before this runs, so that `sara_core` is the revision's and nothing else
is.
"""

from .stillness import hold_still

hold_still()  # before anything is imported that keeps a clock

import importlib  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402

import torch  # noqa: E402

from .records import Records  # noqa: E402


def main() -> None:
    part, inputs, results, host = sys.argv[1:]
    torch.set_num_threads(1)
    torch.manual_seed(0)
    making = importlib.import_module(f".{part}", __package__)
    making.make(Records(Path(results)), Path(inputs), Path(host))


if __name__ == "__main__":
    main()
