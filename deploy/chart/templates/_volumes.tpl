{{/* What a worker needs wherever it runs: the model, and places to write. */}}
{{- define "plait.sharedMounts" -}}
- name: tmp
  mountPath: /tmp
{{- if include "plait.shmSize" . }}
- name: shm
  mountPath: /dev/shm
{{- end }}
{{- if ne .Values.model.source "builtin" }}
- name: models
  mountPath: /models
  readOnly: true
{{- end }}
{{- end }}

{{- define "plait.volumes" -}}
- name: options
  configMap:
    name: {{ include "plait.name" . }}-options
{{ include "plait.sharedVolumes" . }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "plait.sharedVolumes" -}}
- name: tmp
  emptyDir:
    sizeLimit: {{ .Values.tmpSize }}
{{- with include "plait.shmSize" . }}
- name: shm
  emptyDir:
    medium: Memory
    sizeLimit: {{ . }}
{{- end }}
{{- with .Values.model }}
{{- if eq .source "pvc" }}
- name: models
  persistentVolumeClaim:
    claimName: {{ .pvc.claimName }}
    readOnly: true
{{- else if eq .source "image" }}
- name: models
  image:
    reference: {{ .image.reference }}
    pullPolicy: {{ .image.pullPolicy }}
{{- else if and (eq .source "fetch") (not .cache.size) }}
- name: models
  emptyDir:
    sizeLimit: {{ .fetch.sizeLimit }}
{{- end }}
{{- end }}
{{- end }}

{{/* Claims of a StatefulSet, one of each per pod. */}}
{{- define "plait.claims" -}}
{{- range $name, $claim := dict "models" .Values.model.cache "drafts" .Values.draftStore }}
{{- if $claim.size }}
- metadata:
    name: {{ $name }}
  spec:
    accessModes: [ReadWriteOnce]
    {{- with $claim.storageClassName }}
    storageClassName: {{ . }}
    {{- end }}
    resources:
      requests:
        storage: {{ $claim.size }}
{{- end }}
{{- end }}
{{- end }}
