{{- define "erofsvm.labels" -}}
app.kubernetes.io/name: erofsvm
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "erofsvm.selector" -}}
app.kubernetes.io/name: erofsvm
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* Another release in another namespace must not have the same cluster role. */}}
{{- define "erofsvm.clusterName" -}}
{{ printf "%s-%s" .Release.Namespace .Release.Name | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "erofsvm.image" -}}
{{- $repository := required "image.repository is empty: build the image from configs/kubernetes/Dockerfile, and say where it is" .Values.image.repository -}}
{{- if .Values.image.digest -}}
{{ printf "%s@%s" $repository .Values.image.digest }}
{{- else -}}
{{ printf "%s:%s" $repository (.Values.image.tag | default .Chart.AppVersion) }}
{{- end -}}
{{- end }}
