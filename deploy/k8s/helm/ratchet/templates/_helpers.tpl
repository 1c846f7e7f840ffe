{{- define "ratchet.name" -}}
{{ .root.Release.Name }}-{{ .name }}
{{- end -}}

{{- define "ratchet.labels" -}}
app.kubernetes.io/name: ratchet
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .name }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
{{- end -}}

{{- define "ratchet.selector" -}}
app.kubernetes.io/name: ratchet
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .name }}
{{- end -}}

{{- define "ratchet.image" -}}
{{ .root.Values.image.registry }}/{{ .name }}:{{ .root.Values.image.tag | default .root.Chart.AppVersion }}
{{- end -}}

{{- define "ratchet.redisSecret" -}}
{{ .Values.redis.existingSecret | default (printf "%s-redis" .Release.Name) }}
{{- end -}}

{{- define "ratchet.environment" -}}
envFrom:
  - configMapRef: {name: {{ .Release.Name }}-environment}
  {{- range .Values.envFromSecrets }}
  - secretRef: {name: {{ . }}}
  {{- end }}
env:
  - name: RATCHET_REDIS_URL
    valueFrom:
      secretKeyRef: {name: {{ include "ratchet.redisSecret" . }}, key: REDIS_URL}
{{- end -}}

{{- define "ratchet.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.serviceAccountName }}
serviceAccountName: {{ . }}
{{- end }}
securityContext: {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- with .Values.image.pullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
