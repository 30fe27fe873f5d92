// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/signet-spiffe/signet/integration/clients"
	"github.com/signet-spiffe/signet/integration/install"
	"github.com/signet-spiffe/signet/internal/pki"
)

// socketPath is for programs that take no URL.
const socketPath = mountPath + "/spiffe.sock"

// outName is an emptyDir that programs in pods, and this process, write to.
const outName, outPath = "out", "/out"

// clientFiles are what programs need that have no flags.
var clientFiles = clients.Files{clients.SpiffeHelper: {"/helper.conf": []byte(`
agent_address = "` + socketPath + `"
cert_dir = "` + outPath + `"
svid_file_name = "svid.pem"
svid_key_file_name = "svid_key.pem"
svid_bundle_file_name = "bundle.pem"
jwt_bundle_file_name = "jwt_bundle.json"
`)}}

// theClients are built and on every node.
var theClients = sync.OnceValue(func() error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
	defer cancel()
	images, err := clients.Build(ctx, clientFiles, os.Stderr)
	if err != nil {
		return err
	}
	return install.LoadImages(ctx, env.cluster, images)
})

// needClients takes its time before the test's own begins.
func needClients(t *testing.T) {
	t.Helper()
	if env.skipped != "" {
		t.Skip(env.skipped)
	}
	if err := theClients(); err != nil {
		t.Fatal(err)
	}
}

// client is a container that runs somebody else's program.
type client struct {
	name, program string
	args          []string
}

// withClients gives a pod containers that see what "app" sees, and a folder that
// all of them share with this process.
func withClients(all ...client) func(*corev1.Pod) {
	return func(pod *corev1.Pod) {
		pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: outName, VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}})
		app := &pod.Spec.Containers[0]
		app.VolumeMounts = append(app.VolumeMounts, corev1.VolumeMount{Name: outName, MountPath: outPath})
		for _, c := range all {
			container := app.DeepCopy()
			container.Name, container.Image, container.Args = c.name, clients.Image(c.program), c.args
			pod.Spec.Containers = append(pod.Spec.Containers, *container)
		}
	}
}

// outDir is the folder outPath of a pod, as this process sees it.
func (n onNode) outDir(pod *corev1.Pod) string {
	return n.path(filepath.Join(podsDir, string(pod.UID), "volumes", "kubernetes.io~empty-dir", outName))
}

// followLines reads a container's log until done returns true.
func followLines(ctx context.Context, t *testing.T, pod *corev1.Pod, container string, done func(string) bool) {
	t.Helper()
	stream, err := env.Kube.CoreV1().Pods(pod.Namespace).GetLogs(pod.Name, &corev1.PodLogOptions{Container: container, Follow: true}).Stream(ctx)
	if err != nil {
		t.Fatalf("read log of %s in %s/%s: %v", container, pod.Namespace, pod.Name, err)
	}
	defer stream.Close()
	lines := bufio.NewScanner(stream)
	for lines.Scan() {
		if done(lines.Text()) {
			return
		}
	}
	err = lines.Err()
	if err == nil {
		err = io.EOF
	}
	t.Fatalf("log of %s in %s/%s ended too early: %v (%v)\n%s", container, pod.Namespace, pod.Name, err, context.Cause(ctx), describePod(ctx, pod.Namespace, pod.Name))
}

// The SPIRE agent's own commands, as they are typed in a container.
func testSpireAgent(t *testing.T) {
	t.Parallel()
	needClients(t)
	ctx := needCluster(t, rotationTimeout)
	ns := newNamespace(ctx, t)
	pod := runPod(ctx, t, ns, podSpec{Name: "app", Node: nodeOne, Change: withClients(
		client{"watches", clients.SpireAgent, []string{"api", "watch", "-socketPath", socketPath}},
	)})
	id := spiffeID(ns, "default")
	spire := func(args ...string) (string, error) {
		out, err := executeCommand(ctx, pod, "watches", append([]string{"/" + clients.SpireAgent}, append(args, "-socketPath", socketPath)...)...)
		return string(out), err
	}
	says := func(t *testing.T, text string, args ...string) {
		t.Helper()
		if out, err := spire(args...); err != nil || !strings.Contains(out, text) {
			t.Errorf("spire-agent %s: %v, printed %q, want %q", strings.Join(args, " "), err, out, text)
		}
	}
	fails := func(t *testing.T, texts []string, args ...string) {
		t.Helper()
		out, err := spire(args...)
		said := func(text string) bool { return strings.Contains(err.Error(), text) }
		if code, ran := exitedWith(err); !ran || code == 0 || !slices.ContainsFunc(texts, said) {
			t.Errorf("spire-agent %s: %v, printed %q, want that it fails with one of %q", strings.Join(args, " "), err, out, texts)
		}
	}
	t.Run("api fetch x509", func(t *testing.T) {
		says(t, id, "api", "fetch", "x509")
		says(t, `"spiffe_id":"`+id+`"`, "api", "fetch", "x509", "-output", "json")
	})
	t.Run("api fetch x509 -write", func(t *testing.T) {
		says(t, outPath+"/svid.0.key", "api", "fetch", "x509", "-write", outPath)
		n := node(ctx, t, nodeOne)
		serial := checkWritten(t, n.outDir(pod), id, "svid.0.pem", "svid.0.key", "bundle.0.pem")
		if want := fetch(ctx, t, pod).Serial; serial != want {
			// A renewal may have come in between.
			says(t, outPath, "api", "fetch", "x509", "-write", outPath)
			if serial = checkWritten(t, n.outDir(pod), id, "svid.0.pem", "svid.0.key", "bundle.0.pem"); serial != fetch(ctx, t, pod).Serial {
				t.Errorf("spire-agent wrote serial %s, go-spiffe got %s", serial, want)
			}
		}
	})
	t.Run("api fetch jwt", func(t *testing.T) {
		fails(t, []string{"JWT functionality is disabled"}, "api", "fetch", "jwt", "-audience", "somebody")
	})
	t.Run("api validate jwt", func(t *testing.T) {
		// A token that is none.
		fails(t, []string{"SVID is not valid"}, "api", "validate", "jwt", "-audience", "somebody", "-svid", "no.token.atall")
	})
	t.Run("healthcheck", func(t *testing.T) {
		says(t, "Agent is healthy.", "healthcheck")
	})
	t.Run("api watch", func(t *testing.T) {
		updates := 0
		followLines(ctx, t, pod, "watches", func(line string) bool {
			switch {
			case strings.HasPrefix(line, "Received 1 svid after"):
				updates++
			case strings.HasPrefix(line, "SPIFFE ID:") && !strings.HasSuffix(line, id):
				t.Errorf("spire-agent api watch says %q, want %s", line, id)
			}
			return updates == 2 && strings.HasPrefix(line, "SPIFFE ID:")
		})
	})
}

// checkWritten verifies the files that a program made of what it got, and returns the
// SVID's serial.
func checkWritten(t *testing.T, dir, wantID, certificate, key, bundle string) string {
	t.Helper()
	read := func(name string) []byte {
		content, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return content
	}
	chain, err := pki.ParseCertificates(read(certificate))
	if err != nil {
		t.Fatalf("%s: %v", certificate, err)
	}
	private, err := pki.ParsePrivateKeyPEM(read(key))
	if err != nil {
		t.Fatalf("%s: %v", key, err)
	}
	authorities, err := pki.ParseCertificates(read(bundle))
	if err != nil {
		t.Fatalf("%s: %v", bundle, err)
	}
	wantAuthorities(t, authorities)
	id := spiffeid.RequireFromString(wantID)
	err = pki.VerifySVID(chain, pki.Expectation{
		ID: id, Key: private, Now: time.Now(), Bundle: x509bundle.FromX509Authorities(id.TrustDomain(), authorities),
	})
	if err != nil {
		t.Errorf("%s, %s and %s are no valid SVID: %v", certificate, key, bundle, err)
	}
	return chain[0].SerialNumber.Text(16)
}

// wantAuthorities: a bundle is of CAs. With the SVID itself in it, any verification
// would pass.
func wantAuthorities(t *testing.T, bundle []*x509.Certificate) {
	t.Helper()
	for _, authority := range bundle {
		if !authority.IsCA {
			t.Errorf("the bundle holds a certificate of %v, which is no CA", authority.URIs)
		}
	}
}

// spiffe-helper writes what it gets to files, at each renewal, and the JWT bundles
// too, which are empty.
func testSpiffeHelper(t *testing.T) {
	t.Parallel()
	needClients(t)
	ctx := needCluster(t, rotationTimeout)
	ns := newNamespace(ctx, t)
	pod := runPod(ctx, t, ns, podSpec{Name: "app", Node: nodeTwo, Change: withClients(
		client{"helps", clients.SpiffeHelper, []string{"-config", "/helper.conf"}},
	)})
	n := node(ctx, t, nodeTwo)
	var serials []string
	jwt := false
	followLines(ctx, t, pod, "helps", func(line string) bool {
		switch {
		case strings.Contains(line, "X.509 certificates updated"):
			serials = appendNew(serials, checkWritten(t, n.outDir(pod), spiffeID(ns, "default"), "svid.pem", "svid_key.pem", "bundle.pem"))
		case strings.Contains(line, "JWT bundle updated"):
			jwt = true
		case strings.Contains(line, "level=error"), strings.Contains(line, "level=warning"):
			t.Fatalf("spiffe-helper says %q", line)
		}
		return jwt && len(serials) == 2
	})
	if got := fetch(ctx, t, pod).Serial; got != serials[1] {
		t.Errorf("spiffe-helper wrote serial %s, go-spiffe got %s", serials[1], got)
	}
	content, err := os.ReadFile(filepath.Join(n.outDir(pod), "jwt_bundle.json"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(content), trustDomain) {
		t.Errorf("the JWT bundles are %s, want an empty one of %s", content, trustDomain)
	}
}

// Two ghostunnels, on two nodes, carry plain connections over mTLS, also after the
// SVIDs that they began with have expired; one speaks to a server of ours as well,
// which tells with which certificate. A third, of somebody else, is refused.
func testGhostunnel(t *testing.T) {
	t.Parallel()
	needClients(t)
	ctx := needCluster(t, rotationTimeout)
	ns := newNamespace(ctx, t)
	for _, name := range []string{"server", "client", "stranger"} {
		newServiceAccount(ctx, t, ns, name)
	}
	server := runPod(ctx, t, ns, podSpec{Name: "server", ServiceAccount: "server", Node: nodeOne,
		Args: []string{"serve", "--listen=:8443", "--peer=" + spiffeID(ns, "client")},
		Change: withClients(client{"tunnel", clients.Ghostunnel, []string{
			"server", "--listen=0.0.0.0:9443", "--target=unix:" + outPath + "/behind.sock", "--allow-uri=" + spiffeID(ns, "client"),
		}}),
	})
	through := func(name string, port int) client {
		return client{name, clients.Ghostunnel, []string{
			"client", "--listen=unix:" + outPath + "/" + name + ".sock", "--verify-uri=" + spiffeID(ns, "server"),
			"--target=" + net.JoinHostPort(server.Status.PodIP, fmt.Sprint(port)),
		}}
	}
	inFront := runPod(ctx, t, ns, podSpec{Name: "client", ServiceAccount: "client", Node: nodeTwo,
		Change: withClients(through("to-ours", 8443), through("to-ghostunnel", 9443))})
	stranger := runPod(ctx, t, ns, podSpec{Name: "stranger", ServiceAccount: "stranger", Node: nodeTwo,
		Change: withClients(through("to-ghostunnel", 9443))})

	one, two := node(ctx, t, nodeOne), node(ctx, t, nodeTwo)
	const word = "what is behind the tunnel"
	serveBehind(t, filepath.Join(one.outDir(server), "behind.sock"), word)
	tunnel := newTunnel(ctx, t, filepath.Join(two.outDir(inFront), "to-ghostunnel.sock"))
	ours := newTunnel(ctx, t, filepath.Join(two.outDir(inFront), "to-ours.sock"))
	refused := newTunnel(ctx, t, filepath.Join(two.outDir(stranger), "to-ghostunnel.sock"))

	var serials []string
	ofServer, ofClient := fetch(ctx, t, server), fetch(ctx, t, inFront)
	expired := func() bool { return time.Now().After(ofServer.NotAfter) && time.Now().After(ofClient.NotAfter) }
	// The stream says when there is something new to look at.
	stream := openStream(ctx, t, two.podSocket(t, inFront))
	for {
		if got, err := tunnel.get(ctx); err != nil || string(got) != word {
			t.Fatalf("through two ghostunnels: %q, %v", got, err)
		}
		got, err := ours.get(ctx)
		if err != nil {
			t.Fatalf("through one ghostunnel: %v", err)
		}
		seen := decodeJSON[answered](t, got)
		if seen.ServerID != spiffeID(ns, "server") || seen.ClientID != spiffeID(ns, "client") {
			t.Errorf("ghostunnel of %s spoke to %s", seen.ClientID, seen.ServerID)
		}
		serials = appendNew(serials, seen.ClientSerial)
		if got, err := refused.get(ctx); err == nil {
			t.Errorf("a stranger got %q", got)
		}
		if expired() {
			break
		}
		if _, err := stream.Recv(); err != nil {
			t.Fatalf("wait for a renewal: %v", err)
		}
	}
	if slices.Contains(serials[1:], ofClient.Serial) || serials[len(serials)-1] == ofClient.Serial {
		t.Errorf("ghostunnel's certificates were %v; %s is the one that it began with, which has expired", serials, ofClient.Serial)
	}
}

// answered is what the sample's server says of a connection.
type answered struct {
	ServerID     string `json:"server_id"`
	ServerSerial string `json:"server_serial"`
	ClientID     string `json:"client_id"`
	ClientSerial string `json:"client_serial"`
}

// serveBehind answers plain HTTP on a socket in a pod's folder.
func serveBehind(t *testing.T, path, word string) {
	t.Helper()
	dir, err := os.Open(filepath.Dir(path)) // sun_path is short
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	listener, err := net.Listen("unix", fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path)))
	if err != nil {
		t.Fatal(err)
	}
	// What it is bound to is not what it is called when it closes.
	listener.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := os.Chmod(path, 0o777); err != nil {
		t.Fatal(err)
	}
	server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, word)
	})}
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("serve behind the tunnel: %v", err)
		}
	})
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
		serving.Wait()
	})
}

// tunnel is the plain end of a ghostunnel client.
type tunnel struct{ client http.Client }

// newTunnel waits until it listens.
func newTunnel(ctx context.Context, t *testing.T, path string) *tunnel {
	t.Helper()
	waitFile(ctx, t, path)
	return &tunnel{http.Client{Transport: &http.Transport{
		DisableKeepAlives: true, // A connection, and a handshake, for each request.
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			dir, err := os.Open(filepath.Dir(path))
			if err != nil {
				return nil, err
			}
			defer dir.Close()
			var d net.Dialer
			return d.DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path)))
		},
	}}}
}

func (p *tunnel) get(ctx context.Context) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://behind/", nil)
	if err != nil {
		return nil, err
	}
	response, err := p.client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, errors.New(response.Status)
	}
	return io.ReadAll(response.Body)
}

// waitFile waits until there is a file of that name.
func waitFile(ctx context.Context, t *testing.T, path string) {
	t.Helper()
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		t.Fatal(err)
	}
	defer watcher.Close()
	if err := watcher.Add(filepath.Dir(path)); err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Lstat(path); err == nil {
			return
		}
		select {
		case <-watcher.Events:
		case err := <-watcher.Errors:
			t.Fatal(err)
		case <-ctx.Done():
			t.Fatalf("wait for %s: %v", path, context.Cause(ctx))
		}
	}
}

// A client by gRPC's C core, which shares no line with gRPC for Go: the clients of
// Python, Ruby, PHP and C++ stand on it.
func testGRPCCore(t *testing.T) {
	t.Parallel()
	ctx := needCluster(t, rotationTimeout)
	image, err := clients.Python()
	if errors.Is(err, clients.ErrNoPython) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := env.cluster.LoadImage(ctx, image); err != nil {
		t.Fatal(err)
	}
	ns := newNamespace(ctx, t)
	pod := runPod(ctx, t, ns, podSpec{Name: "app", Node: nodeOne, Change: func(pod *corev1.Pod) {
		core := pod.Spec.Containers[0].DeepCopy()
		core.Name, core.Image, core.Args = "core", clients.PythonImage, nil
		pod.Spec.Containers = append(pod.Spec.Containers, *core)
	}})
	id := spiffeid.RequireFromString(spiffeID(ns, "default"))
	domain := id.TrustDomain().IDString()
	heard := map[string]bool{}
	var serials []string
	followLines(ctx, t, pod, "core", func(line string) bool {
		var said struct {
			Call, Code, Details, ID string
			Status                  int
			Bundles                 map[string][]byte
			Chain, Bundle           []byte
			HasKey                  bool `json:"has_key"`
		}
		if err := json.Unmarshal([]byte(line), &said); err != nil {
			t.Errorf("it printed %q", line)
			return false
		}
		switch what := strings.TrimSpace(said.Call + " " + said.Code); what {
		case "FetchX509SVID INVALID_ARGUMENT": // without the header
			heard[what] = strings.Contains(said.Details, "security header")
		case "FetchJWTSVID UNIMPLEMENTED":
			heard[what] = said.Details == "JWT functionality is disabled"
		case "FetchJWTBundles":
			heard[what] = len(said.Bundles) == 1 && string(said.Bundles[domain]) == `{"keys":[]}`
		case "FetchX509Bundles":
			authorities, err := x509.ParseCertificates(said.Bundles[domain])
			heard[what] = err == nil && len(said.Bundles) == 1 && len(authorities) > 0
		case "Check":
			heard[what] = said.Status == int(healthpb.HealthCheckResponse_SERVING)
		case "FetchX509SVID":
			chain, err := x509.ParseCertificates(said.Chain)
			if err != nil {
				t.Fatal(err)
			}
			authorities, err := x509.ParseCertificates(said.Bundle)
			if err != nil {
				t.Fatal(err)
			}
			wantAuthorities(t, authorities)
			got, _, err := x509svid.Verify(chain, x509bundle.FromX509Authorities(id.TrustDomain(), authorities))
			heard[what] = err == nil && got == id && said.ID == id.String() && said.HasKey
			serials = appendNew(serials, chain[0].SerialNumber.Text(16))
		default:
			t.Errorf("it printed %s", line)
		}
		return len(serials) == 2
	})
	for _, what := range []string{
		"FetchX509SVID INVALID_ARGUMENT", "FetchJWTSVID UNIMPLEMENTED", "FetchJWTBundles", "FetchX509Bundles", "Check", "FetchX509SVID",
	} {
		if ok, said := heard[what]; !ok {
			t.Errorf("of %s it printed what was not wanted, or nothing (%t)", what, said)
		}
	}
}
