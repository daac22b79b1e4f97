"""Who may do what: keys, what they allow, and who calls."""

from lorauter.access.caller import PUBLIC_TENANT, Caller, acting, caller, calling, open_caller
from lorauter.access.keys import Presented, make_key, read_key
from lorauter.access.scopes import Scope, is_public, scope_of

__all__ = [
    "PUBLIC_TENANT",
    "Caller",
    "Presented",
    "Scope",
    "acting",
    "caller",
    "calling",
    "is_public",
    "make_key",
    "open_caller",
    "read_key",
    "scope_of",
]
