"""SparseDelta, its file, and what it says of itself."""

from .delta import SparseDelta
from .entry import SparseEntry

__all__ = ["SparseDelta", "SparseEntry"]
