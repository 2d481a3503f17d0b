"""scalecap: long, dense, true captions by generate, verify, expand, fuse."""

__version__ = "0.1.0"
