{{/* Stops the render where values contradict each other: each message names the setting and what to do. */}}
{{- define "lorauter.checks" -}}
{{- include "lorauter.checkStore" . -}}
{{- include "lorauter.checkAccess" . -}}
{{- include "lorauter.checkScaling" . -}}
{{- include "lorauter.checkServers" . -}}
{{- include "lorauter.checkManifests" . -}}
{{- end -}}

{{- define "lorauter.checkStore" -}}
{{- if not (include "lorauter.storeIsShared" .) -}}
{{- if gt (int .Values.registry.replicas) 1 -}}
{{- fail "registry.replicas is over 1, but adapterStore can be mounted once: give accessModes [ReadWriteMany] or an existingClaim that has it" -}}
{{- end -}}
{{- range include "lorauter.servers" . | fromYamlArray -}}
{{- if eq .adapters "store" -}}
{{- fail (printf "inference server %s mounts the adapter store, but adapterStore can be mounted once: give accessModes [ReadWriteMany] or an existingClaim that has it, or let the server fetch (adapters: objectStore)" .name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "lorauter.checkAccess" -}}
{{- $v := .Values -}}
{{- $published := or $v.ingress.enabled $v.gatewayApi.enabled -}}
{{- if and $published (eq $v.access.mode "open") -}}
{{- fail "access.mode is open, and ingress or gatewayApi publishes the gateway: everybody could do everything. Set access.mode to keys" -}}
{{- end -}}
{{- if and $published $v.networkPolicy.enabled (not $v.networkPolicy.callers.gateway) -}}
{{- fail "networkPolicy.callers.gateway is empty, but ingress or gatewayApi is enabled: name the pods of the controller that forwards, as NetworkPolicyPeers" -}}
{{- end -}}
{{- if and $v.gatewayApi.enabled (not $v.gatewayApi.hostnames) (not $v.gatewayApi.grpcHostnames) -}}
{{- fail "gatewayApi.enabled is true without a name: give hostnames for HTTP, grpcHostnames for gRPC, or both" -}}
{{- end -}}
{{- range $v.gatewayApi.hostnames -}}
{{- if has . $v.gatewayApi.grpcHostnames -}}
{{- fail (printf "gatewayApi.hostnames and grpcHostnames both have %s, but a Gateway takes one kind of route for a name: give gRPC another" .) -}}
{{- end -}}
{{- end -}}
{{- if and $v.gatewayApi.enabled (not $v.gatewayApi.parentRefs) -}}
{{- fail "gatewayApi.parentRefs is empty: name the Gateways that carry the routes" -}}
{{- end -}}
{{- if and $v.tls.mutual (not $v.tls.existingSecret) -}}
{{- fail "tls.mutual is true, but tls.existingSecret is missing: the Secret with tls.crt, tls.key and ca.crt" -}}
{{- end -}}
{{- if and $v.monitoring.serviceMonitor.enabled $v.networkPolicy.enabled (not $v.monitoring.peers) -}}
{{- fail "monitoring.peers is empty, but serviceMonitor is enabled: name Prometheus' pods, as NetworkPolicyPeers, or no policy lets it in" -}}
{{- end -}}
{{- end -}}

{{- define "lorauter.checkScaling" -}}
{{- range $name := list "gateway" "router" -}}
{{- $values := index $.Values $name -}}
{{- with $values.autoscaling -}}
{{- if and .enabled (gt (int .minReplicas) (int .maxReplicas)) -}}
{{- fail (printf "%s.autoscaling.minReplicas is over maxReplicas: lower the first or raise the second" $name) -}}
{{- end -}}
{{- if and .enabled (not (dig "requests" "cpu" "" $values.resources)) -}}
{{- fail (printf "%s.autoscaling is enabled without %s.resources.requests.cpu, which it scales by: give it" $name $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "lorauter.checkServers" -}}
{{- $taken := list "registry" "worker-index" "worker-matching" "router" "gateway" "engine" "migrate" "seed" "test" "postgres" "redis" "qdrant" "adapters" "nothing-else" -}}
{{- range include "lorauter.servers" . | fromYamlArray -}}
{{- if has .name $taken -}}
{{- fail (printf "inference server %s: the name is taken by another part or server of the release; choose another" .name) -}}
{{- end -}}
{{- $taken = append $taken .name -}}
{{- if and (ne .kind "vllm") .vllm -}}
{{- fail (printf "inference server %s is of kind %s, but has settings for vllm: remove them, or change its kind" .name .kind) -}}
{{- end -}}
{{- $lora := mergeOverwrite (dict "maxLoras" 16 "maxCpuLoras" 64) .vllm -}}
{{- if lt (int $lora.maxCpuLoras) (int $lora.maxLoras) -}}
{{- fail (printf "inference server %s: vllm.maxCpuLoras is under vllm.maxLoras, which vLLM refuses: it is twice as many adapters as the gateway is to use" .name) -}}
{{- end -}}
{{- if gt (int .shards) (int .gpus) -}}
{{- fail (printf "inference server %s has more shards than gpus: each shard needs one" .name) -}}
{{- end -}}
{{- if and $.Values.networkPolicy.enabled (not $.Values.networkPolicy.hub) (not .modelCache.existingClaim) (not (hasPrefix "/" .model)) -}}
{{- fail (printf "inference server %s: its model can come from nowhere. Give modelCache.existingClaim with the model in it, or say in networkPolicy.hub where it may be downloaded from" .name) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "lorauter.checkManifests" -}}
{{- $pools := list -}}
{{- range .Values.inference -}}
{{- if eq .kind "tgi" -}}
{{- $pools = append $pools .pool -}}
{{- end -}}
{{- end -}}
{{- range $pool, $manifest := .Values.manifests -}}
{{- if ne $pool $manifest.pool -}}
{{- fail (printf "manifests.%s is the manifest of pool %s: render the one of %s" $pool $manifest.pool $pool) -}}
{{- end -}}
{{- if not (has $pool $pools) -}}
{{- fail (printf "manifests.%s: no inference server of kind tgi has this pool; add one, or remove the manifest" $pool) -}}
{{- end -}}
{{- if ne $manifest.adapters_path "/adapters" -}}
{{- fail (printf "manifests.%s was rendered for adapters in %s, but pods have them in /adapters: render it with --adapters-path /adapters" $pool $manifest.adapters_path) -}}
{{- end -}}
{{- end -}}
{{- end -}}
