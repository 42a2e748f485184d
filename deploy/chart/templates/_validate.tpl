{{/* What values.schema.json can't say: values that contradict each other. */}}
{{- define "plait.validate" -}}
{{- include "plait.validateModel" . }}
{{- include "plait.validateWorkload" . }}
{{- include "plait.validateTimes" . }}
{{- include "plait.validateScaling" . }}
{{- include "plait.validateNetwork" . }}
{{- include "plait.validateArguments" . }}
{{- end }}

{{- define "plait.validateModel" -}}
{{- $model := .Values.model -}}
{{- if and (not .Values.image.digest) (eq .Values.image.tag "latest") }}
{{- fail "image.tag: latest is another image tomorrow; name a version or set image.digest" }}
{{- end }}
{{- if and (eq $model.source "builtin") (eq .Values.worker "vllm") }}
{{- fail "model.source: vLLM serves no built-in model; mount a Hugging Face folder (pvc, image or fetch)" }}
{{- end }}
{{- $given := dict "pvc" $model.pvc.claimName "image" $model.image.reference "fetch" $model.fetch.image }}
{{- range $source, $value := $given }}
{{- if and $value (ne $source $model.source) }}
{{- fail (printf "model.source: it is %s, so nothing reads model.%s" $model.source $source) }}
{{- end }}
{{- end }}
{{- if and (eq $model.source "pvc") (not $model.pvc.claimName) }}
{{- fail "model.pvc.claimName: name the claim that holds the model" }}
{{- end }}
{{- if and (eq $model.source "image") (not $model.image.reference) }}
{{- fail "model.image.reference: name the OCI artifact that holds the model" }}
{{- end }}
{{- range $key, $image := dict "image.reference" $model.image.reference "fetch.image" $model.fetch.image }}
{{- $last := $image | splitList "/" | last }}
{{- if and $image (or (hasSuffix ":latest" $last) (not (regexMatch "[:@]" $last))) }}
{{- fail (printf "model.%s: %s is another image tomorrow; name a version or a digest" $key $image) }}
{{- end }}
{{- end }}
{{- if and (eq $model.source "fetch") (not $model.fetch.image) }}
{{- fail "model.fetch.image: name the image that fetches the model" }}
{{- end }}
{{- end }}

{{- define "plait.validateWorkload" -}}
{{- $claims := or .Values.model.cache.size .Values.draftStore.size -}}
{{- $stateful := eq .Values.workload "StatefulSet" -}}
{{- if and $stateful (not $claims) }}
{{- fail "workload: a StatefulSet has nothing to keep; set model.cache.size or draftStore.size, or take a Deployment" }}
{{- end }}
{{- if and $claims (not $stateful) }}
{{- fail "model.cache.size, draftStore.size: claims per pod need workload: StatefulSet" }}
{{- end }}
{{- if and .Values.model.cache.size (ne .Values.model.source "fetch") }}
{{- fail "model.cache.size: only a model that is fetched can be kept; set model.source: fetch" }}
{{- end }}
{{- if and .Values.apiKeys.existingSecret .Values.apiKeys.values }}
{{- fail "apiKeys: give existingSecret or values, not both" }}
{{- end }}
{{- $gpus := include "plait.gpus" . | int }}
{{- if and (gt $gpus 1) (eq .Values.worker "native") }}
{{- fail (printf "gpu.count, ray.workerGroups: a native worker uses one GPU, not %d; set worker: vllm" $gpus) }}
{{- end }}
{{- $ranks := mul (.Values.options.tensor_parallel_size | default 1) (.Values.options.pipeline_parallel_size | default 1) }}
{{- if and (gt $ranks 1) (gt $gpus 0) (ne (int $ranks) $gpus) }}
{{- fail (printf "options.tensor_parallel_size, pipeline_parallel_size: %d GPUs are used of %d" $ranks $gpus) }}
{{- end }}
{{- if eq .Values.workload "RayCluster" }}
{{- include "plait.validateRay" . }}
{{- else }}
{{- range $name, $_ := .Values.options }}
{{- if hasPrefix "ray_" $name }}
{{- fail (printf "options.%s: only with workload RayCluster" $name) }}
{{- end }}
{{- end }}
{{- if and .Values.gpu.runtimeClassName (not .Values.gpu.count) }}
{{- fail "gpu.runtimeClassName: is for pods with a GPU; set gpu.count" }}
{{- end }}
{{- end }}
{{- end }}

{{- define "plait.validateRay" -}}
{{- if .Values.gpu.count }}
{{- fail "gpu.count: with a RayCluster, GPUs belong to ray.workerGroups" }}
{{- end }}
{{- if .Values.topologySpreadConstraints }}
{{- fail "topologySpreadConstraints: not for a RayCluster; set nodeSelector of its groups" }}
{{- end }}
{{- if .Values.inferencePool.enabled }}
{{- fail "inferencePool: a RayCluster has one front end, so there is nothing to pick" }}
{{- end }}
{{- if not .Values.ray.tokenSecret }}
{{- fail "ray.tokenSecret: name a Secret with an entry auth_token; Ray's ports run whatever code they are sent" }}
{{- end }}
{{- $first := first .Values.ray.workerGroups }}
{{- $names := list }}
{{- range .Values.ray.workerGroups }}
{{- if has .name $names }}
{{- fail (printf "ray.workerGroups: two groups are called %s" .name) }}
{{- end }}
{{- $names = append $names .name }}
{{- if ne (int .gpus) (int $first.gpus) }}
{{- fail "ray.workerGroups: all have as many GPUs, since all workers take as many" }}
{{- end }}
{{- if not (regexMatch "^[1-9][0-9]*$" (toString .resources.limits.cpu)) }}
{{- fail (printf "ray.workerGroups, %s: limits.cpu must be a whole number: the CPUs that a worker takes" .name) }}
{{- end }}
{{- if ne (toString .resources.limits.cpu) (toString $first.resources.limits.cpu) }}
{{- fail "ray.workerGroups: limits.cpu must be the same in all groups, since all workers take as many CPUs" }}
{{- end }}
{{- end }}
{{- end }}

{{- define "plait.validateTimes" -}}
{{- $drain := include "plait.drainSeconds" . | int -}}
{{- $least := add .Values.preStopSeconds $drain 10 -}}
{{- $grace := int .Values.terminationGracePeriodSeconds -}}
{{- if and $grace (lt $grace (int $least)) }}
{{- fail (printf "terminationGracePeriodSeconds: %d is less than preStopSeconds + options.drain_s + 10 = %d; requests would be cut off" $grace $least) }}
{{- end }}
{{- $load := .Values.options.ready_timeout_s | default 600 | ceil | int -}}
{{- if lt (int .Values.probes.startupSeconds) $load }}
{{- fail (printf "probes.startupSeconds: %d is less than options.ready_timeout_s, %d; pods would be killed while they load" (int .Values.probes.startupSeconds) $load) }}
{{- end }}
{{- end }}

{{- define "plait.validateScaling" -}}
{{- $scaling := .Values.autoscaling -}}
{{- $pods := int .Values.replicas -}}
{{- if ne $scaling.kind "none" }}
{{- $pods = int $scaling.minReplicas }}
{{- if le (int $scaling.maxReplicas) (int $scaling.minReplicas) }}
{{- fail "autoscaling.maxReplicas: must be more than minReplicas" }}
{{- end }}
{{- if eq .Values.workload "RayCluster" }}
{{- fail "autoscaling: a RayCluster has one front end; set ray.workerGroups" }}
{{- end }}
{{- end }}
{{- with .Values.disruptionBudget }}
{{- $least := not (kindIs "invalid" .minAvailable) }}
{{- $most := not (kindIs "invalid" .maxUnavailable) }}
{{- if and .enabled (eq $least $most) }}
{{- fail "disruptionBudget: give one of maxUnavailable and minAvailable, and null for the other" }}
{{- end }}
{{- if and .enabled $least (not (kindIs "string" .minAvailable)) (ge (int .minAvailable) $pods) }}
{{- fail (printf "disruptionBudget.minAvailable: with %d pods no node could ever be drained; give less" $pods) }}
{{- end }}
{{- end }}
{{- end }}

{{- define "plait.validateNetwork" -}}
{{- $closed := and .Values.networkPolicy.enabled (not .Values.networkPolicy.egress) -}}
{{- if and $closed (eq .Values.model.source "fetch") }}
{{- fail "networkPolicy.egress: nothing goes out of the pods, so no model can be fetched; add a rule" }}
{{- end }}
{{- if and $closed (or .Values.options.otlp_endpoint .Values.options.scorer_url) }}
{{- fail "networkPolicy.egress: nothing goes out of the pods, neither traces nor calls of scorers; add a rule" }}
{{- end }}
{{- if and .Values.options.protect_metrics (ne .Values.monitoring.scrape "none") (not .Values.monitoring.authorization.name) }}
{{- fail "monitoring.authorization: options.protect_metrics wants a key of whoever scrapes; name a Secret and its entry" }}
{{- end }}
{{- if .Values.inferencePool.enabled }}
{{- if not .Values.inferencePool.endpointPicker.name }}
{{- fail "inferencePool.endpointPicker.name: name the picker's Service" }}
{{- end }}
{{- if or (gt (int (.Values.options.replicas | default 1)) 1) .Values.options.max_replicas }}
{{- fail "options.replicas: an endpoint picker reads one sample of each metric of a pod; set replicas, for more pods" }}
{{- end }}
{{- if .Values.options.protect_metrics }}
{{- fail "options.protect_metrics: the endpoint picker sends no key when it reads /metrics" }}
{{- end }}
{{- end }}
{{- if and .Values.httpRoute.enabled (not .Values.httpRoute.parentRefs) }}
{{- fail "httpRoute.parentRefs: name a Gateway" }}
{{- end }}
{{- end }}

{{/* The YAML file is the one place of options: what is read there decides times and volumes. */}}
{{- define "plait.validateArguments" -}}
{{- range .Values.extraEnv }}
{{- if hasPrefix "PLAIT_" .name }}
{{- fail (printf "extraEnv, %s: set it under options, or by the value of this chart that stands for it" .name) }}
{{- end }}
{{- end }}
{{- $owned := list "model" "served-name" "config" "worker" "device" "threads" "host" "port" "api-key" "api-key-file" "drain-s" "ready-timeout-s" "protect-metrics" "otlp-endpoint" "scorer-url" "draft-store" "pool" "ray-address" "ray-host" "ray-cpus" "ray-gpus" }}
{{- range .Values.extraArgs }}
{{- $name := . | trimPrefix "--" | splitList "=" | first }}
{{- if has ($name | trimPrefix "no-") $owned }}
{{- fail (printf "extraArgs, --%s: set it under options, or by the value of this chart that stands for it" $name) }}
{{- end }}
{{- end }}
{{- end }}
