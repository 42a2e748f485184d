{{/* Size of /dev/shm; empty: the container runtime's own. */}}
{{- define "plait.shmSize" -}}
{{- $shared := or (eq .Values.worker "vllm") (eq .Values.workload "RayCluster") -}}
{{ .Values.shmSize | default (ternary "1Gi" "" $shared) }}
{{- end }}

{{- define "plait.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "plait.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* Requests and limits with GPUs: a dict of resources, gpus and the resource's name. */}}
{{- define "plait.resources" -}}
{{- $resources := deepCopy .resources -}}
{{- if .gpus }}
{{- $_ := set $resources.limits .gpuResource .gpus }}
{{- $_ := set $resources.requests .gpuResource .gpus }}
{{- end }}
{{- toYaml $resources }}
{{- end }}

{{/* Annotations whose change rolls out new pods. */}}
{{- define "plait.podAnnotations" -}}
kubectl.kubernetes.io/default-container: plait
checksum/options: {{ include "plait.options" . | sha256sum }}
{{- with .Values.apiKeys.values }}
checksum/api-keys: {{ join "," . | sha256sum }}
{{- end }}
{{- with .Values.podAnnotations }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Without the chart's version: an upgrade that changes nothing else keeps the pods. */}}
{{- define "plait.podLabels" -}}
{{ include "plait.selector" . }}
{{- if .Values.inferencePool.enabled }}
llm-d.ai/engine-type: vllm # whose names plait's metrics have
{{- end }}
{{- with .Values.podLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Where pods may go; groups of a Ray cluster have nodes of their own. */}}
{{- define "plait.placement" -}}
{{- with .Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* What every pod of the release has, whatever runs in it. */}}
{{- define "plait.podBase" -}}
serviceAccountName: {{ include "plait.serviceAccountName" . }}
automountServiceAccountToken: false
enableServiceLinks: false # a Service called plait would set PLAIT_PORT
terminationGracePeriodSeconds: {{ include "plait.graceSeconds" . }}
securityContext: {{- include "plait.podSecurity" . | nindent 2 }}
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end }}

{{/* The pod of a Deployment or a StatefulSet. */}}
{{- define "plait.podTemplate" -}}
metadata:
  labels: {{- include "plait.podLabels" . | nindent 4 }}
  annotations: {{- include "plait.podAnnotations" . | nindent 4 }}
spec:
  {{- include "plait.podBase" . | nindent 2 }}
  {{- if and .Values.gpu.count .Values.gpu.runtimeClassName }}
  runtimeClassName: {{ .Values.gpu.runtimeClassName }}
  {{- end }}
  {{- include "plait.placement" . | nindent 2 }}
  topologySpreadConstraints:
    {{- with .Values.topologySpreadConstraints }}
    {{- toYaml . | nindent 4 }}
    {{- else }}
    - maxSkew: 1
      topologyKey: kubernetes.io/hostname
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels: {{- include "plait.selector" . | nindent 10 }}
      {{- if eq .Values.workload "Deployment" }}
      matchLabelKeys: [pod-template-hash]
      {{- end }}
    {{- end }}
  {{- if eq .Values.model.source "fetch" }}
  initContainers:
    {{- include "plait.fetch" . | nindent 4 }}
  {{- end }}
  containers:
    {{- include "plait.container" . | nindent 4 }}
  volumes:
    {{- include "plait.volumes" . | nindent 4 }}
{{- end }}
