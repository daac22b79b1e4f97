{{/*
Every connection that this release makes or takes, as a YAML list of {from, to, port}: the graph in
docs/operations/kubernetes.md. A name is a component of this release, `server:NAME` one of `inference`, and
`outside:...` what lorauter.outside finds the peers of.
*/}}
{{- define "lorauter.edges" -}}
{{- $v := .Values -}}
{{- $keys := eq $v.access.mode "keys" -}}
{{- $database := ternary "postgres" "outside:database" $v.dev.enabled -}}
{{- $redis := ternary "redis" "outside:redis" $v.dev.enabled -}}
{{- $qdrant := ternary "qdrant" "outside:qdrant" $v.dev.enabled -}}
- {from: migrate, to: {{ $database }}, port: {{ $v.database.port }}}
{{- range list "registry" "worker-index" "worker-matching" }}
- {from: {{ . }}, to: {{ $database }}, port: {{ $v.database.port }}}
{{- end }}
{{- range list "registry" "worker-index" "worker-matching" "router" "gateway" }}
- {from: {{ . }}, to: {{ $redis }}, port: {{ $v.redis.port }}}
{{- end }}
{{- range list "worker-index" "worker-matching" "router" }}
- {from: {{ . }}, to: {{ $qdrant }}, port: {{ $v.qdrant.port }}}
{{- end }}
- {from: gateway, to: router, port: 9090}
{{- if $keys }}
- {from: gateway, to: registry, port: 9090}
- {from: router, to: registry, port: 9090}
{{- end }}
{{- if $v.engine.enabled }}
- {from: gateway, to: engine, port: 8080}
- {from: worker-matching, to: engine, port: 8080}
{{- end }}
{{- if or $v.backends.peers $v.backends.hosts }}
- {from: gateway, to: "outside:backends", port: {{ $v.backends.port }}}
- {from: worker-matching, to: "outside:backends", port: {{ $v.backends.port }}}
{{- end }}
{{- range include "lorauter.servers" . | fromYamlArray }}
- {from: gateway, to: "server:{{ .name }}", port: {{ .port }}}
{{- if .measure }}
- {from: worker-matching, to: "server:{{ .name }}", port: {{ .port }}}
{{- end }}
{{- if $v.networkPolicy.hub }}
- {from: "server:{{ .name }}", to: "outside:hub", port: 443}
{{- end }}
{{- if eq .adapters "objectStore" }}
- {from: "server:{{ .name }}", to: "outside:objectStore", port: {{ $v.objectStore.port }}}
{{- end }}
{{- /* Prometheus would be let in to the port that loads adapters, too. */}}
{{- if and $v.monitoring.peers (ne .kind "vllm") }}
- {from: "outside:monitoring", to: "server:{{ .name }}", port: {{ .port }}}
{{- end }}
{{- end }}
{{- if include "lorauter.isDemo" . }}
- {from: seed, to: registry, port: 9090}
{{- end }}
- {from: test, to: registry, port: 8080}
- {from: test, to: registry, port: 9090}
- {from: test, to: router, port: 9090}
- {from: test, to: gateway, port: 9090}
{{- range $to, $peers := $v.networkPolicy.callers }}
{{- if $peers }}
- {from: "outside:callers.{{ $to }}", to: {{ $to }}, port: 8080}
- {from: "outside:callers.{{ $to }}", to: {{ $to }}, port: 9090}
{{- end }}
{{- end }}
{{- if $v.networkPolicy.hub }}
- {from: registry, to: "outside:hub", port: 443}
{{- end }}
{{- if $v.objectStore.remote }}
- {from: registry, to: "outside:objectStore", port: {{ $v.objectStore.port }}}
{{- end }}
{{- range include "lorauter.services" . | fromYamlArray }}
{{- if $v.monitoring.peers }}
- {from: "outside:monitoring", to: {{ . }}, port: 8080}
{{- end }}
{{- if $v.traces.endpoint }}
- {from: {{ . }}, to: "outside:traces", port: {{ $v.traces.port }}}
{{- end }}
{{- end }}
{{- range include "lorauter.nodes" . | fromYamlArray }}
- {from: "{{ . }}", to: "outside:dns", port: 53}
{{- end }}
{{- end -}}

{{/* Components that run one of lorauter's services, as a YAML list. */}}
{{- define "lorauter.services" -}}
- registry
- worker-index
- worker-matching
- router
- gateway
{{- if .Values.engine.enabled }}
- engine
{{- end }}
{{- end -}}

{{/* Everything of this release that has pods, as a YAML list. */}}
{{- define "lorauter.nodes" -}}
{{ include "lorauter.services" . }}
- migrate
- test
{{- if include "lorauter.isDemo" . }}
- seed
{{- end }}
{{- if .Values.dev.enabled }}
- postgres
- redis
- qdrant
{{- end }}
{{- range .Values.inference }}
- "server:{{ .name }}"
{{- end }}
{{- end -}}

{{/* Labels that select a node's pods. Takes (dict "root" $ "node" name). */}}
{{- define "lorauter.nodeSelector" -}}
{{- $root := .root -}}
{{- $name := trimPrefix "server:" .node -}}
{{- if eq $name .node -}}
{{- include "lorauter.selector" (dict "root" $root "component" $name) -}}
{{- else -}}
{{- range $root.Values.inference -}}
{{- if eq .name $name -}}
{{- include "lorauter.selector" (dict "root" $root "component" .kind "server" .name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* What is outside, as a list of NetworkPolicyPeer. Takes (dict "root" $ "name" name). */}}
{{- define "lorauter.outside" -}}
{{- $v := .root.Values -}}
{{- $name := .name -}}
{{- $policy := $v.networkPolicy -}}
{{- $callers := printf "callers.%s" (trimPrefix "callers." $name) -}}
{{- $known := dict "dns" $policy.dns "hub" $policy.hub "monitoring" $v.monitoring.peers "traces" $v.traces.peers "objectStore" $v.objectStore.peers "backends" $v.backends.peers "database" $v.database.peers "redis" $v.redis.peers "qdrant" $v.qdrant.peers -}}
{{- $peers := ternary (index $policy.callers (trimPrefix "callers." $name)) (index $known $name) (eq $callers $name) -}}
{{- if not $peers -}}
{{- fail (printf "%s.peers is empty: say where it is, as a list of NetworkPolicyPeer such as {ipBlock: {cidr: 10.0.0.5/32}}, or set networkPolicy.enabled to false" $name) -}}
{{- end -}}
{{- toYaml $peers -}}
{{- end -}}

{{/* The peers of one end of an edge. Takes (dict "root" $ "node" name). */}}
{{- define "lorauter.peers" -}}
{{- if hasPrefix "outside:" .node -}}
{{- include "lorauter.outside" (dict "root" .root "name" (trimPrefix "outside:" .node)) -}}
{{- else -}}
- podSelector:
    matchLabels: {{- include "lorauter.nodeSelector" . | nindent 6 }}
{{- end -}}
{{- end -}}

{{/* The rules of a policy. Takes a dict: root, edges, node; here, there: the ends of an edge at the node and beyond. */}}
{{- define "lorauter.rules" -}}
{{- $found := false -}}
{{- range $edge := .edges -}}
{{- if eq (index $edge $.here) $.node -}}
{{- $found = true -}}
{{- $there := index $edge $.there }}
- {{ $.there }}: {{- include "lorauter.peers" (dict "root" $.root "node" $there) | nindent 4 }}
  {{- if eq $there "outside:dns" }}
  ports: [{port: {{ $edge.port }}, protocol: UDP}, {port: {{ $edge.port }}, protocol: TCP}]
  {{- else }}
  ports: [{port: {{ $edge.port }}, protocol: TCP}]
  {{- end }}
{{- end -}}
{{- end -}}
{{- if not $found }}[]{{ end -}}
{{- end -}}
