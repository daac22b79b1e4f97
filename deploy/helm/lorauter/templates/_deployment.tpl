{{/*
The Deployment of one component. Takes a dict:
  root, component; service: the image and command it runs; values: replicas, resources, config and placement;
  environment: its own variables as YAML; grpc: whether it has a gRPC port; scaled: whether an autoscaler decides
  how many; startupSeconds: how long it may take to listen; schema: whether it waits for the database's schema;
  store: whether it mounts the adapter store; mounts, volumes, initContainers, sidecars: more of these, as YAML;
  strategy: how it is replaced (RollingUpdate unless given); plain: whether it speaks no TLS; beside: a component
  whose node it must share, for a volume that one node mounts at a time.
*/}}
{{- define "lorauter.deployment" -}}
{{- $root := .root -}}
{{- $tls := ternary "" $root.Values.tls.existingSecret (.plain | default false) -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ include "lorauter.fullname" $root }}-{{ .component }}
  labels: {{- include "lorauter.labels" . | nindent 4 }}
spec:
  {{- if not .scaled }}
  replicas: {{ .values.replicas }}
  {{- end }}
  strategy:
    {{- if eq (.strategy | default "RollingUpdate") "Recreate" }}
    type: Recreate
    {{- else }}
    type: RollingUpdate
    rollingUpdate: {maxSurge: 1, maxUnavailable: 0}
    {{- end }}
  selector:
    matchLabels: {{- include "lorauter.selector" . | nindent 6 }}
  template:
    metadata:
      labels: {{- include "lorauter.labels" . | nindent 8 }}
      {{- with .values.podAnnotations }}
      annotations: {{- toYaml . | nindent 8 }}
      {{- end }}
    spec:
      {{- include "lorauter.podSecurity" . | nindent 6 }}
      {{- with include "lorauter.placement" .values }}
      {{- . | nindent 6 }}
      {{- end }}
      {{- include "lorauter.spread" . | nindent 6 }}
      {{- with .beside }}
      affinity:
        podAffinity:
          requiredDuringSchedulingIgnoredDuringExecution:
            - topologyKey: kubernetes.io/hostname
              labelSelector:
                matchLabels: {{- include "lorauter.selector" (dict "root" $root "component" .) | nindent 18 }}
      {{- end }}
      # gRPC and then HTTP drain for drainSeconds each.
      terminationGracePeriodSeconds: {{ add $root.Values.preStopSeconds (mul 2 $root.Values.drainSeconds) 15 }}
      {{- if or .schema .initContainers }}
      initContainers:
        {{- if .schema }}
        {{- include "lorauter.waitForSchema" $root | nindent 8 }}
        {{- end }}
        {{- with .initContainers }}
        {{- . | nindent 8 }}
        {{- end }}
      {{- end }}
      containers:
        - name: {{ .service }}
          image: {{ include "lorauter.image" . }}
          imagePullPolicy: {{ $root.Values.image.pullPolicy }}
          command: [lorauter-{{ .service }}]
          env:
            {{- include "lorauter.environment" $root | nindent 12 }}
            {{- if .grpc }}
            - name: LORAUTER_GRPC_PORT
              value: "9090"
            {{- end }}
            {{- .environment | nindent 12 }}
            {{- if $tls }}
            {{- include "lorauter.tlsEnvironment" $root | nindent 12 }}
            {{- end }}
            {{- with include "lorauter.config" .values.config }}
            {{- . | nindent 12 }}
            {{- end }}
          ports:
            - name: http
              containerPort: 8080
            {{- if .grpc }}
            - name: grpc
              containerPort: 9090
            {{- end }}
          {{- include "lorauter.probes" . | nindent 10 }}
          lifecycle:
            preStop:
              exec:
                command: [sleep, {{ $root.Values.preStopSeconds | quote }}]
          resources: {{- toYaml .values.resources | nindent 12 }}
          securityContext: {{- include "lorauter.containerSecurity" . | nindent 12 }}
          volumeMounts:
            - name: tmp
              mountPath: /tmp
            {{- if .store }}
            - name: adapters
              mountPath: /var/lib/lorauter/adapters
            {{- end }}
            {{- if $tls }}
            - name: tls
              mountPath: /etc/lorauter/tls
              readOnly: true
            {{- end }}
            {{- with .mounts }}
            {{- . | nindent 12 }}
            {{- end }}
        {{- with .sidecars }}
        {{- . | nindent 8 }}
        {{- end }}
      volumes:
        - name: tmp
          emptyDir: {}
        {{- if .store }}
        - name: adapters
          persistentVolumeClaim:
            claimName: {{ include "lorauter.storeClaim" $root }}
        {{- end }}
        {{- with $tls }}
        - name: tls
          secret:
            secretName: {{ . }}
            defaultMode: 0440
        {{- end }}
        {{- with .volumes }}
        {{- . | nindent 8 }}
        {{- end }}
{{- end -}}

{{/*
Started: it listens. Alive: it answers, whatever else is away, for a server that is away must not get pods restarted.
Ready: it reaches what it needs.
*/}}
{{- define "lorauter.probes" -}}
startupProbe:
  {{- include "lorauter.probe" (dict "of" . "path" "/healthz") | nindent 2 }}
  periodSeconds: 2
  timeoutSeconds: 5
  failureThreshold: {{ div .startupSeconds 2 }}
livenessProbe:
  {{- include "lorauter.probe" (dict "of" . "path" "/healthz") | nindent 2 }}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  {{- include "lorauter.probe" (dict "of" . "path" "/readyz") | nindent 2 }}
  periodSeconds: 5
  timeoutSeconds: 5
{{- end -}}

{{/* How one path is asked. Where callers must show a certificate the kubelet has none, and the pod asks itself. */}}
{{- define "lorauter.probe" -}}
{{- $tls := .of.root.Values.tls -}}
{{- $plain := or .of.plain (not $tls.existingSecret) -}}
{{- if and $tls.mutual (not $plain) -}}
exec: {command: [/opt/lorauter/bin/python, -I, -S, /opt/healthcheck.py, {{ .path }}]}
{{- else -}}
httpGet: {path: {{ .path }}, port: http, scheme: {{ ternary "HTTP" "HTTPS" $plain }}}
{{- end -}}
{{- end -}}

{{/*
The Service of one component. Takes a dict: root, component, grpc: whether it has a gRPC port; headless: for callers that
choose a pod for each call; grpcOnly: a second Service, for these alone.
*/}}
{{- define "lorauter.service" -}}
apiVersion: v1
kind: Service
metadata:
  name: {{ include "lorauter.fullname" .root }}-{{ .component }}{{ if .grpcOnly }}-grpc{{ end }}
  labels: {{- include "lorauter.labels" . | nindent 4 }}
spec:
  {{- if .headless }}
  clusterIP: None
  {{- end }}
  selector: {{- include "lorauter.selector" . | nindent 4 }}
  ports:
    {{- if not .grpcOnly }}
    - name: http
      port: 8080
      targetPort: http
    {{- end }}
    {{- if .grpc }}
    - name: grpc
      port: 9090
      targetPort: grpc
      {{- if not .root.Values.tls.existingSecret }}
      appProtocol: kubernetes.io/h2c
      {{- end }}
    {{- end }}
{{- end -}}
