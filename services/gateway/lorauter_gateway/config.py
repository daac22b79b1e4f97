"""The gateway's settings."""

from __future__ import annotations

from typing import Literal

from pydantic import AliasChoices, Field, SecretStr, ValidationInfo, field_validator

from lorauter.settings import ApiKeySecret, BackendSettings, RedisUrl, RemoteAccessSettings
from lorauter_gateway.domain.stickiness import MARGIN


class Settings(BackendSettings, RemoteAccessSettings):
    """What the gateway reads from its environment."""

    router_address: str = Field(pattern=r"^\S+:\d{1,5}$", description="The router's gRPC address, host:port.")
    redis_url: RedisUrl | None = Field(
        None,
        validation_alias=AliasChoices("REDIS_URL", "redis_url"),
        description="Where gateways keep the books of who has loaded which adapter where, and ask for "
        "composites: `redis://host:port/0`. Without it, servers that load adapters serve what they hold.",
    )
    api_key: ApiKeySecret = Field(
        SecretStr(""),
        validate_default=True,
        description="The gateway's own key for its calls to the router: it needs the scopes read and invoke, "
        "and to be allowed to act for any tenant. Needed unless access is open.",
    )
    quota_fallback: Literal["refuse", "allow"] = Field(
        "refuse",
        description="What becomes of requests whose keys have limits while Redis, which counts, is away or "
        "not named: `refuse` answers 503, `allow` lets them through unchecked and says so.",
    )
    max_concurrent_requests: int = Field(
        1024, ge=1, le=100_000, description="Generations at a time; over it callers get 429 at once."
    )
    max_body_bytes: int = Field(
        2 * 1024 * 1024, ge=1024, le=1024**3, description="Largest HTTP body; over it callers get 413."
    )
    request_timeout_seconds: float = Field(
        120.0, gt=0, le=3600, description="Longest a generation may take; gRPC deadlines shorten it."
    )
    route_timeout_seconds: float = Field(10.0, gt=0, le=60, description="Longest a decision may take.")
    connect_timeout_seconds: float = Field(
        2.0, gt=0, le=60, description="Longest that connecting to a backend may take."
    )
    snapshot_poll_seconds: float = Field(
        1.0, gt=0, le=60, description="How often pools and backends are read from the router."
    )
    trace_prompts: bool = Field(
        False,
        description="Whether spans may hold prompts and answers, as `gen_ai.input.messages` and "
        "`gen_ai.output.messages`; only where traces are on, and with care: whoever reads traces reads them.",
    )
    log_requests: bool = Field(
        False,
        description="Whether each generation is a line of the log: outcome, seconds, decision, adapters, "
        "backend; never its texts.",
    )
    conversation_margin: float = Field(
        MARGIN,
        ge=0,
        le=1,
        description="Share of the best score that a conversation may lose by keeping the adapter "
        "that answered its last turn, whose prefix cache is warm; 0 keeps only what is as good.",
    )
    backend_concurrency: int = Field(
        256,
        ge=1,
        le=100_000,
        description="Generations at a time on a replica for which neither the registry nor its own `/info` "
        "names a number; over it callers get 429 at once.",
    )
    probe_seconds: float = Field(
        1.0,
        gt=0,
        le=60,
        description="Time between looks at a replica: its health, and what it has loaded.",
    )

    @field_validator("api_key")
    @classmethod
    def _key_is_given(cls, value: SecretStr, info: ValidationInfo) -> SecretStr:
        if not value.get_secret_value() and info.data.get("access") == "keys":
            raise ValueError(
                "not set, and the router asks for it: give the key that the registry has as "
                "LORAUTER_GATEWAY_KEY, or let everybody in with LORAUTER_ACCESS=open, in the router, too"
            )
        return value
