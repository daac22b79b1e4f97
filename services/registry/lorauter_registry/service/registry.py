"""The registry's calls, one method for each RPC; both transports call nothing else."""

from __future__ import annotations

from lorauter_registry.service.affinities import Affinities
from lorauter_registry.service.audit import Audit
from lorauter_registry.service.backends import Backends
from lorauter_registry.service.decisions import Decisions
from lorauter_registry.service.exporting import Exporting
from lorauter_registry.service.importing import Importing
from lorauter_registry.service.keys import Keys
from lorauter_registry.service.manifests import Manifests
from lorauter_registry.service.operations import Operations
from lorauter_registry.service.pools import Pools
from lorauter_registry.service.profiles import Profiles
from lorauter_registry.service.registration import Registration
from lorauter_registry.service.validation_sets import ValidationSets


class Registry(
    Pools,
    Backends,
    ValidationSets,
    Registration,
    Affinities,
    Operations,
    Profiles,
    Decisions,
    Manifests,
    Exporting,
    Importing,
    Keys,
    Audit,
):
    """All calls. They block; transports run them on threads of their own."""
