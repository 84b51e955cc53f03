{{- define "gumcp.name" -}}
{{- if contains "gumcp" .Release.Name }}{{ .Release.Name }}{{ else }}{{ .Release.Name }}-gumcp{{ end }}
{{- end }}

{{- define "gumcp.selector" -}}
app.kubernetes.io/name: gumcp
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "gumcp.labels" -}}
{{ include "gumcp.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "gumcp.secret" -}}
{{ .Values.secrets.existing | default (include "gumcp.name" .) }}
{{- end }}
