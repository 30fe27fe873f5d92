// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package issuerconfig

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	coreclient "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
)

var name = types.NamespacedName{Namespace: "signet-system", Name: "issuer"}

// apiServer speaks as much of the Kubernetes API over real HTTP as one ConfigMap
// and its Events need: list, watch with resumption, create.
type apiServer struct {
	*httptest.Server

	mu      sync.Mutex
	version int
	object  *corev1.ConfigMap
	history []change
	oldest  int           // A watch from before this version has expired.
	changed chan struct{} // Closed and renewed at every change.
	drops   chan struct{} // Closed when watches are to end.
	down    bool
	forbid  string // Resource that may not be touched.
	queries []string
	events  map[string]*corev1.Event
	posts   int
}

type change struct {
	version int
	kind    string
	object  *corev1.ConfigMap
}

func newAPIServer(t *testing.T) *apiServer {
	s := &apiServer{version: 10, changed: make(chan struct{}), drops: make(chan struct{}), events: map[string]*corev1.Event{}}
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

// put writes the ConfigMap; nil deletes it.
func (s *apiServer) put(data map[string]string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.version++
	kind := "MODIFIED"
	if s.object == nil {
		kind = "ADDED"
	}
	object := &corev1.ConfigMap{
		TypeMeta:   metav1.TypeMeta{Kind: "ConfigMap", APIVersion: "v1"},
		ObjectMeta: metav1.ObjectMeta{Namespace: name.Namespace, Name: name.Name, UID: "uid", ResourceVersion: strconv.Itoa(s.version)},
		Data:       data,
	}
	s.object = object
	if data == nil {
		kind, s.object = "DELETED", nil
	}
	s.history = append(s.history, change{s.version, kind, object})
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

func (s *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	down, forbid := s.down, s.forbid
	resource := r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]
	if resource == "configmaps" {
		s.queries = append(s.queries, r.URL.Path+"?"+r.URL.Query().Get("fieldSelector"))
	}
	s.mu.Unlock()
	watch := r.URL.Query().Get("watch") != ""
	switch {
	case down:
		panic(http.ErrAbortHandler)
	case resource == forbid:
		fail(w, http.StatusForbidden, metav1.StatusReasonForbidden, resource+" is forbidden: no RBAC")
	case resource == "events" && r.Method == http.MethodPost:
		s.createEvent(w, r)
	case resource == "configmaps" && watch && r.URL.Query().Get("sendInitialEvents") == "true":
		fail(w, http.StatusUnprocessableEntity, metav1.StatusReasonInvalid, "sendInitialEvents is forbidden")
	case resource == "configmaps" && watch:
		s.watch(w, r)
	case resource == "configmaps" && r.Method == http.MethodGet:
		s.list(w)
	default:
		fail(w, http.StatusMethodNotAllowed, metav1.StatusReasonMethodNotAllowed, r.Method+" "+r.URL.Path)
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

func (s *apiServer) list(w http.ResponseWriter) {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := corev1.ConfigMapList{TypeMeta: metav1.TypeMeta{Kind: "ConfigMapList", APIVersion: "v1"}, ListMeta: metav1.ListMeta{ResourceVersion: strconv.Itoa(s.version)}}
	if s.object != nil {
		list.Items = append(list.Items, *s.object)
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
				b, _ := json.Marshal(c.object)
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

func (s *apiServer) createEvent(w http.ResponseWriter, r *http.Request) {
	event := &corev1.Event{}
	if err := json.NewDecoder(r.Body).Decode(event); err != nil {
		fail(w, http.StatusBadRequest, metav1.StatusReasonBadRequest, err.Error())
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.bump()
	s.posts++
	if _, exists := s.events[event.Name]; exists {
		fail(w, http.StatusConflict, metav1.StatusReasonAlreadyExists, "exists")
		return
	}
	s.events[event.Name] = event
	answer(w, http.StatusCreated, event)
}

// until waits for the server to be as the test wants it.
func (s *apiServer) until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for {
		s.mu.Lock()
		done, changed := holds(), s.changed
		s.mu.Unlock()
		if done {
			return
		}
		await(t, what, changed)
	}
}
