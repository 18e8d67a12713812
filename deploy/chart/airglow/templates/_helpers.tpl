{{- define "airglow.labels" -}}
app.kubernetes.io/part-of: airglow
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{- define "airglow.root" -}}
{{ .Values.rootNamespace | default .Release.Namespace }}
{{- end }}

{{- define "airglow.tag" -}}
{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{/* What never waits for the mesh: the listed namespaces and our own. */}}
{{- define "airglow.excluded" -}}
{{ append .Values.excludedNamespaces .Release.Namespace | uniq | join "," }}
{{- end }}

{{/* Settings that both programs must agree on. */}}
{{- define "airglow.shared-env" -}}
- {name: AIRGLOW_CLUSTER_ID, value: {{ .Values.clusterId | quote }}}
- {name: AIRGLOW_NETWORK, value: {{ .Values.network | quote }}}
- {name: AIRGLOW_CLUSTER_DOMAIN, value: {{ .Values.clusterDomain | quote }}}
- {name: AIRGLOW_ROOT_NAMESPACE, value: {{ include "airglow.root" . | quote }}}
- {name: AIRGLOW_LOG_FORMAT, value: {{ .Values.logFormat | quote }}}
- {name: AIRGLOW_LOG, value: {{ .Values.log | quote }}}
{{- end }}
