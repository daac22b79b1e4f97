"""Both transports are one service: every RPC has a REST twin that gives the same resource."""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message
from sqlmodel import Session

from lorauter.manifests import manifest_digest
from lorauter.registry.v1 import registry_pb2 as pb
from lorauter.store.tables import Decision
from lorauter_registry.api.convert import to_message
from lorauter_registry.domain import answers, decisions, keys, manifests, resources
from lorauter_registry.domain.fields import Value

RPCS = {method.name: method for method in pb.DESCRIPTOR.services_by_name["RegistryService"].methods}
KINDS: dict[str, type[Value]] = {
    **{
        name: getattr(resources, name)
        for name in ("Pool", "Backend", "Task", "Adapter", "Operation", "Profile")
    },
    "ListPoolsResponse": answers.PoolList,
    "ListBackendsResponse": answers.BackendList,
    "ListTasksResponse": answers.TaskList,
    "ListValidationExamplesResponse": answers.ValidationExampleList,
    "ListAdaptersResponse": answers.AdapterList,
    "ListAdapterVersionsResponse": answers.AdapterVersionList,
    "ListAffinitiesResponse": answers.AffinityList,
    "ListOperationsResponse": answers.OperationList,
    "ListProfilesResponse": answers.ProfileList,
    "Decision": decisions.Decision,
    "ListDecisionsResponse": decisions.DecisionList,
    "DeleteTaskResponse": answers.DeletedTask,
    "ImportAffinitiesResponse": answers.ImportedAffinities,
    "PoolManifest": manifests.PoolManifest,
    "ListPoolManifestsResponse": manifests.PoolManifestList,
    "GetGenerationResponse": answers.Generations,
    "ListApiKeysResponse": keys.ApiKeyList,
    "Caller": keys.WhoIs,
    "ListAuditEntriesResponse": keys.AuditEntryList,
}
ELSEWHERE = {
    "WatchOperation",  # streams
    "ExportRegistry",
    "ImportRegistry",
    "CreateApiKey",  # tell secrets once: test_registry_keys
    "RotateApiKey",
    "RevokeApiKey",
}

EMPTY_MANIFEST = manifest_digest("p", [])


DECISION: dict[str, Any] = {
    "tenant": "default",
    "id": "0" * 32,
    "pool": "p",
    "time": datetime(2030, 1, 31, 12, tzinfo=UTC),
    "strategy": "default",
    "generation": 7,
    "profile_digest": "sha256:p",
    "encoder_digest": "sha256:e",
    "stale": True,
    "action": "ADAPTERS",
    "best_adapter": "a",
    "best_version": 1,
    "expected_utility": 0.75,
    "typicality": 0.5,
    "adapters": [{"adapter_id": "a", "version": 1, "weight": 1.0}],
    "tasks": [{"task_id": "t", "similarity": 0.5, "probability": 1.0}],
    "options": {"max_adapters": 3, "tags": [""], "exclude_tasks": ["u"], "exclude_adapters": []},
    "text_digest": "f" * 32,
    "vector": b"\x00\xff\x3c",
    "terms": b"\xfe",
    "text": "é",
}


@dataclass
class Twin:
    """An RPC and the REST call that asks for the same."""

    rpc: str
    fields: dict[str, Any]
    method: str
    path: str
    body: dict[str, Any] | None = None
    query: dict[str, Any] = field(default_factory=dict)


def twins(served: Any, operation: str) -> list[Twin]:
    path = str(served.files.adapter("a"))
    pool = {"id": "p", "base_model": "tiny/base", "base_path": str(served.files.base())}
    task = {"id": "t", "pool": "p", "metric": "exact_match", "tags": ["x"], "prompt": {"format": "CHAT"}}
    rpc_task = {**task, "prompt": {"format": "PROMPT_FORMAT_CHAT"}}
    limits = {"max_rank": 16, "adapters_path": "/models/adapters", "shards": 2}
    engine = {"id": "e", "pool": "p", "url": "dns+http://localhost:1", "limits": limits}
    affinities = {"affinities": [{"task_id": "t", "adapter_id": "base", "score": 0.5, "count": 2}]}
    page = {"page_size": 1}
    return [
        Twin("CreatePool", pool, "POST", "/v1/pools", pool),
        Twin("GetPool", {"id": "p"}, "GET", "/v1/pools/p"),
        Twin("ListPools", page, "GET", "/v1/pools", query=page),
        Twin(
            "UpdatePool",
            {
                "id": "p",
                "aliases": ["other/name"],
                "replace_aliases": True,
                "untypical_policy": 4,
                "serving": {"fallback": 2, "manifest_memory_bytes": "5000000000"},
            },
            "PATCH",
            "/v1/pools/p",
            {
                "aliases": ["other/name"],
                "untypical_policy": "ALL_ROUND",
                "replace_aliases": True,
                "serving": {"fallback": "REFUSE", "manifest_memory_bytes": 5_000_000_000},
            },
        ),
        Twin("RegisterBackend", {**engine, "kind": 1}, "POST", "/v1/backends", {**engine, "kind": "ENGINE"}),
        Twin("ListBackends", {"pool": "p"}, "GET", "/v1/backends", query={"pool": "p"}),
        Twin("CreateTask", rpc_task, "POST", "/v1/tasks", task),
        Twin("GetTask", {"id": "t"}, "GET", "/v1/tasks/t"),
        Twin("ListTasks", {"pool": "p"}, "GET", "/v1/tasks", query={"pool": "p"}),
        Twin("UpdateTask", {"id": "t", "description": "d"}, "PATCH", "/v1/tasks/t", {"description": "d"}),
        Twin("PutValidationSet", {"task_id": "t"}, "PUT", "/v1/tasks/t/validation-set"),
        Twin(
            "ListValidationExamples",
            {"task_id": "t", **page},
            "GET",
            "/v1/tasks/t/validation-set",
            query=page,
        ),
        Twin(
            "RegisterAdapter",
            {"id": "a", "pool": "p", "path": path},
            "POST",
            "/v1/adapters",
            {"id": "a", "pool": "p", "path": path},
        ),
        Twin("GetAdapter", {"id": "a"}, "GET", "/v1/adapters/a"),
        Twin("ListAdapters", {"state": 3}, "GET", "/v1/adapters", query={"state": "ACTIVE"}),
        Twin("ListAdapterVersions", {"id": "a"}, "GET", "/v1/adapters/a/versions"),
        Twin(
            "SetAdapterAlias",
            {"id": "a", "alias": "champion", "version": 1},
            "PUT",
            "/v1/adapters/a/aliases/champion",
            {"version": 1},
        ),
        Twin(
            "UpdateAdapter", {"id": "a", "description": "d"}, "PATCH", "/v1/adapters/a", {"description": "d"}
        ),
        Twin("ImportAffinities", affinities, "POST", "/v1/affinities", affinities),
        Twin("ListAffinities", {"task_id": "t"}, "GET", "/v1/affinities", query={"task_id": "t"}),
        Twin(
            "ProposePoolManifest",
            {"pool": "p", "memory_bytes": 7},
            "POST",
            "/v1/pools/p/manifests",
            {"memory_bytes": 7},
        ),
        Twin(
            "PublishPoolManifest",
            {"pool": "p", "digest": EMPTY_MANIFEST},
            "POST",
            f"/v1/pools/p/manifests/{EMPTY_MANIFEST}/publish",
        ),
        Twin("ListPoolManifests", {"pool": "p", **page}, "GET", "/v1/pools/p/manifests", query=page),
        Twin(
            "StartMatching",
            {"pool": "p", "max_evaluations": 9, "max_duration": "90.5s", "priority": -1},
            "POST",
            "/v1/matchings",
            {"pool": "p", "max_evaluations": 9, "max_duration": "PT90.5S", "priority": -1},
        ),
        Twin("ListOperations", {"pool": "p"}, "GET", "/v1/operations", query={"pool": "p"}),
        Twin("GetOperation", {"id": operation}, "GET", f"/v1/operations/{operation}"),
        Twin("CancelOperation", {"id": operation}, "POST", f"/v1/operations/{operation}/cancel"),
        Twin("DrainBackend", {"id": "e"}, "POST", "/v1/backends/e/drain"),
        Twin("ListProfiles", {"pool": "p"}, "GET", "/v1/profiles", query={"pool": "p"}),
        Twin("ActivateProfile", {"pool": "p"}, "POST", "/v1/profiles/activate", {"pool": "p"}),
        Twin("RetireAdapter", {"id": "a"}, "POST", "/v1/adapters/a/retire"),
        Twin(
            "DisableAdapter",
            {"id": "a", "reason": "bad"},
            "POST",
            "/v1/adapters/a/disable",
            {"reason": "bad"},
        ),
        Twin("DeleteTask", {"id": "t"}, "DELETE", "/v1/tasks/t"),
        Twin("GetDecision", {"id": DECISION["id"]}, "GET", f"/v1/decisions/{DECISION['id']}"),
        Twin(
            "ListDecisions",
            {"pool": "p", "since": "2030-01-31T12:00:00Z", "with_features": True},
            "GET",
            "/v1/decisions",
            query={"pool": "p", "since": "2030-01-31T12:00:00Z", "with_features": True},
        ),
        Twin("GetGeneration", {}, "GET", "/v1/generation"),
        Twin("ListApiKeys", page, "GET", "/v1/keys", query=page),
        Twin("WhoAmI", {}, "GET", "/v1/whoami"),
        Twin("ListAuditEntries", page, "GET", "/v1/audit", query=page),
    ]


async def over_grpc(served: Any, twin: Twin, request_id: str) -> Message:
    if twin.rpc == "PutValidationSet":
        header = pb.PutValidationSetHeader(task_id="t", request_id=request_id)
        examples = [pb.ValidationExample(input=f"in {i}", target=f"out {i}") for i in range(2)]
        chunk = pb.ValidationExampleChunk(examples=examples)
        pieces = [pb.PutValidationSetRequest(header=header), pb.PutValidationSetRequest(chunk=chunk)]
        return await served.rpc.PutValidationSet(iter(pieces))
    request_type = getattr(pb, RPCS[twin.rpc].input_type.name)
    request = json_format.ParseDict(twin.fields, request_type())
    if "request_id" in request_type.DESCRIPTOR.fields_by_name:
        request.request_id = request_id
    return await getattr(served.rpc, twin.rpc)(request)


async def over_rest(served: Any, twin: Twin, request_id: str) -> Any:
    headers = {} if twin.method == "GET" else {"idempotency-key": request_id}
    content = b'{"input": "in 0", "target": "out 0"}\n{"input": "in 1", "target": "out 1"}\n'
    payload = {"content": content} if twin.rpc == "PutValidationSet" else {"json": twin.body}
    answer = await served.http.request(twin.method, twin.path, params=twin.query, headers=headers, **payload)
    assert answer.is_success, answer.text
    return answer.json()


async def test_every_rpc_and_its_rest_twin_give_the_same_resource(served: Any) -> None:
    operation = ""
    with Session(served.registry.context.engine) as session:
        session.add(Decision.model_validate(DECISION))
        session.commit()
    names = [twin.rpc for twin in twins(served, "x")]
    assert {*names, *ELSEWHERE} == set(RPCS)
    for place in range(len(names)):
        twin = twins(served, operation)[place]
        # The same write over the other transport is a repetition of the first, not another one.
        request_id = str(uuid.uuid4())
        message = await over_grpc(served, twin, request_id)
        generation = await served.rpc.GetGeneration(pb.GetGenerationRequest())
        body = await over_rest(served, twin, request_id)
        kind = KINDS[RPCS[twin.rpc].output_type.name]
        assert to_message(kind.model_validate(body), type(message)) == message, twin.rpc
        assert await served.rpc.GetGeneration(pb.GetGenerationRequest()) == generation, twin.rpc
        if isinstance(message, pb.Operation):
            operation = message.id


async def test_document_describes_every_route_and_only_problems_as_errors(served: Any) -> None:
    document = (await served.http.get("/openapi.json")).json()
    assert len(document["paths"]) >= 25
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert operation["summary"], (method, path)
            assert "422" not in operation["responses"]
            content = operation["responses"]["default"]["content"]
            assert list(content) == ["application/problem+json"]
    schemas = document["components"]["schemas"]
    for reference in re.findall(r'"\$ref": "([^"]*)"', json.dumps(document)):
        assert reference.removeprefix("#/components/schemas/") in schemas, reference
    assert {"Pool", "Task", "Adapter", "Operation", "Problem", "ImportAffinities"} <= set(schemas)


async def test_service_is_ready_when_postgres_answers(served: Any) -> None:
    assert (await served.http.get("/healthz")).status_code == 200
    assert (await served.http.get("/readyz")).text == "ok"
