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

{{- /* The reference of an image: a dict of image, root and defaultTag. A registry for all images replaces the image's own. */ -}}
{{- define "dmsnap.image" -}}
{{- $repository := .image.repository -}}
{{- with (.root.Values.global).imageRegistry -}}
{{- $parts := splitList "/" $repository -}}
{{- if and (gt (len $parts) 1) (regexMatch "[.:]|^localhost$" (first $parts)) -}}
{{- $parts = rest $parts -}}
{{- end -}}
{{- $repository = join "/" (prepend $parts (trimSuffix "/" .)) -}}
{{- end -}}
{{- if .image.digest -}}
{{ $repository }}@{{ .image.digest }}
{{- else -}}
{{ $repository }}:{{ .image.tag | default .defaultTag }}
{{- end -}}
{{- end -}}

{{- /* The Secrets for pulling images: those of all charts, which may be names, and those of this chart. */ -}}
{{- define "dmsnap.pullSecrets" -}}
{{- $names := list -}}
{{- range concat ((.Values.global).imagePullSecrets | default list) .Values.imagePullSecrets -}}
{{- if kindIs "string" . -}}
{{- $names = append $names . -}}
{{- else -}}
{{- $names = append $names .name -}}
{{- end -}}
{{- end -}}
{{- with $names | uniq -}}
imagePullSecrets:
{{- range . }}
- name: {{ . }}
{{- end }}
{{- end -}}
{{- end -}}

{{- /* The restrictions of every container except the node's. */ -}}
{{- define "dmsnap.confined" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end -}}

{{- /* The kinds of nodes as JSON: for each DaemonSet a dict of component, pools and the settings of node. */ -}}
{{- define "dmsnap.flavours" -}}
{{- $all := list -}}
{{- $former := list -}}
{{- range .Values.nodeGroups -}}
{{- $node := deepCopy $.Values.node -}}
{{- range $key, $value := omit . "name" "pools" -}}
{{- if has $key (list "nodeSelector" "podLabels" "podAnnotations") -}}
{{- $value = merge (deepCopy $value) (get $node $key | default dict) -}}
{{- end -}}
{{- $_ := set $node $key $value -}}
{{- end -}}
{{- $_ := set $node "affinity" (include "dmsnap.affinity" (dict "node" $node "former" $former) | fromJson) -}}
{{- $all = append $all (dict "component" (printf "node-%s" .name) "pools" (.pools | default $.Values.pools) "node" $node) -}}
{{- $former = append $former .nodeSelector -}}
{{- end -}}
{{- if or .Values.pools (not .Values.nodeGroups) -}}
{{- $node := deepCopy .Values.node -}}
{{- $_ := set $node "affinity" (include "dmsnap.affinity" (dict "node" $node "former" $former) | fromJson) -}}
{{- $all = prepend $all (dict "component" "node" "pools" .Values.pools "node" $node) -}}
{{- end -}}
{{- $all | toJson -}}
{{- end -}}

{{- /* A DaemonSet's affinity as JSON, without the nodes of former groups: a dict of node and former, the groups' nodeSelectors. */ -}}
{{- define "dmsnap.affinity" -}}
{{- $affinity := deepCopy (.node.affinity | default dict) -}}
{{- $terms := dig "nodeAffinity" "requiredDuringSchedulingIgnoredDuringExecution" "nodeSelectorTerms" (list dict) $affinity -}}
{{- $added := false -}}
{{- range $selector := .former -}}
{{- $apart := false -}}
{{- range $key, $value := $selector -}}
{{- $apart = or $apart (ne (get ($.node.nodeSelector | default dict) $key | default $value) $value) -}}
{{- end -}}
{{- if not $apart -}}
{{- $added = true -}}
{{- $next := list -}}
{{- range $term := $terms -}}
{{- range $key, $value := $selector -}}
{{- $expressions := append (get $term "matchExpressions" | default list) (dict "key" $key "operator" "NotIn" "values" (list $value)) -}}
{{- $next = append $next (merge (dict "matchExpressions" $expressions) $term) -}}
{{- end -}}
{{- end -}}
{{- $terms = $next -}}
{{- end -}}
{{- end -}}
{{- if $added -}}
{{- $required := dict "requiredDuringSchedulingIgnoredDuringExecution" (dict "nodeSelectorTerms" $terms) -}}
{{- $_ := set $affinity "nodeAffinity" (merge $required (omit (get $affinity "nodeAffinity" | default dict) "requiredDuringSchedulingIgnoredDuringExecution")) -}}
{{- end -}}
{{- $affinity | toJson -}}
{{- end -}}

{{- /* The components that are node roles, separated by commas. */ -}}
{{- define "dmsnap.nodeComponents" -}}
{{- $all := list -}}
{{- range include "dmsnap.flavours" . | fromJsonArray -}}
{{- $all = append $all .component -}}
{{- end -}}
{{- join "," $all -}}
{{- end -}}

{{- /* The labels of a class: a dict of root and labels. The chart's own labels take precedence. */ -}}
{{- define "dmsnap.classLabels" -}}
{{- $own := include "dmsnap.labels" .root -}}
{{- $own }}
{{- range $key, $value := .labels }}
{{- if not (hasKey ($own | fromYaml) $key) }}
{{ $key }}: {{ $value | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{- /* The directories of pools on files, each once: a dict of pools. */ -}}
{{- define "dmsnap.fileDirs" -}}
{{- $dirs := list -}}
{{- range .pools -}}
{{- if .file -}}
{{- $dirs = append $dirs (dir .file) -}}
{{- end -}}
{{- end -}}
{{- $dirs | uniq | toJson -}}
{{- end -}}

{{- /* The StorageClasses that one entry of the list makes, as JSON. */ -}}
{{- define "dmsnap.variants" -}}
{{- $variants := list (dict "name" .name "binding" (.volumeBindingMode | default "WaitForFirstConsumer") "default" (.isDefault | default false)) -}}
{{- if and (hasKey . "restoreClass" | ternary .restoreClass true) (ne (.volumeBindingMode | default "") "Immediate") -}}
{{- $variants = append $variants (dict "name" (printf "%s-restore" .name) "binding" "Immediate" "default" false) -}}
{{- end -}}
{{- $variants | toJson -}}
{{- end -}}

{{- /* Fails for pools with which the driver would not start: a dict of where and pools. */ -}}
{{- define "dmsnap.poolChecks" -}}
{{- $where := .where -}}
{{- $names := list -}}
{{- $groups := list -}}
{{- range .pools -}}
{{- $group := .volumeGroup | default .name -}}
{{- if has .name $names -}}
{{- fail (printf "%s: pool %s is listed twice" $where .name) -}}
{{- end -}}
{{- if has $group $groups -}}
{{- fail (printf "%s: pool %s has the same volumeGroup as another pool: %s" $where .name $group) -}}
{{- end -}}
{{- $names = append $names .name -}}
{{- $groups = append $groups $group -}}
{{- if gt (len (replace "-" "--" $group)) 74 -}}
{{- fail (printf "%s: pool %s: the volumeGroup %s is too long; it may have 74 bytes, where hyphens count twice" $where .name $group) -}}
{{- end -}}
{{- if and .file .devices -}}
{{- fail (printf "%s: pool %s has devices and a file; set only one of them" $where .name) -}}
{{- end -}}
{{- if and .file .optional -}}
{{- fail (printf "%s: pool %s: a pool on a file cannot be optional, because a missing file is made" $where .name) -}}
{{- end -}}
{{- if and .file (eq (dir .file) "/") -}}
{{- fail (printf "%s: pool %s: the driver gets access to the whole directory of the file; put the file into a directory of its own" $where .name) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* Fails for a StorageClass whose parameters the driver or csi-provisioner would refuse. */ -}}
{{- define "dmsnap.parameterChecks" -}}
{{- $class := printf "storageClasses: class %s" .name -}}
{{- $parameters := .parameters | default dict -}}
{{- range $key, $value := $parameters -}}
{{- if eq $key "pool" -}}
{{- fail (printf "%s has a pool among its parameters; use the key pool of the class" $class) -}}
{{- end -}}
{{- if eq (lower $key) "fstype" -}}
{{- fail (printf "%s has %s among its parameters; use the key fsType of the class" $class $key) -}}
{{- end -}}
{{- if not (or (has $key (list "transient" "allowVolumeModeChange")) (regexMatch "^csi\\.storage\\.k8s\\.io/(fstype|((provisioner|(controller|node)-expand|(controller|node)-publish|node-stage)-)?secret-name(space)?)$" $key)) -}}
{{- fail (printf "%s has the unknown parameter %s; known are transient, allowVolumeModeChange and those of csi-provisioner" $class $key) -}}
{{- end -}}
{{- if hasSuffix "secret-name" $key | or (hasSuffix "secret-namespace" $key) -}}
{{- $stem := $key | trimSuffix "space" -}}
{{- if not (and (hasKey $parameters $stem) (hasKey $parameters (print $stem "space"))) -}}
{{- fail (printf "%s has the parameter %s, but a secret needs a name and a namespace; set both" $class $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $fsType := .fsType | default "ext4" -}}
{{- if ne (get $parameters "csi.storage.k8s.io/fstype" | default $fsType) $fsType -}}
{{- fail (printf "%s: its parameter csi.storage.k8s.io/fstype differs from its fsType, %s; use the key fsType of the class" $class $fsType) -}}
{{- end -}}
{{- end -}}

{{- /* Fails if two classes of a list are the default: a dict of list, classes and annotations that make a class the default. */ -}}
{{- define "dmsnap.defaultChecks" -}}
{{- $list := .list -}}
{{- $annotations := .annotations -}}
{{- $defaults := list -}}
{{- range $class := .classes -}}
{{- $default := $class.isDefault -}}
{{- range $annotations -}}
{{- $default = or $default (eq (get ($class.annotations | default dict) .) "true") -}}
{{- end -}}
{{- if $default -}}
{{- $defaults = append $defaults $class.name -}}
{{- end -}}
{{- end -}}
{{- if gt (len $defaults) 1 -}}
{{- fail (printf "%s: more than one class is the default: %s" $list (join ", " $defaults)) -}}
{{- end -}}
{{- end -}}

{{- /* The annotations that make a StorageClass the default, as JSON. */ -}}
{{- define "dmsnap.defaultAnnotations" -}}
{{- list "storageclass.kubernetes.io/is-default-class" "storageclass.beta.kubernetes.io/is-default-class" | toJson -}}
{{- end -}}

{{- /* Fails for classes of which no volume could be made, or that would be made twice. */ -}}
{{- define "dmsnap.classChecks" -}}
{{- range .Values.storageClasses -}}
{{- include "dmsnap.parameterChecks" . -}}
{{- end -}}
{{- $names := list -}}
{{- range include "dmsnap.flavours" . | fromJsonArray -}}
{{- $everywhere := list -}}
{{- range .pools -}}
{{- $names = append $names .name -}}
{{- if not (or .nodes .optional) -}}
{{- $everywhere = append $everywhere .name -}}
{{- end -}}
{{- end -}}
{{- range $.Values.storageClasses -}}
{{- $forCopies := or (eq (.volumeBindingMode | default "") "Immediate") (eq (dig "transient" "" (.parameters | default dict)) "true") -}}
{{- if and (not .pool) (not $forCopies) (gt (len $everywhere) 1) -}}
{{- fail (printf "storageClasses: class %s names no pool, and a node has several: %s; set its pool, and delete the class first if the cluster has it already, because its parameters cannot be changed" .name (join ", " $everywhere)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $classes := list -}}
{{- range .Values.storageClasses -}}
{{- if and .pool (not (has .pool $names)) -}}
{{- fail (printf "storageClasses: class %s has the pool %s, which is not in the list pools" .name .pool) -}}
{{- end -}}
{{- range include "dmsnap.variants" . | fromJsonArray -}}
{{- if has .name $classes -}}
{{- fail (printf "storageClasses: class %s would be made twice; a class NAME also makes NAME-restore, unless restoreClass is false" .name) -}}
{{- end -}}
{{- $classes = append $classes .name -}}
{{- end -}}
{{- end -}}
{{- $classes = list -}}
{{- range .Values.volumeSnapshotClasses -}}
{{- if has .name $classes -}}
{{- fail (printf "volumeSnapshotClasses: class %s is listed twice" .name) -}}
{{- end -}}
{{- $classes = append $classes .name -}}
{{- end -}}
{{- include "dmsnap.defaultChecks" (dict "list" "storageClasses" "classes" .Values.storageClasses "annotations" (include "dmsnap.defaultAnnotations" . | fromJsonArray)) -}}
{{- include "dmsnap.defaultChecks" (dict "list" "volumeSnapshotClasses" "classes" .Values.volumeSnapshotClasses "annotations" (list "snapshot.storage.kubernetes.io/is-default-class")) -}}
{{- end -}}

{{- define "dmsnap.checks" -}}
{{- if not (or .Values.pools .Values.nodeGroups) -}}
{{- fail "pools is empty; list the pools of your nodes, or for a trial: --set 'pools[0].name=trial,pools[0].file=/var/lib/csi-dmsnap/trial.img,pools[0].size=20Gi'" -}}
{{- end -}}
{{- include "dmsnap.poolChecks" (dict "where" "pools" "pools" .Values.pools) -}}
{{- $groups := list -}}
{{- range .Values.nodeGroups -}}
{{- if has .name $groups -}}
{{- fail (printf "nodeGroups: group %s is listed twice" .name) -}}
{{- end -}}
{{- $groups = append $groups .name -}}
{{- if not (or .pools $.Values.pools) -}}
{{- fail (printf "nodeGroups: group %s has no pools" .name) -}}
{{- end -}}
{{- include "dmsnap.poolChecks" (dict "where" (printf "nodeGroups: group %s" .name) "pools" .pools) -}}
{{- end -}}
{{- range include "dmsnap.flavours" . | fromJsonArray -}}
{{- $surge := dig "rollingUpdate" "maxSurge" 0 .node.updateStrategy -}}
{{- if not (has (toString $surge) (list "0" "0%")) -}}
{{- fail "node.updateStrategy.rollingUpdate.maxSurge must be 0: the new driver would wait for the pools of the old one" -}}
{{- end -}}
{{- end -}}
{{- include "dmsnap.classChecks" . -}}
{{- if and .Values.certManager.enabled (not (and .Values.certManager.issuerRef.name .Values.certManager.nodes)) -}}
{{- fail "certManager needs issuerRef.name and nodes" -}}
{{- end -}}
{{- end -}}

{{- /* The VolumeSnapshotClasses: a dict of root and of annotations with which Helm takes them over. */ -}}
{{- define "dmsnap.volumeSnapshotClasses" -}}
{{- $helm := .annotations | default dict -}}
{{- $root := .root -}}
{{- range $root.Values.volumeSnapshotClasses }}
---
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshotClass
metadata:
  name: {{ .name }}
  labels: {{- include "dmsnap.classLabels" (dict "root" $root "labels" .labels) | nindent 4 }}
  {{- $own := .isDefault | default false | ternary (dict "snapshot.storage.kubernetes.io/is-default-class" "true") dict }}
  {{- with merge $own $helm (.annotations | default dict) }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
driver: {{ include "dmsnap.driver" $root }}
deletionPolicy: {{ .deletionPolicy | default "Delete" }}
{{- with .parameters }}
parameters: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- end -}}
