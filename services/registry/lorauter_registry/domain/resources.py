"""What the registry answers: the protos' resources as plain values, for both transports."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from lorauter_registry.domain.fields import Moment, Value
from lorauter_registry.domain.serving import BackendLimits, ServingPolicy


class UntypicalPolicy(StrEnum):
    """What to do with queries unlike all tasks."""

    ROUTE = "ROUTE"
    BASE = "BASE"
    REFUSE = "REFUSE"
    ALL_ROUND = "ALL_ROUND"


class BackendKind(StrEnum):
    """What a backend speaks."""

    ENGINE = "ENGINE"
    TGI = "TGI"
    VLLM = "VLLM"


class BackendState(StrEnum):
    """Whether a backend takes requests."""

    ACTIVE = "ACTIVE"
    DRAINING = "DRAINING"


class PromptFormat(StrEnum):
    """How a task's prompts are built."""

    RAW = "RAW"
    CHAT = "CHAT"


class TaskState(StrEnum):
    """How far a task is."""

    REGISTERED = "REGISTERED"
    EMBEDDED = "EMBEDDED"
    MATCHING = "MATCHING"
    MATCHED = "MATCHED"


class AdapterState(StrEnum):
    """How far an adapter's version is."""

    REGISTERED = "REGISTERED"
    VERIFIED = "VERIFIED"
    ACTIVE = "ACTIVE"
    DRAINING = "DRAINING"
    RETIRED = "RETIRED"
    QUARANTINED = "QUARANTINED"


class OperationState(StrEnum):
    """How far an operation is."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def is_final(self) -> bool:
        """Whether nothing comes after it."""
        return self in (OperationState.SUCCEEDED, OperationState.FAILED, OperationState.CANCELLED)


class LinearModule(Value):
    """A linear layer of the base model."""

    name: str
    in_features: int
    out_features: int


class Pool(Value):
    """A base model with its adapters and backends."""

    id: str
    description: str
    base_model: str
    base_revision: str
    weights_digest: str
    tokenizer_digest: str
    aliases: tuple[str, ...]
    modules: tuple[LinearModule, ...]
    untypical_policy: UntypicalPolicy
    serving: ServingPolicy = ServingPolicy()
    etag: str
    generation: str
    create_time: Moment
    update_time: Moment


class Backend(Value):
    """An inference server of a pool."""

    id: str
    pool: str
    kind: BackendKind
    url: str
    state: BackendState
    limits: BackendLimits = BackendLimits()
    etag: str
    generation: str
    create_time: Moment
    update_time: Moment


class Prompt(Value):
    """How a task's prompts are built."""

    format: PromptFormat = PromptFormat.RAW
    system: str = ""


class GenerationSettings(Value):
    """How a task's answers are generated, greedily."""

    max_new_tokens: int
    stop: tuple[str, ...] = ()


class Lift(Value):
    """What a task's adapter gains over the base on examples that did not choose it."""

    adapter_id: str
    adapter_version: int
    base_score: float
    score: float
    standard_error: float
    count: int
    lift: float
    lift_error: float


class Task(Value):
    """A validation set with a metric, a prompt format and generation settings."""

    id: str
    pool: str
    description: str
    metric: str
    prompt: Prompt
    generation_settings: GenerationSettings
    tags: tuple[str, ...]
    version: int
    example_count: int
    state: TaskState
    etag: str
    generation: str
    create_time: Moment
    update_time: Moment
    base_score: float | None = None
    best_score: float | None = None
    best_adapter: str = ""
    lift: Lift | None = None


class ValidationExample(Value):
    """One question with its answer."""

    input: str
    target: str


class AdapterVersion(Value):
    """An immutable version of an adapter, addressed by its content."""

    adapter_id: str
    version: int
    digest: str
    source: str
    base_model: str
    base_assumed: bool
    rank: int
    alpha: float
    rslora: bool
    target_modules: tuple[str, ...]
    size_bytes: int
    state: AdapterState
    state_reason: str
    pins_until: Moment | None = None
    successor: str = ""
    create_time: Moment


class Adapter(Value):
    """A LoRA adapter with its newest version."""

    id: str
    pool: str
    description: str
    tags: tuple[str, ...]
    latest: AdapterVersion
    aliases: dict[str, int]
    served_version: int
    etag: str
    generation: str
    create_time: Moment
    update_time: Moment


class Affinity(Value):
    """The score of an adapter's version on a task's version."""

    pool: str
    task_id: str
    task_version: int
    adapter_id: str
    adapter_version: int
    score: float
    count: int
    standard_error: float
    metric: str
    metric_version: int
    prompt_digest: str
    round: int
    imported: bool
    measure_time: Moment
    shrunk_score: float
    eligible: bool
    judged_score: float | None = None
    judged_count: int
    lift: float | None = None
    lift_error: float
    likelihood: float | None = None
    place: int


class MatchingProgress(Value):
    """How far a matching is."""

    strategy: str = ""
    task_count: int = 0
    done_task_count: int = 0
    alive: tuple[int, ...] = ()
    max_evaluations: int = 0
    quarantined_count: int = 0


class Operation(Value):
    """Long work with progress."""

    id: str
    kind: str
    pool: str
    state: OperationState
    done: int
    total: int
    message: str
    error: str
    create_time: Moment
    update_time: Moment
    end_time: Moment | None = None
    cancel_requested: bool
    matching: MatchingProgress | None = None


class Profile(Value):
    """What was fitted over a pool's validation sets."""

    digest: str = ""
    pool: str
    generation: str = ""
    constants: dict[str, float] = Field(default_factory=dict)
    figures: dict[str, float] = Field(default_factory=dict)
    active: bool = False
    create_time: Moment | None = None
