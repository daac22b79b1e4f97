"""Pool manifests: which adapters and composites TGI instances load at start-up. Needs numpy only."""

from lorauter.manifests.footprint import Footprints
from lorauter.manifests.model import Candidate, Entry, LeftOut, Measured, Member, Proposal
from lorauter.manifests.proposal import Target, content_of, expected_share, manifest_digest, propose
from lorauter.manifests.traffic import traffic_shares

__all__ = [
    "Candidate",
    "Entry",
    "Footprints",
    "LeftOut",
    "Measured",
    "Member",
    "Proposal",
    "Target",
    "content_of",
    "expected_share",
    "manifest_digest",
    "propose",
    "traffic_shares",
]
