"""What every service reads from its environment, checked before anything starts."""

from __future__ import annotations

import re
import sys
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    AliasChoices,
    Field,
    SecretStr,
    UrlConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError, Url
from pydantic_settings import BaseSettings, SettingsConfigDict

from lorauter.access import read_key
from lorauter.backends import BackendAccess
from lorauter.errors import InvalidArgument
from lorauter.server.tls import ServerTls
from lorauter.tls import Tls, WatchedTls

HttpUrl = Annotated[Url, UrlConstraints(allowed_schemes=["http", "https"], host_required=True)]
PostgresUrl = Annotated[Url, UrlConstraints(allowed_schemes=["postgresql", "postgresql+psycopg"])]
RedisUrl = Annotated[Url, UrlConstraints(allowed_schemes=["redis", "rediss"], host_required=True)]


def _whole_key(value: SecretStr) -> SecretStr:
    if value.get_secret_value() and read_key(value.get_secret_value()) is None:
        raise ValueError("is no lorauter key: give all of `lra_<id>_<secret>`, as it was given out")
    return value


TENANT_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,62}$"

ApiKeySecret = Annotated[SecretStr, AfterValidator(_whole_key)]
"""A whole API key, or nothing."""


def _header_value(value: SecretStr) -> SecretStr:
    if re.search(r"[^!-~]", value.get_secret_value()):
        raise ValueError("holds what no header may: give printable ASCII without spaces")
    return value


BackendKey = Annotated[SecretStr, AfterValidator(_header_value)]
"""A secret for inference servers, or nothing."""


def url_field(name: str, description: str) -> Any:
    """A required setting with a conventional name of its own, such as DATABASE_URL."""
    return Field(validation_alias=AliasChoices(name, name.lower()), description=description)


class ServiceSettings(BaseSettings):
    """Settings that all services share; each is the variable LORAUTER_<NAME>."""

    model_config = SettingsConfigDict(env_prefix="LORAUTER_", extra="ignore", populate_by_name=True)

    host: str = Field("127.0.0.1", description="Address that the service listens on.")
    http_port: int = Field(0, ge=0, le=65535, description="HTTP port; 0 takes a free one.")
    grpc_port: int = Field(0, ge=0, le=65535, description="gRPC port; 0 takes a free one.")
    log_level: str = Field(
        "info", pattern="^(debug|info|warning|error)$", description="Least severity that is logged."
    )
    log_format: str = Field(
        "json", pattern="^(json|text)$", description="`json` for machines, `text` for people."
    )
    drain_seconds: float = Field(
        5.0, ge=0, le=600, description="How long running calls may go on after SIGTERM."
    )
    otlp_endpoint: HttpUrl | None = Field(
        None,
        validation_alias=AliasChoices("OTEL_EXPORTER_OTLP_ENDPOINT", "otlp_endpoint"),
        description="Receiver of OpenTelemetry's protocol over HTTP to which spans are sent: "
        "`http://collector:4318`. Without it traces are off; OpenTelemetry's other variables count, too.",
    )
    tls_certificate: str = Field(
        "",
        description="PEM file of the service's certificate and what it is signed by: callers then need TLS. "
        "It is read anew when it changes.",
    )
    tls_key: str = Field("", description="PEM file of its private key, without a password.")
    tls_client_ca: str = Field(
        "",
        description="PEM file of the CAs whose certificates callers must show: mutual TLS. Probes, too.",
    )
    tls_ca: str = Field(
        "",
        description="PEM file of the CAs that this service trusts when it calls others of lorauter, which it "
        "then does over TLS, with its own certificate if it has one; inference servers at `https` addresses "
        "may be signed by these too.",
    )

    @field_validator("otlp_endpoint", mode="before")
    @classmethod
    def _is_off_where_empty(cls, value: object) -> object:
        return value or None

    @classmethod
    def load(cls) -> Self:
        """Reads the environment; on bad values says which and what they are for, and exits with status 2."""
        try:
            return cls()
        except ValidationError as error:
            for problem in error.errors(include_url=False):
                print(cls._said(problem), file=sys.stderr)
            raise SystemExit(2) from None

    @classmethod
    def _said(cls, problem: ErrorDetails) -> str:
        said = problem["msg"].removeprefix("Value error, ")
        if not problem["loc"]:
            return said
        place = str(problem["loc"][0])
        field = next((name for name in cls.model_fields if place in (name, cls.variable_name(name))), place)
        description = cls.model_fields[field].description if field in cls.model_fields else ""
        what = "not set" if problem["type"] == "missing" else said
        return f"{cls.variable_name(field)}: {what}. It is: {description}"

    def server_tls(self) -> ServerTls | None:
        """Returns what callers connect by, None for plain connections.

        Raises InvalidArgument (TLS_FILES_UNUSABLE), which names the setting.
        """
        if not (self.tls_certificate or self.tls_key or self.tls_client_ca):
            return None
        return ServerTls(self.tls_certificate, self.tls_key, self.tls_client_ca)

    def client_tls(self) -> Tls | None:
        """Returns how other services of lorauter are called, None for plain connections."""
        return Tls(self.tls_ca, self.tls_certificate, self.tls_key) if self.tls_ca else None

    @model_validator(mode="after")
    def _ports_differ(self) -> Self:
        if self.http_port and self.http_port == self.grpc_port:
            raise ValueError(
                f"LORAUTER_HTTP_PORT and LORAUTER_GRPC_PORT are both {self.http_port}: give two, or 0"
            )
        return self

    @model_validator(mode="after")
    def _usable_files(self) -> Self:
        try:
            self.server_tls()
            if (outgoing := self.client_tls()) is not None:
                WatchedTls(outgoing)
        except InvalidArgument as error:
            raise PydanticCustomError("tls_files", "{problem}", {"problem": error.message}) from None
        return self

    @classmethod
    def variable_name(cls, field: str) -> str:
        """Returns the environment variable of a field."""
        info = cls.model_fields.get(field)
        if info is None:
            return field
        alias = info.validation_alias
        if isinstance(alias, AliasChoices):
            return str(alias.choices[0])
        return f"LORAUTER_{field.upper()}"

    def redacted(self) -> dict[str, str]:
        """Returns the settings by variable name, with passwords in URLs hidden."""
        return {self.variable_name(name): _redact(getattr(self, name)) for name in type(self).model_fields}


class AccessSettings(ServiceSettings):
    """Settings of a service that asks its callers for keys."""

    access: Literal["keys", "open"] = Field(
        "keys",
        description="`keys`: callers need a key. `open`: every caller may do everything, as "
        "`LORAUTER_TENANT`: for development, or behind something that checks.",
    )
    tenant: str = Field(
        "default",
        pattern=TENANT_PATTERN,
        description="Whose data callers see where access is open.",
    )


class RemoteAccessSettings(AccessSettings):
    """Settings of a service that has the registry check keys."""

    registry_address: str = Field(
        "",
        pattern=r"^(\S+:\d{1,5})?$",
        validate_default=True,
        description="The registry's gRPC address, host:port: it checks keys. Needed unless access is open.",
    )

    @field_validator("registry_address")
    @classmethod
    def _needed(cls, value: str, info: ValidationInfo) -> str:
        if not value and info.data.get("access") == "keys":
            raise ValueError(
                "keys are checked by the registry: give its gRPC address, host:port, "
                "or let everybody in with LORAUTER_ACCESS=open"
            )
        return value


class BackendSettings(ServiceSettings):
    """Settings of a service that calls inference servers."""

    backend_key: BackendKey = Field(
        SecretStr(""),
        description="Sent to inference servers as `authorization: Bearer`: what TGI and vLLM have as "
        "`--api-key`, and the engine as this setting. What callers send never reaches them.",
    )

    def backend_access(self) -> BackendAccess:
        """Returns how inference servers are called."""
        return BackendAccess(self.backend_key.get_secret_value(), self.client_tls())


def _redact(value: object) -> str:
    if isinstance(value, Url) and value.password:
        return str(value).replace(f":{value.password}@", ":***@")
    return str(value)
