"""The registry's calls."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Iterable, Iterator

from lorauter.client.builders import (
    Example,
    import_header,
    import_stream,
    validation_header,
    validation_stream,
)
from lorauter.client.calls import AsyncNamespace, Listing, Lookup, SyncNamespace, Unary
from lorauter.client.options import TRANSFER_SECONDS, UPLOAD_SECONDS, WATCH_SECONDS
from lorauter.registry.v1 import registry_pb2 as pb

_PUT = "/lorauter.registry.v1.RegistryService/PutValidationSet"
_EXPORT = "/lorauter.registry.v1.RegistryService/ExportRegistry"
_IMPORT = "/lorauter.registry.v1.RegistryService/ImportRegistry"
_WATCH = "/lorauter.registry.v1.RegistryService/WatchOperation"


class RegistryCalls:
    """What Registry and AsyncRegistry have in common. Each call takes its request's fields as keywords."""

    service = "lorauter.registry.v1.RegistryService"

    create_pool = Unary("CreatePool", pb.CreatePoolRequest, pb.Pool)
    get_pool = Lookup("GetPool", pb.GetPoolRequest, pb.Pool)
    list_pools = Listing(
        "ListPools", pb.ListPoolsRequest, pb.ListPoolsResponse, lambda page: page.pools, pb.Pool
    )
    update_pool = Unary("UpdatePool", pb.UpdatePoolRequest, pb.Pool)

    register_backend = Unary("RegisterBackend", pb.RegisterBackendRequest, pb.Backend)
    list_backends = Listing(
        "ListBackends",
        pb.ListBackendsRequest,
        pb.ListBackendsResponse,
        lambda page: page.backends,
        pb.Backend,
    )
    drain_backend = Unary("DrainBackend", pb.DrainBackendRequest, pb.Backend)

    create_task = Unary("CreateTask", pb.CreateTaskRequest, pb.Task)
    get_task = Lookup("GetTask", pb.GetTaskRequest, pb.Task)
    list_tasks = Listing(
        "ListTasks", pb.ListTasksRequest, pb.ListTasksResponse, lambda page: page.tasks, pb.Task
    )
    update_task = Unary("UpdateTask", pb.UpdateTaskRequest, pb.Task)
    delete_task = Unary("DeleteTask", pb.DeleteTaskRequest, pb.DeleteTaskResponse)
    list_validation_examples = Listing(
        "ListValidationExamples",
        pb.ListValidationExamplesRequest,
        pb.ListValidationExamplesResponse,
        lambda page: page.examples,
        pb.ValidationExample,
    )

    register_adapter = Unary("RegisterAdapter", pb.RegisterAdapterRequest, pb.Adapter)
    get_adapter = Lookup("GetAdapter", pb.GetAdapterRequest, pb.Adapter)
    list_adapters = Listing(
        "ListAdapters",
        pb.ListAdaptersRequest,
        pb.ListAdaptersResponse,
        lambda page: page.adapters,
        pb.Adapter,
    )
    list_adapter_versions = Listing(
        "ListAdapterVersions",
        pb.ListAdapterVersionsRequest,
        pb.ListAdapterVersionsResponse,
        lambda page: page.versions,
        pb.AdapterVersion,
    )
    set_adapter_alias = Unary("SetAdapterAlias", pb.SetAdapterAliasRequest, pb.Adapter)
    update_adapter = Unary("UpdateAdapter", pb.UpdateAdapterRequest, pb.Adapter)
    retire_adapter = Unary("RetireAdapter", pb.RetireAdapterRequest, pb.Adapter)
    disable_adapter = Unary("DisableAdapter", pb.DisableAdapterRequest, pb.Adapter)

    list_affinities = Listing(
        "ListAffinities",
        pb.ListAffinitiesRequest,
        pb.ListAffinitiesResponse,
        lambda page: page.affinities,
        pb.Affinity,
    )
    import_affinities = Unary("ImportAffinities", pb.ImportAffinitiesRequest, pb.ImportAffinitiesResponse)
    start_matching = Unary("StartMatching", pb.StartMatchingRequest, pb.Operation)

    get_operation = Lookup("GetOperation", pb.GetOperationRequest, pb.Operation)
    list_operations = Listing(
        "ListOperations",
        pb.ListOperationsRequest,
        pb.ListOperationsResponse,
        lambda page: page.operations,
        pb.Operation,
    )
    cancel_operation = Unary("CancelOperation", pb.CancelOperationRequest, pb.Operation)

    list_profiles = Listing(
        "ListProfiles",
        pb.ListProfilesRequest,
        pb.ListProfilesResponse,
        lambda page: page.profiles,
        pb.Profile,
    )
    activate_profile = Unary("ActivateProfile", pb.ActivateProfileRequest, pb.Profile)

    get_decision = Lookup("GetDecision", pb.GetDecisionRequest, pb.Decision)
    list_decisions = Listing(
        "ListDecisions",
        pb.ListDecisionsRequest,
        pb.ListDecisionsResponse,
        lambda page: page.decisions,
        pb.Decision,
    )

    create_api_key = Unary("CreateApiKey", pb.CreateApiKeyRequest, pb.CreateApiKeyResponse)
    list_api_keys = Listing(
        "ListApiKeys", pb.ListApiKeysRequest, pb.ListApiKeysResponse, lambda page: page.keys, pb.ApiKey
    )
    rotate_api_key = Unary("RotateApiKey", pb.RotateApiKeyRequest, pb.CreateApiKeyResponse)
    revoke_api_key = Unary("RevokeApiKey", pb.RevokeApiKeyRequest, pb.ApiKey)
    who_am_i = Unary("WhoAmI", pb.WhoAmIRequest, pb.Caller, read=True)
    list_audit_entries = Listing(
        "ListAuditEntries",
        pb.ListAuditEntriesRequest,
        pb.ListAuditEntriesResponse,
        lambda page: page.entries,
        pb.AuditEntry,
    )

    propose_pool_manifest = Unary("ProposePoolManifest", pb.ProposePoolManifestRequest, pb.PoolManifest)
    publish_pool_manifest = Unary("PublishPoolManifest", pb.PublishPoolManifestRequest, pb.PoolManifest)
    list_pool_manifests = Listing(
        "ListPoolManifests",
        pb.ListPoolManifestsRequest,
        pb.ListPoolManifestsResponse,
        lambda page: page.manifests,
        pb.PoolManifest,
    )

    get_generation = Unary("GetGeneration", pb.GetGenerationRequest, pb.GetGenerationResponse, read=True)


class Registry(RegistryCalls, SyncNamespace):
    """The registry's calls, blocking."""

    def put_validation_set(
        self,
        task_id: str,
        examples: Iterable[Example],
        *,
        etag: str = "",
        request_id: str = "",
        timeout_seconds: float = UPLOAD_SECONDS,
    ) -> pb.Task:
        """Replaces a task's validation set by 1 to 100,000 examples, atomically.

        The examples are streamed as they are read. Retried on UNAVAILABLE unless ``examples`` is an
        iterator, which can be read only once.
        """
        header = validation_header(task_id, etag, request_id)
        return self.transport.upload(
            _PUT,
            lambda: validation_stream(header, examples),
            pb.Task,
            idempotent=not isinstance(examples, Iterator),
            timeout_seconds=timeout_seconds,
        )

    def watch_operation(
        self, id: str, *, timeout_seconds: float = WATCH_SECONDS
    ) -> Generator[pb.Operation, None, None]:
        """Yields the operation now and at every change until it is done; closing it stops watching."""
        return self.transport.download(
            _WATCH, pb.WatchOperationRequest(id=id), pb.Operation, timeout_seconds=timeout_seconds
        )

    def export_registry(
        self,
        *,
        without_weights: bool = False,
        without_embeddings: bool = False,
        with_keys: bool = False,
        timeout_seconds: float = TRANSFER_SECONDS,
    ) -> Generator[pb.ExportRegistryResponse, None, None]:
        """Yields an archive of the whole registry in pieces; the first says what is in it."""
        request = pb.ExportRegistryRequest(
            without_weights=without_weights, without_embeddings=without_embeddings, with_keys=with_keys
        )
        return self.transport.download(
            _EXPORT, request, pb.ExportRegistryResponse, timeout_seconds=timeout_seconds
        )

    def import_registry(
        self,
        pieces: Iterable[bytes],
        *,
        with_keys: bool = False,
        request_id: str = "",
        timeout_seconds: float = TRANSFER_SECONDS,
    ) -> pb.RegistryContents:
        """Fills an empty registry from an archive, wholly or not at all. Not retried."""
        header = import_header(with_keys, request_id)
        return self.transport.upload(
            _IMPORT,
            lambda: import_stream(header, pieces),
            pb.RegistryContents,
            idempotent=False,
            timeout_seconds=timeout_seconds,
        )


class AsyncRegistry(RegistryCalls, AsyncNamespace):
    """The registry's calls, asynchronous."""

    async def put_validation_set(
        self,
        task_id: str,
        examples: Iterable[Example],
        *,
        etag: str = "",
        request_id: str = "",
        timeout_seconds: float = UPLOAD_SECONDS,
    ) -> pb.Task:
        """Like Registry.put_validation_set."""
        header = validation_header(task_id, etag, request_id)
        return await self.transport.upload(
            _PUT,
            lambda: validation_stream(header, examples),
            pb.Task,
            idempotent=not isinstance(examples, Iterator),
            timeout_seconds=timeout_seconds,
        )

    def watch_operation(
        self, id: str, *, timeout_seconds: float = WATCH_SECONDS
    ) -> AsyncGenerator[pb.Operation, None]:
        """Like Registry.watch_operation."""
        return self.transport.download(
            _WATCH, pb.WatchOperationRequest(id=id), pb.Operation, timeout_seconds=timeout_seconds
        )

    def export_registry(
        self,
        *,
        without_weights: bool = False,
        without_embeddings: bool = False,
        with_keys: bool = False,
        timeout_seconds: float = TRANSFER_SECONDS,
    ) -> AsyncGenerator[pb.ExportRegistryResponse, None]:
        """Like Registry.export_registry."""
        request = pb.ExportRegistryRequest(
            without_weights=without_weights, without_embeddings=without_embeddings, with_keys=with_keys
        )
        return self.transport.download(
            _EXPORT, request, pb.ExportRegistryResponse, timeout_seconds=timeout_seconds
        )

    async def import_registry(
        self,
        pieces: Iterable[bytes],
        *,
        with_keys: bool = False,
        request_id: str = "",
        timeout_seconds: float = TRANSFER_SECONDS,
    ) -> pb.RegistryContents:
        """Like Registry.import_registry."""
        header = import_header(with_keys, request_id)
        return await self.transport.upload(
            _IMPORT,
            lambda: import_stream(header, pieces),
            pb.RegistryContents,
            idempotent=False,
            timeout_seconds=timeout_seconds,
        )
