{{/*
The Deployment of one component. Takes a dict:
  root, component; service: the image and command it runs; values: replicas and resources;
  environment: its own variables as YAML; grpc: whether it has a gRPC port;
  startupSeconds: how long it may take to listen; store: whether it mounts the adapter store;
  strategy: how it is replaced (RollingUpdate unless given).
*/}}
{{- define "lorauter.deployment" -}}
{{- $name := printf "%s-%s" (include "lorauter.fullname" .root) .component -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ $name }}
  labels: {{- include "lorauter.labels" . | nindent 4 }}
spec:
  replicas: {{ .values.replicas }}
  strategy:
    type: {{ .strategy | default "RollingUpdate" }}
  selector:
    matchLabels: {{- include "lorauter.selector" . | nindent 6 }}
  template:
    metadata:
      labels: {{- include "lorauter.labels" . | nindent 8 }}
    spec:
      serviceAccountName: {{ include "lorauter.fullname" .root }}
      {{- include "lorauter.podSecurity" .root | nindent 6 }}
      terminationGracePeriodSeconds: {{ add .root.Values.drainSeconds 10 }}
      containers:
        - name: {{ .service }}
          image: {{ include "lorauter.image" . }}
          imagePullPolicy: {{ .root.Values.image.pullPolicy }}
          command: [lorauter-{{ .service }}]
          env:
            {{- include "lorauter.environment" .root | nindent 12 }}
            {{- if .grpc }}
            - name: LORAUTER_GRPC_PORT
              value: "9090"
            {{- end }}
            {{- .environment | nindent 12 }}
          ports:
            - name: http
              containerPort: 8080
            {{- if .grpc }}
            - name: grpc
              containerPort: 9090
            {{- end }}
          # Alive is a process that answers; ready is one that reaches what it needs. A server that is away must
          # not get pods restarted.
          startupProbe:
            httpGet: {path: /healthz, port: http}
            periodSeconds: 2
            failureThreshold: {{ div .startupSeconds 2 }}
          livenessProbe:
            httpGet: {path: /healthz, port: http}
            periodSeconds: 10
            timeoutSeconds: 5
            failureThreshold: 6
          readinessProbe:
            httpGet: {path: /readyz, port: http}
            periodSeconds: 5
            timeoutSeconds: 5
          resources: {{- toYaml .values.resources | nindent 12 }}
          securityContext: {{- include "lorauter.containerSecurity" . | nindent 12 }}
          volumeMounts:
            - name: tmp
              mountPath: /tmp
            {{- if .store }}
            - name: adapters
              mountPath: /var/lib/lorauter/adapters
            {{- end }}
      volumes:
        - name: tmp
          emptyDir: {}
        {{- if .store }}
        - name: adapters
          persistentVolumeClaim:
            claimName: {{ .root.Values.adapterStore.existingClaim | default (printf "%s-adapters" (include "lorauter.fullname" .root)) }}
        {{- end }}
{{- end -}}

{{/* The Service of one component. Takes (dict "root" $ "component" name). */}}
{{- define "lorauter.service" -}}
apiVersion: v1
kind: Service
metadata:
  name: {{ include "lorauter.fullname" .root }}-{{ .component }}
  labels: {{- include "lorauter.labels" . | nindent 4 }}
spec:
  selector: {{- include "lorauter.selector" . | nindent 4 }}
  ports:
    - name: http
      port: 8080
      targetPort: http
    - name: grpc
      port: 9090
      targetPort: grpc
      appProtocol: grpc
{{- end -}}
