{{/* Name of everything in this release: the release's, with the chart's where it is not in it. */}}
{{- define "lorauter.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Labels that select the pods of one component. Takes (dict "root" $ "component" name). */}}
{{- define "lorauter.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
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
{{- $repository := required "image.repository is missing: where the images of lorauter lie, without the service's name" .root.Values.image.repository -}}
{{- $tag := required "image.tag is missing: the exact version to run" .root.Values.image.tag -}}
{{- if eq $tag "latest" -}}
{{- fail "image.tag is latest, which moves: name an exact version" -}}
{{- end -}}
{{- printf "%s-%s:%s" $repository .service $tag -}}
{{- end -}}

{{/* A variable that holds a server's URL, from the Secret of that server. Takes (dict "root" $ "server" name "variable" name). */}}
{{- define "lorauter.url" -}}
{{- $server := index .root.Values .server -}}
- name: {{ .variable }}
  valueFrom:
    secretKeyRef:
      name: {{ required (printf "%s.existingSecret is missing: the Secret whose key %s holds the URL of the server" .server $server.key) $server.existingSecret }}
      key: {{ $server.key }}
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
{{- end -}}

{{/* What a container may do: nothing beyond its own memory and /tmp. */}}
{{- define "lorauter.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* What a pod may do: run as an ordinary user, without a token for the cluster. */}}
{{- define "lorauter.podSecurity" -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  seccompProfile:
    type: RuntimeDefault
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* "true" where several pods may mount the adapter store, else empty. Takes the root. */}}
{{- define "lorauter.storeIsShared" -}}
{{- if or .Values.adapterStore.existingClaim (has "ReadWriteMany" .Values.adapterStore.accessModes) }}true{{ end -}}
{{- end -}}
