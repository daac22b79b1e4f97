"""The archive of a whole registry: see docs/operations/archive.md for the format."""
