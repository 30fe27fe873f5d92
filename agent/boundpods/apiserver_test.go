// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package boundpods

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	coreclient "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
)

// apiServer speaks as much of the Kubernetes API over real HTTP as pods need: get,
// list, watch with resumption.
type apiServer struct {
	*httptest.Server

	mu      sync.Mutex
	version int
	pods    map[string]*corev1.Pod // By namespace/name.
	history []change
	oldest  int           // A watch from before this version has expired.
	changed chan struct{} // Closed and renewed at every change, and at every request.
	drops   chan struct{} // Closed when watches are to end.
	down    bool
	hang    bool // Gets are not answered.
	forbid  string
	queries []string // "get ns/name", "list selector", "watch selector".
}

type change struct {
	version int
	kind    string
	pod     *corev1.Pod
}

func newAPIServer(t *testing.T) *apiServer {
	s := &apiServer{version: 10, pods: map[string]*corev1.Pod{}, changed: make(chan struct{}), drops: make(chan struct{})}
	s.Server = httptest.NewServer(s)
	t.Cleanup(func() {
		s.cut(true)
		s.CloseClientConnections()
		s.Close()
	})
	return s
}

func (s *apiServer) client(t *testing.T) coreclient.CoreV1Interface {
	t.Helper()
	client, err := coreclient.NewForConfig(&rest.Config{Host: s.URL, QPS: -1, ContentConfig: rest.ContentConfig{ContentType: "application/json"}})
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// bump: the caller holds mu.
func (s *apiServer) bump() { close(s.changed); s.changed = make(chan struct{}) }

// put writes a pod.
func (s *apiServer) put(pod *corev1.Pod) {
	s.mu.Lock()
	defer s.mu.Unlock()
	kind := "MODIFIED"
	if s.pods[pod.Namespace+"/"+pod.Name] == nil {
		kind = "ADDED"
	}
	s.note(kind, pod)
	s.pods[pod.Namespace+"/"+pod.Name] = s.history[len(s.history)-1].pod
}

func (s *apiServer) delete(pod *corev1.Pod) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.pods, pod.Namespace+"/"+pod.Name)
	s.note("DELETED", pod)
}

// note: the caller holds mu.
func (s *apiServer) note(kind string, pod *corev1.Pod) {
	s.version++
	pod = pod.DeepCopy()
	pod.TypeMeta = metav1.TypeMeta{Kind: "Pod", APIVersion: "v1"}
	pod.ResourceVersion = strconv.Itoa(s.version)
	s.history = append(s.history, change{s.version, kind, pod})
	s.bump()
}

// cut ends every watch; while down, nothing is answered.
func (s *apiServer) cut(down bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = down
	close(s.drops)
	s.drops = make(chan struct{})
	s.bump()
}

// set changes how the server answers.
func (s *apiServer) set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
	s.bump()
}

func (s *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	verb, what := "list", r.URL.Query().Get("fieldSelector")
	if name, named := strings.CutPrefix(r.URL.Path, "/api/v1/namespaces/"); named {
		verb, what = "get", strings.Replace(name, "/pods", "", 1)
	} else if r.URL.Query().Get("watch") != "" {
		verb = "watch"
	}
	s.mu.Lock()
	down, hang, forbid, drops := s.down, s.hang, s.forbid == verb, s.drops
	s.queries = append(s.queries, verb+" "+what)
	s.bump()
	s.mu.Unlock()
	switch {
	case down:
		panic(http.ErrAbortHandler)
	case forbid:
		fail(w, http.StatusForbidden, metav1.StatusReasonForbidden, "pods is forbidden: no RBAC")
	case verb == "get" && hang:
		select {
		case <-r.Context().Done():
		case <-drops:
		}
	case verb == "get":
		s.get(w, what)
	case r.URL.Query().Get("sendInitialEvents") == "true":
		fail(w, http.StatusUnprocessableEntity, metav1.StatusReasonInvalid, "sendInitialEvents is forbidden")
	case verb == "watch":
		s.watch(w, r)
	default:
		s.list(w)
	}
}

func fail(w http.ResponseWriter, code int, reason metav1.StatusReason, message string) {
	answer(w, code, metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure, Code: int32(code), Reason: reason, Message: message})
}

func answer(w http.ResponseWriter, code int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(body)
}

func (s *apiServer) get(w http.ResponseWriter, name string) {
	s.mu.Lock()
	pod := s.pods[name]
	s.mu.Unlock()
	if pod == nil {
		fail(w, http.StatusNotFound, metav1.StatusReasonNotFound, "no pod "+name)
		return
	}
	answer(w, http.StatusOK, pod)
}

func (s *apiServer) list(w http.ResponseWriter) {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := corev1.PodList{TypeMeta: metav1.TypeMeta{Kind: "PodList", APIVersion: "v1"}, ListMeta: metav1.ListMeta{ResourceVersion: strconv.Itoa(s.version)}}
	for _, pod := range s.pods {
		list.Items = append(list.Items, *pod)
	}
	answer(w, http.StatusOK, list)
}

func (s *apiServer) watch(w http.ResponseWriter, r *http.Request) {
	from, _ := strconv.Atoi(r.URL.Query().Get("resourceVersion"))
	s.mu.Lock()
	drops, expired := s.drops, from < s.oldest
	s.mu.Unlock()
	if expired {
		fail(w, http.StatusGone, metav1.StatusReasonExpired, "too old resource version")
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	for {
		s.mu.Lock()
		for _, c := range s.history {
			if c.version > from {
				b, _ := json.Marshal(c.pod)
				fmt.Fprintf(w, `{"type":%q,"object":%s}`+"\n", c.kind, b)
				from = c.version
			}
		}
		changed := s.changed
		s.mu.Unlock()
		w.(http.Flusher).Flush()
		select {
		case <-changed:
		case <-drops:
			return
		case <-r.Context().Done():
			return
		}
	}
}

// asked waits until the server was asked, and by what.
func (s *apiServer) asked(t *testing.T, query string) {
	t.Helper()
	for {
		s.mu.Lock()
		done, changed := slices.Contains(s.queries, query), s.changed
		s.mu.Unlock()
		if done {
			return
		}
		await(t, query, changed)
	}
}
