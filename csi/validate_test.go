// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"strings"
	"testing"
	"time"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/protobuf/proto"

	"github.com/signet-spiffe/signet/internal/pki"
)

const (
	testPodUID    = "0d9b8e4e-9a58-4c62-8c7d-4d0e3f3f7a11"
	testToken     = "eyJhbGciOiJSUzI1NiJ9.c2VjcmV0LWNsYWltcw.c2lnbmF0dXJl" //nolint:gosec // a made-up token
	testTokenJSON = `{"":{"token":"` + testToken + `","expirationTimestamp":"2030-01-02T03:04:05Z"},"vault":{"token":"other","expirationTimestamp":"2030-01-02T03:04:05Z"}}`
)

// validRequest is what kubelet sends for an inline volume.
func validRequest() *csipb.NodePublishVolumeRequest {
	return &csipb.NodePublishVolumeRequest{
		VolumeId:   "csi-8f7c1b6a",
		TargetPath: "/var/lib/kubelet/pods/" + testPodUID + "/volumes/kubernetes.io~csi/spiffe/mount",
		VolumeCapability: &csipb.VolumeCapability{
			AccessType: &csipb.VolumeCapability_Mount{Mount: &csipb.VolumeCapability_MountVolume{}},
			AccessMode: &csipb.VolumeCapability_AccessMode{Mode: csipb.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
		},
		Readonly: true,
		VolumeContext: map[string]string{
			keyEphemeral:      "true",
			keyPodName:        "web-0",
			keyPodNamespace:   "shop",
			keyPodUID:         testPodUID,
			keyServiceAccount: "web",
		},
	}
}

func testValidator() validator {
	return validator{driverName: testDriver, storeRoot: "/var/lib/kubelet/plugins/" + testDriver + "/volumes"}
}

func TestPublishRequestOfKubeletIsAccepted(t *testing.T) {
	v, err := testValidator().publish(validRequest())
	if err != nil {
		t.Fatal(err)
	}
	want := Volume{
		ID:         "csi-8f7c1b6a",
		TargetPath: "/var/lib/kubelet/pods/" + testPodUID + "/volumes/kubernetes.io~csi/spiffe/mount",
		Pod:        Pod{Namespace: "shop", Name: "web-0", UID: testPodUID, ServiceAccount: "web"},
	}
	if diff := cmp.Diff(want, v, cmpopts.IgnoreUnexported(Token{})); diff != "" {
		t.Error(diff)
	}
	if !v.Token.IsZero() {
		t.Error("a token out of nowhere")
	}
}

func TestPublishRequestRefusalNamesTheField(t *testing.T) {
	context := func(key, value string) func(*csipb.NodePublishVolumeRequest) {
		return func(r *csipb.NodePublishVolumeRequest) { r.VolumeContext[key] = value }
	}
	without := func(key string) func(*csipb.NodePublishVolumeRequest) {
		return func(r *csipb.NodePublishVolumeRequest) { delete(r.VolumeContext, key) }
	}
	target := func(path string) func(*csipb.NodePublishVolumeRequest) {
		return func(r *csipb.NodePublishVolumeRequest) { r.TargetPath = path }
	}
	mode := func(m csipb.VolumeCapability_AccessMode_Mode) func(*csipb.NodePublishVolumeRequest) {
		return func(r *csipb.NodePublishVolumeRequest) { r.VolumeCapability.AccessMode.Mode = m }
	}
	mount := func(f func(*csipb.VolumeCapability_MountVolume)) func(*csipb.NodePublishVolumeRequest) {
		return func(r *csipb.NodePublishVolumeRequest) { f(r.VolumeCapability.GetMount()) }
	}
	for name, c := range map[string]struct {
		change func(*csipb.NodePublishVolumeRequest)
		words  []string
	}{
		"no volume ID":           {func(r *csipb.NodePublishVolumeRequest) { r.VolumeId = "" }, []string{"volume_id"}},
		"volume ID is a path":    {func(r *csipb.NodePublishVolumeRequest) { r.VolumeId = "../etc" }, []string{"volume_id"}},
		"volume ID is ..":        {func(r *csipb.NodePublishVolumeRequest) { r.VolumeId = ".." }, []string{"volume_id"}},
		"volume ID with newline": {func(r *csipb.NodePublishVolumeRequest) { r.VolumeId = "a\n" }, []string{"volume_id"}},
		"volume ID too long":     {func(r *csipb.NodePublishVolumeRequest) { r.VolumeId = strings.Repeat("a", 129) }, []string{"volume_id"}},
		"no target":              {target(""), []string{"target_path"}},
		"relative target":        {target("pods/x"), []string{"target_path"}},
		"target with ..":         {target("/var/lib/../x"), []string{"target_path"}},
		"target is the root":     {target("/"), []string{"target_path"}},
		"target in our state":    {target("/var/lib/kubelet/plugins/" + testDriver + "/volumes/x"), []string{"target_path"}},
		"target above our state": {target("/var/lib/kubelet"), []string{"target_path"}},
		"target with NUL":        {target("/a\x00b"), []string{"target_path"}},
		"target too long":        {target("/" + strings.Repeat("a", 4000)), []string{"target_path"}},
		"no capability":          {func(r *csipb.NodePublishVolumeRequest) { r.VolumeCapability = nil }, []string{"volume_capability"}},
		"no access type":         {func(r *csipb.NodePublishVolumeRequest) { r.VolumeCapability.AccessType = nil }, []string{"volume_capability.mount"}},
		"block": {func(r *csipb.NodePublishVolumeRequest) {
			r.VolumeCapability.AccessType = &csipb.VolumeCapability_Block{Block: &csipb.VolumeCapability_BlockVolume{}}
		}, []string{"volume_capability.block"}},
		"fsType":                   {mount(func(m *csipb.VolumeCapability_MountVolume) { m.FsType = "ext4" }), []string{"fsType", "ext4"}},
		"mount flag":               {mount(func(m *csipb.VolumeCapability_MountVolume) { m.MountFlags = []string{"ro", "exec"} }), []string{"mount_flags", "exec"}},
		"no access mode":           {mode(csipb.VolumeCapability_AccessMode_UNKNOWN), []string{"access_mode"}},
		"multi-node access mode":   {mode(csipb.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER), []string{"access_mode", "MULTI_NODE_MULTI_WRITER"}},
		"writable":                 {func(r *csipb.NodePublishVolumeRequest) { r.Readonly = false }, []string{"pod.spec.volumes[].csi.readOnly must be set to 'true'"}},
		"not ephemeral":            {context(keyEphemeral, "false"), []string{keyEphemeral}},
		"ephemeral unsaid":         {without(keyEphemeral), []string{keyEphemeral}},
		"no pod name":              {without(keyPodName), []string{keyPodName, "podInfoOnMount: true"}},
		"no namespace":             {without(keyPodNamespace), []string{keyPodNamespace, "podInfoOnMount: true"}},
		"no pod UID":               {without(keyPodUID), []string{keyPodUID, "podInfoOnMount: true"}},
		"no service account":       {without(keyServiceAccount), []string{keyServiceAccount, "podInfoOnMount: true"}},
		"no context at all":        {func(r *csipb.NodePublishVolumeRequest) { r.VolumeContext = nil }, []string{"podInfoOnMount: true"}},
		"namespace with slash":     {context(keyPodNamespace, "a/b"), []string{keyPodNamespace}},
		"service account like ID":  {context(keyServiceAccount, "web/../admin"), []string{keyServiceAccount}},
		"UID of another pod":       {context(keyPodUID, "11111111-9a58-4c62-8c7d-4d0e3f3f7a11"), []string{keyPodUID, "podInfoOnMount: true"}},
		"unknown driver attribute": {context(testDriver+"/fsgroup", "1"), []string{testDriver + "/fsgroup", "is not known"}},
		"unknown attribute":        {context("colour", "blue"), []string{"colour", "is not known"}},
		"fs-group zero":            {context(testDriver+"/fs-group", "0"), []string{"fs-group", `"0"`}},
		"fs-group negative":        {context(testDriver+"/fs-group", "-1"), []string{"fs-group"}},
		"fs-group empty":           {context(testDriver+"/fs-group", ""), []string{"fs-group"}},
		"fs-group no number":       {context(testDriver+"/fs-group", "staff"), []string{"fs-group", "staff"}},
		"fs-group (gid_t)-1":       {context(testDriver+"/fs-group", "4294967295"), []string{"fs-group"}},
		"fs-group too large":       {context(testDriver+"/fs-group", "4294967296"), []string{"fs-group"}},
		"delivery unknown":         {context(testDriver+"/delivery", "Socket"), []string{"volumeAttributes[" + testDriver + "/delivery]", `"both", "files" or "socket"`, `not "Socket"`}},
		"delivery empty":           {context(testDriver+"/delivery", ""), []string{"/delivery]", `not ""`}},
		"wait unknown":             {context(testDriver+"/wait", "no"), []string{"/wait]", `"true" or "false"`, `not "no"`}},
		"key type unknown":         {context(testDriver+"/key-type", "RSA-1024"), []string{"/key-type]", "P-256, P-384, Ed25519, RSA-2048, RSA-3072, RSA-4096", "RSA-1024"}},
		"duration no duration":     {context(testDriver+"/duration", "3600"), []string{"/duration]", `"1h30m"`, `not "3600"`}},
		"duration zero":            {context(testDriver+"/duration", "0s"), []string{"/duration]", "positive"}},
		"renew-before negative":    {context(testDriver+"/renew-before", "-1m"), []string{"/renew-before]", "positive"}},
		"name with slash":          {context(testDriver+"/file-name-key", "a/b"), []string{"/file-name-key]", "plain file name", `"a/b"`}},
		"name of our own":          {context(testDriver+"/file-name-certificate", "..data"), []string{"/file-name-certificate]", "plain file name"}},
		"name empty":               {context(testDriver+"/file-name-ca", ""), []string{"/file-name-ca]"}},
		"name too long":            {context(testDriver+"/file-name-socket", strings.Repeat("a", 65)), []string{"/file-name-socket]"}},
		"unknown attribute's list": {context(testDriver+"/uri-names", "a.example"), []string{"uri-names", "is not known", "under " + testDriver + "/: fs-group, delivery, wait, key-type", "dns-names", "file-name-socket"}},
		"dns-names, upper case":    {context(testDriver+"/dns-names", "a.example, Web.example"), []string{"/dns-names] must be 1 to 16 DNS names", `not "a.example, Web.example": DNS name "Web.example": label "Web"`}},
		"dns-names, empty":         {context(testDriver+"/dns-names", ""), []string{"/dns-names]", `not ""`}},
		"dns-names, one empty":     {context(testDriver+"/dns-names", "a.example,,b.example"), []string{"/dns-names]", "empty"}},
		"dns-names, comma last":    {context(testDriver+"/dns-names", "a.example,"), []string{"/dns-names]", "empty"}},
		"dns-names, space":         {context(testDriver+"/dns-names", "a.example b.example"), []string{"/dns-names]"}},
		"dns-names, wildcard":      {context(testDriver+"/dns-names", "*.example"), []string{"/dns-names]", "without wildcards"}},
		"dns-names, final dot":     {context(testDriver+"/dns-names", "a.example."), []string{"/dns-names]", "final dots"}},
		"dns-names, address":       {context(testDriver+"/dns-names", "10.0.0.1"), []string{"/dns-names]", "number"}},
		"dns-names, twice":         {context(testDriver+"/dns-names", "a.example,b.example,a.example"), []string{"/dns-names]", `"a.example" is there twice`}},
		"dns-names, seventeen":     {context(testDriver+"/dns-names", strings.Repeat("a,", 16)+"a"), []string{"/dns-names]", "there are 17", "allowed are 16"}},
		"name without effect": {func(r *csipb.NodePublishVolumeRequest) {
			r.VolumeContext[testDriver+"/delivery"], r.VolumeContext[testDriver+"/file-name-key"] = "socket", "my.key"
		}, []string{"/file-name-key]", "has no effect", `delivery "socket"`}},
		"socket name without effect": {func(r *csipb.NodePublishVolumeRequest) {
			r.VolumeContext[testDriver+"/delivery"], r.VolumeContext[testDriver+"/file-name-socket"] = "files", "my.sock"
		}, []string{"/file-name-socket]", "has no effect", `delivery "files"`}},
		"fsGroup no number": {mount(func(m *csipb.VolumeCapability_MountVolume) { m.VolumeMountGroup = "x" }), []string{"volume_mount_group"}},
		"tokens no JSON":    {context(keyTokens, testToken), []string{keyTokens}},
		"token with space":  {context(keyTokens, `{"":{"token":"a b"}}`), []string{keyTokens}},
	} {
		t.Run(name, func(t *testing.T) {
			r := validRequest()
			c.change(r)
			_, err := testValidator().publish(r)
			contains(t, err, c.words...)
			if !errors.Is(err, ErrInvalid) {
				t.Errorf("%v is not ErrInvalid", err)
			}
			if strings.Contains(err.Error(), testToken) {
				t.Errorf("error quotes the token: %v", err)
			}
		})
	}
}

func TestFSGroupAttributeGoesBeforePodFSGroup(t *testing.T) {
	for name, c := range map[string]struct {
		driver     string
		attributes map[string]string
		podFSGroup string
		want       *int64
	}{
		"none":                         {testDriver, nil, "", nil},
		"pod":                          {testDriver, nil, "2000", gid(2000)},
		"pod, root":                    {testDriver, nil, "0", gid(0)},
		"attribute":                    {testDriver, map[string]string{testDriver + "/fs-group": "1541"}, "", gid(1541)},
		"attribute before pod":         {testDriver, map[string]string{testDriver + "/fs-group": "1541"}, "2000", gid(1541)},
		"largest":                      {testDriver, map[string]string{testDriver + "/fs-group": "4294967294"}, "", gid(4294967294)},
		"other driver name":            {"other.example", map[string]string{"other.example/fs-group": "7"}, "", gid(7)},
		"other driver name, old key":   {"other.example", map[string]string{testDriver + "/fs-group": "8"}, "", gid(8)},
		"other driver name, both same": {"other.example", map[string]string{testDriver + "/fs-group": "8", "other.example/fs-group": "8"}, "", gid(8)},
	} {
		t.Run(name, func(t *testing.T) {
			r := validRequest()
			maps.Copy(r.VolumeContext, c.attributes)
			r.VolumeCapability.GetMount().VolumeMountGroup = c.podFSGroup
			v, err := validator{driverName: c.driver}.publish(r)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, v.FSGroup); diff != "" {
				t.Error(diff)
			}
		})
	}
	r := validRequest()
	maps.Copy(r.VolumeContext, map[string]string{testDriver + "/fs-group": "8", "other.example/fs-group": "9"})
	_, err := validator{driverName: "other.example"}.publish(r)
	contains(t, err, "fs-group", "8", "9")
}

func TestAttributesAreRead(t *testing.T) {
	for name, c := range map[string]struct {
		driver string
		given  map[string]string
		want   Attributes
	}{
		"both":                   {testDriver, map[string]string{"delivery": "both", "wait": "true"}, Attributes{}},
		"socket":                 {testDriver, map[string]string{"delivery": "socket", "file-name-socket": "api.sock"}, Attributes{Delivery: Delivery{NoFiles: true, Socket: "api.sock"}}},
		"files":                  {testDriver, map[string]string{"delivery": "files"}, Attributes{Delivery: Delivery{NoSocket: true}}},
		"no wait":                {testDriver, map[string]string{"wait": "false"}, Attributes{NoWait: true}},
		"issuance":               {testDriver, map[string]string{"key-type": "Ed25519", "duration": "90m", "renew-before": "1m30s"}, Attributes{KeyType: pki.Ed25519, Duration: 90 * time.Minute, RenewBefore: 90 * time.Second}},
		"DNS name":               {testDriver, map[string]string{"dns-names": "web.shop.svc"}, Attributes{DNSNames: "web.shop.svc"}},
		"DNS names in any order": {testDriver, map[string]string{"dns-names": " web.shop.svc , shop.svc\n,a"}, Attributes{DNSNames: "a,shop.svc,web.shop.svc"}},
		"names":                  {testDriver, map[string]string{"file-name-certificate": "svid.pem", "file-name-key": "svid_key.pem", "file-name-ca": "bundle.pem"}, Attributes{Delivery: Delivery{Certificate: "svid.pem", Key: "svid_key.pem", CA: "bundle.pem"}}},
		"other driver's name, predecessor's prefix": {"other.example", map[string]string{"wait": "false"}, Attributes{NoWait: true}},
	} {
		t.Run(name, func(t *testing.T) {
			r := validRequest()
			for attribute, value := range c.given {
				r.VolumeContext[testDriver+"/"+attribute] = value
			}
			v, err := validator{driverName: c.driver}.publish(r)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, v.Attributes); diff != "" {
				t.Error(diff)
			}
		})
	}
	r := validRequest()
	maps.Copy(r.VolumeContext, map[string]string{testDriver + "/wait": "true", "other.example/wait": "false"})
	_, err := validator{driverName: "other.example"}.publish(r)
	contains(t, err, "wait", `"true"`, `"false"`)
}

// Values are not repeated without bound: the message ends up in an Event.
func TestLongValuesAreNotRepeatedInFull(t *testing.T) {
	long := strings.Repeat("\x01", 5000)
	for _, given := range []map[string]string{
		{testDriver + "/dns-names": long},
		{testDriver + "/dns-names": strings.Repeat("a,", 5000)},
		{testDriver + "/dns-names": "a." + long, "other.example/dns-names": "b." + long},
		{testDriver + "/delivery": long},
	} {
		r := validRequest()
		maps.Copy(r.VolumeContext, given)
		_, err := validator{driverName: "other.example"}.publish(r)
		if err == nil || len(err.Error()) > 900 {
			t.Errorf("%d bytes: %.1200v", len(fmt.Sprint(err)), err)
		}
	}
}

func TestTokenComesFromSecretsFirst(t *testing.T) {
	expires := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	r := validRequest()
	r.VolumeContext[keyTokens] = testTokenJSON
	v, err := testValidator().publish(r)
	if err != nil {
		t.Fatal(err)
	}
	if v.Token.Value() != testToken || !v.Token.Expires().Equal(expires) {
		t.Errorf("token of the volume context: got %q, %v", v.Token.Value(), v.Token.Expires())
	}
	r.Secrets = map[string]string{keyTokens: `{"":{"token":"fresher"}}`}
	if v, err = testValidator().publish(r); err != nil || v.Token.Value() != "fresher" {
		t.Errorf("token of the secrets: got %q, %v", v.Token.Value(), err)
	}
	r.Secrets = map[string]string{keyTokens: `{"vault":{"token":"for-vault"}}`}
	if v, err = testValidator().publish(r); err != nil || !v.Token.IsZero() {
		t.Errorf("a token for another audience was taken: %q, %v", v.Token.Value(), err)
	}
}

func TestTokenDoesNotPrint(t *testing.T) {
	token := NewToken(testToken, time.Time{})
	v := Volume{ID: "v", Token: token}
	var log logBuffer
	log.logger().Info("x", slog.Any("token", token), slog.Any("volume", v), slog.Any("pointer", &v))
	inJSON, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	printed := log.String() + string(inJSON)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		printed += fmt.Sprintf(verb, token) + fmt.Sprintf(verb, v) + fmt.Sprintf(verb, &v) + fmt.Sprintf(verb, []Volume{v})
	}
	for _, form := range []string{testToken, fmt.Sprintf("%x", testToken), "c2VjcmV0"} {
		if strings.Contains(printed, form) {
			t.Errorf("the token is printed:\n%s", printed)
		}
	}
}

func TestCodeOfErrors(t *testing.T) {
	for err, want := range map[error]string{
		fmt.Errorf("x: %w", ErrInvalid):              "InvalidArgument",
		fmt.Errorf("x: %w", ErrDenied):               "PermissionDenied",
		fmt.Errorf("x: %w", ErrPending):              "DeadlineExceeded",
		fmt.Errorf("x: %w", ErrAborted):              "Aborted",
		fmt.Errorf("x: %w", ErrUnavailable):          "Unavailable",
		errors.Join(errors.New("x"), ErrDenied):      "PermissionDenied",
		fmt.Errorf("%w: %w", ErrAborted, ErrInvalid): "Aborted",
		errors.New("boom"):                           "Internal",
	} {
		if got := code(err).String(); got != want {
			t.Errorf("%v: got %s, want %s", err, got, want)
		}
	}
	if code(nil).String() != "OK" || toStatus(nil) != nil {
		t.Error("no error is not OK")
	}
	if s := toStatus(errors.Join(errors.New("a"), errors.New("b"))).Error(); strings.Contains(s, "\n") {
		t.Errorf("status of several lines: %q", s)
	}
}

func FuzzPublishRequest(f *testing.F) {
	for _, change := range []func(*csipb.NodePublishVolumeRequest){
		func(*csipb.NodePublishVolumeRequest) {},
		func(r *csipb.NodePublishVolumeRequest) { r.VolumeContext[keyTokens] = testTokenJSON },
		func(r *csipb.NodePublishVolumeRequest) { r.Secrets = map[string]string{keyTokens: testTokenJSON} },
		func(r *csipb.NodePublishVolumeRequest) { r.VolumeContext[testDriver+"/fs-group"] = "1000" },
		func(r *csipb.NodePublishVolumeRequest) {
			maps.Copy(r.VolumeContext, map[string]string{testDriver + "/delivery": "socket", testDriver + "/file-name-socket": "a.sock"})
		},
		func(r *csipb.NodePublishVolumeRequest) {
			r.VolumeContext[testDriver+"/dns-names"] = "b.example, a.example"
		},
		func(r *csipb.NodePublishVolumeRequest) { r.VolumeId = "../x" },
		func(r *csipb.NodePublishVolumeRequest) { r.VolumeCapability = nil },
	} {
		r := validRequest()
		change(r)
		b, err := proto.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var r csipb.NodePublishVolumeRequest
		if proto.Unmarshal(b, &r) != nil {
			return
		}
		v, err := testValidator().publish(&r)
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Fatalf("%v is not ErrInvalid", err)
			}
			return
		}
		if filepath.Base(v.ID) != v.ID || v.ID == ".." || v.ID == "." || strings.HasPrefix(v.ID, ".") {
			t.Fatalf("volume ID %q is not a path segment", v.ID)
		}
		if !filepath.IsAbs(v.TargetPath) || filepath.Clean(v.TargetPath) != v.TargetPath {
			t.Fatalf("target path %q", v.TargetPath)
		}
		if v.Pod.Namespace == "" || v.Pod.Name == "" || v.Pod.UID == "" || v.Pod.ServiceAccount == "" ||
			strings.ContainsAny(v.Pod.Namespace+v.Pod.ServiceAccount+v.Pod.Name+v.Pod.UID, "/\n\x00%?# ") {
			t.Fatalf("pod %+v", v.Pod)
		}
		if v.FSGroup != nil && (*v.FSGroup < 0 || *v.FSGroup > maxGID) {
			t.Fatalf("group %d", *v.FSGroup)
		}
		d := v.Attributes.Delivery
		for _, name := range []string{d.Certificate, d.Key, d.CA, d.Socket} {
			if name != "" && (!IsFileName(name) || filepath.Base(name) != name) {
				t.Fatalf("file name %q", name)
			}
		}
		for _, name := range v.Attributes.DNSNames.Names() {
			if err := pki.CheckDNSName(name); err != nil {
				t.Fatal(err)
			}
		}
		if d.NoFiles && d.NoSocket || v.Attributes.Duration < 0 || v.Attributes.RenewBefore < 0 {
			t.Fatalf("attributes %+v", v.Attributes)
		}
		if !r.GetReadonly() {
			t.Fatal("writable volume accepted")
		}
	})
}
