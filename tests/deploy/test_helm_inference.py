"""TGI and vLLM as the chart starts them: flags, GPUs, models, adapters, manifests and replacement."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from lorauter.manifests import render as launcher
from tests.deploy.charts import (
    LEAST,
    MANY_GPUS,
    ONE_GPU,
    SERVER,
    Object,
    changed,
    component_of,
    deployments,
    main_container,
    of_kind,
    refusal,
    rendered,
    variables,
)

TGI, VLLM = "tgi-support", "vllm-code"


def server(name: str, *changes: tuple[str, object], values: str = MANY_GPUS) -> Object:
    """Returns the pod's spec of one inference server."""
    objects = changed(values, *changes) if changes else rendered(values)
    spec: Object = deployments(objects)[name]["spec"]["template"]["spec"]
    return spec


def volumes(spec: Object) -> dict[str, Any]:
    """Returns a pod's volumes by where its first container has them."""
    sources = {each["name"]: {key: each[key] for key in each if key != "name"} for each in spec["volumes"]}
    return {mount["mountPath"]: sources[mount["name"]] for mount in spec["containers"][0]["volumeMounts"]}


@pytest.mark.parametrize("name", [TGI, VLLM])
def test_an_old_pod_goes_before_its_successor_needs_the_gpu(name: str) -> None:
    strategy = deployments(rendered(MANY_GPUS))[name]["spec"]["strategy"]
    assert strategy == {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}


@pytest.mark.parametrize(("name", "gpus", "pool"), [(TGI, 1, "l40s"), (VLLM, 2, "h100")])
def test_gpus_are_asked_for_on_the_nodes_that_have_them(name: str, gpus: int, pool: str) -> None:
    spec = server(name)
    resources = spec["containers"][0]["resources"]
    assert resources["requests"]["nvidia.com/gpu"] == resources["limits"]["nvidia.com/gpu"] == gpus
    assert spec["nodeSelector"] == {"gpu": pool}
    assert spec["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]


def test_another_resource_names_gpus_of_another_kind() -> None:
    spec = server(TGI, ("inference.0.gpuResource", "amd.com/gpu"), ("inference.0.runtimeClassName", "rocm"))
    assert "nvidia.com/gpu" not in spec["containers"][0]["resources"]["limits"]
    assert spec["containers"][0]["resources"]["limits"]["amd.com/gpu"] == 1
    assert spec["runtimeClassName"] == "rocm"


def test_tgi_captures_no_graphs_and_loads_what_the_manifest_names() -> None:
    container = server(TGI)["containers"][0]
    assert "--cuda-graphs=0" in container["args"], "a captured step leaves the adapter out"
    names = server(TGI)["initContainers"][0]["env"][0]["value"].split()
    assert variables(container)["LORA_ADAPTERS"] == launcher.lora_adapters(names, "/adapters")
    assert "LORA_ADAPTERS" not in variables(server(VLLM)["containers"][0])


def test_a_rendered_manifest_is_taken_as_it_is() -> None:
    names = ["a" * 64, f"mix-{'b' * 16}"]
    manifest = json.loads(json.dumps(launcher.values("support", "sha256:1", names, "/adapters")))
    spec = server(TGI, ("manifests.support", manifest))
    assert variables(spec["containers"][0])["LORA_ADAPTERS"] == launcher.lora_adapters(names)


def test_pods_are_replaced_when_the_manifest_changes() -> None:
    names = ["c" * 64]
    manifest = launcher.values("support", "sha256:2", names, "/adapters")
    before = deployments(rendered(MANY_GPUS))
    after = deployments(changed(MANY_GPUS, ("manifests.support", manifest)))
    assert before[TGI]["spec"]["template"] != after[TGI]["spec"]["template"]
    assert before[VLLM]["spec"]["template"] == after[VLLM]["spec"]["template"]


def test_tgi_starts_without_a_manifest_before_there_is_one() -> None:
    spec = server(TGI, ("manifests", {}))
    assert "LORA_ADAPTERS" not in variables(spec["containers"][0])
    assert "initContainers" not in spec


@pytest.mark.parametrize("missing", [False, True])
def test_a_pod_stops_when_its_manifest_names_what_the_store_lacks(tmp_path: Path, missing: bool) -> None:
    container = server(TGI)["initContainers"][0]
    names = variables(container)["ADAPTERS"].split()
    for name in names[1:] if missing else names:
        (tmp_path / name).mkdir()
    (script,) = container["args"]
    done = subprocess.run(
        ["sh", "-c", script.replace("/adapters/", f"{tmp_path}/")],
        env={"ADAPTERS": " ".join(names)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == (1 if missing else 0)
    assert (f"manifests.support names {names[0]}" in done.stderr) == missing


def test_vllm_loads_at_run_time_and_each_server_has_one_list_of_names() -> None:
    container = server(VLLM)["containers"][0]
    assert variables(container)["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"
    flags = {"--enable-lora", "--max-loras=32", "--max-cpu-loras=128", "--max-lora-rank=64"}
    assert flags | {"--api-server-count=1", "--tensor-parallel-size=2"} <= set(container["args"])
    assert container["args"][-1] == "--max-model-len=8192"
    assert container["command"] == ["vllm", "serve", "my-org/code-base"]


@pytest.mark.parametrize(("name", "variable"), [(TGI, "API_KEY"), (VLLM, "VLLM_API_KEY")])
def test_inference_servers_demand_the_key_that_gateways_and_workers_send(name: str, variable: str) -> None:
    key = variables(server(name)["containers"][0])[variable]
    assert key == {"secretKeyRef": {"name": "lorauter-backends", "key": "LORAUTER_BACKEND_KEY"}}
    found = deployments(rendered(MANY_GPUS))
    for caller in ("gateway", "worker-matching"):
        assert variables(main_container(found[caller]))["LORAUTER_BACKEND_KEY"] == key


@pytest.mark.parametrize("name", [TGI, VLLM])
def test_caches_lie_in_mounted_folders(name: str) -> None:
    spec = server(name)
    mounts = volumes(spec)
    given = variables(spec["containers"][0])
    places = [value for key, value in given.items() if key.endswith(("HOME", "_DIR", "_CACHE", "_ROOT"))]
    assert len(places) >= 5
    assert all(any(place.startswith(mount) for mount in mounts) for place in places)
    assert mounts["/dev/shm"]["emptyDir"]["medium"] == "Memory"


def test_models_come_from_a_claim_or_fill_a_folder_of_the_pod() -> None:
    assert volumes(server(TGI))["/models"] == {"persistentVolumeClaim": {"claimName": "models"}}
    assert variables(server(TGI)["containers"][0])["HF_HUB_OFFLINE"] == "1", "no policy lets it download"
    spec = server("vllm", values=ONE_GPU)
    assert volumes(spec)["/models"] == {"emptyDir": {"sizeLimit": "200Gi"}}
    assert "HF_HUB_OFFLINE" not in variables(spec["containers"][0])


def test_the_token_of_the_hub_comes_from_a_secret() -> None:
    token = {"existingSecret": "hub", "key": "token"}
    spec = server(TGI, ("inference.0.hubToken", token))
    assert variables(spec["containers"][0])["HF_TOKEN"] == {"secretKeyRef": {"name": "hub", "key": "token"}}


def test_adapters_are_mounted_read_only_from_the_store() -> None:
    spec = server(TGI)
    claim = {"persistentVolumeClaim": {"claimName": "lorauter-adapters", "readOnly": True}}
    assert volumes(spec)["/adapters"] == claim
    (mount,) = (each for each in spec["containers"][0]["volumeMounts"] if each["mountPath"] == "/adapters")
    assert mount["readOnly"] is True


def test_adapters_are_fetched_where_no_volume_can_be_mounted() -> None:
    spec = server(VLLM)
    assert "emptyDir" in volumes(spec)["/adapters"]
    assert [each["name"] for each in spec["initContainers"]] == ["fetch-adapters"]
    assert [each["name"] for each in spec["containers"]] == ["vllm", "fetch-new-adapters"]
    registry = deployments(rendered(MANY_GPUS))["registry"]["spec"]["template"]["spec"]
    assert [each["name"] for each in registry["containers"]] == ["registry", "copy-adapters"]
    for each in (spec["initContainers"][0], spec["containers"][1], registry["containers"][1]):
        assert each["envFrom"] == [{"secretRef": {"name": "lorauter-object-store"}}]


def test_tgi_fetches_once_for_it_loads_nothing_later() -> None:
    spec = server(TGI, ("inference.0.adapters", "objectStore"))
    assert [each["name"] for each in spec["initContainers"]] == ["fetch-adapters", "check-manifest"]
    assert [each["name"] for each in spec["containers"]] == ["tgi"]


RCLONE = """#!/bin/sh
# Stands for `rclone copy [--size-only] [--exclude PATTERN]... FROM TO` between folders.
from= to= skip=
while [ $# -gt 0 ]; do
  case "$1" in
    copy | --size-only) ;;
    --exclude) skip="$skip $2"; shift ;;
    *) from=$to; to=$1 ;;
  esac
  shift
done
echo "copy$skip" >> "$LOG"
cp -r "$from/." "$to/"
"""


def test_weights_are_copied_before_what_makes_a_folder_an_adapter(tmp_path: Path) -> None:
    (script,) = server(VLLM)["initContainers"][0]["args"]
    source, target, log = tmp_path / "source", tmp_path / "target", tmp_path / "log"
    (source / ("a" * 64)).mkdir(parents=True)
    (source / ("a" * 64) / "adapter_config.json").write_text("{}")
    target.mkdir()
    program = tmp_path / "rclone"
    program.write_text(RCLONE)
    program.chmod(0o755)
    command = script.replace("store:adapters", str(source)).replace(" /adapters", f" {target}")
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "LOG": str(log)}
    subprocess.run(["sh", "-c", command], env=environment, check=True)
    assert log.read_text().splitlines() == ["copy .*/** *.json", "copy .*/**"]
    assert (target / ("a" * 64) / "adapter_config.json").exists()


@pytest.mark.parametrize("name", [TGI, VLLM])
def test_a_model_has_time_to_load_and_is_not_given_up_in_a_hurry(name: str) -> None:
    container = server(name)["containers"][0]
    startup, liveness = container["startupProbe"], container["livenessProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] == 1800
    assert liveness["periodSeconds"] * liveness["failureThreshold"] >= 180
    assert container["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", "120"]
    assert server(name)["terminationGracePeriodSeconds"] == 150


def test_gateways_can_name_every_replica() -> None:
    services = {component_of(each): each for each in of_kind(rendered(MANY_GPUS), "Service")}
    for name, port in ((TGI, 8080), (VLLM, 8000)):
        assert services[name]["spec"]["clusterIP"] == "None"
        assert services[name]["spec"]["ports"][0]["port"] == port


def test_one_server_of_a_kind_takes_no_pods_of_another() -> None:
    second = {"name": "second", "kind": "tgi", "pool": "support", "model": "my-org/support-base"}
    second["modelCache"] = {"existingClaim": "models"}  # type: ignore[assignment]
    first = rendered(MANY_GPUS)
    values = [{"name": "one", **{key: second[key] for key in second if key != "name"}}, second]
    found = deployments(changed(MANY_GPUS, ("inference", values)))
    assert {"one", "second"} <= set(found)
    assert TGI in deployments(first)
    for name in ("one", "second"):
        assert found[name]["spec"]["selector"]["matchLabels"][SERVER] == name


def test_no_key_for_backends_is_asked_for_where_there_are_none() -> None:
    assert "LORAUTER_BACKEND_KEY" not in variables(main_container(deployments(rendered(LEAST))["gateway"]))
    assert "access.backendKey.existingSecret is missing" in refusal(
        ONE_GPU, ("access.backendKey.existingSecret", "")
    )
