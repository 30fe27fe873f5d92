// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

const probeImage = "signet.invalid/probe:test"

var (
	podResource     = schema.GroupVersionResource{Version: "v1", Resource: "pods"}
	requestResource = schema.GroupVersionResource{Group: "cert-manager.io", Version: "v1", Resource: "certificaterequests"}
	issuerResource  = schema.GroupVersionResource{Group: "cert-manager.io", Version: "v1", Resource: "clusterissuers"}
)

// testCluster brings a cluster up for a test and ends it afterwards.
func testCluster(t *testing.T, o Options) *Cluster {
	t.Helper()
	needCluster(t)
	o.Progress = t.Output()
	c, err := Up(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Down(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return c
}

func needCluster(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("brings up a Kubernetes cluster, which takes root, seconds, and ten minutes of building the first time: not in -short mode")
	}
}

// fixture is a cluster with the probe image on its nodes.
type fixture struct {
	*Cluster
	client  kubernetes.Interface
	dynamic dynamic.Interface
}

func newFixture(t *testing.T, o Options) *fixture {
	t.Helper()
	f := &fixture{Cluster: testCluster(t, o)}
	var err error
	if f.client, err = kubernetes.NewForConfig(f.RESTConfig()); err != nil {
		t.Fatal(err)
	}
	if f.dynamic, err = dynamic.NewForConfig(f.RESTConfig()); err != nil {
		t.Fatal(err)
	}
	f.loadProbe(t)
	return f
}

func (f *fixture) loadProbe(t *testing.T) {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "probe")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-buildvcs=false", "-o", binary, "./internal/probe")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build probe: %v\n%s", err, out)
	}
	image := Image{Ref: probeImage, Binary: binary, Entrypoint: []string{"/usr/bin/probe"}}
	if err := f.LoadImage(t.Context(), image); err != nil {
		t.Fatal(err)
	}
}

func (f *fixture) apply(t *testing.T, manifest string) {
	t.Helper()
	if err := f.Apply(t.Context(), []byte(manifest)); err != nil {
		t.Fatal(err)
	}
}

// wait watches an object until the condition holds.
func (f *fixture) wait(t *testing.T, resource schema.GroupVersionResource, namespace, name string, condition func(*unstructured.Unstructured) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	var client dynamic.ResourceInterface = f.dynamic.Resource(resource)
	if namespace != "" {
		client = f.dynamic.Resource(resource).Namespace(namespace)
	}
	if err := waitForObject(ctx, client, name, condition); err != nil {
		t.Fatalf("wait for %s %s: %v\n%s", resource.Resource, name, err, f.events(namespace))
	}
}

func (f *fixture) events(namespace string) string {
	list, err := f.client.CoreV1().Events(namespace).List(context.Background(), metav1.ListOptions{})
	if err != nil {
		return err.Error()
	}
	var out strings.Builder
	for _, e := range list.Items {
		fmt.Fprintf(&out, "%s %s: %s\n", e.InvolvedObject.Kind, e.InvolvedObject.Name, e.Message)
	}
	return out.String()
}

func ready(object *unstructured.Unstructured) bool { return hasCondition(object, "Ready") }

// kubectl runs the kubectl of the cluster's version.
func (f *fixture) kubectl(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), f.Binaries()[componentKubectl], append([]string{"--kubeconfig", f.Kubeconfig()}, args...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("kubectl %q: %v\n%s", args, err, stderr.Bytes())
	}
	return stdout.String()
}

func (f *fixture) logs(t *testing.T, pod string) string {
	t.Helper()
	stream, err := f.client.CoreV1().Pods("default").GetLogs(pod, &corev1.PodLogOptions{}).Stream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	content, err := io.ReadAll(stream)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// servePod is a pod that serves its name, ready once the API server has
// answered its token.
func servePod(name, node string, hostNetwork bool) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata:
  name: %s
  labels: {app: %[1]s}
spec:
  nodeName: %s
  hostNetwork: %t
  terminationGracePeriodSeconds: 1
  containers:
  - name: probe
    image: %s
    args: [serve]
    imagePullPolicy: IfNotPresent
    readinessProbe: {httpGet: {port: 8080}, periodSeconds: 1}
`, name, node, hostNetwork, probeImage)
}

func TestCluster(t *testing.T) {
	logs := t.TempDir()
	f := newFixture(t, Options{Nodes: 2, LogDir: logs})

	t.Run("pods run on each node and reach the API server", func(t *testing.T) {
		for i, n := range f.Nodes() {
			name := fmt.Sprintf("serve-%d", i+1)
			f.apply(t, servePod(name, n.Name, false))
			f.wait(t, podResource, "default", name, ready)
			if got := f.logs(t, name); !strings.Contains(got, `"gitVersion": "v`+DefaultKubernetesVersion+`"`) {
				t.Errorf("pod %s was answered %q", name, got)
			}
		}
	})
	t.Run("pods reach each other across nodes and through services", f.testTraffic)
	t.Run("host network pods", f.testHostNetwork)
	t.Run("mounts propagate out of pods on each node", f.testPropagation)
	t.Run("a node runs host programs in its namespaces", f.testExec)
	t.Run("the host is not written to", f.testHostUntouched)
	t.Run("cert-manager signs what is approved", f.testSigning)
	t.Run("the webhook checks who approves", f.testApproverRights)
	t.Run("a stopped API server comes back", f.testStopStart)
	t.Run("containers outlive containerd", f.testContainerdRestart)
	t.Run("a killed node comes back empty", f.testNodeLoss)
	t.Run("logs are collected", func(t *testing.T) { f.testCollectLogs(t) })
	t.Run("components log to the given directory", func(t *testing.T) {
		for _, name := range []string{"etcd.log", "kube-apiserver.log", "node-1/kubelet.log", "node-2/containerd.log"} {
			if info, err := os.Stat(filepath.Join(logs, name)); err != nil || info.Size() == 0 {
				t.Errorf("log %s: %v", name, err)
			}
		}
	})
}

func (f *fixture) testTraffic(t *testing.T) {
	pod, err := f.client.CoreV1().Pods("default").Get(t.Context(), "serve-2", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	f.apply(t, `
apiVersion: v1
kind: Service
metadata: {name: both}
spec:
  selector: {app: serve-2}
  ports: [{port: 80, targetPort: 8080}]
`)
	service, err := f.client.CoreV1().Services("default").Get(t.Context(), "both", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, address := range []string{pod.Status.PodIP + ":8080", service.Spec.ClusterIP} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		err := retry(ctx, 500*time.Millisecond, func(ctx context.Context) error {
			cmd := exec.CommandContext(ctx, f.Binaries()[componentKubectl], "--kubeconfig", f.Kubeconfig(),
				"exec", "serve-1", "--", "/usr/bin/probe", "get", "http://"+address)
			out, err := cmd.CombinedOutput()
			if err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
			if got := strings.TrimSpace(string(out)); got != "serve-2" {
				return fmt.Errorf("%s answered %q, want serve-2", address, got)
			}
			return nil
		})
		cancel()
		if err != nil {
			t.Error(err)
		}
	}
}

func (f *fixture) testHostNetwork(t *testing.T) {
	f.apply(t, servePod("host", "node-2", true))
	f.wait(t, podResource, "default", "host", ready)
	pod, err := f.client.CoreV1().Pods("default").Get(t.Context(), "host", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if want := f.Nodes()[1].IP; pod.Status.PodIP != want {
		t.Errorf("pod has address %s, want the node's, %s", pod.Status.PodIP, want)
	}
	if got := f.kubectl(t, "exec", "serve-1", "--", "/usr/bin/probe", "get", "http://"+pod.Status.PodIP+":8080"); strings.TrimSpace(got) != "node-2" {
		t.Errorf("pod calls itself %q, want node-2", got)
	}
}

func (f *fixture) testPropagation(t *testing.T) {
	f.apply(t, fmt.Sprintf(`
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: mount}
spec:
  selector: {matchLabels: {app: mount}}
  template:
    metadata: {labels: {app: mount}}
    spec:
      terminationGracePeriodSeconds: 2
      containers:
      - name: probe
        image: %s
        args: [mount, /var/lib/kubelet/plugins/probe/tmpfs, /run/probe/tmpfs]
        securityContext: {privileged: true}
        volumeMounts:
        - {name: plugin, mountPath: /var/lib/kubelet/plugins/probe, mountPropagation: Bidirectional}
        - {name: run, mountPath: /run/probe, mountPropagation: Bidirectional}
      volumes:
      - name: run
        hostPath: {path: /run/probe, type: DirectoryOrCreate}
      - name: plugin
        hostPath: {path: /var/lib/kubelet/plugins/probe, type: DirectoryOrCreate}
`, probeImage))
	daemonSets := schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "daemonsets"}
	f.wait(t, daemonSets, "default", "mount", func(set *unstructured.Unstructured) bool {
		available, _, err := unstructured.NestedInt64(set.Object, "status", "numberAvailable")
		return err == nil && available == 2
	})
	for _, n := range f.Nodes() {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		err := retry(ctx, 100*time.Millisecond, func(ctx context.Context) error {
			out, err := n.Exec(ctx, "cat", kubeletRoot+"/plugins/probe/tmpfs/probe", "/run/probe/tmpfs/probe").CombinedOutput()
			if err == nil && string(out) != "probe\nprobe\n" {
				err = fmt.Errorf("read %q", out)
			}
			return err
		})
		cancel()
		if err != nil {
			t.Errorf("%s does not see the pod's mount: %v", n.Name, err)
		}
	}
}

func (f *fixture) testExec(t *testing.T) {
	for _, n := range f.Nodes() {
		out, err := n.Exec(t.Context(), "sh", "-c", "hostname; cat /proc/1/cmdline; ip -4 -o addr show dev eth0").CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		for _, want := range []string{n.Name + "\n", f.Name() + "/" + n.Name, n.IP + "/24"} {
			if !strings.Contains(string(out), want) {
				t.Errorf("%s: got %q, want %q in it", n.Name, out, want)
			}
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cmd := f.Nodes()[0].Exec(ctx, "cat")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := cmd.Wait(); err == nil {
		t.Error("a command whose context has ended reported success")
	}
}

// testHostUntouched: what pods write to the node's standard paths, and what
// the kubelet would set for the whole machine, stays inside.
func (f *fixture) testHostUntouched(t *testing.T) {
	for _, path := range []string{kubeletRoot + "/plugins/probe", "/var/log/pods", containerdRoot, "/run/cni"} {
		if _, err := os.Stat(path); err == nil {
			t.Errorf("%s exists on the host", path)
		}
	}
	out, err := f.Nodes()[0].Exec(t.Context(), "touch", "/etc/signet-test", "/usr/signet-test").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "Read-only file system") {
		t.Errorf("writing to the host's directories: %v: %s", err, out)
	}
}

// testSigning: self-signed root, CA issuer, and a request made with a token
// that is bound to a pod. The webhook copies the token's node name.
func (f *fixture) testSigning(t *testing.T) {
	f.apply(t, `
apiVersion: cert-manager.io/v1
kind: ClusterIssuer
metadata: {name: selfsigned}
spec: {selfSigned: {}}
---
apiVersion: cert-manager.io/v1
kind: Certificate
metadata: {name: root, namespace: cert-manager}
spec:
  isCA: true
  commonName: root
  secretName: root
  privateKey: {algorithm: ECDSA, size: 256}
  issuerRef: {name: selfsigned, kind: ClusterIssuer, group: cert-manager.io}
---
apiVersion: cert-manager.io/v1
kind: ClusterIssuer
metadata: {name: ca}
spec: {ca: {secretName: root}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: requester}
rules:
- {apiGroups: [cert-manager.io], resources: [certificaterequests], verbs: [create]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: requester}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: requester}
subjects: [{kind: ServiceAccount, name: default, namespace: default}]
`)
	f.wait(t, requestResource, "cert-manager", "root-1", func(*unstructured.Unstructured) bool { return true })
	f.approve(t, f.dynamic, "cert-manager", "root-1")
	f.wait(t, issuerResource, "", "ca", ready)

	// Nobody approves by itself.
	token := f.podToken(t, "serve-2")
	asPod := rest.AnonymousClientConfig(f.RESTConfig())
	asPod.BearerToken = token
	podClient, err := dynamic.NewForConfig(asPod)
	if err != nil {
		t.Fatal(err)
	}
	request := newRequest(t, "from-pod")
	created, err := podClient.Resource(requestResource).Namespace("default").Create(t.Context(), request, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if user, _, _ := unstructured.NestedString(created.Object, "spec", "username"); user != "system:serviceaccount:default:default" {
		t.Errorf("spec.username is %q", user)
	}
	node, _, err := unstructured.NestedStringSlice(created.Object, "spec", "extra", "authentication.kubernetes.io/node-name")
	if err != nil || len(node) != 1 || node[0] != "node-2" {
		t.Errorf("spec.extra names node %q (%v), want node-2", node, err)
	}
	if hasCondition(created, "Approved") {
		t.Error("the request was approved at once")
	}
	f.approve(t, f.dynamic, "default", "from-pod")
	f.wait(t, requestResource, "default", "from-pod", ready)
	signed, err := f.dynamic.Resource(requestResource).Namespace("default").Get(t.Context(), "from-pod", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	encoded, _, err := unstructured.NestedString(signed.Object, "status", "certificate")
	if err != nil {
		t.Fatal(err)
	}
	certPEM, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(certPEM)
	if block == nil {
		t.Fatalf("no PEM in status.certificate: %q", certPEM)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if cert.Issuer.CommonName != "root" || cert.Subject.CommonName != "from-pod" {
		t.Errorf("got a certificate of %q from %q", cert.Subject, cert.Issuer)
	}
}

// testApproverRights: a user who may write the status, but not approve for the
// signer, is refused.
func (f *fixture) testApproverRights(t *testing.T) {
	f.apply(t, `
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: status-writer}
rules:
- {apiGroups: [cert-manager.io], resources: [certificaterequests, certificaterequests/status], verbs: [get, patch, update]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: status-writer}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: status-writer}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: almost-approver}]
`)
	if _, err := f.dynamic.Resource(requestResource).Namespace("default").Create(t.Context(), newRequest(t, "unapproved"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	config := f.RESTConfig()
	config.Impersonate = rest.ImpersonationConfig{UserName: "almost-approver"}
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	patch := func() error {
		_, err := client.Resource(requestResource).Namespace("default").Patch(t.Context(), "unapproved",
			types.MergePatchType, approval(t), metav1.PatchOptions{}, "status")
		return err
	}
	if err := patch(); !apierrors.IsForbidden(err) && !(err != nil && strings.Contains(err.Error(), "does not have permissions to set approved/denied conditions")) {
		t.Errorf("approved without the right to: %v", err)
	}
	f.apply(t, `
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: approver}
rules:
- {apiGroups: [cert-manager.io], resources: [signers], verbs: [approve], resourceNames: [clusterissuers.cert-manager.io/ca]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: approver}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: approver}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: almost-approver}]
`)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	// The API server's authorizer learns of the new binding by a watch.
	if err := retry(ctx, 100*time.Millisecond, func(context.Context) error { return patch() }); err != nil {
		t.Errorf("with the right to approve: %v", err)
	}
}

// podToken is a token of the pod's service account, bound to the pod, as the
// kubelet projects it.
func (f *fixture) podToken(t *testing.T, name string) string {
	t.Helper()
	pod, err := f.client.CoreV1().Pods("default").Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	answer, err := f.client.CoreV1().ServiceAccounts("default").CreateToken(t.Context(), "default", &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{
			BoundObjectRef: &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: name, UID: pod.UID},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return answer.Status.Token
}

func newRequest(t *testing.T, name string) *unstructured.Unstructured {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}}, key)
	if err != nil {
		t.Fatal(err)
	}
	csr := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "cert-manager.io/v1",
		"kind":       "CertificateRequest",
		"metadata":   map[string]any{"name": name, "namespace": "default"},
		"spec": map[string]any{
			"request":   base64.StdEncoding.EncodeToString(csr),
			"issuerRef": map[string]any{"name": "ca", "kind": "ClusterIssuer", "group": "cert-manager.io"},
			"duration":  "1h0m0s",
		},
	}}
}

func approval(t *testing.T) []byte {
	t.Helper()
	patch, err := json.Marshal(map[string]any{"status": map[string]any{"conditions": []any{map[string]any{
		"type": "Approved", "status": "True", "reason": "Test", "message": "approved by the test",
		"lastTransitionTime": metav1.Now(),
	}}}})
	if err != nil {
		t.Fatal(err)
	}
	return patch
}

func (f *fixture) approve(t *testing.T, client dynamic.Interface, namespace, name string) {
	t.Helper()
	_, err := client.Resource(requestResource).Namespace(namespace).Patch(t.Context(), name, types.MergePatchType, approval(t), metav1.PatchOptions{}, "status")
	if err != nil {
		t.Fatal(err)
	}
}

func (f *fixture) testStopStart(t *testing.T) {
	if err := f.KillComponent(t.Context(), componentAPIServer, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := f.client.Discovery().ServerVersion(); err == nil {
		t.Error("a stopped API server answered")
	}
	if err := f.StopComponent(t.Context(), componentAPIServer, ""); err != nil {
		t.Errorf("stopping what is stopped: %v", err)
	}
	if err := f.StartComponent(t.Context(), componentAPIServer, ""); err != nil {
		t.Fatal(err)
	}
	if err := f.StartComponent(t.Context(), componentAPIServer, ""); err == nil {
		t.Error("starting what runs was no error")
	}
	f.waitForAPI(t)
	if err := f.StopComponent(t.Context(), "nothing", ""); err == nil || !strings.Contains(err.Error(), componentEtcd) {
		t.Errorf("an unknown component: %v; want the known ones listed", err)
	}
	components, err := f.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range components {
		if s.State != StateRunning {
			t.Errorf("%s %s is %s (%s)", s.Node, s.Name, s.State, s.Detail)
		}
	}
	if len(components) != 6+2*3 {
		t.Errorf("there are %d components", len(components))
	}
}

func (f *fixture) waitForAPI(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	err := retry(ctx, 200*time.Millisecond, func(ctx context.Context) error {
		var code int
		return f.client.Discovery().RESTClient().Get().AbsPath("/readyz").Do(ctx).StatusCode(&code).Error()
	})
	if err != nil {
		t.Fatal(err)
	}
}

func (f *fixture) testContainerdRestart(t *testing.T) {
	if err := f.KillComponent(t.Context(), componentContainerd, "node-1"); err != nil {
		t.Fatal(err)
	}
	pod, err := f.client.CoreV1().Pods("default").Get(t.Context(), "serve-1", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got := f.kubectl(t, "exec", "serve-2", "--", "/usr/bin/probe", "get", "http://"+pod.Status.PodIP+":8080"); strings.TrimSpace(got) != "serve-1" {
		t.Errorf("without containerd, the pod answered %q", got)
	}
	if err := f.StartComponent(t.Context(), componentContainerd, "node-1"); err != nil {
		t.Fatal(err)
	}
	f.apply(t, servePod("after-restart", "node-1", false))
	f.wait(t, podResource, "default", "after-restart", ready)
}

func (f *fixture) testNodeLoss(t *testing.T) {
	if err := f.KillNode(t.Context(), "node-2"); err != nil {
		t.Fatal(err)
	}
	if err := f.Nodes()[1].Exec(t.Context(), "true").Run(); err == nil {
		t.Error("a killed node ran a command")
	}
	if err := f.StartNode(t.Context(), "node-2"); err != nil {
		t.Fatal(err)
	}
	if out, err := f.Nodes()[1].Exec(t.Context(), "ls", kubeletRoot+"/plugins/probe").CombinedOutput(); err == nil {
		t.Errorf("the new node has the old one's files: %s", out)
	}
	// The API server may not have noticed at all; what shows that the node is
	// back is that it runs a pod.
	f.loadProbe(t)
	f.apply(t, servePod("after-loss", "node-2", false))
	f.wait(t, podResource, "default", "after-loss", ready)
}

func (f *fixture) testCollectLogs(t *testing.T) {
	dir := t.TempDir()
	if err := f.CollectLogs(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	for _, pattern := range []string{
		"components/kube-apiserver.log", "components/node-1/kubelet.log",
		"node-1/pods/default_after-restart_*/probe/0.log", "node-2/pods/default_after-loss_*/probe/0.log",
		"events.yaml", "pods.yaml", "certificaterequests.yaml",
	} {
		found, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil || len(found) != 1 {
			t.Errorf("%s: found %q, %v", pattern, found, err)
			continue
		}
		if info, err := os.Stat(found[0]); err != nil || info.Size() == 0 {
			t.Errorf("%s is empty or gone: %v", pattern, err)
		}
	}
}

// TestSideBySide: two clusters have the same addresses and names inside, and
// never meet.
func TestSideBySide(t *testing.T) {
	needCluster(t)
	clusters := make([]*Cluster, 2)
	t.Run("up", func(t *testing.T) {
		for i := range clusters {
			t.Run(fmt.Sprint(i), func(t *testing.T) {
				t.Parallel()
				c, err := Up(context.Background(), Options{Progress: t.Output()})
				if err != nil {
					t.Fatal(err)
				}
				clusters[i] = c
			})
		}
	})
	for i, c := range clusters {
		if c == nil {
			t.Fatalf("cluster %d is not up", i)
		}
		defer func() {
			if err := c.Down(context.Background()); err != nil {
				t.Error(err)
			}
		}()
		manifest := fmt.Sprintf("apiVersion: v1\nkind: Namespace\nmetadata: {name: only-in-%d}\n", i)
		if err := c.Apply(t.Context(), []byte(manifest)); err != nil {
			t.Fatal(err)
		}
	}
	for i, c := range clusters {
		client, err := kubernetes.NewForConfig(c.RESTConfig())
		if err != nil {
			t.Fatal(err)
		}
		list, err := client.CoreV1().Namespaces().List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, n := range list.Items {
			if strings.HasPrefix(n.Name, "only-in-") {
				names = append(names, n.Name)
			}
		}
		if want := fmt.Sprintf("only-in-%d", i); len(names) != 1 || names[0] != want {
			t.Errorf("cluster %d has namespaces %q, want only %q", i, names, want)
		}
		foreign := clusters[1-i].RESTConfig()
		foreign.Host = c.APIServerURL()
		other, err := kubernetes.NewForConfig(foreign)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := other.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(t.Context()); err == nil {
			t.Errorf("cluster %d is trusted by the other's clients", i)
		}
		out, err := c.Nodes()[0].Exec(t.Context(), "sh", "-c", "touch /var/lib/kubelet/mark; ls /var/lib/kubelet/mark-*; mv /var/lib/kubelet/mark /var/lib/kubelet/mark-"+c.Name()).CombinedOutput()
		if !strings.Contains(string(out), "No such file") {
			t.Errorf("cluster %d sees files of the other: %s (%v)", i, out, err)
		}
	}
}
