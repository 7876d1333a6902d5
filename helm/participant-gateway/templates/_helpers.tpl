{{/* Names and labels. */}}

{{- define "participant-gateway.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end }}

{{/* Shorter than a name may be: suffixes such as -headless follow. */}}
{{- define "participant-gateway.fullname" -}}
{{- $name := include "participant-gateway.name" . -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- default $full .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- end }}

{{- define "participant-gateway.selectorLabels" -}}
app.kubernetes.io/name: {{ include "participant-gateway.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "participant-gateway.labels" -}}
{{- $labels := include "participant-gateway.selectorLabels" . | fromYaml -}}
{{- $_ := set $labels "helm.sh/chart" (printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_") -}}
{{- $_ := set $labels "app.kubernetes.io/version" (.Chart.AppVersion | toString) -}}
{{- $_ := set $labels "app.kubernetes.io/managed-by" .Release.Service -}}
{{- /* Some objects add a component of their own, and a key must not stand there twice. */ -}}
{{- mergeOverwrite (omit .Values.commonLabels "app.kubernetes.io/component") $labels | toYaml -}}
{{- end }}

{{/* The test's pod has the selector's labels of the release but this one. */}}
{{- define "participant-gateway.podSelector" -}}
{{ include "participant-gateway.selectorLabels" . }}
app.kubernetes.io/component: gateway
{{- end }}

{{- define "participant-gateway.serviceAccountName" -}}
{{- .Values.serviceAccount.name | default (ternary (include "participant-gateway.fullname" .) "default" .Values.serviceAccount.create) -}}
{{- end }}

{{- define "participant-gateway.image" -}}
{{- $repository := list .Values.image.registry .Values.image.repository | compact | join "/" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" $repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" $repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end }}

{{/* The FQDN of the Service for callers: mesh routes and commands name it. */}}
{{- define "participant-gateway.host" -}}
{{- printf "%s.%s.svc.%s" (include "participant-gateway.fullname" .) .Release.Namespace .Values.mesh.clusterDomain -}}
{{- end }}

{{/* Quantities. */}}

{{/* A duration such as 1m30s in whole seconds, rounded up. */}}
{{- define "participant-gateway.seconds" -}}
{{- $milliseconds := 0 -}}
{{- $units := dict "ms" 1 "s" 1000 "m" 60000 "h" 3600000 -}}
{{- range regexFindAll "[0-9]+(ms|s|m|h)" . -1 -}}
{{- $milliseconds = regexFind "[0-9]+" . | int | mul (get $units (regexFind "[a-z]+" .)) | add $milliseconds -}}
{{- end -}}
{{- div (add $milliseconds 999) 1000 -}}
{{- end }}

{{/* A quantity of memory such as 256Mi in bytes. */}}
{{- define "participant-gateway.bytes" -}}
{{- $units := dict "" 1 "k" 1000 "M" 1000000 "G" 1000000000 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 -}}
{{- $amount := regexFind "^[0-9]+([.][0-9]+)?" (toString .) -}}
{{- $unit := trimPrefix $amount (toString .) -}}
{{- if or (not $amount) (not (hasKey $units $unit)) -}}
{{- fail (printf "resources.limits.memory: %s is no quantity of memory such as 256Mi or 1Gi" .) -}}
{{- end -}}
{{- mulf (float64 $amount) (get $units $unit) | int64 -}}
{{- end }}

{{/* The port that a URL names, or nothing: a host's name may end with a digit, too. */}}
{{- define "participant-gateway.urlPort" -}}
{{- regexFind ":[0-9]+$" (urlParse .).host | trimPrefix ":" -}}
{{- end }}

{{- define "participant-gateway.cacheMaxBytes" -}}
{{- $limit := dig "limits" "memory" "" .Values.resources -}}
{{- if not (kindIs "invalid" .Values.cache.maxBytes) -}}
{{- int64 .Values.cache.maxBytes -}}
{{- else if $limit -}}
{{- div (mul (include "participant-gateway.bytes" $limit | int64) .Values.cache.memoryPercent) 100 -}}
{{- else -}}
{{- fail "cache.maxBytes: set it, or resources.limits.memory, from which it is derived" -}}
{{- end -}}
{{- end }}

{{/* 0 where the cluster does not know preStop.sleep: the gateway itself waits after SIGTERM, so nothing depends on it. */}}
{{- define "participant-gateway.preStopSeconds" -}}
{{- ternary .Values.drain.preStopSleepSeconds 0 (semverCompare ">=1.30-0" .Capabilities.KubeVersion.Version) -}}
{{- end }}

{{/* From the pod's end until the last call has. */}}
{{- define "participant-gateway.drainSeconds" -}}
{{- $delay := include "participant-gateway.seconds" .Values.drain.delay | int -}}
{{- $timeout := include "participant-gateway.seconds" .Values.drain.timeout | int -}}
{{- add (include "participant-gateway.preStopSeconds" . | int) $delay $timeout -}}
{{- end }}

{{- define "participant-gateway.gracePeriod" -}}
{{- $sum := include "participant-gateway.drainSeconds" . | int | add .Values.drain.marginSeconds | int -}}
{{- $given := .Values.drain.terminationGracePeriodSeconds -}}
{{- if kindIs "invalid" $given -}}
{{- $sum -}}
{{- else if lt (int $given) $sum -}}
{{- fail (printf "drain.terminationGracePeriodSeconds: %d is less than the %d seconds of drain.preStopSleepSeconds, drain.delay, drain.timeout and drain.marginSeconds" (int $given) $sum) -}}
{{- else -}}
{{- int $given -}}
{{- end -}}
{{- end }}

{{- define "participant-gateway.replicas" -}}
{{- if kindIs "invalid" .Values.replicaCount -}}
{{- ternary 1 2 .Values.sandbox.enabled -}}
{{- else -}}
{{- int .Values.replicaCount -}}
{{- end -}}
{{- end }}

{{/* The API. */}}

{{- define "participant-gateway.grpcService" -}}
participant.v1.ParticipantService
{{- end }}

{{/*
What may be repeated by somebody who knows nothing but the method, by idempotency_level in the proto: reads are NO_SIDE_EFFECTS.
Streams are reads, but last long, and their callers resume them better. The rest are writes.
*/}}
{{- define "participant-gateway.methods" -}}
reads: [GetParticipant, ListParticipants, BatchGetParticipants, ListParticipantConversations]
streams: [StreamParticipants, WatchParticipants]
writes: [CreateParticipant, UpdateParticipant, DeleteParticipant]
{{- end }}

{{/* The matches of a GRPCRoute for the methods of one kind: (dict "root" $ "kind" "reads"). */}}
{{- define "participant-gateway.grpcMatches" -}}
{{- $service := include "participant-gateway.grpcService" .root -}}
{{- range get (include "participant-gateway.methods" .root | fromYaml) .kind }}
- method:
    type: Exact
    service: {{ $service }}
    method: {{ . }}
{{- end }}
{{- end }}
