"""The index: one snapshot per generation, published as a content-addressed tree behind a marker."""

from lorauter.index.codec import canonical, root_digest
from lorauter.index.memory import MemoryIndex
from lorauter.index.port import ExampleSet, Found, IndexCheck, PublishReport, Search, SnapshotIndex
from lorauter.index.qdrant import QdrantIndex

__all__ = [
    "ExampleSet",
    "Found",
    "IndexCheck",
    "MemoryIndex",
    "PublishReport",
    "QdrantIndex",
    "Search",
    "SnapshotIndex",
    "canonical",
    "root_digest",
]
