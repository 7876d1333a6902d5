{{/* What a pod carries for its mesh. */}}

{{- define "participant-gateway.meshPodLabels" -}}
{{- if eq .Values.mesh.kind "istio" -}}
sidecar.istio.io/inject: "true"
{{- end -}}
{{- end }}

{{/*
A proxy that is no native sidecar starts beside the gateway and gets SIGTERM together with it. It has to be there first, and to
stay until the gateway has drained.
*/}}
{{- define "participant-gateway.meshPodAnnotations" -}}
{{- $drain := include "participant-gateway.drainSeconds" . -}}
{{- if eq .Values.mesh.kind "istio" }}
sidecar.istio.io/rewriteAppHTTPProbers: "true"
{{- if not .Values.mesh.nativeSidecar }}
proxy.istio.io/config: {{ printf "{holdApplicationUntilProxyStarts: true, terminationDrainDuration: %ss}" $drain | quote }}
{{- end }}
{{- else if eq .Values.mesh.kind "linkerd" }}
linkerd.io/inject: enabled
{{- if not .Values.mesh.nativeSidecar }}
config.linkerd.io/proxy-await: enabled
config.alpha.linkerd.io/proxy-wait-before-exit-seconds: {{ $drain | quote }}
{{- end }}
{{- end }}
{{- end }}

{{/* Whether the chart's own pods must be let in by identity, too: the test's. */}}
{{- define "participant-gateway.ownPrincipal" -}}
{{- printf "%s/ns/%s/sa/%s" .Values.mesh.trustDomain .Release.Namespace (include "participant-gateway.serviceAccountName" .) -}}
{{- end }}

{{- define "participant-gateway.controlPlaneNamespace" -}}
{{- .Values.mesh.controlPlaneNamespace | default (get (dict "istio" "istio-system" "linkerd" "linkerd") .Values.mesh.kind) -}}
{{- end }}
