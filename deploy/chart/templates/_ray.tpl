{{/* Whom the Service sends requests to. */}}
{{- define "plait.frontEnd" -}}
{{ include "plait.selector" . }}
{{- if eq .Values.workload "RayCluster" }}
app.kubernetes.io/component: front-end
{{- end }}
{{- end }}

{{/* Ray's ports mean code execution: nobody talks to them without the token. */}}
{{- define "plait.rayToken" -}}
- name: RAY_AUTH_MODE
  value: token
- name: RAY_AUTH_TOKEN
  valueFrom:
    secretKeyRef:
      name: {{ .Values.ray.tokenSecret }}
      key: auth_token
{{- end }}

{{/* The pods of a cluster talk to each other on ports that Ray chooses. */}}
{{- define "plait.rayIngress" -}}
- from:
    - podSelector:
        matchLabels: {{- include "plait.selector" . | nindent 10 }}
{{- end }}

{{- define "plait.rayEgress" -}}
- to:
    - podSelector:
        matchLabels: {{- include "plait.selector" . | nindent 10 }}
- ports: # workers find the head by its name
    - protocol: UDP
      port: 53
    - protocol: TCP
      port: 53
{{- end }}

{{/* Ray's container of a pod: a dict of root, name, resources and gpus. KubeRay adds its command. */}}
{{- define "plait.rayContainer" -}}
{{- $root := .root -}}
- name: {{ .name }}
  image: {{ include "plait.image" $root }}
  imagePullPolicy: {{ $root.Values.image.pullPolicy }}
  env: {{- include "plait.rayToken" $root | nindent 4 }}
  lifecycle:
    preStop: # Ray stays until the front end has drained
      sleep:
        seconds: {{ sub (include "plait.graceSeconds" $root | int) 5 }}
  resources:
    {{- $sizes := dict "resources" .resources "gpus" .gpus "gpuResource" $root.Values.gpu.resource }}
    {{- include "plait.resources" $sizes | nindent 4 }}
  securityContext: {{- include "plait.containerSecurity" $root | nindent 4 }}
  volumeMounts: {{- include "plait.sharedMounts" $root | nindent 4 }}
{{- end }}

{{- define "plait.rayHead" -}}
metadata:
  labels:
    {{- include "plait.podLabels" . | nindent 4 }}
    app.kubernetes.io/component: front-end
  annotations: {{- include "plait.podAnnotations" . | nindent 4 }}
spec:
  {{- include "plait.podBase" . | nindent 2 }}
  shareProcessNamespace: true # Ray sees the front end's process
  {{- include "plait.placement" . | nindent 2 }}
  {{- if eq .Values.model.source "fetch" }}
  initContainers:
    {{- include "plait.fetch" . | nindent 4 }}
  {{- end }}
  containers:
    {{- $head := dict "root" . "name" "ray-head" "resources" .Values.ray.headResources "gpus" 0 }}
    {{- include "plait.rayContainer" $head | nindent 4 }}
    {{- include "plait.container" . | nindent 4 }}
  volumes:
    {{- include "plait.volumes" . | nindent 4 }}
{{- end }}

{{/* A node of a group: a dict of root and group. */}}
{{- define "plait.rayWorker" -}}
{{- $root := .root -}}
metadata:
  labels:
    {{- include "plait.podLabels" $root | nindent 4 }}
    app.kubernetes.io/component: worker
  annotations:
    kubectl.kubernetes.io/default-container: ray-worker
    {{- with $root.Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  {{- include "plait.podBase" $root | nindent 2 }}
  {{- with .group }}
  {{- if and .gpus $root.Values.gpu.runtimeClassName }}
  runtimeClassName: {{ $root.Values.gpu.runtimeClassName }}
  {{- end }}
  {{- with .nodeSelector }}
  nodeSelector: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .tolerations }}
  tolerations: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if eq $root.Values.model.source "fetch" }}
  initContainers:
    {{- include "plait.fetch" $root | nindent 4 }}
  {{- end }}
  containers:
    {{- $node := dict "root" $root "name" "ray-worker" "resources" .resources "gpus" .gpus }}
    {{- include "plait.rayContainer" $node | nindent 4 }}
  {{- end }}
  volumes:
    {{- include "plait.sharedVolumes" $root | nindent 4 }}
{{- end }}
