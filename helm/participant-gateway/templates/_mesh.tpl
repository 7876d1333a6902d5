{{/* What a pod carries for its mesh. */}}

{{- define "participant-gateway.meshPodLabels" -}}
{{- if eq .Values.mesh.kind "istio" -}}
sidecar.istio.io/inject: "true"
{{- end -}}
{{- end }}

{{/*
Which kind of sidecar is injected is the mesh's default, and Linkerd's is the older one: so the pods ask for theirs.
A proxy that is no native sidecar starts beside the gateway and gets SIGTERM together with it. It has to be there first, and to
stay until the gateway has drained, and exported its last spans.
*/}}
{{- define "participant-gateway.meshPodAnnotations" -}}
{{- $stay := include "participant-gateway.drainSeconds" . | int | add 2 -}}
{{- if eq .Values.mesh.kind "istio" }}
sidecar.istio.io/rewriteAppHTTPProbers: "true"
sidecar.istio.io/nativeSidecar: {{ .Values.mesh.nativeSidecar | quote }}
{{- if not .Values.mesh.nativeSidecar }}
proxy.istio.io/config: {{ printf "{holdApplicationUntilProxyStarts: true, terminationDrainDuration: %ds}" $stay | quote }}
{{- end }}
{{- else if eq .Values.mesh.kind "linkerd" }}
linkerd.io/inject: enabled
{{- /* Linkerd before edge-25.10.2 knows the first only. */}}
config.alpha.linkerd.io/proxy-enable-native-sidecar: {{ .Values.mesh.nativeSidecar | quote }}
config.beta.linkerd.io/proxy-enable-native-sidecar: {{ .Values.mesh.nativeSidecar | quote }}
{{- if not .Values.mesh.nativeSidecar }}
config.linkerd.io/proxy-await: enabled
config.alpha.linkerd.io/proxy-wait-before-exit-seconds: {{ $stay | quote }}
{{- end }}
{{- end }}
{{- end }}

{{/* Linkerd takes a number of one unit, and ignores an annotation such as 1m30s. */}}
{{- define "participant-gateway.oneUnit" -}}
{{- if regexMatch "^[0-9]+[a-z]+$" . }}{{ . }}{{ else }}{{ include "participant-gateway.seconds" . }}s{{ end -}}
{{- end }}

{{/* The identity of the test's pod, which has to be let in, too. */}}
{{- define "participant-gateway.ownPrincipal" -}}
{{- printf "%s/ns/%s/sa/%s" .Values.mesh.trustDomain .Release.Namespace (include "participant-gateway.serviceAccountName" .) -}}
{{- end }}

{{- define "participant-gateway.controlPlaneNamespace" -}}
{{- .Values.mesh.controlPlaneNamespace | default (get (dict "istio" "istio-system" "linkerd" "linkerd") .Values.mesh.kind) -}}
{{- end }}
