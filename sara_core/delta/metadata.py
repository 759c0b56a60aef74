"""What a delta's file says of itself beside its entries: the keys of its metadata, text → text.

Those that begin with "modelspec." are in modelspec.py. docs/format.md says what each holds.
"""

VERSION = "sara.version"
# The model it was made for: its family in people's words, its name, the precision of its weights, the digest of the
# trained weights' values, and the samples of its weights by which it is known again (models/identity.py).
FAMILY = "sara.family"
BASE_NAME = "sara.base_name"
BASE_PRECISION = "sara.base_precision"
BASE = "sara.base"
BASE_IDENTITY = "sara.base_identity"
# How it was made, each a JSON object.
SELECTION = "sara.selection"
TRAINING = "sara.training"
MERGE = "sara.merge"
EXTRACTION = "sara.extraction"
CONVERTED = "sara.converted"
BAKED = "sara.baked"
