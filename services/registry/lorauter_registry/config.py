"""What the registry reads from its environment."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import NoDecode

from lorauter.settings import (
    TENANT_PATTERN,
    AccessSettings,
    ApiKeySecret,
    PostgresUrl,
    RedisUrl,
    ServiceSettings,
    url_field,
)
from lorauter_registry.ports import DOWNLOAD_SECONDS, PUBLIC_HOSTS


class DatabaseSettings(ServiceSettings):
    """What `lorauter-registry migrate` needs."""

    database_url: PostgresUrl = url_field("DATABASE_URL", "PostgreSQL: `postgresql://user@host:port/name`.")


class Settings(DatabaseSettings, AccessSettings):
    """What the service needs."""

    redis_url: RedisUrl = url_field("REDIS_URL", "Broker that wakes workers: `redis://host:port/0`.")
    tenant: str = Field(
        "default",
        pattern=TENANT_PATTERN,
        description="Whose the bootstrap key is, and whose data callers see where access is open.",
    )
    bootstrap_key: ApiKeySecret = Field(
        SecretStr(""),
        description="A whole key, `lra_<id>_<secret>`, that is accepted with all scopes for all tenants, to "
        "make others with. It is stored, as a digest, unless it is there.",
    )
    gateway_key: ApiKeySecret = Field(
        SecretStr(""),
        description="A whole key that gateways have as their `LORAUTER_API_KEY`: it is accepted with scopes "
        "`read` and `invoke` for all tenants, and stored like the bootstrap key.",
    )
    audit_days: int = Field(
        400, ge=1, le=36_500, description="How long it is known who changed what; older entries go."
    )
    adapter_store: Path = Field(description="Folder of the content-addressed adapter store; created.")
    adapter_roots: Annotated[tuple[Path, ...], NoDecode] = Field(
        (),
        description=f"Folders, separated by `{os.pathsep}`, under which callers may name adapters "
        "and bases. `{tenant}` in one stands for the caller's tenant.",
    )
    backend_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Hosts, separated by commas, on which and below which backends may be. Empty: anywhere; "
        "then whoever may register one can be sent prompts and `LORAUTER_BACKEND_KEY`.",
    )
    max_body_bytes: int = Field(
        1024 * 1024, ge=1024, le=64 * 1024 * 1024, description="Largest HTTP body but for validation sets."
    )
    max_validation_set_bytes: int = Field(
        64 * 1024 * 1024, ge=1024, le=1024**3, description="Largest validation set, as JSONL or as a stream."
    )
    max_archive_bytes: int = Field(
        8 * 1024**3,
        ge=1024,
        le=1024**4,
        description="Largest rows of an imported archive, adapters apart; they wait in TMPDIR for its end.",
    )
    max_adapter_bytes: int = Field(
        2 * 1024**3, ge=1024, le=64 * 1024**3, description="Largest weight file of an adapter."
    )
    max_adapter_rank: int = Field(128, ge=1, le=4096, description="Largest rank of an adapter.")
    max_pins_days: int = Field(
        366, ge=1, le=3660, description="How far ahead the end of a retired version's pins may lie."
    )
    threads: int = Field(
        16, ge=1, le=256, description="Calls that work at once, each with a connection; more wait in line."
    )
    watch_seconds: float = Field(
        0.25, ge=0.02, le=10, description="How often a watched operation is looked at."
    )
    hub_timeout_seconds: float = Field(
        10.0, ge=1, le=600, description="How long the Hugging Face hub may be silent."
    )

    hub_endpoint: str = Field(
        "", description="Address of the Hugging Face hub or a mirror; empty: the public one, or HF_ENDPOINT."
    )
    hub_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        PUBLIC_HOSTS,
        description="Hosts, separated by commas, to which and below which the hub may redirect downloads.",
    )
    hub_download_seconds: float = Field(
        DOWNLOAD_SECONDS, ge=1, le=86_400, description="How long one file of the hub may take."
    )

    @field_validator("hub_endpoint")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        if value and not re.match(r"https?://[^/]", value):
            raise ValueError("must begin with https:// or http:// and name a host")
        return value

    @field_validator("hub_hosts", "backend_hosts", mode="before")
    @classmethod
    def _hosts(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(host.strip().lower() for host in value.split(",") if host.strip())
        return value

    @field_validator("adapter_roots", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(Path(part) for part in value.split(os.pathsep) if part)
        return value
