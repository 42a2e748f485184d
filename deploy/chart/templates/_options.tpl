{{/* The model's argument of `plait serve`. */}}
{{- define "plait.model" -}}
{{- $model := .Values.model -}}
{{- if eq $model.source "builtin" -}}
{{ $model.path | default "smollm2-135m-instruct" }}
{{- else -}}
{{ list "/models" $model.path | compact | join "/" }}
{{- end }}
{{- end }}

{{/* A Ray cluster's groups are alike in this. */}}
{{- define "plait.usesGpu" -}}
{{- if eq .Values.workload "RayCluster" -}}
{{- if (first .Values.ray.workerGroups).gpus }}true{{ end -}}
{{- else if .Values.gpu.count }}true{{ end -}}
{{- end }}

{{/* The YAML file of `plait serve`. */}}
{{- define "plait.options" -}}
{{- $own := dict "model" (include "plait.model" .) -}}
{{- with .Values.model.servedName }}{{ $_ := set $own "served_name" . }}{{ end -}}
{{- if ne .Values.worker "native" }}{{ $_ := set $own "worker" .Values.worker }}{{ end -}}
{{- if and (eq .Values.worker "native") (include "plait.usesGpu" .) }}
{{- $_ := set $own "device" "cuda" }}
{{- end -}}
{{- if .Values.draftStore.size }}{{ $_ := set $own "draft_store" "/var/lib/plait/drafts" }}{{ end -}}
{{- if eq .Values.workload "RayCluster" }}
{{- $_ := set $own "pool" "ray" }}
{{- $_ := set $own "ray_address" "auto" }}
{{- $group := first .Values.ray.workerGroups }}
{{- $_ := set $own "ray_cpus" ($group.resources.limits.cpu | toString | int) }}
{{- if $group.gpus }}{{ $_ := set $own "ray_gpus" 1 }}{{ end -}}
{{- end -}}
{{- merge $own .Values.options | toYaml }}
{{- end }}
