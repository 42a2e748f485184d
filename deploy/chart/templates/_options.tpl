{{/* The model's argument of `plait serve`. */}}
{{- define "plait.model" -}}
{{- $model := .Values.model -}}
{{- if eq $model.source "builtin" -}}
{{ $model.path | default "smollm2-135m-instruct" }}
{{- else -}}
{{ list "/models" $model.path | compact | join "/" }}
{{- end }}
{{- end }}

{{/* GPUs of a worker. A Ray cluster's groups are alike in this. */}}
{{- define "plait.gpus" -}}
{{- if eq .Values.workload "RayCluster" -}}
{{- (first .Values.ray.workerGroups).gpus | default 0 }}
{{- else -}}
{{- .Values.gpu.count | default 0 }}
{{- end -}}
{{- end }}

{{/* The YAML file of `plait serve`. */}}
{{- define "plait.options" -}}
{{- $own := dict "model" (include "plait.model" .) -}}
{{- with .Values.model.servedName }}{{ $_ := set $own "served_name" . }}{{ end -}}
{{- if ne .Values.worker "native" }}{{ $_ := set $own "worker" .Values.worker }}{{ end -}}
{{- $gpus := include "plait.gpus" . | int }}
{{- if and (eq .Values.worker "native") $gpus }}
{{- $_ := set $own "device" "cuda" }}
{{- else if and (gt $gpus 1) (not (hasKey .Values.options "tensor_parallel_size")) (not (hasKey .Values.options "pipeline_parallel_size")) }}
{{- $_ := set $own "tensor_parallel_size" $gpus }}
{{- end -}}
{{- if .Values.draftStore.size }}{{ $_ := set $own "draft_store" "/var/lib/plait/drafts" }}{{ end -}}
{{- if eq .Values.workload "RayCluster" }}
{{- $_ := set $own "pool" "ray" }}
{{- $_ := set $own "ray_address" "auto" }}
{{- $group := first .Values.ray.workerGroups }}
{{- $_ := set $own "ray_cpus" ($group.resources.limits.cpu | toString | int) }}
{{- if $gpus }}{{ $_ := set $own "ray_gpus" $gpus }}{{ end -}}
{{- end -}}
{{- merge $own .Values.options | toYaml }}
{{- end }}
