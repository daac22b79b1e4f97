"""Hostile adapters: each is made anew by a function that writes its files, with the reason of its refusal."""

from tests.security.adapters.configs import CONFIGS
from tests.security.adapters.files import FILES
from tests.security.adapters.headers import HEADERS
from tests.security.adapters.model import Attack, Scene
from tests.security.adapters.pickles import PICKLES
from tests.security.adapters.sources import SOURCES

ATTACKS: tuple[Attack, ...] = (*CONFIGS, *HEADERS, *PICKLES, *FILES, *SOURCES)

__all__ = ["ATTACKS", "Attack", "Scene"]
