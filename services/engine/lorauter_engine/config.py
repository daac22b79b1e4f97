"""The engine's settings."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, SecretStr, model_validator

from lorauter.settings import BackendKey, ServiceSettings


class Settings(ServiceSettings):
    """Environment of lorauter-engine."""

    model: Path = Field(description="Folder of the base model: config, safetensors weights, tokenizer.json.")
    model_id: str = Field(
        "", max_length=256, description="Name that the model is served under; empty: the folder's name."
    )
    adapter_store: Path = Field(description="Folder of the content-addressed adapter store; read only.")
    device: str = Field(
        "auto", pattern="^(auto|cpu|cuda)$", description="Where the model runs; auto: a GPU if there is one."
    )
    dtype: str = Field(
        "auto",
        pattern="^(auto|float32|bfloat16|float16)$",
        description="Precision; auto: float32 on a CPU, bfloat16 on a GPU.",
    )
    threads: int = Field(1, ge=1, le=256, description="CPU threads of a forward pass.")
    max_total_tokens: int = Field(
        0, ge=0, le=1_048_576, description="Most tokens of prompt and answer; 0: the model's context."
    )
    max_rows: int = Field(256, ge=1, le=4096, description="Most generations that decode together.")
    reserved_rows: int = Field(
        16, ge=0, le=1024, description="Rows of these that bulk generation never takes."
    )
    max_batch_tokens: int = Field(
        65_536, ge=128, description="Bound on rows times the longest row's tokens: the key-value cache."
    )
    prefill_tokens: int = Field(4096, ge=64, description="Padded prompt tokens that begin together.")
    pass_tokens: int = Field(
        1024, ge=64, description="Padded tokens of one pass over prompts or scored texts; more for a GPU."
    )
    max_concurrent_requests: int = Field(
        256, ge=1, le=100_000, description="Requests under way, waiting ones included; more are refused: 429."
    )
    max_waiting_rows: int = Field(
        2048,
        ge=1,
        le=1_000_000,
        description="Generations that may wait for the batch; more are refused: 429.",
    )
    max_waiting_items: int = Field(
        8192, ge=1, le=1_000_000, description="Scoring items that may wait; more are refused: 429."
    )
    max_adapters_per_request: int = Field(16, ge=1, le=256, description="Most adapters in one set.")
    max_rank: int = Field(128, ge=1, le=1024, description="Highest rank of an adapter that is loaded.")
    adapter_bytes: int = Field(
        1024**3, ge=1024, description="Memory for resident adapters; the least recently used leave first."
    )
    adapter_count: int = Field(1024, ge=1, le=1_000_000, description="Most adapters resident at once.")
    concatenation_bytes: int = Field(
        512 * 1024**2,
        ge=0,
        description="Memory for adapters side by side for sets that come again, and again for the batch's.",
    )
    max_body_bytes: int = Field(
        16 * 1024**2, ge=1024, description="Largest request body; more is refused: 413."
    )

    backend_key: BackendKey = Field(
        SecretStr(""),
        description="Demanded of callers as `authorization: Bearer`, but for probes and metrics.",
    )

    @model_validator(mode="after")
    def _rows_are_left_for_bulk(self) -> Self:
        if self.reserved_rows >= self.max_rows and "reserved_rows" in self.model_fields_set:
            raise ValueError(
                f"LORAUTER_RESERVED_ROWS is {self.reserved_rows}: give less than LORAUTER_MAX_ROWS, which is "
                f"{self.max_rows}, or bulk generation never begins"
            )
        return self

    @property
    def served_name(self) -> str:
        """The base model's name in answers."""
        return self.model_id or self.model.name
