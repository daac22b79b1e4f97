"""The rows of an archive: one class for each table, its fields the table's columns but for the tenant.

Fields that callers write have the bounds that requests have; what the suite wrote itself is checked as
closely as its table says.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from lorauter.identifiers import BASE
from lorauter_registry.domain.affinity_requests import AFFINITY_FIELDS, AffinityInput
from lorauter_registry.domain.archives.columns import (
    HEX,
    MAX_MEASURED,
    AnyDigest,
    Big,
    Bytes,
    Changed,
    Digest,
    Features,
    Key,
    Metric,
    Number,
    Row,
    Scored,
    whole_floats,
)
from lorauter_registry.domain.fields import (
    AdapterId,
    Alias,
    BackendUrl,
    BaseAliases,
    Count,
    Description,
    Id,
    Moment,
    Name,
    OptionalId,
    Share,
    Tags,
    Text,
    Value,
    Version,
)
from lorauter_registry.domain.keys import PerMinute, Scopes
from lorauter_registry.domain.requests import GenerationSettingsInput, PromptInput, Revision
from lorauter_registry.domain.resources import (
    AdapterState,
    BackendKind,
    BackendState,
    OperationState,
    TaskState,
    UntypicalPolicy,
)
from lorauter_registry.domain.serving import BackendLimits, ServingPolicy, check_limits


class PoolRow(Changed):
    """A pool."""

    table = "pool"

    id: Id
    description: Description
    base_model: Name
    base_revision: Revision
    weights_digest: AnyDigest
    tokenizer_digest: AnyDigest
    aliases: BaseAliases
    modules: Annotated[dict[Name, Features], Field(max_length=100_000)]
    chat_format: dict[Literal["template", "eos"], Annotated[Text, Field(max_length=65_536)]]
    untypical_policy: UntypicalPolicy
    serving: ServingPolicy
    pinned_profile: AnyDigest


class BackendRow(Changed):
    """A backend."""

    table = "backend"

    id: Id
    pool: Id
    kind: BackendKind
    url: BackendUrl
    limits: BackendLimits
    state: BackendState

    @model_validator(mode="after")
    def _limits_suit_kind(self) -> Self:
        check_limits(self.kind, self.limits)
        return self


class TaskRow(Changed):
    """A task."""

    table = "task"

    id: Id
    pool: Id
    description: Description
    metric: Metric
    prompt: PromptInput
    generation_settings: GenerationSettingsInput
    tags: Tags
    version: Version
    example_count: Count
    state: TaskState


class TaskVersionRow(Row):
    """A version of a task."""

    table = "task_version"

    task_id: Id
    version: Number
    metric: Metric
    prompt_digest: Digest
    examples_version: Number
    examples_digest: Digest | Literal[""]
    example_count: Number
    create_time: Moment


class ValidationExampleRow(Row):
    """An example of a validation set. Its texts are checked with the whole set."""

    table = "validation_example"

    task_id: Id
    version: Number
    position: Count
    input: str
    target: str


class AdapterRow(Changed):
    """An adapter."""

    table = "adapter"

    id: AdapterId
    pool: Id
    description: Description
    tags: Tags
    aliases: dict[Alias, Number]
    latest_version: Number


class AdapterVersionRow(Row):
    """A version of an adapter."""

    table = "adapter_version"

    adapter_id: AdapterId
    version: Number
    digest: Digest
    source: Annotated[Text, Field(max_length=4_200)]
    base_model: Annotated[Text, Field(max_length=65_536)]
    base_assumed: bool
    rank: Number
    alpha: float
    rslora: bool
    target_modules: Annotated[tuple[Text, ...], Field(max_length=100_000)]
    size_bytes: Big
    state: AdapterState
    state_reason: Annotated[Text, Field(max_length=65_536)]
    pins_until: Moment | None
    successor: OptionalId
    create_time: Moment


class ProfileRow(Row):
    """A routing profile."""

    table = "profile"

    pool: Id
    digest: Annotated[AnyDigest, Field(min_length=1)]
    generation: Big
    constants: Annotated[dict[Text, float], Field(max_length=1_000)]
    figures: Annotated[dict[Text, float], Field(max_length=1_000)]
    active: bool
    create_time: Moment


class MemberRow(Value):
    """An adapter in a weighted set."""

    adapter_id: AdapterId
    version: Number
    digest: Digest
    weight: float


Members = Annotated[tuple[MemberRow, ...], Field(min_length=1, max_length=1_000)]


class EntryRow(Value):
    """What a manifest loads."""

    name: Annotated[Text, Field(min_length=1, max_length=128)]
    members: Members
    rank: Number
    size_bytes: Big
    gain: float


class LeftOutRow(Value):
    """What a manifest leaves out."""

    members: Members
    size_bytes: Big
    gain: float
    reason: Annotated[Text, Field(max_length=65_536)]


class PoolManifestRow(Row):
    """A pool manifest; what it needs in the adapter store is written there anew."""

    table = "pool_manifest"

    pool: Id
    digest: Digest
    entries: tuple[EntryRow, ...]
    left_out: tuple[LeftOutRow, ...]
    shards: Number
    memory_bytes: Big
    expected_share: float
    published_share: float
    create_time: Moment
    publish_time: Moment | None


class AffinityRow(Row):
    """An affinity: all that an import of affinities may say, and nothing left out."""

    table = "affinity"

    task_id: Id
    task_version: Number
    adapter_id: Id
    adapter_version: Version
    metric: Metric
    metric_version: Count
    prompt_digest: Digest
    score: float
    count: Count
    standard_error: float
    round: Count
    imported: bool
    measure_time: Moment
    shrunk_score: float
    eligible: bool
    judged_score: float | None
    judged_count: Count
    lift: float | None
    lift_error: float
    likelihood: float | None
    place: Count

    @model_validator(mode="after")
    def _could_be_imported(self) -> Self:
        values = self.model_dump()
        if self.adapter_id == BASE:
            values["eligible"] = None
        AffinityInput(**{name: value for name, value in values.items() if name in AFFINITY_FIELDS})
        return self


class CompositionRow(Row):
    """A measured composition."""

    table = "composition"

    task_id: Id
    task_version: Number
    name: Annotated[Text, Field(min_length=1, max_length=256)]
    metric: Metric
    metric_version: Count
    prompt_digest: Digest
    members: Members
    score: Share
    count: Count
    standard_error: float
    gain: float
    gain_error: float
    measure_time: Moment


class MeasurementRow(Row):
    """What content scored, example by example."""

    table = "measurement"

    task_id: Id
    digest: Annotated[Text, Field(max_length=256)]
    metric: Metric
    metric_version: Count
    prompt_digest: Digest
    keys: Annotated[tuple[Key, ...], Field(max_length=MAX_MEASURED)]
    scores: Scored
    likelihoods: Scored
    measure_time: Moment

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if not len(self.keys) == len(self.scores) == len(self.likelihoods):
            raise ValueError("keys, scores and likelihoods differ in length")
        return self

    def values(self) -> dict[str, Any]:
        """Returns the columns' values; what was not measured is NaN there."""
        found = super().values()
        for name in ("scores", "likelihoods"):
            found[name] = [float("nan") if value is None else value for value in found[name]]
        return found


class OperationRow(Row):
    """An operation that has ended."""

    table = "operation"

    id: Annotated[Text, Field(min_length=1, max_length=128)]
    kind: Annotated[Text, Field(min_length=1, max_length=63)]
    pool: Id
    state: Literal[OperationState.SUCCEEDED, OperationState.FAILED, OperationState.CANCELLED]
    request: dict[str, Any]
    done: Big
    total: Big
    message: Text
    error: Text
    progress: dict[str, Any]
    cancel_requested: bool
    create_time: Moment
    update_time: Moment
    end_time: Moment | None


class CachedEmbeddingRow(Row):
    """The vector of a text."""

    table = "cached_embedding"

    encoder_digest: Annotated[Text, Field(min_length=1, max_length=256)]
    text_digest: Annotated[str, Field(pattern=f"^{HEX}$")]
    vector: Annotated[Bytes, AfterValidator(whole_floats)]


class KeyRow(Row):
    """An API key: its digest, from which nobody can make it."""

    table = "api_key"

    id: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    description: Description
    scopes: Scopes
    digest: Annotated[Bytes, Field(min_length=32, max_length=32)]
    any_tenant: bool
    requests_per_minute: PerMinute
    tokens_per_minute: PerMinute
    successor: OptionalId
    expire_time: Moment | None
    revoke_time: Moment | None
    create_time: Moment


ROWS: dict[str, type[Row]] = {
    kind.table: kind
    for kind in (
        *(PoolRow, BackendRow, TaskRow, TaskVersionRow, ValidationExampleRow),
        *(AdapterRow, AdapterVersionRow, ProfileRow, PoolManifestRow),
        *(AffinityRow, CompositionRow, MeasurementRow, OperationRow, CachedEmbeddingRow, KeyRow),
    )
}
"""By table, in the order of an archive: what is referred to comes first."""
