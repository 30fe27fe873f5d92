// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package certmanager

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
)

// apiServer speaks as much of the Kubernetes API as CertificateRequests need,
// over real HTTP: create, list, watch with resumption, delete with
// preconditions. Resource versions and expiry behave as the real one's.
type apiServer struct {
	*httptest.Server

	mu       sync.Mutex
	version  int
	uids     int
	objects  map[types.NamespacedName]*cmapi.CertificateRequest
	history  []event
	oldest   int  // a watch from before this version has expired
	down     bool // connections are cut without an answer
	drops    chan struct{}
	changed  chan struct{} // closed and renewed at every change
	requests []seenRequest
	open     int // watches that are established
	// streaming makes lists come as watches, as newer API servers do.
	streaming bool
	// onCreate, if set, runs before a create is answered, without the lock. An
	// error status is the answer instead; the object may exist all the same.
	onCreate func(cr *cmapi.CertificateRequest) *metav1.Status
	// onDelete, if set, may refuse a delete.
	onDelete func(name types.NamespacedName) *metav1.Status
	// loseAnswer cuts the connection after a create.
	loseAnswer bool
}

type event struct {
	version int
	kind    string
	object  *cmapi.CertificateRequest
	labels  []labels.Set // before and after: what selects it
}

// seenRequest is what reached the server, for the tests on credentials.
type seenRequest struct {
	method, path, authorization, impersonate string
	watch, clientCert                        bool
	version                                  string // Query parameter resourceVersion.
}

func newAPIServer(t *testing.T) *apiServer {
	s := &apiServer{
		version: 100, oldest: 0,
		objects: map[types.NamespacedName]*cmapi.CertificateRequest{},
		drops:   make(chan struct{}), changed: make(chan struct{}),
	}
	s.Server = httptest.NewUnstartedServer(s)
	s.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	s.EnableHTTP2 = true
	s.StartTLS()
	t.Cleanup(func() {
		s.dropWatches()
		s.CloseClientConnections()
		s.Close()
	})
	return s
}

func (s *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	if s.down {
		s.mu.Unlock()
		panic(http.ErrAbortHandler)
	}
	s.requests = append(s.requests, seenRequest{
		method: r.Method, path: r.URL.Path, authorization: r.Header.Get("Authorization"),
		impersonate: r.Header.Get("Impersonate-User"),
		version:     r.URL.Query().Get("resourceVersion"),
		watch:       r.URL.Query().Get("watch") != "", clientCert: len(r.TLS.PeerCertificates) > 0,
	})
	s.bump()
	s.mu.Unlock()

	path := strings.TrimPrefix(r.URL.Path, "/apis/cert-manager.io/v1")
	part := strings.Split(strings.Trim(path, "/"), "/")
	switch {
	case r.Method == http.MethodGet && path == "/certificaterequests" && r.URL.Query().Get("watch") != "":
		s.watch(w, r)
	case r.Method == http.MethodGet && path == "/certificaterequests":
		s.list(w, r)
	case r.Method == http.MethodPost && len(part) == 3:
		s.create(w, r, part[1])
	case r.Method == http.MethodDelete && len(part) == 4:
		s.delete(w, r, types.NamespacedName{Namespace: part[1], Name: part[3]})
	default:
		fail(w, status(http.StatusMethodNotAllowed, metav1.StatusReasonMethodNotAllowed, r.Method+" "+r.URL.Path))
	}
}

func status(code int, reason metav1.StatusReason, message string) *metav1.Status {
	return &metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"},
		Status:   metav1.StatusFailure, Code: int32(code), Reason: reason, Message: message,
	}
}

func fail(w http.ResponseWriter, st *metav1.Status) { answer(w, int(st.Code), st) }

func answer(w http.ResponseWriter, code int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(body)
}

// bump: the caller holds mu.
func (s *apiServer) bump() {
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *apiServer) create(w http.ResponseWriter, r *http.Request, namespace string) {
	body, _ := io.ReadAll(r.Body)
	cr := &cmapi.CertificateRequest{}
	if err := json.Unmarshal(body, cr); err != nil {
		fail(w, status(http.StatusBadRequest, metav1.StatusReasonBadRequest, err.Error()))
		return
	}
	cr.Namespace = namespace
	s.mu.Lock()
	hook, lose := s.onCreate, s.loseAnswer
	if _, exists := s.objects[nameOf(cr)]; exists {
		s.mu.Unlock()
		fail(w, status(http.StatusConflict, metav1.StatusReasonAlreadyExists, "exists"))
		return
	}
	s.mu.Unlock()
	if hook != nil {
		if st := hook(cr); st != nil {
			fail(w, st)
			return
		}
	}
	made := s.put(cr)
	if lose {
		panic(http.ErrAbortHandler)
	}
	answer(w, http.StatusCreated, made)
}

// put stores a new object and returns it as of its creation.
func (s *apiServer) put(cr *cmapi.CertificateRequest) *cmapi.CertificateRequest {
	s.mu.Lock()
	defer s.mu.Unlock()
	if old, exists := s.objects[nameOf(cr)]; exists {
		return old.DeepCopy()
	}
	s.uids++
	cr = cr.DeepCopy()
	cr.TypeMeta = metav1.TypeMeta{Kind: "CertificateRequest", APIVersion: "cert-manager.io/v1"}
	cr.UID = types.UID(fmt.Sprintf("uid-%d", s.uids))
	cr.CreationTimestamp = metav1.Now()
	cr.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "test"}}
	s.store("ADDED", cr, cr.Labels)
	return cr.DeepCopy()
}

// store records an event. The caller holds mu.
func (s *apiServer) store(kind string, cr *cmapi.CertificateRequest, before map[string]string) {
	s.version++
	cr.ResourceVersion = strconv.Itoa(s.version)
	if kind == "DELETED" {
		delete(s.objects, nameOf(cr))
	} else {
		s.objects[nameOf(cr)] = cr
	}
	s.history = append(s.history, event{s.version, kind, cr.DeepCopy(), []labels.Set{before, cr.Labels}})
	s.bump()
}

// update edits an object in place, as an approver or issuer does.
func (s *apiServer) update(name types.NamespacedName, edit func(*cmapi.CertificateRequest)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	cr := s.objects[name].DeepCopy()
	before := cr.Labels
	edit(cr)
	s.store("MODIFIED", cr, before)
}

func (s *apiServer) remove(name types.NamespacedName) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if cr := s.objects[name]; cr != nil {
		s.store("DELETED", cr.DeepCopy(), cr.Labels)
	}
}

func (s *apiServer) delete(w http.ResponseWriter, r *http.Request, name types.NamespacedName) {
	var o metav1.DeleteOptions
	if body, _ := io.ReadAll(r.Body); len(body) > 0 {
		if err := json.Unmarshal(body, &o); err != nil {
			fail(w, status(http.StatusBadRequest, metav1.StatusReasonBadRequest, err.Error()))
			return
		}
	}
	s.mu.Lock()
	hook, cr := s.onDelete, s.objects[name]
	s.mu.Unlock()
	if hook != nil {
		if st := hook(name); st != nil {
			fail(w, st)
			return
		}
	}
	switch {
	case cr == nil:
		fail(w, status(http.StatusNotFound, metav1.StatusReasonNotFound, name.String()))
	case o.Preconditions != nil && o.Preconditions.UID != nil && *o.Preconditions.UID != cr.UID:
		fail(w, status(http.StatusConflict, metav1.StatusReasonConflict, "UID precondition"))
	default:
		s.remove(name)
		answer(w, http.StatusOK, &metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusSuccess})
	}
}

func (s *apiServer) list(w http.ResponseWriter, r *http.Request) {
	selector, err := labels.Parse(r.URL.Query().Get("labelSelector"))
	if err != nil {
		fail(w, status(http.StatusBadRequest, metav1.StatusReasonBadRequest, err.Error()))
		return
	}
	s.mu.Lock()
	list := cmapi.CertificateRequestList{TypeMeta: metav1.TypeMeta{Kind: "CertificateRequestList", APIVersion: "cert-manager.io/v1"}}
	list.ResourceVersion = strconv.Itoa(s.version)
	for _, cr := range s.objects {
		if selector.Matches(labels.Set(cr.Labels)) {
			list.Items = append(list.Items, *cr.DeepCopy())
		}
	}
	s.mu.Unlock()
	answer(w, http.StatusOK, list)
}

func (s *apiServer) watch(w http.ResponseWriter, r *http.Request) {
	selector, err := labels.Parse(r.URL.Query().Get("labelSelector"))
	if err != nil {
		fail(w, status(http.StatusBadRequest, metav1.StatusReasonBadRequest, err.Error()))
		return
	}
	initial := r.URL.Query().Get("sendInitialEvents") == "true"
	from, _ := strconv.Atoi(r.URL.Query().Get("resourceVersion"))
	s.mu.Lock()
	drops := s.drops
	frames := [][]byte{}
	switch {
	case initial && !s.streaming:
		s.mu.Unlock()
		fail(w, status(http.StatusUnprocessableEntity, metav1.StatusReasonInvalid, "sendInitialEvents is forbidden"))
		return
	case initial:
		for _, cr := range s.objects {
			if selector.Matches(labels.Set(cr.Labels)) {
				frames = append(frames, frame("ADDED", cr))
			}
		}
		from = s.version
		mark := &cmapi.CertificateRequest{TypeMeta: metav1.TypeMeta{Kind: "CertificateRequest", APIVersion: "cert-manager.io/v1"}}
		mark.ResourceVersion = strconv.Itoa(s.version)
		mark.Annotations = map[string]string{metav1.InitialEventsAnnotationKey: "true"}
		frames = append(frames, frame("BOOKMARK", mark))
	case from < s.oldest:
		s.mu.Unlock()
		fail(w, status(http.StatusGone, metav1.StatusReasonExpired, "too old resource version"))
		return
	}
	s.open++
	s.bump()
	s.mu.Unlock()
	defer s.with(func() { s.open--; s.bump() })

	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	for {
		for _, f := range frames {
			_, _ = w.Write(f)
		}
		frames = nil
		_ = http.NewResponseController(w).Flush()
		s.mu.Lock()
		for _, e := range s.history {
			if e.version <= from {
				continue
			}
			from = e.version
			if f := e.seenBy(selector); f != nil {
				frames = append(frames, f)
			}
		}
		changed := s.changed
		s.mu.Unlock()
		if len(frames) > 0 {
			continue
		}
		select {
		case <-changed:
		case <-drops:
			return
		case <-r.Context().Done():
			return
		}
	}
}

// seenBy turns an event into what a selecting watch sees: an object whose labels
// no longer match is deleted for it.
func (e event) seenBy(selector labels.Selector) []byte {
	before, after := selector.Matches(e.labels[0]), selector.Matches(e.labels[1])
	switch {
	case !before && !after:
		return nil
	case before && !after:
		return frame("DELETED", e.object)
	}
	return frame(e.kind, e.object)
}

func frame(kind string, cr *cmapi.CertificateRequest) []byte {
	var out bytes.Buffer
	_ = json.NewEncoder(&out).Encode(map[string]any{"type": kind, "object": cr})
	return out.Bytes()
}

// dropWatches ends every watch that is open.
func (s *apiServer) dropWatches() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.drops)
	s.drops = make(chan struct{})
}

// setDown cuts off everybody, or takes them in again.
func (s *apiServer) setDown(down bool) {
	s.mu.Lock()
	s.down = down
	s.mu.Unlock()
	if down {
		s.dropWatches()
	}
}

// compact makes every resumption of a watch start over with a list.
func (s *apiServer) compact() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.version++
	s.oldest = s.version
	s.history = nil
}

func (s *apiServer) with(set func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	set()
}

// await blocks until the condition, which is called under the lock, holds.
func (s *apiServer) await(t *testing.T, what string, holds func() bool) {
	t.Helper()
	late := time.After(20 * time.Second)
	for {
		s.mu.Lock()
		ok, changed := holds(), s.changed
		s.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-late:
			t.Fatalf("waited in vain for: %s", what)
		}
	}
}

// one waits for exactly one object to exist and returns its name.
func (s *apiServer) one(t *testing.T) types.NamespacedName {
	t.Helper()
	var name types.NamespacedName
	s.await(t, "one CertificateRequest", func() bool {
		for name = range s.objects {
		}
		return len(s.objects) == 1
	})
	return name
}

func (s *apiServer) awaitEmpty(t *testing.T) {
	t.Helper()
	s.await(t, "no CertificateRequest left", func() bool { return len(s.objects) == 0 })
}

// awaitWatch waits until a watch is established: from here on what happens is
// an event, not part of a list.
func (s *apiServer) awaitWatch(t *testing.T) {
	t.Helper()
	s.await(t, "a watch", func() bool { return s.open > 0 })
}

func (s *apiServer) seen() []seenRequest {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests)
}

func (s *apiServer) count(method string) int {
	n := 0
	for _, r := range s.seen() {
		if r.method == method {
			n++
		}
	}
	return n
}

func setCondition(t cmapi.CertificateRequestConditionType, st cmmeta.ConditionStatus, reason, message string) func(*cmapi.CertificateRequest) {
	return func(cr *cmapi.CertificateRequest) {
		cr.Status.Conditions = slices.DeleteFunc(cr.Status.Conditions, func(c cmapi.CertificateRequestCondition) bool { return c.Type == t })
		cr.Status.Conditions = append(cr.Status.Conditions, cmapi.CertificateRequestCondition{Type: t, Status: st, Reason: reason, Message: message})
	}
}

var (
	approve = setCondition(cmapi.CertificateRequestConditionApproved, cmmeta.ConditionTrue, "policy", "Approved request")
	deny    = setCondition(cmapi.CertificateRequestConditionDenied, cmmeta.ConditionTrue, "policy", "wrong duration:\nwant 1h")
	breakIt = setCondition(cmapi.CertificateRequestConditionReady, cmmeta.ConditionFalse, cmapi.CertificateRequestReasonFailed, "the HSM is on fire")
	invalid = setCondition(cmapi.CertificateRequestConditionInvalidRequest, cmmeta.ConditionTrue, "BadCSR", "no such key type")
	pending = setCondition(cmapi.CertificateRequestConditionReady, cmmeta.ConditionFalse, cmapi.CertificateRequestReasonPending, "order 66 is being worked on")
)

func sign(cr *cmapi.CertificateRequest) {
	setCondition(cmapi.CertificateRequestConditionReady, cmmeta.ConditionTrue, cmapi.CertificateRequestReasonIssued, "Certificate fetched from issuer successfully")(cr)
	cr.Status.Certificate = []byte("chain of " + cr.Name)
	cr.Status.CA = []byte("ca")
}
