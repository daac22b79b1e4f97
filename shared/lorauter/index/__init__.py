"""The index: one snapshot per generation, published as a content-addressed tree behind a marker."""

from lorauter.index.codec import canonical, root_digest
from lorauter.index.memory import MemoryIndex
from lorauter.index.port import ExampleSet, IndexCheck, PublishReport, SnapshotIndex
from lorauter.index.qdrant import QdrantIndex

__all__ = [
    "ExampleSet",
    "IndexCheck",
    "MemoryIndex",
    "PublishReport",
    "QdrantIndex",
    "SnapshotIndex",
    "canonical",
    "root_digest",
]
