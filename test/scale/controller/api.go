package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"k8s.io/client-go/kubernetes/scheme"
)

// object is a Kubernetes object as JSON has it.
type object = map[string]any

// api serves the part of the Kubernetes API that the controller role uses, from
// memory. It has no admission, no quotas and no delay of its own. It is safe for
// concurrent use.
type api struct {
	mu       sync.Mutex
	version  int                          // of the last change
	objects  map[string]map[string]object // by resource, and by namespace/name
	changes  map[string][]change          // by resource; all of them
	changed  chan struct{}                // closed at the next change
	requests map[string]int               // by method and resource
	reviewed func(token string) object    // the status of a TokenReview
}

// change is an event of a watch.
type change struct {
	version int
	kind    string // ADDED, MODIFIED or DELETED
	object  object
}

// kinds are the served resources.
var kinds = map[string]string{
	"pods": "Pod", "nodes": "Node", "secrets": "Secret", "configmaps": "ConfigMap", "leases": "Lease",
	"persistentvolumeclaims": "PersistentVolumeClaim", "persistentvolumes": "PersistentVolume", "events": "Event", "tokenreviews": "TokenReview",
}

func newAPI(reviewed func(token string) object) *api {
	return &api{
		objects: map[string]map[string]object{}, changes: map[string][]change{}, changed: make(chan struct{}),
		requests: map[string]int{}, reviewed: reviewed,
	}
}

// put stores an object. The caller no longer changes the object.
func (a *api) put(resource string, o object) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.store(resource, o)
}

// store stores an object with the next version. The caller holds the lock.
func (a *api) store(resource string, o object) {
	a.version++
	meta := o["metadata"].(object)
	meta["resourceVersion"] = strconv.Itoa(a.version)
	if a.objects[resource] == nil {
		a.objects[resource] = map[string]object{}
	}
	kind := "ADDED"
	if _, there := a.objects[resource][key(meta)]; there {
		kind = "MODIFIED"
	}
	a.objects[resource][key(meta)] = o
	a.changes[resource] = append(a.changes[resource], change{a.version, kind, o})
	close(a.changed)
	a.changed = make(chan struct{})
}

func key(meta object) string {
	namespace, _ := meta["namespace"].(string)
	return namespace + "/" + meta["name"].(string)
}

// get returns an object; nil if it is not there.
func (a *api) get(resource, namespace, name string) object {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.objects[resource][namespace+"/"+name]
}

// count returns how many requests there were of a method and resource.
func (a *api) count(method, resource string) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.requests[method+" "+resource]
}

// target is what a request is about.
type target struct{ group, resource, namespace, name string }

// parse reads a path such as /api/v1/namespaces/NAMESPACE/pods/NAME.
func parse(path string) (t target, ok bool) {
	parts := strings.Split(strings.Trim(path, "/"), "/")
	switch {
	case len(parts) > 2 && parts[0] == "api":
		t.group, parts = parts[1], parts[2:]
	case len(parts) > 3 && parts[0] == "apis":
		t.group, parts = parts[1]+"/"+parts[2], parts[3:]
	default:
		return t, false
	}
	if parts[0] == "namespaces" && len(parts) > 2 {
		t.namespace, parts = parts[1], parts[2:]
	}
	t.resource = parts[0]
	if len(parts) > 1 {
		t.name = parts[1]
	}
	return t, kinds[t.resource] != "" && len(parts) < 3
}

// ServeHTTP implements http.Handler.
func (a *api) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	t, ok := parse(q.URL.Path)
	if !ok {
		refuse(w, http.StatusNotFound, "NotFound")
		return
	}
	a.mu.Lock()
	a.requests[q.Method+" "+t.resource]++
	a.mu.Unlock()
	switch {
	case q.Method == http.MethodGet && q.URL.Query().Get("watch") != "":
		a.watch(w, q, t)
	case q.Method == http.MethodGet && t.name == "":
		a.list(w, q, t)
	case q.Method == http.MethodGet:
		if o := a.get(t.resource, t.namespace, t.name); o != nil {
			a.reply(w, http.StatusOK, t, o)
			return
		}
		refuse(w, http.StatusNotFound, "NotFound")
	case q.Method == http.MethodPost, q.Method == http.MethodPut:
		a.write(w, q, t)
	default:
		refuse(w, http.StatusMethodNotAllowed, "MethodNotAllowed")
	}
}

func refuse(w http.ResponseWriter, code int, reason string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	fmt.Fprintf(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":%q,"message":%q,"code":%d}`, reason, reason, code)
}

// reply sends an object. Objects never change once they are stored.
func (a *api) reply(w http.ResponseWriter, code int, t target, o object) {
	o = maps.Clone(o)
	o["kind"], o["apiVersion"] = kinds[t.resource], t.group
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	if err := json.NewEncoder(w).Encode(o); err != nil {
		return // the client is gone
	}
}

// write creates or updates an object, or reviews a token.
func (a *api) write(w http.ResponseWriter, q *http.Request, t target) {
	o, err := sent(q)
	if err != nil {
		refuse(w, http.StatusBadRequest, "BadRequest")
		return
	}
	if t.resource == "tokenreviews" {
		token, _ := o["spec"].(object)["token"].(string)
		o["status"] = a.reviewed(token)
		a.reply(w, http.StatusCreated, t, o)
		return
	}
	meta := o["metadata"].(object)
	if t.namespace != "" {
		meta["namespace"] = t.namespace
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	before := a.objects[t.resource][key(meta)]
	read, _ := meta["resourceVersion"].(string)
	switch {
	case q.Method == http.MethodPost && before != nil:
		refuse(w, http.StatusConflict, "AlreadyExists")
	case q.Method == http.MethodPut && before == nil:
		refuse(w, http.StatusNotFound, "NotFound")
	case q.Method == http.MethodPut && read != "" && read != before["metadata"].(object)["resourceVersion"]:
		refuse(w, http.StatusConflict, "Conflict")
	default:
		meta["uid"] = "uid-of-" + meta["name"].(string)
		meta["creationTimestamp"] = time.Now().UTC().Format(time.RFC3339)
		a.store(t.resource, o)
		a.reply(w, http.StatusCreated, t, o)
	}
}

// sent returns the object in a request, which may be in protobuf.
func sent(q *http.Request) (o object, err error) {
	body, err := io.ReadAll(q.Body)
	if err != nil {
		return nil, err
	}
	decoded, _, err := scheme.Codecs.UniversalDeserializer().Decode(body, nil, nil)
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(decoded)
	if err != nil {
		return nil, err
	}
	return o, json.Unmarshal(text, &o)
}

// matches reports whether a list of the target has the object.
func (t target) matches(q *http.Request, o object) bool {
	meta := o["metadata"].(object)
	if t.namespace != "" && meta["namespace"] != t.namespace {
		return false
	}
	selector := q.URL.Query().Get("fieldSelector")
	return selector == "" || selector == "metadata.name="+meta["name"].(string)
}

// here returns the target's objects and the version of the last change.
func (a *api) here(q *http.Request, t target) (items []object, version int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, k := range slices.Sorted(maps.Keys(a.objects[t.resource])) {
		if o := a.objects[t.resource][k]; t.matches(q, o) {
			items = append(items, o)
		}
	}
	return items, a.version
}

func (a *api) list(w http.ResponseWriter, q *http.Request, t target) {
	items, version := a.here(q, t)
	if items == nil {
		items = []object{}
	}
	w.Header().Set("Content-Type", "application/json")
	err := json.NewEncoder(w).Encode(object{
		"kind": kinds[t.resource] + "List", "apiVersion": t.group,
		"metadata": object{"resourceVersion": strconv.Itoa(version)}, "items": items,
	})
	if err != nil {
		return // the client is gone
	}
}

// watch sends the changes after the version in the request, until the client
// leaves. If the client wants the initial events, watch sends all objects first.
func (a *api) watch(w http.ResponseWriter, q *http.Request, t target) {
	w.Header().Set("Content-Type", "application/json")
	out := json.NewEncoder(w)
	send := func(kind string, o object) bool {
		o = maps.Clone(o)
		o["kind"], o["apiVersion"] = kinds[t.resource], t.group
		return out.Encode(object{"type": kind, "object": o}) == nil
	}
	from, _ := strconv.Atoi(q.URL.Query().Get("resourceVersion"))
	if q.URL.Query().Get("sendInitialEvents") == "true" {
		items, version := a.here(q, t)
		for _, o := range items {
			if !send("ADDED", o) {
				return
			}
		}
		send("BOOKMARK", object{"metadata": object{
			"resourceVersion": strconv.Itoa(version), "annotations": object{"k8s.io/initial-events-end": "true"},
		}})
		from = version
	}
	for {
		a.mu.Lock()
		changed := a.changed
		all := a.changes[t.resource]
		first, _ := slices.BinarySearchFunc(all, from+1, func(c change, v int) int { return c.version - v })
		more := slices.Clone(all[first:])
		a.mu.Unlock()
		for _, c := range more {
			from = c.version
			if t.matches(q, c.object) && !send(c.kind, c.object) {
				return
			}
		}
		if err := http.NewResponseController(w).Flush(); err != nil {
			return
		}
		select {
		case <-changed:
		case <-q.Context().Done():
			return
		}
	}
}
