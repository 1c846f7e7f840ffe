{{- /*
The prefix of every name: the release's, made fit for Services (a letter first, no dots) and cut where
a StatefulSet's pods could not carry their revision label any more (63 letters), with a hash so that
two long names stay two.
*/ -}}
{{- define "ratchet.base" -}}
{{- $name := .Release.Name | replace "." "-" -}}
{{- if regexMatch "^[0-9]" $name }}{{ $name = printf "r-%s" $name }}{{ end -}}
{{- if gt (len $name) 41 -}}
{{ $name | trunc 34 | trimSuffix "-" }}-{{ .Release.Name | sha256sum | trunc 6 }}
{{- else -}}
{{ $name }}
{{- end -}}
{{- end -}}

{{- define "ratchet.name" -}}
{{ include "ratchet.base" .root }}-{{ .name }}
{{- end -}}

{{- /* Engines of a next base are a component of their own, which is inference in all else. */ -}}
{{- define "ratchet.role" -}}
{{ eq .name "next-base" | ternary "inference" .name }}
{{- end -}}

{{- /* The components that have engines. */ -}}
{{- define "ratchet.engines" -}}
{{ empty .Values.model.next.base | ternary (list "inference") (list "inference" "next-base") | toJson }}
{{- end -}}

{{- /* The components that serve. */ -}}
{{- define "ratchet.serving" -}}
{{ concat (keys .Values.services) (include "ratchet.engines" . | fromJsonArray) | uniq | sortAlpha | toJson }}
{{- end -}}

{{- /* The values of a component under `services`; for a next base, with what it has of its own. */ -}}
{{- define "ratchet.service" -}}
{{- $service := get .root.Values.services (include "ratchet.role" .) | default dict -}}
{{- if eq .name "next-base" }}{{ $service = mergeOverwrite (deepCopy $service) (deepCopy .root.Values.model.next.inference) }}{{ end -}}
{{ toJson $service }}
{{- end -}}

{{- /* A component's `model`. */ -}}
{{- define "ratchet.model" -}}
{{- $model := omit .root.Values.model "next" -}}
{{- if eq .name "next-base" -}}
{{- range $field, $value := omit .root.Values.model.next "inference" }}{{ $_ := set $model $field $value }}{{ end -}}
{{- end -}}
{{ toJson $model }}
{{- end -}}

{{- /* Helm reads whole numbers of a file of values as floats: 1048576 would be written 1.048576e+06. */ -}}
{{- define "ratchet.text" -}}
{{- if kindIs "float64" . -}}
{{- if eq . (floor .) }}{{ int64 . }}{{ else }}{{ . }}{{ end -}}
{{- else if kindIs "slice" . -}}
{{- $parts := list -}}
{{- range . }}{{ $parts = append $parts (include "ratchet.text" .) }}{{ end -}}
{{ join "," $parts }}
{{- else -}}
{{ . }}
{{- end -}}
{{- end -}}

{{- define "ratchet.tag" -}}
{{ include "ratchet.text" .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}

{{- /* The intake is of feedback's image. */ -}}
{{- define "ratchet.image" -}}
{{- $role := include "ratchet.role" . -}}
{{- $name := eq $role "intake" | ternary "feedback" $role -}}
{{- $image := printf "%s/%s" .root.Values.image.registry $name -}}
{{- with get .root.Values.image.digests $name -}}
{{ $image }}@{{ . }}
{{- else -}}
{{ $image }}:{{ include "ratchet.tag" .root }}
{{- end -}}
{{- end -}}

{{- define "ratchet.labels" -}}
app.kubernetes.io/name: ratchet
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .name }}
app.kubernetes.io/version: {{ include "ratchet.tag" .root | trunc 63 | trimAll "-._" | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
{{- end -}}

{{- define "ratchet.selector" -}}
app.kubernetes.io/name: ratchet
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .name }}
{{- end -}}

{{- define "ratchet.redisSecret" -}}
{{ .Values.redis.existingSecret | default (printf "%s-redis" (include "ratchet.base" .)) }}
{{- end -}}

{{- /* The connections of a component; each may bring files from a Secret of yours. */ -}}
{{- define "ratchet.connections" -}}
{{- $all := dict
  "router" (list "kafka" "redis" "engine" "detector" "text" "userId" "router")
  "feedback" (list "kafka" "redis" "feedback" "detector" "text" "userId")
  "intake" (list "kafka" "redis" "detector" "text" "userId")
  "rollout" (list "kafka" "redis" "engine" "prometheus" "text" "userId" "rollout")
  "aggregator" (list "kafka" "detector" "text")
  "inference" (list "kafka" "engine" "detector" "text" "userId" "inference")
  "training" (list "kafka" "engine" "detector" "text" "training")
  "cli" (list "kafka" "redis" "prometheus" "detector" "text")
  "report" (list "kafka" "prometheus" "text" "report")
  "topics" (list "kafka") -}}
{{ get $all (include "ratchet.role" .) | toJson }}
{{- end -}}

{{- /* Every component that there is: the services, and those that run the ratchet command. */ -}}
{{- define "ratchet.components" -}}
{{- $all := include "ratchet.serving" . | fromJsonArray -}}
{{- if not .Values.kafka.strimzi.enabled }}{{ $all = append $all "topics" }}{{ end -}}
{{- if .Values.cli.enabled }}{{ $all = append $all "cli" }}{{ end -}}
{{- if .Values.report.enabled }}{{ $all = append $all "report" }}{{ end -}}
{{ toJson $all }}
{{- end -}}

{{- /* The user by which a component comes to Kafka where Strimzi makes one for each service. */ -}}
{{- define "ratchet.strimziUser" -}}
{{- $user := has .name (list "report" "topics") | ternary "cli" (include "ratchet.role" .) -}}
{{ include "ratchet.base" .root }}-{{ eq $user "intake" | ternary "feedback" $user }}
{{- end -}}

{{- define "ratchet.kafkaProtocol" -}}
{{ .Values.kafka.strimzi.enabled | ternary "SASL_SSL" .Values.kafka.securityProtocol }}
{{- end -}}

{{- define "ratchet.kafkaMechanism" -}}
{{ .Values.kafka.strimzi.enabled | ternary "SCRAM-SHA-512" .Values.kafka.saslMechanism }}
{{- end -}}

{{- define "ratchet.kafkaUsername" -}}
{{- if .root.Values.kafka.strimzi.enabled }}{{ include "ratchet.strimziUser" . }}{{ else }}{{ .root.Values.kafka.username }}{{ end -}}
{{- end -}}

{{- /* A connection's files for a component, by Secret: [{secret, files: {file: key}}]. */ -}}
{{- define "ratchet.sources" -}}
{{- $from := get .root.Values .connection -}}
{{- if and (eq .connection "kafka") $from.strimzi.enabled -}}
{{- $user := dict "secret" (include "ratchet.strimziUser" .) "files" (dict "password" "password") -}}
{{- $ca := dict "secret" (printf "%s-cluster-ca-cert" $from.strimzi.cluster) "files" (dict "ca" "ca.crt") -}}
{{ list $user $ca | toJson }}
{{- else -}}
{{- $found := list -}}
{{- if $from.files -}}
{{- $secret := required (printf "%s.filesSecret: must name the Secret that holds %s.files" .connection .connection) $from.filesSecret -}}
{{- $found = append $found (dict "secret" $secret "files" $from.files) -}}
{{- end -}}
{{- $own := get (include "ratchet.generated" . | fromJson) .connection -}}
{{- if and .root.Values.generatedKeys $own (not (hasKey ($from.files | default dict) $own)) -}}
{{- $found = append $found (dict "secret" (printf "%s-generated" (include "ratchet.base" .root)) "files" (dict $own $own)) -}}
{{- end -}}
{{ toJson $found }}
{{- end -}}
{{- end -}}

{{- /* The files that are Ratchet's own secrets, by connection: nobody else has to know them. */ -}}
{{- define "ratchet.generated" -}}
{"engine": "apiKey", "redis": "signing"}
{{- end -}}

{{- /* Volumes of those files; with `mounts`, where they are mounted. */ -}}
{{- define "ratchet.files" -}}
{{- range $connection := include "ratchet.connections" . | fromJsonArray }}
{{- $sources := include "ratchet.sources" (merge (dict "connection" $connection) $) | fromJsonArray }}
{{- if not $sources }}
{{- else if $.mounts }}
- {name: files-{{ kebabcase $connection }}, mountPath: /etc/ratchet-files/{{ $connection }}, readOnly: true}
{{- else if eq (len $sources) 1 }}
- name: files-{{ kebabcase $connection }}
  secret:
    secretName: {{ (first $sources).secret | quote }}
    defaultMode: 0440
    items: {{- include "ratchet.items" (first $sources).files | trim | nindent 6 }}
{{- else }}
- name: files-{{ kebabcase $connection }}
  projected:
    defaultMode: 0440
    sources:
      {{- range $source := $sources }}
      - secret:
          name: {{ $source.secret | quote }}
          items: {{- include "ratchet.items" $source.files | trim | nindent 12 }}
      {{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "ratchet.items" -}}
{{- range $file, $key := . }}
- {key: {{ $key | quote }}, path: {{ $file | quote }}}
{{- end }}
{{- end -}}

{{- /*
A component's environment as a map of texts: what the chart knows, then `env`, then the service's own
`env`. Each component has its own, so that a change rolls those pods alone that read it.
*/ -}}
{{- define "ratchet.configuration" -}}
{{- $values := .root.Values -}}
{{- $base := include "ratchet.base" .root -}}
{{- $services := $values.services -}}
{{- $role := include "ratchet.role" . -}}
{{- $service := include "ratchet.service" . | fromJson -}}
{{- $model := include "ratchet.model" . | fromJson -}}
{{- $found := dict
  "RATCHET_PROFILE" "production"
  "RATCHET_HOST" "0.0.0.0"
  "RATCHET_KAFKA_BOOTSTRAP" $values.kafka.bootstrap
  "RATCHET_KAFKA_SECURITY_PROTOCOL" (include "ratchet.kafkaProtocol" .root)
  "RATCHET_TENANTS" $values.tenants
  "RATCHET_ADAPTERS_URI" $values.storage.adapters -}}
{{- with include "ratchet.kafkaMechanism" .root }}{{ $_ := set $found "RATCHET_KAFKA_SASL_MECHANISM" . }}{{ end -}}
{{- with include "ratchet.kafkaUsername" . }}{{ $_ := set $found "RATCHET_KAFKA_USERNAME" . }}{{ end -}}
{{- range $connection := include "ratchet.connections" . | fromJsonArray -}}
{{- if and (eq $connection "redis") $values.redis.username }}
{{- $_ := set $found "RATCHET_REDIS_USERNAME" $values.redis.username }}
{{- end -}}
{{- if and (eq $connection "detector") $values.detector.url -}}
{{- $_ := set $found "RATCHET_DETECTOR_URL" $values.detector.url -}}
{{- $_ := set $found "RATCHET_DETECTOR_LANGUAGES" $values.detector.languages -}}
{{- $_ := set $found "RATCHET_DETECTOR_FAILS" $values.detector.fails -}}
{{- end -}}
{{- if eq $connection "prometheus" -}}
{{- $_ := set $found "RATCHET_PROMETHEUS_URL" $values.prometheus.url }}
{{- with $values.prometheus.username }}{{ $_ := set $found "RATCHET_PROMETHEUS_USERNAME" . }}{{ end -}}
{{- end -}}
{{- range $source := include "ratchet.sources" (merge (dict "connection" $connection) $) | fromJsonArray -}}
{{- range $file, $key := $source.files -}}
{{- $variable := printf "RATCHET_%s_%s_FILE" (snakecase $connection) (snakecase $file) | upper -}}
{{- $_ := set $found $variable (printf "/etc/ratchet-files/%s/%s" $connection $file) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- with $values.tracing.endpoint -}}
{{- $_ := set $found "OTEL_EXPORTER_OTLP_ENDPOINT" . -}}
{{- $_ := set $found "OTEL_TRACES_SAMPLER" "parentbased_traceidratio" -}}
{{- $_ := set $found "OTEL_TRACES_SAMPLER_ARG" $values.tracing.ratio -}}
{{- end -}}
{{- $engines := list -}}
{{- $inferences := list -}}
{{- $agents := list -}}
{{- range $name := include "ratchet.engines" .root | fromJsonArray -}}
{{- $scope := dict "root" $.root "name" $name -}}
{{- $of := include "ratchet.service" $scope | fromJson -}}
{{- $host := include "ratchet.name" $scope -}}
{{- $engines = append $engines (printf "http://%s:%d" $host (int64 $of.extraPorts.engine)) -}}
{{- $inferences = append $inferences (printf "http://%s:%d" $host (int64 $of.port)) -}}
{{- range $number := until (int $of.replicas) -}}
{{- $agents = append $agents (printf "http://%s-%d.%s-pods:%d" $host $number $host (int64 $of.port)) -}}
{{- end -}}
{{- end -}}
{{- if has .name (list "router" "feedback") -}}
{{- with $values.storage.media }}{{ $_ := set $found "RATCHET_MEDIA_URI" . }}{{ end -}}
{{- end -}}
{{- if and $values.modelTenants (has $role (list "feedback" "inference" "rollout")) -}}
{{- $pairs := list -}}
{{- range $model, $tenant := $values.modelTenants }}{{ $pairs = append $pairs (printf "%s=%s" $model $tenant) }}{{ end -}}
{{- $_ := set $found "RATCHET_MODEL_TENANTS" $pairs -}}
{{- $_ := set $found "RATCHET_OPERATORS_TENANT" $values.operatorsTenant -}}
{{- end -}}
{{- if eq .name "router" -}}
{{- if gt (int $services.router.processes) 1 -}}
{{- if not $values.podMonitor.enabled -}}
{{- fail "services.router.processes: each has a port of its own for metrics, which annotations cannot name; enable podMonitor" -}}
{{- end -}}
{{- $_ := set $found "RATCHET_ROUTER_PROCESSES" $services.router.processes -}}
{{- end -}}
{{- $_ := set $found "RATCHET_ROUTER_ENGINES" $engines -}}
{{- if $values.moderation.enabled -}}
{{- $_ := set $found "RATCHET_ROUTER_MODERATION_URL" $inferences -}}
{{- end -}}
{{- else if eq .name "feedback" -}}
{{- $_ := set $found "RATCHET_FEEDBACK_ROUTER_URL" (printf "http://%s-router:%d" $base (int64 $services.router.port)) -}}
{{- if $values.ranking.hours -}}
{{- $_ := set $found "RATCHET_FEEDBACK_VOTING_RANK_HOURS" $values.ranking.hours -}}
{{- end -}}
{{- if gt (int $values.ranking.candidates) 1 -}}
{{- $_ := set $found "RATCHET_FEEDBACK_VOTING_CANDIDATES" $values.ranking.candidates -}}
{{- end -}}
{{- if or $values.ranking.hours (gt (int $values.ranking.candidates) 1) -}}
{{- $_ := set $found "RATCHET_FEEDBACK_INFERENCE_URL" $inferences -}}
{{- end -}}
{{- else if eq .name "rollout" -}}
{{- $_ := set $found "RATCHET_ROLLOUT_AGENTS" $agents -}}
{{- $_ := set $found "RATCHET_ROLLOUT_STRATEGY" "/etc/ratchet/default.yaml" -}}
{{- else if eq $role "inference" -}}
{{- $_ := set $found "RATCHET_INFERENCE_BASE_MODEL" $model.base -}}
{{- $_ := set $found "RATCHET_INFERENCE_ENGINE_PROFILE" $model.profile -}}
{{- $_ := set $found "RATCHET_INFERENCE_ENGINE_BIND" "0.0.0.0" -}}
{{- $_ := set $found "RATCHET_INFERENCE_ENGINE_URL" (printf "http://127.0.0.1:%d" (int64 $service.extraPorts.engine)) -}}
{{- $_ := set $found "RATCHET_INFERENCE_MAX_CONTEXT" $model.maxContext -}}
{{- $_ := set $found "RATCHET_INFERENCE_TOOL_PARSER" $model.toolParser -}}
{{- /* Beside the drain: leaving the Service (preStop), ending vLLM, answers under way, the log. */ -}}
{{- $_ := set $found "RATCHET_INFERENCE_ENGINE_DRAIN_S" (sub (int64 $service.stop) 60 | max 0) -}}
{{- else if eq .name "training" -}}
{{- $_ := set $found "RATCHET_DATASETS_URI" $values.storage.datasets -}}
{{- $_ := set $found "RATCHET_INFERENCE_MAX_CONTEXT" $values.model.maxContext -}}
{{- if hasKey ($values.training.files | default dict) "scoreApiKey" -}}
{{- $_ := set $found "RATCHET_TRAINING_INFERENCE_URL" $inferences -}}
{{- end -}}
{{- else if has .name (list "cli" "topics") -}}
{{- $_ := set $found "RATCHET_KAFKA_JOIN_PARTITIONS" $values.kafka.joinPartitions -}}
{{- $_ := set $found "RATCHET_KAFKA_REPLICATION" $values.kafka.replication -}}
{{- if eq .name "cli" -}}
{{- range $name, $service := $services -}}
{{- $_ := set $found (printf "RATCHET_%s_URL" (upper $name)) (printf "http://%s-%s:%d" $base $name (int64 $service.port)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and $model.revision (eq $role "inference") -}}
{{- $_ := set $found "RATCHET_BASE_REVISION" $model.revision -}}
{{- end -}}
{{- if eq .name "training" -}}
{{- /* A revision is of its base alone: a trainer trains on both, and on bases that come later. */ -}}
{{- $revisions := list -}}
{{- range $of := list $values.model $values.model.next -}}
{{- if and $of.base $of.revision }}{{ $revisions = append $revisions (printf "%s@%s" $of.base $of.revision) }}{{ end -}}
{{- end -}}
{{- with uniq $revisions }}{{ $_ := set $found "RATCHET_BASE_REVISION" . }}{{ end -}}
{{- end -}}
{{- if $service -}}
{{- $_ := set $found (printf "RATCHET_%s_PORT" (upper $role)) $service.port -}}
{{- end -}}
{{- range $name, $service := $services -}}
{{- if has $role (list $name "cli") -}}
{{- with include "ratchet.operationsPort" (dict "root" $.root "name" $name) -}}
{{- $_ := set $found (printf "RATCHET_%s_OPERATIONS_PORT" (upper $name)) . -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $own := $service.env | default dict -}}
{{- $texts := dict -}}
{{- $given := mergeOverwrite (deepCopy $values.env) (deepCopy $own) -}}
{{- range $name, $value := $given -}}
{{- if and (hasSuffix "_OPERATIONS_PORT" $name) (ne (include "ratchet.text" $value) (get $found $name | toString)) -}}
{{- fail (printf "%s: the pods' ports are named by operationsPort; set that, and leave this out of env" $name) -}}
{{- end -}}
{{- end -}}
{{- range $name, $value := mergeOverwrite $found $given -}}
{{- $_ := set $texts $name (include "ratchet.text" $value) -}}
{{- end -}}
{{ toYaml $texts }}
{{- end -}}

{{- define "ratchet.environment" -}}
envFrom:
  - configMapRef: {name: {{ include "ratchet.name" . }}}
  {{- range .root.Values.envFromSecrets }}
  - secretRef: {name: {{ . | quote }}}
  {{- end }}
{{- if has "redis" (include "ratchet.connections" . | fromJsonArray) }}
env:
  - name: RATCHET_REDIS_URL
    valueFrom:
      secretKeyRef: {name: {{ include "ratchet.redisSecret" .root | quote }}, key: REDIS_URL}
  {{- if and (eq .name "cli") .root.Values.cli.apiKeySecret }}
  - name: RATCHET_API_KEY
    valueFrom:
      secretKeyRef: {name: {{ .root.Values.cli.apiKeySecret | quote }}, key: RATCHET_API_KEY, optional: true}
  {{- end }}
{{- end }}
{{- end -}}

{{- /* What a component's pods read when they start: another checksum, and they roll. */ -}}
{{- define "ratchet.checksum" -}}
{{- $read := list (include "ratchet.configuration" .) -}}
{{- if eq .name "rollout" }}{{ $read = append $read (toYaml .root.Values.strategies) }}{{ end -}}
{{- if has "redis" (include "ratchet.connections" . | fromJsonArray) -}}
{{- $read = append $read .root.Values.redis.url -}}
{{- end -}}
checksum/configuration: {{ join "\n" $read | sha256sum }}
{{- end -}}

{{- /* The ratchet command in a container: `args`, `label` of the container, and the pod's component. */ -}}
{{- define "ratchet.command" -}}
name: {{ .label }}
image: {{ include "ratchet.image" (dict "root" .root "name" "cli") | quote }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
{{ .args }}
{{ include "ratchet.environment" (dict "root" .root "name" .name) }}
securityContext: {{- toYaml .root.Values.securityContext | nindent 2 }}
resources: {requests: {cpu: {{ .cpu }}, memory: 128Mi}, limits: {cpu: "1", memory: 256Mi}}
{{- with include "ratchet.files" (dict "root" .root "name" .name "mounts" true) }}
volumeMounts: {{- . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "ratchet.topicsSpec" -}}
{{- $scope := dict "root" . "name" "topics" -}}
backoffLimit: 10
template:
  metadata:
    labels: {{- include "ratchet.labels" $scope | nindent 6 }}
    annotations: {{- include "ratchet.checksum" $scope | nindent 6 }}
  spec:
    restartPolicy: OnFailure
    {{- include "ratchet.pod" (dict "root" . "name" "topics" "place" .Values.cli) | nindent 4 }}
    containers:
      - {{ include "ratchet.command" (merge (dict "label" "topics" "args" "args: [topics, apply]" "cpu" "50m") $scope) | nindent 8 | trim }}
    {{- with include "ratchet.files" $scope }}
    volumes: {{- . | nindent 6 }}
    {{- end }}
{{- end -}}

{{- /* A pod's fields: `root`, the component's `name`, and `place`, the values that say where it runs. */ -}}
{{- define "ratchet.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
serviceAccountName: {{ .root.Values.serviceAccountName | default (include "ratchet.name" (dict "root" .root "name" (include "ratchet.role" .))) | quote }}
securityContext: {{- toYaml .root.Values.podSecurityContext | nindent 2 }}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- range $field := list "nodeSelector" "tolerations" "affinity" "runtimeClassName" "priorityClassName" }}
{{- with get $.place $field }}
{{ toYaml (dict $field .) }}
{{- end }}
{{- end }}
{{- end -}}

{{- /* Where a service has its metrics; several processes have them from there on. Empty: on its own port. */ -}}
{{- define "ratchet.operationsPort" -}}
{{- $service := include "ratchet.service" . | fromJson -}}
{{- $port := int .root.Values.operationsPort -}}
{{- if and (not $port) (gt (int $service.processes) 1) }}{{ $port = 9100 }}{{ end -}}
{{- range $number := append (values ($service.extraPorts | default dict)) $service.port -}}
{{- if eq (int $number) $port -}}
{{- fail (printf "operationsPort: services.%s listens on %d itself; take another" $.name $port) -}}
{{- end -}}
{{- end -}}
{{- if $port }}{{ $port }}{{ end -}}
{{- end -}}

{{- /* Ports of a service's pods beside http: extraPorts, and those of its metrics, one a process. */ -}}
{{- define "ratchet.ports" -}}
{{- $service := include "ratchet.service" . | fromJson -}}
{{- $ports := deepCopy ($service.extraPorts | default dict) -}}
{{- with $operations := include "ratchet.operationsPort" . -}}
{{- $_ := set $ports "operations" (int $operations) -}}
{{- range $number := untilStep 1 (int ($service.processes | default 1)) 1 -}}
{{- $_ := set $ports (printf "operations-%d" $number) (add $number (int $operations)) -}}
{{- end -}}
{{- end -}}
{{ toJson $ports }}
{{- end -}}

{{- /* The port that has a service's metrics, by its name. */ -}}
{{- define "ratchet.metrics" -}}
{{- if include "ratchet.operationsPort" . }}operations{{ else }}http{{ end -}}
{{- end -}}

{{- /* What an ingress passes on to a service: [{exact, path}]. The console's pages are files of the rollout service. */ -}}
{{- define "ratchet.paths" -}}
{{- $paths := list (dict "path" "/v1") -}}
{{- if eq . "feedback" -}}
{{- $paths = append $paths (dict "path" "/vote") -}}
{{- else if eq . "rollout" -}}
{{- range $page := list "" "versions" "training" "datasets" "keys" "dead-letters" "erasures" "quality" "report" "look.css" "console.css" "common.js" "console.js" "dataset.js" "pages.js" "report.js" -}}
{{- $paths = append $paths (dict "path" (print "/" $page) "exact" true) -}}
{{- end -}}
{{- end -}}
{{ toJson $paths }}
{{- end -}}

{{- /* "true" where an autoscaler sets the replicas, so that no upgrade resets them. */ -}}
{{- define "ratchet.autoscaled" -}}
{{- if (.autoscaling | default dict).enabled }}true{{ end -}}
{{- end -}}

{{- /* The most replicas an autoscaler may ask for: never more than there are partitions to read. */ -}}
{{- define "ratchet.maxReplicas" -}}
{{- $most := .service.autoscaling.maxReplicas | int64 -}}
{{- if eq .name "aggregator" -}}
{{ min $most (int64 .root.Values.kafka.joinPartitions) }}
{{- else -}}
{{ $most }}
{{- end -}}
{{- end -}}
