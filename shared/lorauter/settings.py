"""What every service reads from its environment, checked before anything starts."""

from __future__ import annotations

import sys
from typing import Annotated, Any, Self

from pydantic import AliasChoices, Field, UrlConstraints, ValidationError
from pydantic_core import Url
from pydantic_settings import BaseSettings, SettingsConfigDict

HttpUrl = Annotated[Url, UrlConstraints(allowed_schemes=["http", "https"])]
PostgresUrl = Annotated[Url, UrlConstraints(allowed_schemes=["postgresql", "postgresql+psycopg"])]
RedisUrl = Annotated[Url, UrlConstraints(allowed_schemes=["redis", "rediss"])]


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

    @classmethod
    def load(cls) -> Self:
        """Reads the environment; on a bad value says which and exits with status 2."""
        try:
            return cls()
        except ValidationError as error:
            for problem in error.errors(include_url=False):
                name = cls.variable_name(str(problem["loc"][0])) if problem["loc"] else "settings"
                print(f"{name}: {problem['msg']}", file=sys.stderr)
            raise SystemExit(2) from None

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


def _redact(value: object) -> str:
    if isinstance(value, Url) and value.password:
        return str(value).replace(f":{value.password}@", ":***@")
    return str(value)
