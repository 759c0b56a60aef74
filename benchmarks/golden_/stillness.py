"""Everything that would make two runs of one revision differ, held still."""

import datetime
import itertools
import os
import time
import uuid

# For the process that makes the results: one thread, the kernels that every processor has, the same order of sets, and
# nothing of other programs' in what is said.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41",
    "PYTHONHASHSEED": "0", "PYTHONUTF8": "1", "PYTHONWARNINGS": "ignore", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1",
    "DIFFUSERS_VERBOSITY": "error", "TRANSFORMERS_VERBOSITY": "error", "COLUMNS": "100",
}  # fmt: skip
NOW = datetime.datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=datetime.timezone.utc)


class _StoppedClock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(NOW.timestamp(), tz)

    @classmethod
    def utcnow(cls):
        return cls.now(datetime.timezone.utc).replace(tzinfo=None)

    @classmethod
    def today(cls):
        return cls.now()


def hold_still() -> None:
    """Stop the clocks that tell the date, and count in place of drawing random names; what measures durations goes on,
    because hosts wait by it. To be called first: a module that has `datetime` already would keep the running one."""
    counter = itertools.count(1)
    time.time = NOW.timestamp
    time.time_ns = lambda: int(NOW.timestamp() * 10**9)
    datetime.datetime = _StoppedClock
    # The first digits are what names of files are made of, and they must all differ.
    uuid.uuid4 = lambda: uuid.UUID(int=next(counter) << 96)
    os.environ["TZ"] = "UTC"
    if hasattr(time, "tzset"):
        time.tzset()
