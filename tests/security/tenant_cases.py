"""For every RPC and every HTTP route: what somebody sends who is after another tenant's things."""

from __future__ import annotations

from typing import Any

from tests.security.tenancy import QUERY

POOL = {"pool": "$pool"}
MEMORY = {"pool": "$pool", "memory_bytes": "1073741824"}
POINTED = {"query": QUERY, "pool": "$pool"}
GENERATING = {"prompt": QUERY, "parameters": {"max_new_tokens": 4}}
TRIED_POOLS = {"id": "$pool", "base_model": "tiny/base"}
TASK = {"id": "$task", "pool": "$pool", "metric": "exact_match"}
ADAPTER = {"id": "$adapter", "pool": "$pool", "path": "$folder"}
BACKEND = {"id": "$engine", "pool": "$pool", "url": "http://127.0.0.1:1"}
AFFINITIES = {"affinities": [{"task_id": "$task", "adapter_id": "$adapter", "score": 0.1, "count": 9}]}
KEY = {"scopes": ["read"]}

RPCS: dict[str, list[dict[str, Any]]] = {
    "GetPool": [{"id": "$pool"}],
    "ListPools": [{}, {"page_token": "$page"}],
    "UpdatePool": [{"id": "$pool", "description": "x"}],
    "ListBackends": [{}, POOL],
    "DrainBackend": [{"id": "$engine"}],
    "GetTask": [{"id": "$task"}],
    "ListTasks": [{}, POOL],
    "UpdateTask": [{"id": "$task", "description": "x"}],
    "PutValidationSet": [
        {
            "pieces": [
                {"header": {"task_id": "$task"}},
                {"chunk": {"examples": [{"input": "a", "target": "b"}]}},
            ]
        }
    ],
    "ListValidationExamples": [{"task_id": "$task"}, {"task_id": "$task", "version": 1}],
    "GetAdapter": [{"id": "$adapter"}],
    "ListAdapters": [{}, POOL],
    "ListAdapterVersions": [{"id": "$adapter"}],
    "SetAdapterAlias": [{"id": "$adapter", "alias": "champion", "version": 1}],
    "UpdateAdapter": [{"id": "$adapter", "description": "x"}],
    "RetireAdapter": [{"id": "$adapter", "version": 1}, {"id": "alpha-adapter", "successor": "$adapter"}],
    "DisableAdapter": [{"id": "$adapter", "version": 1, "reason": "x"}],
    "ListAffinities": [{}, POOL, {"task_id": "$task"}, {"adapter_id": "$adapter"}],
    "ImportAffinities": [
        AFFINITIES,
        {"affinities": [{"task_id": "alpha-task", "adapter_id": "$adapter", "score": 0.1, "count": 9}]},
    ],
    "StartMatching": [
        POOL,
        {"pool": "alpha-pool", "task_ids": ["$task"]},
        {"pool": "alpha-pool", "adapter_ids": ["$adapter"]},
    ],
    "GetOperation": [{"id": "$operation"}],
    "ListOperations": [{}, POOL],
    "WatchOperation": [{"id": "$operation"}],
    "CancelOperation": [{"id": "$operation"}],
    "ListProfiles": [POOL],
    "ActivateProfile": [
        {"pool": "$pool", "digest": "$profile"},
        {"pool": "alpha-pool", "digest": "$profile"},
    ],
    "GetDecision": [{"id": "$decision"}],
    "ListDecisions": [{}, POOL, {"page_size": 1, "page_token": "$page"}, {"with_features": True}],
    "ListApiKeys": [{}],
    "RotateApiKey": [{"id": "$key"}],
    "RevokeApiKey": [{"id": "$key"}],
    "WhoAmI": [{}],
    "ListAuditEntries": [{}, {"key_id": "$key"}],
    "ProposePoolManifest": [MEMORY],
    "PublishPoolManifest": [
        {"pool": "$pool", "digest": "$manifest"},
        {"pool": "alpha-pool", "digest": "$manifest"},
    ],
    "ListPoolManifests": [POOL],
    "ExportRegistry": [{"without_weights": True}],
    "ImportRegistry": [{"pieces": [{"header": {}}, {"data": "AAAA"}]}],
    "GetGeneration": [{}],
    "Route": [
        POINTED,
        {"query": QUERY, "tenant": "$tenant"},
        {"query": QUERY, "min_generation": "$generation"},
        {"query": QUERY, "explain": True, "why_not": ["$adapter"]},
        {"query": QUERY, "exclude_tasks": ["$task"], "exclude_adapters": ["$adapter"]},
    ],
    "RouteBatch": [{"requests": [POINTED]}, {"requests": [{"query": QUERY}, POINTED]}],
    "Replay": [{**POOL, "queries": [{"vector": "A" * 1024}]}],
    "GetSnapshot": [{}, POOL, {"all_tenants": True}],
    "ResolveAdapter": [
        {"adapter": "$adapter"},
        {"adapter": "$adapter", "pool": "$pool"},
        {"adapter": "$adapter", "pool": "alpha-pool"},
        {"adapter": "$adapter", "tenant": "$tenant"},
    ],
    "ListServableAdapters": [{}, POOL, {"tenant": "$tenant"}],
    "Generate": [
        {**GENERATING, **POOL},
        {**GENERATING, "adapter": "$adapter"},
        {**GENERATING, "adapter": "$adapter", **POOL},
        {**GENERATING, "base": True, **POOL},
        {**GENERATING, "routing": {"tenant": "$tenant"}},
        GENERATING,
    ],
    "CreatePool": [TRIED_POOLS],
    "CreateTask": [TASK, {**TASK, "pool": "alpha-pool"}],
    "RegisterAdapter": [{**ADAPTER, "path": "/etc"}],
    "RegisterBackend": [BACKEND],
    "CreateApiKey": [{**KEY, "tenant": "$tenant"}, {**KEY, "any_tenant": True}, KEY],
    "DeleteTask": [{"id": "$task"}],
}
"""In the order in which they are tried: what makes things under others' names comes last."""
RPCS["GenerateStream"] = RPCS["Generate"]

Body = tuple[object, dict[str, Any]]
"""A body and a query."""

REST: dict[tuple[str, str], list[Body]] = {
    ("GET", "/v1/pools"): [(None, {}), (None, {"page_token": "$page"})],
    ("GET", "/v1/pools/{pool_id}"): [(None, {})],
    ("PATCH", "/v1/pools/{pool_id}"): [({"description": "x"}, {})],
    ("POST", "/v1/pools/{pool_id}/manifests"): [({"memory_bytes": 2**30}, {})],
    ("GET", "/v1/pools/{pool_id}/manifests"): [(None, {})],
    ("POST", "/v1/pools/{pool_id}/manifests/{digest}/publish"): [({}, {})],
    ("GET", "/v1/backends"): [(None, {}), (None, POOL)],
    ("POST", "/v1/backends/{backend_id}/drain"): [({}, {})],
    ("GET", "/v1/tasks"): [(None, {}), (None, POOL)],
    ("GET", "/v1/tasks/{task_id}"): [(None, {})],
    ("PATCH", "/v1/tasks/{task_id}"): [({"description": "x"}, {})],
    ("PUT", "/v1/tasks/{task_id}/validation-set"): [('{"input": "a", "target": "b"}\n', {})],
    ("GET", "/v1/tasks/{task_id}/validation-set"): [(None, {}), (None, {"version": 1})],
    ("GET", "/v1/adapters"): [(None, {}), (None, POOL)],
    ("GET", "/v1/adapters/{adapter_id}"): [(None, {})],
    ("PATCH", "/v1/adapters/{adapter_id}"): [({"description": "x"}, {})],
    ("GET", "/v1/adapters/{adapter_id}/versions"): [(None, {})],
    ("PUT", "/v1/adapters/{adapter_id}/aliases/{alias}"): [({"version": 1}, {})],
    ("DELETE", "/v1/adapters/{adapter_id}/aliases/{alias}"): [(None, {})],
    ("POST", "/v1/adapters/{adapter_id}/retire"): [({"version": 1}, {})],
    ("POST", "/v1/adapters/{adapter_id}/disable"): [({"version": 1, "reason": "x"}, {})],
    ("GET", "/v1/affinities"): [(None, {}), (None, POOL), (None, {"task_id": "$task"})],
    ("POST", "/v1/affinities"): [(AFFINITIES, {})],
    ("POST", "/v1/matchings"): [(POOL, {})],
    ("GET", "/v1/operations"): [(None, {}), (None, POOL)],
    ("GET", "/v1/operations/{operation_id}"): [(None, {})],
    ("GET", "/v1/operations/{operation_id}/events"): [(None, {})],
    ("POST", "/v1/operations/{operation_id}/cancel"): [({}, {})],
    ("GET", "/v1/profiles"): [(None, POOL)],
    ("POST", "/v1/profiles/activate"): [({"pool": "$pool", "digest": "$profile"}, {})],
    ("GET", "/v1/generation"): [(None, {})],
    ("GET", "/v1/decisions"): [(None, {}), (None, POOL), (None, {"page_token": "$page"})],
    ("GET", "/v1/decisions/{decision_id}"): [(None, {})],
    ("GET", "/v1/keys"): [(None, {})],
    ("POST", "/v1/keys/{key_id}/rotate"): [({}, {})],
    ("POST", "/v1/keys/{key_id}/revoke"): [({}, {})],
    ("GET", "/v1/whoami"): [(None, {})],
    ("GET", "/v1/audit"): [(None, {}), (None, {"key_id": "$key"})],
    ("POST", "/v1/pools"): [(TRIED_POOLS, {})],
    ("POST", "/v1/tasks"): [({**TASK, "pool": "alpha-pool"}, {}), (TASK, {})],
    ("POST", "/v1/adapters"): [({**ADAPTER, "path": "/etc"}, {})],
    ("POST", "/v1/backends"): [({**BACKEND, "kind": "ENGINE"}, {})],
    ("PUT", "/v1/backends/{backend_id}"): [
        ({"pool": "$pool", "kind": "ENGINE", "url": "http://127.0.0.1:1"}, {})
    ],
    ("POST", "/v1/keys"): [({**KEY, "tenant": "$tenant"}, {}), (KEY, {})],
    ("DELETE", "/v1/tasks/{task_id}"): [(None, {})],
}

_TGI = {"inputs": QUERY, "parameters": {"max_new_tokens": 4, "adapter_id": "$adapter"}}
_CHAT = {"messages": [{"role": "user", "content": QUERY}], "max_tokens": 4}

GATEWAY: dict[tuple[str, str], list[Body]] = {
    ("POST", "/"): [(_TGI, {})],
    ("POST", "/generate"): [(_TGI, {})],
    ("POST", "/generate_stream"): [(_TGI, {})],
    ("POST", "/v1/completions"): [
        ({"model": model, "prompt": QUERY, "max_tokens": 4}, {})
        for model in ("$adapter", "auto:$pool", "base:$pool", "org/$tenant-base", "auto")
    ],
    ("POST", "/v1/chat/completions"): [
        ({"model": model, **_CHAT}, {}) for model in ("$adapter", "auto:$pool", "org/$tenant-base", "auto")
    ],
    ("POST", "/v1/route"): [(POINTED, {}), ({"query": QUERY, "tenant": "$tenant"}, {})],
    ("GET", "/info"): [(None, {})],
    ("GET", "/v1/models"): [(None, {})],
    ("GET", "/v1/models/{name:path}"): [(None, {})],
    ("GET", "/v1/backends"): [(None, {})],
}

PLACES = {
    "pool_id": "$pool",
    "task_id": "$task",
    "adapter_id": "$adapter",
    "backend_id": "$engine",
    "operation_id": "$operation",
    "decision_id": "$decision",
    "key_id": "$key",
    "digest": "$manifest",
    "alias": "champion",
    "name:path": "$adapter",
}
"""What stands for the parameters of paths."""
