"""Dense retrieval from the command line and as a library: pre-train, train, encode, index, search, mine, evaluate."""

__version__ = "0.1.0"
