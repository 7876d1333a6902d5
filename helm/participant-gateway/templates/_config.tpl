{{/* The configuration file, and what is mounted for it. */}}

{{- define "participant-gateway.secretsDir" -}}
/etc/participant-gateway/secrets
{{- end }}

{{/* Of twilio.inline, what is set. */}}
{{- define "participant-gateway.inlineCredentials" -}}
{{- $set := dict -}}
{{- range $name, $value := .Values.twilio.inline }}{{ if $value }}{{ $_ := set $set $name $value }}{{ end }}{{ end -}}
{{- toYaml $set -}}
{{- end }}

{{/* Where the account's credentials come from: existingSecret, csi, inline, or empty. validate.yaml refuses two at a time. */}}
{{- define "participant-gateway.credentialsFrom" -}}
{{- if .Values.twilio.existingSecret -}}
existingSecret
{{- else if .Values.twilio.csi.secretProviderClass -}}
csi
{{- else if include "participant-gateway.inlineCredentials" . | fromYaml -}}
inline
{{- end -}}
{{- end }}

{{/* Which credentials the gateway reads, by their names in twilio.secretKeys. */}}
{{- define "participant-gateway.credentials" -}}
{{- $names := get (dict "apiKey" (list "apiKey" "apiSecret") "oauthClient" (list "clientId" "clientSecret") "authToken" (list "authToken")) .Values.twilio.signIn -}}
{{- if .Values.events.enabled }}{{ $names = append $names "authToken" | uniq }}{{ end -}}
{{- if .Values.twilio.secretKeys.secondaryAuthToken }}{{ $names = append $names "secondaryAuthToken" }}{{ end -}}
{{- toYaml $names -}}
{{- end }}

{{/* The account as a table of the file, each secret by its path. */}}
{{- define "participant-gateway.account" -}}
account_sid: {{ .Values.twilio.accountSid }}
{{- range include "participant-gateway.credentials" . | fromYamlArray }}
{{ snakecase . }}_file: {{ include "participant-gateway.secretsDir" $ }}/twilio/{{ get $.Values.twilio.secretKeys . }}
{{- end }}
{{- with .Values.twilio.edge }}
edge: {{ . }}
{{- end }}
{{- with .Values.twilio.region }}
region: {{ . }}
{{- end }}
{{- end }}

{{/* What the chart's values decide, in the tables of the file. */}}
{{- define "participant-gateway.ownSettings" -}}
grpc:
  listen: {{ printf "%s:50051" .Values.listenAddress | quote }}
auth:
  mode: {{ .Values.auth.mode | quote }}
admin:
  listen: {{ printf "%s:9464" .Values.listenAddress | quote }}
drain:
  delay: {{ .Values.drain.delay }}
  timeout: {{ .Values.drain.timeout }}
cache:
  max_bytes: {{ include "participant-gateway.cacheMaxBytes" . }}
{{- if .Values.events.enabled }}
events:
  listen: {{ printf "%s:8080" .Values.listenAddress | quote }}
  public_url: {{ .Values.events.publicUrl | quote }}
{{- end }}
{{- with .Values.kinesis.stream }}
kinesis:
  stream: {{ . | quote }}
{{- end }}
{{- with .Values.bus.redis }}
{{- if .existingSecret }}
redis:
  url_file: {{ include "participant-gateway.secretsDir" $ }}/redis/{{ .secretKey }}
{{- else if .url }}
redis:
  url: {{ .url | quote }}
{{- end }}
{{- end }}
{{- end }}

{{/* What fits how callers connect, unless config says otherwise. A mesh's proxy balances by calls, and all of them come from its
one address; without one, a connection stays with its pod until it ends. */}}
{{- define "participant-gateway.usualSettings" -}}
connections:
{{- if eq .Values.mesh.kind "none" }}
  max_age: 20m
{{- else }}
  max_per_peer: {{ dig "connections" "max" 4096 .Values.config | int64 }}
{{- end }}
{{- end }}

{{/* The pairs of one table, without what is a table itself. A number of YAML is a float to Helm, which TOML would keep. */}}
{{- define "participant-gateway.tomlPairs" -}}
{{- range $key, $value := . }}
{{- if kindIs "string" $value }}
{{ $key }} = {{ toRawJson $value }}
{{- else if kindIs "bool" $value }}
{{ $key }} = {{ $value }}
{{- else if not (or (kindIs "map" $value) (kindIs "slice" $value) (kindIs "invalid" $value)) }}
{{ $key }} = {{ int64 $value }}
{{- end }}
{{- end }}
{{- end }}

{{- define "participant-gateway.config" -}}
{{- $settings := mergeOverwrite (include "participant-gateway.usualSettings" . | fromYaml) (deepCopy .Values.config) (include "participant-gateway.ownSettings" . | fromYaml) -}}
{{- $accounts := $settings.accounts | default list -}}
{{- if include "participant-gateway.credentialsFrom" . }}{{ $accounts = prepend $accounts (include "participant-gateway.account" . | fromYaml) }}{{ end -}}
{{- include "participant-gateway.tomlPairs" $settings | trim }}
{{- range $name, $table := omit $settings "policy" }}
{{- if kindIs "map" $table }}

[{{ $name }}]
{{- include "participant-gateway.tomlPairs" $table }}
{{- end }}
{{- end }}
{{- with $settings.policy }}
{{- if not .rules }}

[policy]
{{- end }}
{{- range .rules }}

[[policy.rules]]
{{- include "participant-gateway.tomlPairs" . }}
{{- range $key, $value := . }}
{{- if kindIs "slice" $value }}
{{ $key }} = {{ toRawJson $value }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- range $accounts }}

[[accounts]]
{{- include "participant-gateway.tomlPairs" . }}
{{- end }}
{{- end }}

{{- define "participant-gateway.volumes" -}}
- name: config
  configMap:
    name: {{ include "participant-gateway.fullname" . }}
{{- $from := include "participant-gateway.credentialsFrom" . }}
{{- if eq $from "csi" }}
- name: twilio
  csi:
    driver: {{ .Values.twilio.csi.driver }}
    readOnly: true
    volumeAttributes:
      secretProviderClass: {{ .Values.twilio.csi.secretProviderClass }}
{{- else if $from }}
- name: twilio
  secret:
    secretName: {{ .Values.twilio.existingSecret | default (printf "%s-twilio" (include "participant-gateway.fullname" .)) }}
    defaultMode: 0440
{{- end }}
{{- with .Values.bus.redis.existingSecret }}
- name: redis
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end }}
{{- with .Values.extraVolumes }}
{{ tpl (toYaml .) $ }}
{{- end }}
{{- end }}

{{/* Secrets by folder, which follows their changes; the file by itself, because other mounts are below its folder. */}}
{{- define "participant-gateway.volumeMounts" -}}
- name: config
  mountPath: /etc/participant-gateway/config.toml
  subPath: config.toml
  readOnly: true
{{- if include "participant-gateway.credentialsFrom" . }}
- name: twilio
  mountPath: {{ include "participant-gateway.secretsDir" . }}/twilio
  readOnly: true
{{- end }}
{{- if .Values.bus.redis.existingSecret }}
- name: redis
  mountPath: {{ include "participant-gateway.secretsDir" . }}/redis
  readOnly: true
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ tpl (toYaml .) $ }}
{{- end }}
{{- end }}

{{- define "participant-gateway.ownEnv" -}}
{{- with .Values.otel }}
{{- if .endpoint }}
- name: POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: OTEL_SERVICE_NAME
  value: {{ include "participant-gateway.fullname" $ }}
- name: OTEL_RESOURCE_ATTRIBUTES
  value: k8s.namespace.name={{ $.Release.Namespace }},k8s.pod.name=$(POD_NAME)
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ .endpoint | quote }}
- name: OTEL_EXPORTER_OTLP_PROTOCOL
  value: {{ .protocol }}
- name: OTEL_TRACES_SAMPLER
  value: {{ .sampler }}
- name: OTEL_TRACES_SAMPLER_ARG
  value: {{ .samplerArg | quote }}
{{- end }}
{{- end }}
{{- with .Values.kinesis.region }}
- name: AWS_REGION
  value: {{ . }}
{{- end }}
{{- end }}

{{/* The API server refuses a name that stands there twice: extraEnv replaces what is ours. */}}
{{- define "participant-gateway.env" -}}
{{- $given := dict }}
{{- range .Values.extraEnv }}{{ $_ := set $given .name true }}{{ end }}
{{- range include "participant-gateway.ownEnv" . | fromYamlArray }}
{{- if not (hasKey $given .name) }}
{{ toYaml (list .) }}
{{- end }}
{{- end }}
{{- with .Values.extraEnv }}
{{ tpl (toYaml .) $ }}
{{- end }}
{{- end }}
