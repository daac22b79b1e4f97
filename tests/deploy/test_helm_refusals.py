"""Values that are missing, wrong or contradictory stop the render, with the setting and what to do."""

from __future__ import annotations

import pytest

from tests.deploy.charts import DEV, LEAST, MANY_GPUS, ONE_GPU, refusal

MANIFEST = {
    "pool": "support",
    "digest": "sha256:1",
    "adapters_path": "/adapters",
    "adapters": ["a" * 64],
    "environment": {"LORA_ADAPTERS": "", "CUDA_GRAPHS": "0"},
}
AUTOSCALING = {"enabled": True, "minReplicas": 5, "maxReplicas": 4, "cpuPercent": 70}


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        (LEAST, "image.repository"),
        (LEAST, "image.tag"),
        (LEAST, "database.existingSecret"),
        (LEAST, "redis.existingSecret"),
        (LEAST, "qdrant.existingSecret"),
        (LEAST, "access.bootstrapKey.existingSecret"),
        (LEAST, "access.gatewayKey.existingSecret"),
        (MANY_GPUS, "access.backendKey.existingSecret"),
        (MANY_GPUS, "objectStore.existingSecret"),
        (MANY_GPUS, "objectStore.remote"),
        (DEV, "dev.existingSecret"),
    ],
)
def test_rendering_says_what_is_missing_and_what_it_is(name: str, missing: str) -> None:
    message = refusal(name, (missing, ""))
    assert f"{missing} is missing: " in message


@pytest.mark.parametrize("path", ["database.peers", "redis.peers", "qdrant.peers"])
def test_a_server_outside_must_be_named_to_the_policies(path: str) -> None:
    message = refusal(LEAST, (path, []))
    assert f"{path} is empty: say where it is" in message
    assert "networkPolicy.enabled" in message


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        (LEAST, [("image.tag", "latest")], "image.tag is latest, which moves: name an exact version"),
        (
            LEAST,
            [("registry.replicas", 2)],
            "registry.replicas is over 1, but adapterStore can be mounted once: give accessModes",
        ),
        (
            ONE_GPU,
            [("adapterStore.accessModes", ["ReadWriteOnce"])],
            "inference server vllm mounts the adapter store, but adapterStore can be mounted once",
        ),
        (LEAST, [("tls.mutual", True)], "tls.mutual is true, but tls.existingSecret is missing"),
        (LEAST, [("router.autoscaling", AUTOSCALING)], "router.autoscaling.minReplicas is over maxReplicas"),
        (
            MANY_GPUS,
            [("gateway.resources", {"requests": {"cpu": None}})],
            "gateway.autoscaling is enabled without gateway.resources.requests.cpu",
        ),
        (MANY_GPUS, [("access.mode", "open")], "access.mode is open, and ingress or gatewayApi publishes"),
        (
            MANY_GPUS,
            [("networkPolicy.callers.gateway", [])],
            "networkPolicy.callers.gateway is empty, but ingress or gatewayApi is enabled",
        ),
        (
            LEAST,
            [("ingress", {"enabled": True, "host": "a.b"}), ("networkPolicy.enabled", False)],
            "ingress.tlsSecret is missing: keys must not travel in the clear",
        ),
        (
            MANY_GPUS,
            [("gatewayApi.hostnames", []), ("gatewayApi.grpcHostnames", [])],
            "gatewayApi.enabled is true without a name: give hostnames for HTTP",
        ),
        (
            MANY_GPUS,
            [("gatewayApi.grpcHostnames", ["llm.example.com"])],
            "gatewayApi.hostnames and grpcHostnames both have llm.example.com",
        ),
        (MANY_GPUS, [("gatewayApi.parentRefs", [])], "gatewayApi.parentRefs is empty"),
        (MANY_GPUS, [("monitoring.peers", [])], "monitoring.peers is empty, but serviceMonitor is enabled"),
        (LEAST, [("backends.hosts", ["gpu.example.com"])], "backends.peers is empty: say where it is"),
        (MANY_GPUS, [("traces.peers", [])], "traces.peers is empty: say where it is"),
        (MANY_GPUS, [("objectStore.peers", [])], "objectStore.peers is empty: say where it is"),
        (MANY_GPUS, [("inference.0.name", "router")], "inference server router: the name is taken"),
        (MANY_GPUS, [("inference.0.name", "vllm-code")], "inference server vllm-code: the name is taken"),
        (
            MANY_GPUS,
            [("inference.0.vllm", {"maxLoras": 1})],
            "inference server tgi-support is of kind tgi, but has settings for vllm",
        ),
        (
            MANY_GPUS,
            [("inference.1.vllm.maxCpuLoras", 8)],
            "inference server vllm-code: vllm.maxCpuLoras is under vllm.maxLoras",
        ),
        (MANY_GPUS, [("inference.1.shards", 4)], "inference server vllm-code has more shards than gpus"),
        (
            MANY_GPUS,
            [("inference.0.modelCache", {"existingClaim": ""})],
            "inference server tgi-support: its model can come from nowhere. Give modelCache.existingClaim",
        ),
        (
            MANY_GPUS,
            [("inference.0.image", "example/tgi:latest")],
            "the image of inference server tgi-support is example/tgi:latest, which moves",
        ),
        (
            MANY_GPUS,
            [("inference.0.image", "registry:5000/tgi")],
            "the image of inference server tgi-support is registry:5000/tgi, without a version",
        ),
        (
            MANY_GPUS,
            [("manifests.support.pool", "other")],
            "manifests.support is the manifest of pool other: render the one of support",
        ),
        (
            MANY_GPUS,
            [("manifests.code", {**MANIFEST, "pool": "code"})],
            "manifests.code: no inference server of kind tgi has this pool",
        ),
        (
            MANY_GPUS,
            [("manifests.support.adapters_path", "/data/adapters")],
            "pods have them in /adapters: render it with --adapters-path /adapters",
        ),
    ],
)
def test_contradictions_are_refused_with_what_to_do(
    name: str, changes: list[tuple[str, object]], said: str
) -> None:
    assert said in refusal(name, *changes)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("loglevel", "info"),
        ("tenant", "a tenant"),
        ("router.replica", 3),
        ("drainSeconds", -1),
        ("preStopSeconds", 0),
        ("decisions.detail", "all"),
        ("decisions.days", 0),
        ("access.mode", "none"),
        ("access.bootstrapKey.secret", "name"),
        ("database.url", "postgresql://user:password@host/name"),
        ("database.port", "5432"),
        ("encoderPrecision", "fp16"),
        ("traces.endpoint", "collector:4318"),
        ("traces.endpoint", "http://user:password@collector:4318"),
        ("traces.config", {"LORAUTER_LOG_LEVEL": "debug"}),
        ("objectStore.remote", "store:bucket; rm -rf /"),
        ("adapterStore.size", "twenty"),
        ("adapterStore.accessModes", ["ReadOnlyMany"]),
        ("gateway.autoscaling.cpuPercent", 0),
        ("gateway.resources.request", {"cpu": 1}),
        ("image.digests", {"router": "sha256:short"}),
        ("networkPolicy.callers.worker", []),
        ("networkPolicy.callers.gateway", [{"ipblock": {"cidr": "10.0.0.0/8"}}]),
        ("networkPolicy.callers.gateway", [{}]),
        ("networkPolicy.callers.gateway", [{"ipBlock": {"cidr": "10.0.0.0"}}]),
        ("ingress.host", "https://llm.example.com"),
        ("inference", [{"name": "a", "kind": "tgi", "pool": "p"}]),
        ("inference", [{"name": "a", "kind": "sglang", "pool": "p", "model": "m/m"}]),
        ("inference", [{"name": "A_B", "kind": "tgi", "pool": "p", "model": "m/m"}]),
        (
            "inference",
            [{"name": "a", "kind": "vllm", "pool": "p", "model": "m/m", "vllm": {"maxLoraRank": 24}}],
        ),
        ("manifests", {"p": {**MANIFEST, "adapters": ["my-adapter"]}}),
        ("manifests", {"p": {**MANIFEST, "environment": {"LORA_ADAPTERS": "", "CUDA_GRAPHS": "1"}}}),
    ],
)
def test_a_typo_or_a_wrong_value_is_refused_by_its_name(path: str, value: object) -> None:
    message = refusal(LEAST, (path, value))
    said = path.split(".")
    assert "values don't meet the specifications of the schema" in message
    assert said[0] in message
    assert said[-1] in message
