{{/*
A container that copies with rclone, again and again or once. Takes a dict: root, name, from, to, again.
Weights go before configurations, for by these a server takes a folder for an adapter; what has once been copied
never changes, so nothing is deleted or compared beyond its size.
*/}}
{{- define "lorauter.copying" -}}
{{- $store := .root.Values.objectStore -}}
{{- $copy := printf "rclone copy --size-only --exclude '.*/**' --exclude '*.json' %[1]s %[2]s && rclone copy --size-only --exclude '.*/**' %[1]s %[2]s" .from .to -}}
- name: {{ .name }}
  image: {{ include "lorauter.exactImage" (dict "image" $store.image "setting" "objectStore.image") }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  command: [sh, -c]
  args:
    {{- if .again }}
    - "trap 'exit 0' TERM; while {{ $copy }}; do sleep {{ $store.everySeconds }} & wait $!; done"
    {{- else }}
    - "{{ $copy }}"
    {{- end }}
  env:
    - name: RCLONE_CONFIG
      value: /tmp/rclone.conf
  envFrom:
    - secretRef:
        name: {{ required "objectStore.existingSecret is missing: the Secret whose keys are rclone's settings, such as RCLONE_CONFIG_STORE_TYPE" $store.existingSecret }}
  resources: {{- toYaml $store.resources | nindent 4 }}
  securityContext: {{- include "lorauter.containerSecurity" . | nindent 4 }}
  volumeMounts:
    - {name: tmp, mountPath: /tmp}
    - {name: adapters, mountPath: /adapters}
{{- end -}}

{{/* A container beside the registry that copies new adapters into the object store. Takes the root. */}}
{{- define "lorauter.storeCopier" -}}
{{- with .Values.objectStore.remote -}}
{{- include "lorauter.copying" (dict "root" $ "name" "copy-adapters" "from" "/adapters" "to" . "again" true) -}}
{{- end -}}
{{- end -}}

{{/* A container that fetches adapters from the object store. Takes (dict "root" $ "name" name "again" bool). */}}
{{- define "lorauter.storeFetcher" -}}
{{- $remote := required "objectStore.remote is missing: an inference server has `adapters: objectStore`" .root.Values.objectStore.remote -}}
{{- include "lorauter.copying" (dict "root" .root "name" .name "from" $remote "to" "/adapters" "again" .again) -}}
{{- end -}}

{{/* An image of others, which must name an exact version. Takes (dict "image" text "setting" where it comes from). */}}
{{- define "lorauter.exactImage" -}}
{{- if not (regexMatch "(@sha256:[0-9a-f]{64}|:[A-Za-z0-9_][A-Za-z0-9_.-]*)$" .image) -}}
{{- fail (printf "%s is %s, without a version: name an exact one" .setting .image) -}}
{{- end -}}
{{- if hasSuffix ":latest" .image -}}
{{- fail (printf "%s is %s, which moves: name an exact version" .setting .image) -}}
{{- end -}}
{{- .image -}}
{{- end -}}
