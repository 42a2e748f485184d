{{/* The server's container. */}}
{{- define "plait.container" -}}
- name: plait
  image: {{ include "plait.image" . }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  {{- with concat (list "serve" "--config" "/etc/plait/plait.yaml") .Values.extraArgs }}
  args: {{- toYaml . | nindent 4 }}
  {{- end }}
  env: {{- include "plait.env" . | nindent 4 }}
  ports:
    - name: http
      containerPort: 8000
  {{- include "plait.probes" . | nindent 2 }}
  lifecycle:
    preStop: # until no proxy sends new requests any more
      sleep:
        seconds: {{ .Values.preStopSeconds }}
  resources:
    {{- $sizes := dict "resources" .Values.resources "gpus" .Values.gpu.count "gpuResource" .Values.gpu.resource }}
    {{- include "plait.resources" $sizes | nindent 4 }}
  securityContext: {{- include "plait.containerSecurity" . | nindent 4 }}
  volumeMounts:
    - name: options
      mountPath: /etc/plait
      readOnly: true
    {{- include "plait.sharedMounts" . | nindent 4 }}
    {{- if .Values.draftStore.size }}
    - name: drafts
      mountPath: /var/lib/plait/drafts
    {{- end }}
    {{- with .Values.extraVolumeMounts }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end }}

{{- define "plait.env" -}}
{{- if ne .Values.workload "RayCluster" }}
- name: PLAIT_THREADS # the pod's cores, not the node's
  valueFrom:
    resourceFieldRef:
      resource: limits.cpu
      divisor: "1"
{{- end }}
{{- with include "plait.apiKeySecret" . }}
- name: PLAIT_API_KEY
  valueFrom:
    secretKeyRef:
      name: {{ . }}
      key: {{ $.Values.apiKeys.key }}
{{- end }}
{{- if eq .Values.workload "RayCluster" }}
{{ include "plait.rayToken" . }}
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "plait.probes" -}}
startupProbe: # until the model has loaded
  httpGet:
    path: /ready
    port: http
  periodSeconds: 2
  timeoutSeconds: 2
  failureThreshold: {{ divf .Values.probes.startupSeconds 2 | ceil | int }}
readinessProbe:
  httpGet:
    path: /ready
    port: http
  periodSeconds: {{ .Values.probes.readinessPeriodSeconds }}
  timeoutSeconds: 2
  failureThreshold: 1
livenessProbe: # a worker that dies is replaced in the pod: only a front end that hangs fails here
  httpGet:
    path: /health
    port: http
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: {{ divf .Values.probes.livenessSeconds 10 | ceil | int }}
{{- end }}

{{/* An init container that writes the model where the server reads it. */}}
{{- define "plait.fetch" -}}
{{- with .Values.model.fetch -}}
- name: fetch
  image: {{ .image }}
  {{- with .command }}
  command: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .args }}
  args: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .env }}
  env: {{- toYaml . | nindent 4 }}
  {{- end }}
  resources: {{- toYaml .resources | nindent 4 }}
  securityContext: {{- include "plait.containerSecurity" $ | nindent 4 }}
  volumeMounts:
    - name: models
      mountPath: /models
    - name: tmp
      mountPath: /tmp
{{- end }}
{{- end }}
