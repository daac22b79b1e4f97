"""Who may do what: keys, what they allow, and who calls."""

from lorauter.access.caller import OPEN_SCOPES, PUBLIC_TENANT, Caller, acting, caller, calling
from lorauter.access.keys import Presented, make_key, read_key
from lorauter.access.scopes import Scope, scope_of

__all__ = [
    "OPEN_SCOPES",
    "PUBLIC_TENANT",
    "Caller",
    "Presented",
    "Scope",
    "acting",
    "caller",
    "calling",
    "make_key",
    "read_key",
    "scope_of",
]
