"""The network policies are the graph in docs/operations/kubernetes.md, both ways and from both ends."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Sequence

import pytest

from tests.deploy.charts import (
    COMPONENT,
    DEV,
    FILES,
    LEAST,
    MANY_GPUS,
    ROOT,
    SERVER,
    Object,
    changed,
    deployments,
    main_container,
    name_of,
    of_kind,
    pods,
    rendered,
    selects,
    variables,
)

PAGE = ROOT / "docs" / "operations" / "kubernetes.md"
Edge = tuple[str, str, int]
"""From, to, port."""


def peer(number: int) -> list[Object]:
    """Returns a peer outside the release that is like no other."""
    return [{"ipBlock": {"cidr": f"10.9.0.{number}/32"}}]


OUTSIDE = {
    "database.peers": "database",
    "redis.peers": "redis",
    "qdrant.peers": "qdrant",
    "networkPolicy.callers.gateway": "callers",
    "networkPolicy.callers.registry": "callers",
    "networkPolicy.callers.router": "callers",
    "networkPolicy.dns": "dns",
    "networkPolicy.hub": "hub",
    "objectStore.peers": "object store",
    "monitoring.peers": "prometheus",
    "traces.peers": "collector",
    "backends.peers": "other backends",
}
NAMES = {json.dumps(peer(number)): name for number, name in enumerate(OUTSIDE.values())}
INSIDE = {"postgres": "database"}
"""Components whose name in the documentation is another."""

SERVERS = [
    {"name": "a", "kind": "tgi", "pool": "p", "model": "m/m", "adapters": "objectStore"},
    {"name": "b", "kind": "vllm", "pool": "p", "model": "m/m", "adapters": "objectStore", "measure": True},
]
EVERYTHING: tuple[tuple[str, object], ...] = (
    *((path, peer(number)) for number, path in enumerate(OUTSIDE)),
    ("inference", SERVERS),
    ("access.backendKey", {"existingSecret": "keys", "key": "BACKENDS"}),
    ("objectStore.remote", "store:adapters"),
    ("objectStore.existingSecret", "rclone"),
    ("traces.endpoint", "http://collector:4318"),
    ("engine.enabled", True),
)


def documented() -> set[Edge]:
    """Returns the edges of the table on the page."""
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| (\d+) \| [^|]+ \|[^|]*\|$", PAGE.read_text(), re.MULTILINE)
    return {
        (one, another, int(port))
        for sources, targets, port in rows
        for one in sources.split(", ")
        for another in targets.split(", ")
    }


def node(labels: dict[str, str]) -> str:
    """Returns a component's name on the page."""
    return INSIDE.get(labels[COMPONENT], labels[COMPONENT])


def ends(peers: Sequence[Object]) -> str:
    """Returns the name on the page of what a rule lets in or out to."""
    known = NAMES.get(json.dumps(peers))
    if known is not None:
        return known
    (only,) = peers
    assert set(only) == {"podSelector"}
    return node(only["podSelector"]["matchLabels"])


def edges(objects: Sequence[Object], direction: str) -> Iterator[Edge]:
    """Yields the edges that policies allow, as seen from their sources (egress) or their targets."""
    for policy in of_kind(objects, "NetworkPolicy"):
        labels = policy["spec"]["podSelector"]["matchLabels"]
        for rule in policy["spec"].get(direction, []):
            here, there = node(labels), ends(rule["to" if direction == "egress" else "from"])
            for port in {port["port"] for port in rule["ports"]}:
                yield (here, there, port) if direction == "egress" else (there, here, port)


@pytest.fixture(scope="module")
def whole() -> list[list[Object]]:
    """The chart with everything outside, and with the servers inside: together they have every edge."""
    return [
        changed(LEAST, *EVERYTHING),
        changed(DEV, ("networkPolicy.dns", peer(list(OUTSIDE).index("networkPolicy.dns")))),
    ]


def test_policies_and_documentation_have_the_same_edges(whole: list[list[Object]]) -> None:
    allowed = {
        edge for objects in whole for direction in ("egress", "ingress") for edge in edges(objects, direction)
    }
    assert allowed - documented() == set(), "not documented"
    assert documented() - allowed == set(), "documented, but not allowed"


def test_both_ends_allow_what_stays_inside(whole: list[list[Object]]) -> None:
    for objects in whole:
        inside = {node(metadata["labels"]) for _, metadata, _ in pods(objects)}
        out = {edge for edge in edges(objects, "egress") if edge[1] in inside}
        into = {edge for edge in edges(objects, "ingress") if edge[0] in inside}
        assert out == into
        assert len(out) > 10


@pytest.mark.parametrize("name", FILES)
def test_every_pod_is_denied_what_no_policy_allows(name: str) -> None:
    policies = of_kind(rendered(name), "NetworkPolicy")
    (default,) = (policy for policy in policies if not {"ingress", "egress"} & set(policy["spec"]))
    for pod, metadata, _ in pods(rendered(name)):
        assert selects(default["spec"]["podSelector"], metadata["labels"]), pod
        own = [
            policy
            for policy in policies
            if policy is not default and selects(policy["spec"]["podSelector"], metadata["labels"])
        ]
        assert len(own) == 1, pod
    for policy in policies:
        assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"], name_of(policy)


@pytest.mark.parametrize("name", FILES)
def test_no_rule_is_open_to_everybody_or_on_every_port(name: str) -> None:
    for policy in of_kind(rendered(name), "NetworkPolicy"):
        rules = itertools.chain(policy["spec"].get("ingress", []), policy["spec"].get("egress", []))
        for rule in rules:
            assert rule.get("from") or rule.get("to"), name_of(policy)
            assert all(port["port"] for port in rule["ports"]), name_of(policy)


@pytest.mark.parametrize("name", FILES)
def test_policies_name_pods_that_there_are(name: str) -> None:
    labels = [metadata["labels"] for _, metadata, _ in pods(rendered(name))]
    for policy in of_kind(rendered(name), "NetworkPolicy"):
        selectors = [policy["spec"]["podSelector"]]
        for rule in itertools.chain(policy["spec"].get("ingress", []), policy["spec"].get("egress", [])):
            peers = [*rule.get("from", []), *rule.get("to", [])]
            selectors += [each["podSelector"] for each in peers if set(each) == {"podSelector"}]
        own = [each for each in selectors if "app.kubernetes.io/component" in each["matchLabels"]]
        for selector in own:
            assert any(selects(selector, each) for each in labels), (name_of(policy), selector)


ADDRESSES = {
    "DATABASE_URL": {"database"},
    "REDIS_URL": {"redis"},
    "QDRANT_URL": {"qdrant"},
    "LORAUTER_ROUTER_ADDRESS": {"router"},
    "LORAUTER_REGISTRY_ADDRESS": {"registry"},
    "LORAUTER_BACKEND_KEY": {"tgi", "vllm", "engine", "other backends"},
    "OTEL_EXPORTER_OTLP_ENDPOINT": {"collector"},
}
"""Whom a service calls that is given this variable."""


def test_each_service_reaches_whom_its_variables_name_and_nobody_else(whole: list[list[Object]]) -> None:
    objects = whole[0]
    out = set(edges(objects, "egress"))
    for component, found in deployments(objects).items():
        if component in {"a", "b", "engine"}:
            continue  # inference servers call nobody of the release
        given = variables(main_container(found))
        named = {there for variable, those in ADDRESSES.items() if variable in given for there in those}
        reached = {there for here, there, _ in out if here == component}
        assert reached - {"dns", "hub", "object store"} == named, component


def vllm_callers(objects: Sequence[Object]) -> set[str]:
    """Returns who is let in to vLLM."""
    (policy,) = (
        found
        for found in of_kind(objects, "NetworkPolicy")
        if found["spec"]["podSelector"]["matchLabels"].get(SERVER) == "vllm-code"
    )
    return {ends(rule["from"]) for rule in policy["spec"]["ingress"]}


def test_loading_at_run_time_is_reachable_by_gateways_alone() -> None:
    assert vllm_callers(rendered(MANY_GPUS)) == {"gateway"}
    assert vllm_callers(changed(MANY_GPUS, ("inference.1.measure", True))) == {"gateway", "worker-matching"}


def test_policies_can_be_left_to_others() -> None:
    assert not of_kind(changed(LEAST, ("networkPolicy.enabled", False)), "NetworkPolicy")


def test_keys_need_no_connection_where_access_is_open() -> None:
    objects = changed(LEAST, *EVERYTHING, ("access.mode", "open"))
    allowed = set(edges(objects, "egress"))
    assert ("gateway", "router", 9090) in allowed
    assert not {("gateway", "registry", 9090), ("router", "registry", 9090)} & allowed
