{{/* Name of the release's objects. Pods get suffixes, so it is cut well below 63 characters. */}}
{{- define "plait.name" -}}
{{- $name := .Release.Name -}}
{{- if not (contains "plait" $name) }}{{ $name = printf "%s-plait" $name }}{{ end -}}
{{- .Values.fullnameOverride | default $name | trunc 50 | trimSuffix "-" -}}
{{- end }}

{{/* Labels that selectors go by: they never change within a release. */}}
{{- define "plait.selector" -}}
app.kubernetes.io/name: plait
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "plait.labels" -}}
{{ include "plait.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "plait.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end }}
{{- end }}
{{- end }}

{{- define "plait.serviceAccountName" -}}
{{- with .Values.serviceAccount -}}
{{ .name | default (ternary (include "plait.name" $) "default" .create) }}
{{- end }}
{{- end }}

{{- define "plait.apiKeySecret" -}}
{{- with .Values.apiKeys -}}
{{- if .existingSecret }}{{ .existingSecret }}{{ else if .values }}{{ include "plait.name" $ }}-api-keys{{ end -}}
{{- end }}
{{- end }}

{{/* Seconds from SIGTERM to the end of the last request, as the server is told. */}}
{{- define "plait.drainSeconds" -}}
{{ .Values.options.drain_s | default 0 | ceil | int }}
{{- end }}

{{/* The server needs some seconds more once its last request has ended. */}}
{{- define "plait.graceSeconds" -}}
{{- $least := add .Values.preStopSeconds (include "plait.drainSeconds" . | int) 10 -}}
{{ .Values.terminationGracePeriodSeconds | default $least }}
{{- end }}

