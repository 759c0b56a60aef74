"""What people can do about a file that is not taken as it is, in the words of the face before which they sit.

Every face (nodes, command line …) has a table of its own: key → sentence. The library's is for those who call it.
"""

from collections.abc import Mapping

# What such a file is: an adapter that others load too; one that only a conversion takes; a model; a delta with other
# tensors beside it; nothing that is known. Of a file whose base is not given, the clause after "the base model that it
# was made for:".
ADAPTER, CONVERT, MODEL, MIXED, UNKNOWN, BASE = "adapter", "convert", "model", "mixed", "unknown", "base"

Remedies = Mapping[str, str]

_READ = "Make a delta of it with sara_core.conversion.read.read_delta."
LIBRARY: Remedies = {
    ADAPTER: _READ,
    CONVERT: _READ,
    MODEL: "Make a delta of it and its base with sara_core.extract.",
    MIXED: "Get the delta in a file of its own.",
    UNKNOWN: "Choose a file that SparseDelta.save has written.",
    BASE: "give it, a checkpoint or a diffusers folder, as base.",
}
