{{/* Name of everything in this release: the release's, with the chart's where it is not in it. */}}
{{- define "lorauter.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/*
Labels that select the pods of one component. Takes (dict "root" $ "component" name), and "server" where several of
a kind may be there: TGI and vLLM.
*/}}
{{- define "lorauter.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- with .server }}
lorauter/server: {{ . }}
{{- end }}
{{- end -}}

{{/* All labels of one component. */}}
{{- define "lorauter.labels" -}}
{{ include "lorauter.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end -}}

{{/* Image of one service. Takes (dict "root" $ "service" name). */}}
{{- define "lorauter.image" -}}
{{- $image := .root.Values.image -}}
{{- $repository := required "image.repository is missing: where the images of lorauter lie, without the service's name" $image.repository -}}
{{- with index $image.digests .service -}}
{{- printf "%s-%s@%s" $repository $.service . -}}
{{- else -}}
{{- $tag := required "image.tag is missing: the exact version to run" $image.tag -}}
{{- if eq $tag "latest" -}}
{{- fail "image.tag is latest, which moves: name an exact version" -}}
{{- end -}}
{{- printf "%s-%s:%s" $repository .service $tag -}}
{{- end -}}
{{- end -}}

{{/* Names of Secrets that images are pulled with, as a field of a pod. */}}
{{- define "lorauter.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end -}}

{{/*
A variable from a Secret. Takes a dict: variable; secret: {existingSecret, key}; setting: its name among the values;
holds: what the Secret is to hold, for the error.
*/}}
{{- define "lorauter.secret" -}}
- name: {{ .variable }}
  valueFrom:
    secretKeyRef:
      name: {{ required (printf "%s.existingSecret is missing: the Secret whose key %s holds %s" .setting .secret.key .holds) .secret.existingSecret }}
      key: {{ .secret.key }}
{{- end -}}

{{/* A server's URL. Takes (dict "root" $ "server" name "variable" name). */}}
{{- define "lorauter.url" -}}
{{- include "lorauter.secret" (dict "variable" .variable "secret" (index .root.Values .server) "setting" .server "holds" "the URL of the server") -}}
{{- end -}}

{{/* The key that inference servers demand, under a name. Takes (dict "root" $ "variable" name); empty where there is none. */}}
{{- define "lorauter.backendKey" -}}
{{- $key := .root.Values.access.backendKey -}}
{{- if or $key.existingSecret .root.Values.inference -}}
{{- include "lorauter.secret" (dict "variable" .variable "secret" $key "setting" "access.backendKey" "holds" "the key that inference servers demand: whoever reaches a vLLM without one can load what they like") -}}
{{- end -}}
{{- end -}}

{{/* The gateways' own key, which the registry is told, too. Takes (dict "root" $ "variable" name). */}}
{{- define "lorauter.gatewayKey" -}}
{{- include "lorauter.secret" (dict "variable" .variable "secret" .root.Values.access.gatewayKey "setting" "access.gatewayKey" "holds" "the key that gateways show routers and registry") -}}
{{- end -}}

{{/* Variables by which registry, router and gateway tell who calls. */}}
{{- define "lorauter.accessEnvironment" -}}
- name: LORAUTER_ACCESS
  value: {{ .Values.access.mode }}
- name: LORAUTER_TENANT
  value: {{ .Values.tenant | quote }}
{{- end -}}

{{/* Where keys are checked, for routers and gateways. */}}
{{- define "lorauter.registryAddress" -}}
{{- if eq .Values.access.mode "keys" -}}
- name: LORAUTER_REGISTRY_ADDRESS
  value: {{ include "lorauter.fullname" . }}-registry:9090
{{- end -}}
{{- end -}}

{{/* Variables of every service. */}}
{{- define "lorauter.environment" -}}
- name: LORAUTER_HOST
  value: 0.0.0.0
- name: LORAUTER_HTTP_PORT
  value: "8080"
- name: LORAUTER_LOG_LEVEL
  value: {{ .Values.logLevel }}
- name: LORAUTER_DRAIN_SECONDS
  value: {{ .Values.drainSeconds | quote }}
{{- if .Values.traces.endpoint }}
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ .Values.traces.endpoint | quote }}
{{- include "lorauter.config" .Values.traces.config }}
{{- end }}
{{- end -}}

{{/* Further settings of a service, by variable. Takes the map. */}}
{{- define "lorauter.config" -}}
{{- range $name, $value := . }}
- name: {{ $name }}
  value: {{ include "lorauter.text" $value }}
{{- end }}
{{- end -}}

{{/* A value as quoted text; whole numbers in digits, which YAML's floats would write as 2e+05. */}}
{{- define "lorauter.text" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) -}}
{{- printf "%.0f" . | quote -}}
{{- else -}}
{{- toString . | quote -}}
{{- end -}}
{{- end -}}

{{/* Variables that name the files of the mounted certificate. */}}
{{- define "lorauter.tlsEnvironment" -}}
{{- with .Values.tls -}}
{{- if .existingSecret -}}
- name: LORAUTER_TLS_CERTIFICATE
  value: /etc/lorauter/tls/tls.crt
- name: LORAUTER_TLS_KEY
  value: /etc/lorauter/tls/tls.key
- name: LORAUTER_TLS_CA
  value: /etc/lorauter/tls/ca.crt
{{- if .mutual }}
- name: LORAUTER_TLS_CLIENT_CA
  value: /etc/lorauter/tls/ca.crt
{{- end }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* What a container may do: nothing beyond its own memory and the volumes that it mounts. */}}
{{- define "lorauter.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* What a pod may do: run as an ordinary user, without a token for the cluster. Takes (dict "root" $), "user" where it is not the usual one. */}}
{{- define "lorauter.podSecurity" -}}
{{- $user := .user | default 65532 -}}
serviceAccountName: {{ include "lorauter.fullname" .root }}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: {{ $user }}
  runAsGroup: {{ $user }}
  fsGroup: {{ $user }}
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- include "lorauter.pullSecrets" .root }}
{{- end -}}

{{/* Where a pod may run. Takes its values. */}}
{{- define "lorauter.placement" -}}
{{- with pick . "nodeSelector" "tolerations" "priorityClassName" }}
{{- toYaml . }}
{{- end }}
{{- end -}}

{{/* Pods of one component over nodes and zones, as evenly as there is room. Takes what the selector takes. */}}
{{- define "lorauter.spread" -}}
topologySpreadConstraints:
  {{- range $key := list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - maxSkew: 1
    topologyKey: {{ $key }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "lorauter.selector" $ | nindent 8 }}
    matchLabelKeys: [pod-template-hash]
  {{- end }}
{{- end -}}

{{/* "true" where several pods may mount the adapter store, else empty. Takes the root. */}}
{{- define "lorauter.storeIsShared" -}}
{{- if or .Values.adapterStore.existingClaim (has "ReadWriteMany" .Values.adapterStore.accessModes) }}true{{ end -}}
{{- end -}}

{{/* The claim of the adapter store. Takes the root. */}}
{{- define "lorauter.storeClaim" -}}
{{- .Values.adapterStore.existingClaim | default (printf "%s-adapters" (include "lorauter.fullname" .)) -}}
{{- end -}}

{{/* A container that waits until the migration Job has brought the database to what this version needs. */}}
{{- define "lorauter.waitForSchema" -}}
- name: wait-for-schema
  image: {{ include "lorauter.image" (dict "root" . "service" "registry") }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  command: [lorauter-registry, migrate, --wait, "600"]
  env:
    {{- include "lorauter.url" (dict "root" . "server" "database" "variable" "DATABASE_URL") | nindent 4 }}
  resources:
    requests: {cpu: 50m, memory: 128Mi}
    limits: {memory: 512Mi}
  securityContext: {{- include "lorauter.containerSecurity" . | nindent 4 }}
  volumeMounts:
    - name: tmp
      mountPath: /tmp
{{- end -}}
