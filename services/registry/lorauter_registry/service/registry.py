"""The registry's calls, one method for each RPC; both transports call nothing else."""

from __future__ import annotations

from typing import NoReturn

from lorauter.errors import Unimplemented
from lorauter_registry.domain.fields import Value
from lorauter_registry.service.affinities import Affinities
from lorauter_registry.service.backends import Backends
from lorauter_registry.service.decisions import Decisions
from lorauter_registry.service.manifests import Manifests
from lorauter_registry.service.operations import Operations
from lorauter_registry.service.pools import Pools
from lorauter_registry.service.profiles import Profiles
from lorauter_registry.service.registration import Registration
from lorauter_registry.service.validation_sets import ValidationSets


class Anything(Value, extra="ignore"):
    """The request of a call that is not served yet."""


class Unserved:
    """Calls that are known but not served yet; each raises Unimplemented."""

    def create_api_key(self, _: Anything) -> NoReturn:
        """Raises Unimplemented (ACCESS_CONTROL_NOT_SHIPPED)."""
        raise Unimplemented(
            "ACCESS_CONTROL_NOT_SHIPPED", "API keys are not served yet: the registry trusts its network"
        )

    list_api_keys = revoke_api_key = rotate_api_key = who_am_i = list_audit_entries = create_api_key


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
    Unserved,
):
    """All calls. They block; transports run them on threads of their own."""
