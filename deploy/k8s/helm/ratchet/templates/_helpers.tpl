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

{{- define "ratchet.topicsSpec" -}}
backoffLimit: 10
template:
  metadata:
    labels: {{- include "ratchet.labels" (dict "root" . "name" "topics") | nindent 6 }}
    annotations:
      checksum/configuration: {{ include (print $.Template.BasePath "/configuration.yaml") . | sha256sum }}
  spec:
    restartPolicy: OnFailure
    {{- include "ratchet.pod" (dict "root" . "place" .Values.cli) | nindent 4 }}
    containers:
      - name: topics
        image: {{ include "ratchet.image" (dict "root" . "name" "cli") }}
        imagePullPolicy: {{ .Values.image.pullPolicy }}
        args: [topics, apply]
        {{- include "ratchet.environment" . | nindent 8 }}
        securityContext: {{- toYaml .Values.securityContext | nindent 10 }}
        resources: {requests: {cpu: 50m, memory: 128Mi}, limits: {memory: 256Mi}}
{{- end -}}

{{- /* A pod's fields: `root`, and `place`, the values that say where it runs. */ -}}
{{- define "ratchet.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .root.Values.serviceAccountName }}
serviceAccountName: {{ . }}
{{- end }}
securityContext: {{- toYaml .root.Values.podSecurityContext | nindent 2 }}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- range $field := list "nodeSelector" "tolerations" "affinity" "runtimeClassName" }}
{{- with get $.place $field }}
{{ toYaml (dict $field .) }}
{{- end }}
{{- end }}
{{- end -}}
