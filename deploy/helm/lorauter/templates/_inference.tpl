{{/* The servers of `inference` with all defaults filled in, as a YAML list; adds image, port, measure and adapters. */}}
{{- define "lorauter.servers" -}}
{{- $defaults := .Values.inferenceDefaults -}}
{{- $servers := list -}}
{{- range .Values.inference -}}
{{- $of := index $defaults .kind -}}
{{- $own := dict "image" $of.image "port" (ternary 8080 8000 (eq .kind "tgi")) "measure" (eq .kind "tgi") "adapters" "store" "vllm" dict -}}
{{- $server := mergeOverwrite (omit (deepCopy $defaults) "tgi" "vllm") $own (deepCopy .) -}}
{{- $servers = append $servers (set $server "shards" ($server.shards | default $server.gpus)) -}}
{{- end -}}
{{- toYaml $servers -}}
{{- end -}}

{{/* Hosts that may be registered as backends, separated by commas: those of the release, and those of `backends`. */}}
{{- define "lorauter.backendHosts" -}}
{{- $fullname := include "lorauter.fullname" . -}}
{{- $hosts := list -}}
{{- range .Values.inference -}}
{{- $hosts = append $hosts (printf "%s-%s" $fullname .name) -}}
{{- end -}}
{{- if .Values.engine.enabled -}}
{{- $hosts = append $hosts (printf "%s-engine" $fullname) -}}
{{- end -}}
{{- concat $hosts .Values.backends.hosts | join "," -}}
{{- end -}}

{{/*
The Deployment of one inference server. Takes (dict "root" $ "server" filled-in server).
A GPU that is free for a second pod is the exception, so an old pod goes before its successor comes.
*/}}
{{- define "lorauter.inference" -}}
{{- $root := .root -}}
{{- $server := .server -}}
{{- $labels := dict "root" $root "component" $server.kind "server" $server.name -}}
{{- $manifest := ternary (index $root.Values.manifests $server.pool | default dict) dict (eq $server.kind "tgi") -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ include "lorauter.fullname" $root }}-{{ $server.name }}
  labels: {{- include "lorauter.labels" $labels | nindent 4 }}
spec:
  replicas: {{ $server.replicas }}
  strategy:
    type: RollingUpdate
    rollingUpdate: {maxSurge: 0, maxUnavailable: 1}
  selector:
    matchLabels: {{- include "lorauter.selector" $labels | nindent 6 }}
  template:
    metadata:
      labels: {{- include "lorauter.labels" $labels | nindent 8 }}
      {{- with mergeOverwrite (dict "lorauter/pool" $server.pool) (dict "lorauter/manifest" ($manifest.digest | default "none")) ($server.podAnnotations | default dict) }}
      annotations: {{- toYaml . | nindent 8 }}
      {{- end }}
    spec:
      {{- include "lorauter.podSecurity" (dict "root" $root) | nindent 6 }}
      {{- with include "lorauter.placement" $server }}
      {{- . | nindent 6 }}
      {{- end }}
      {{- with $server.runtimeClassName }}
      runtimeClassName: {{ . }}
      {{- end }}
      {{- include "lorauter.spread" $labels | nindent 6 }}
      terminationGracePeriodSeconds: {{ add $server.drainSeconds 30 }}
      {{- if or $manifest (eq $server.adapters "objectStore") }}
      initContainers:
        {{- if eq $server.adapters "objectStore" }}
        {{- include "lorauter.storeFetcher" (dict "root" $root "name" "fetch-adapters" "again" false) | nindent 8 }}
        {{- end }}
        {{- if $manifest }}
        {{- include "lorauter.checkManifest" (dict "root" $root "pool" $server.pool "manifest" $manifest) | nindent 8 }}
        {{- end }}
      {{- end }}
      containers:
        - name: {{ $server.kind }}
          image: {{ include "lorauter.exactImage" (dict "image" $server.image "setting" (printf "the image of inference server %s" $server.name)) }}
          imagePullPolicy: {{ $root.Values.image.pullPolicy }}
          {{- include (printf "lorauter.%s" $server.kind) (dict "root" $root "server" $server "manifest" $manifest) | nindent 10 }}
          ports:
            - name: http
              containerPort: {{ $server.port }}
          # Started: the model is loaded. Ready leaves rotation at once; alive is given up only after minutes, for a
          # pod that starts again has to load the model again.
          startupProbe:
            httpGet: {path: /health, port: http}
            periodSeconds: 10
            timeoutSeconds: 5
            failureThreshold: {{ div $server.startupSeconds 10 }}
          livenessProbe:
            httpGet: {path: /health, port: http}
            periodSeconds: 30
            timeoutSeconds: 20
            failureThreshold: 6
          readinessProbe:
            httpGet: {path: /health, port: http}
            periodSeconds: 5
            timeoutSeconds: 5
            failureThreshold: 2
          lifecycle:
            preStop:
              exec:
                # Neither kind lets running generations end after SIGTERM as a rule: gateways leave meanwhile.
                command: [sleep, {{ $server.drainSeconds | quote }}]
          resources:
            {{- $gpus := dict $server.gpuResource $server.gpus }}
            requests: {{- toYaml (merge (deepCopy $gpus) $server.resources.requests) | nindent 14 }}
            limits: {{- toYaml (merge (deepCopy $gpus) $server.resources.limits) | nindent 14 }}
          securityContext: {{- include "lorauter.containerSecurity" . | nindent 12 }}
          volumeMounts:
            - {name: tmp, mountPath: /tmp}
            - {name: shm, mountPath: /dev/shm}
            - {name: models, mountPath: /models}
            - {name: adapters, mountPath: /adapters, readOnly: true}
        {{- if and (eq $server.adapters "objectStore") (eq $server.kind "vllm") }}
        {{- include "lorauter.storeFetcher" (dict "root" $root "name" "fetch-new-adapters" "again" true) | nindent 8 }}
        {{- end }}
      volumes:
        - name: tmp
          emptyDir: {}
        - name: shm
          emptyDir: {medium: Memory, sizeLimit: {{ $server.shmSize }}}
        - name: models
          {{- if $server.modelCache.existingClaim }}
          persistentVolumeClaim: {claimName: {{ $server.modelCache.existingClaim }}}
          {{- else }}
          emptyDir: {sizeLimit: {{ $server.modelCache.size }}}
          {{- end }}
        - name: adapters
          {{- if eq $server.adapters "objectStore" }}
          emptyDir: {sizeLimit: {{ $root.Values.adapterStore.size }}}
          {{- else }}
          persistentVolumeClaim: {claimName: {{ include "lorauter.storeClaim" $root }}, readOnly: true}
          {{- end }}
{{- end -}}

{{/*
A container that ends a pod whose manifest names what the adapter store does not have. Takes (dict "root" $ "pool" name
"manifest" manifest).
*/}}
{{- define "lorauter.checkManifest" -}}
- name: check-manifest
  image: {{ include "lorauter.image" (dict "root" .root "service" "cli") }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  command: [sh, -c]
  args:
    - |
      for name in $ADAPTERS; do
        test -d "/adapters/$name" && continue
        echo "manifests.{{ .pool }} names $name, which the adapter store does not have: give pods the store that the registry writes, or render the manifest that is in force" >&2
        exit 1
      done
  env:
    - name: ADAPTERS
      value: {{ join " " .manifest.adapters | quote }}
  resources:
    requests: {cpu: 10m, memory: 16Mi}
    limits: {memory: 64Mi}
  securityContext: {{- include "lorauter.containerSecurity" . | nindent 4 }}
  volumeMounts:
    - {name: tmp, mountPath: /tmp}
    - {name: adapters, mountPath: /adapters, readOnly: true}
{{- end -}}

{{/* Variables of both kinds: caches in mounted folders, nothing sent home, and the key under the server's own name for it. */}}
{{- define "lorauter.inferenceEnvironment" }}
{{- range $name, $value := dict "HOME" "/tmp" "USER" "lorauter" "XDG_CACHE_HOME" "/tmp/cache" "TRITON_CACHE_DIR" "/tmp/triton" "TORCHINDUCTOR_CACHE_DIR" "/tmp/inductor" "HF_HOME" "/models" "DO_NOT_TRACK" "1" }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- if and .root.Values.networkPolicy.enabled (not .root.Values.networkPolicy.hub) }}
- name: HF_HUB_OFFLINE
  value: "1"
{{- end }}
{{ include "lorauter.backendKey" (dict "root" .root "variable" .keyVariable) }}
{{- with .server.hubToken }}
{{ include "lorauter.secret" (dict "variable" "HF_TOKEN" "secret" . "setting" "hubToken" "holds" "a token for the Hugging Face hub") }}
{{- end }}
{{- range $name, $value := .server.config }}
- name: {{ $name }}
  value: {{ include "lorauter.text" $value }}
{{- end }}
{{- end -}}

{{/*
TGI 3.3. It captures CUDA graphs without adapters, so a captured step leaves the adapter out: none are captured.
Its image runs as root and listens on port 80.
*/}}
{{- define "lorauter.tgi" -}}
args:
  - --hostname=0.0.0.0
  - --port={{ .server.port }}
  - --model-id={{ .server.model }}
  {{- with .server.revision }}
  - --revision={{ . }}
  {{- end }}
  {{- if gt (int .server.shards) 1 }}
  - --num-shard={{ .server.shards }}
  {{- end }}
  - --cuda-graphs=0
  - --usage-stats=off
  {{- range .server.args }}
  - {{ . | quote }}
  {{- end }}
env:
  {{- include "lorauter.inferenceEnvironment" (dict "root" .root "server" .server "keyVariable" "API_KEY") | indent 2 }}
  - name: HUGGINGFACE_HUB_CACHE
    value: /models/hub
  {{- with .manifest }}
  - name: LORA_ADAPTERS
    value: {{ .environment.LORA_ADAPTERS | quote }}
  {{- end }}
{{- end -}}

{{/*
vLLM 0.33, which loads adapters at run time. Its routes for that ask for the key, and no policy lets anybody but
gateways (and workers, where they measure on it) reach the port. One API server: each has names of its own.
*/}}
{{- define "lorauter.vllm" -}}
{{- $lora := mergeOverwrite (dict "maxLoras" 16 "maxCpuLoras" 64 "maxLoraRank" 32) .server.vllm -}}
command: [vllm, serve, {{ .server.model | quote }}]
args:
  - --host=0.0.0.0
  - --port={{ .server.port }}
  {{- with .server.revision }}
  - --revision={{ . }}
  {{- end }}
  {{- if gt (int .server.shards) 1 }}
  - --tensor-parallel-size={{ .server.shards }}
  {{- end }}
  - --api-server-count=1
  - --enable-lora
  - --max-loras={{ $lora.maxLoras }}
  - --max-cpu-loras={{ $lora.maxCpuLoras }}
  - --max-lora-rank={{ $lora.maxLoraRank }}
  {{- range .server.args }}
  - {{ . | quote }}
  {{- end }}
env:
  {{- include "lorauter.inferenceEnvironment" (dict "root" .root "server" .server "keyVariable" "VLLM_API_KEY") | indent 2 }}
  - name: VLLM_ALLOW_RUNTIME_LORA_UPDATING
    value: "1"
  - name: VLLM_CACHE_ROOT
    value: /tmp/vllm
  - name: VLLM_NO_USAGE_STATS
    value: "1"
{{- end -}}
