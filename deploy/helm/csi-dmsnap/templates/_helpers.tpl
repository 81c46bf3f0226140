{{- define "dmsnap.fullname" -}}
{{- default .Release.Name .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "dmsnap.driver" -}}dmsnap.csi-dmsnap.github.io{{- end -}}

{{- define "dmsnap.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "dmsnap.labels" -}}
{{ include "dmsnap.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- /* The reference of an image: a dict of image and defaultTag. */ -}}
{{- define "dmsnap.image" -}}
{{- if .image.digest -}}
{{ .image.repository }}@{{ .image.digest }}
{{- else -}}
{{ .image.repository }}:{{ .image.tag | default .defaultTag }}
{{- end -}}
{{- end -}}

{{- /* What every container but the node's may not. */ -}}
{{- define "dmsnap.confined" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end -}}

{{- /* The directories of pools on files: each once. */ -}}
{{- define "dmsnap.fileDirs" -}}
{{- $dirs := list -}}
{{- range .Values.pools -}}
{{- if .file -}}
{{- $dirs = append $dirs (dir .file) -}}
{{- end -}}
{{- end -}}
{{- $dirs | uniq | toJson -}}
{{- end -}}

{{- /* Classes of which no volume could be made. */ -}}
{{- define "dmsnap.classChecks" -}}
{{- $names := list -}}
{{- $everywhere := list -}}
{{- range .Values.pools -}}
{{- $names = append $names .name -}}
{{- if not (or .nodes .optional) -}}
{{- $everywhere = append $everywhere .name -}}
{{- end -}}
{{- end -}}
{{- range .Values.storageClasses -}}
{{- $forCopies := or (eq (.volumeBindingMode | default "") "Immediate") (eq (dig "transient" "" (.parameters | default dict)) "true") -}}
{{- if and (not .pool) (not $forCopies) (gt (len $everywhere) 1) -}}
{{- fail (printf "storageClasses: class %s names no pool, and a node has several: %s. Set its pool; a class that is in the cluster already must be deleted first, its parameters cannot be changed" .name (join ", " $everywhere)) -}}
{{- end -}}
{{- if and .pool (not (has .pool $names)) (not $.Values.nodeGroups) -}}
{{- fail (printf "storageClasses: class %s is of pool %s, which is not in the list pools" .name .pool) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "dmsnap.checks" -}}
{{- if not .Values.pools -}}
{{- fail "pools is empty: list the pools of your nodes. To try it out: --set 'pools[0].name=trial,pools[0].file=/var/lib/csi-dmsnap/trial.img,pools[0].size=20Gi'" -}}
{{- end -}}
{{- range .Values.pools -}}
{{- if and .file (eq (dir .file) "/") -}}
{{- fail (printf "pool %s: put the file into a directory of its own, the driver gets access to all of it" .name) -}}
{{- end -}}
{{- end -}}
{{- include "dmsnap.classChecks" . -}}
{{- $surge := dig "rollingUpdate" "maxSurge" 0 .Values.node.updateStrategy -}}
{{- if not (has (toString $surge) (list "0" "0%")) -}}
{{- fail "node.updateStrategy.rollingUpdate.maxSurge must be 0: the new driver would wait for the pools of the old one" -}}
{{- end -}}
{{- if and .Values.certManager.enabled (not (and .Values.certManager.issuerRef.name .Values.certManager.nodes)) -}}
{{- fail "certManager needs issuerRef.name and nodes" -}}
{{- end -}}
{{- end -}}
