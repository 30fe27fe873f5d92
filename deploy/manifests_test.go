// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

// Package deploy holds the manifests; its tests hold them to what the README and
// the comments in them promise.
package deploy

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/signet-spiffe/signet/internal/identity"
	"github.com/signet-spiffe/signet/internal/request"
)

const (
	namespace  = "signet-system"
	agentImage = "ghcr.io/signet-spiffe/signet-agent:v0.1.0"
)

// find returns the one object of type T with that name.
func find[T metav1.Object](t *testing.T, objects []runtime.Object, name string) T {
	t.Helper()
	for _, o := range objects {
		if typed, ok := o.(T); ok && typed.GetName() == name {
			return typed
		}
	}
	var none T
	t.Fatalf("there is no %T %s", none, name)
	return none
}

func eachVariant(t *testing.T, check func(t *testing.T, name string, objects []runtime.Object)) {
	t.Helper()
	for name, variant := range variants {
		t.Run(name, func(t *testing.T) { check(t, name, variant(t)) })
	}
}

// podSpecs returns the pod templates by the name of their owner.
func podSpecs(objects []runtime.Object) map[string]corev1.PodSpec {
	specs := map[string]corev1.PodSpec{}
	for _, o := range objects {
		switch o := o.(type) {
		case *appsv1.DaemonSet:
			specs[o.Name] = o.Spec.Template.Spec
		case *appsv1.Deployment:
			specs[o.Name] = o.Spec.Template.Spec
		}
	}
	return specs
}

// examples are the objects of the example files.
func examples(t *testing.T) []runtime.Object {
	t.Helper()
	files, err := filepath.Glob("examples/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no examples: %v", err)
	}
	var objects []runtime.Object
	for _, file := range files {
		for _, document := range documents(t, file) {
			objects = append(objects, decode(t, document))
		}
	}
	return objects
}

// Every file is used: a manifest that no kustomization names would be installed
// by nobody.
func TestEveryFileIsInAKustomization(t *testing.T) {
	for _, dir := range []string{"manifests", "requester-pod", "requester-pod-secrets", "approve-others", "runtime-issuer", "watch-pods", "pod-environment", "delegates"} {
		k := readKustomization(t, dir)
		named := append([]string{"kustomization.yaml"}, k.Resources...)
		for _, p := range k.Patches {
			named = append(named, p.Path)
		}
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if !slices.Contains(named, e.Name()) {
				t.Errorf("%s/%s is in no kustomization", dir, e.Name())
			}
		}
	}
}

func TestCSIDriver(t *testing.T) {
	yes, no := true, false
	none := storagev1.NoneFSGroupPolicy
	hour := int64(3600)
	plain := storagev1.CSIDriverSpec{
		AttachRequired: &no, PodInfoOnMount: &yes, FSGroupPolicy: &none, SELinuxMount: &no, StorageCapacity: &no,
		VolumeLifecycleModes: []storagev1.VolumeLifecycleMode{storagev1.VolumeLifecycleEphemeral},
		RequiresRepublish:    &no,
	}
	tokens := *plain.DeepCopy()
	tokens.RequiresRepublish = &yes
	tokens.TokenRequests = []storagev1.TokenRequest{{Audience: "", ExpirationSeconds: &hour}}
	secrets := *tokens.DeepCopy()
	secrets.ServiceAccountTokenInSecrets = &yes
	want := map[string]storagev1.CSIDriverSpec{
		"manifests": plain, "approve-others": plain, "runtime-issuer": plain, "watch-pods": plain, "pod-environment": plain, "delegates": plain,
		"requester-pod": tokens, "requester-pod-secrets": secrets,
	}
	eachVariant(t, func(t *testing.T, name string, objects []runtime.Object) {
		driver := find[*storagev1.CSIDriver](t, objects, request.DefaultDriverName)
		if diff := cmp.Diff(want[name], driver.Spec); diff != "" {
			t.Errorf("CSIDriver (-want +got):\n%s", diff)
		}
		const label = "security.openshift.io/csi-ephemeral-volume-profile"
		if got := driver.Labels[label]; got != "restricted" {
			t.Errorf("label %s is %q, want restricted", label, got)
		}
	})
}

// rules writes a subject's rights down as lines "verbs group/resource[/name]".
func rules(all []rbacv1.PolicyRule) []string {
	var lines []string
	for _, r := range all {
		for _, group := range r.APIGroups {
			for _, resource := range r.Resources {
				line := strings.Join(r.Verbs, ",") + " " + group + "/" + resource
				if len(r.ResourceNames) > 0 {
					line += " named " + strings.Join(r.ResourceNames, ",")
				}
				lines = append(lines, line)
			}
		}
		for _, url := range r.NonResourceURLs {
			lines = append(lines, strings.Join(r.Verbs, ",")+" "+url)
		}
	}
	return lines
}

// Rights are exactly these. Whoever adds one has to add it here, and to say why
// in the README.
func TestRightsAreTheLeast(t *testing.T) {
	const (
		watchRequests = "list,watch cert-manager.io/certificaterequests"
		patchStatus   = "patch cert-manager.io/certificaterequests/status"
		approve       = "approve cert-manager.io/signers named clusterissuers.cert-manager.io/*,issuers.cert-manager.io/*"
		events        = "create,patch events.k8s.io/events"
		oldEvents     = "create,patch /events"
	)
	agent := []string{"create,list,watch,delete cert-manager.io/certificaterequests", oldEvents}
	podAgent := []string{"list,watch,delete cert-manager.io/certificaterequests", oldEvents}
	approver := []string{watchRequests, patchStatus, approve, "get /pods", events, oldEvents}
	podApprover := []string{watchRequests, patchStatus, approve, events, oldEvents}
	want := map[string]map[string][]string{
		"manifests":             {"signet-agent": agent, "signet-approver": approver},
		"requester-pod":         {"signet-agent": podAgent, "signet-approver": podApprover},
		"requester-pod-secrets": {"signet-agent": podAgent, "signet-approver": podApprover},
		"approve-others": {"signet-agent": agent, "signet-approver": approver,
			"signet-approver-others": {"approve cert-manager.io/signers"}},
		"runtime-issuer":  {"signet-agent": agent, "signet-approver": approver},
		"pod-environment": {"signet-agent": agent, "signet-approver": approver},
		"delegates":       {"signet-agent": agent, "signet-approver": approver},
		"watch-pods":      {"signet-agent": append(slices.Clone(agent), "get,list,watch /pods"), "signet-approver": approver},
	}
	inNamespace := map[string][]string{"signet-approver": {
		"get,update coordination.k8s.io/leases named " + request.DefaultDriverName,
		"create coordination.k8s.io/leases",
	}}
	ofRuntimeIssuer := map[string][]string{
		"signet-agent-runtime-issuer":    {"list,watch /configmaps named spiffe-issuer", "create /events"},
		"signet-approver-runtime-issuer": {"list,watch /configmaps named spiffe-issuer"},
	}
	eachVariant(t, func(t *testing.T, name string, objects []runtime.Object) {
		got := map[string][]string{}
		for _, o := range objects {
			switch o := o.(type) {
			case *rbacv1.ClusterRole:
				got[o.Name] = rules(o.Rules)
			case *rbacv1.Role:
				want := inNamespace[o.Name]
				if name == "runtime-issuer" && want == nil {
					want = ofRuntimeIssuer[o.Name]
				}
				if diff := cmp.Diff(want, rules(o.Rules)); o.Namespace != namespace || diff != "" {
					t.Errorf("Role %s/%s (-want +got):\n%s", o.Namespace, o.Name, diff)
				}
			}
		}
		if diff := cmp.Diff(want[name], got); diff != "" {
			t.Errorf("cluster roles (-want +got):\n%s", diff)
		}
	})
}

// No rule anywhere, the examples' included, has a wildcard; the agent never gets
// at what RBAC cannot narrow to its node, unless the operator chose that it reads
// pods.
func TestNoWildcardsAndNoReachBeyondTheNode(t *testing.T) {
	beyond := []string{"pods", "secrets", "nodes", "configmaps", "serviceaccounts", "serviceaccounts/token"}
	eachVariant(t, func(t *testing.T, variant string, objects []runtime.Object) {
		for _, o := range append(objects, examples(t)...) {
			var policy []rbacv1.PolicyRule
			switch o := o.(type) {
			case *rbacv1.ClusterRole:
				policy = o.Rules
			case *rbacv1.Role:
				policy = o.Rules
			}
			_, name := nameOf(o)
			for _, r := range policy {
				for _, s := range slices.Concat(r.APIGroups, r.Resources, r.Verbs, r.ResourceNames, r.NonResourceURLs) {
					// In a signer's name "/*" is cert-manager's for every issuer of
					// one kind and group; RBAC knows no wildcard there.
					if strings.Contains(s, "*") && !slices.Equal(r.Resources, []string{"signers"}) {
						t.Errorf("%s has a wildcard: %v", name, r)
					}
				}
				for _, resource := range r.Resources {
					chosen := variant == "watch-pods" && resource == "pods"
					if name == "signet-agent" && slices.Contains(beyond, resource) && !chosen {
						t.Errorf("the agent may %v %s", r.Verbs, resource)
					}
				}
			}
		}
	})
}

func TestBindingsLeadToTheRightAccounts(t *testing.T) {
	eachVariant(t, func(t *testing.T, _ string, objects []runtime.Object) {
		roles := map[string]bool{}
		accounts := map[string]bool{}
		for _, o := range objects {
			switch o := o.(type) {
			case *rbacv1.ClusterRole, *rbacv1.Role:
				kind, name := nameOf(o)
				roles[kind+"/"+name] = true
			case *corev1.ServiceAccount:
				accounts[o.Namespace+"/"+o.Name] = true
			}
		}
		check := func(name string, ref rbacv1.RoleRef, subjects []rbacv1.Subject) {
			if !roles[ref.Kind+"/"+ref.Name] {
				t.Errorf("binding %s is for %s %s, which does not exist", name, ref.Kind, ref.Name)
			}
			delete(roles, ref.Kind+"/"+ref.Name)
			for _, s := range subjects {
				if s.Kind != rbacv1.ServiceAccountKind || !accounts[s.Namespace+"/"+s.Name] || !strings.HasPrefix(name, s.Name) {
					t.Errorf("binding %s gives rights to %s %s/%s", name, s.Kind, s.Namespace, s.Name)
				}
			}
		}
		for _, o := range objects {
			switch o := o.(type) {
			case *rbacv1.ClusterRoleBinding:
				check(o.Name, o.RoleRef, o.Subjects)
			case *rbacv1.RoleBinding:
				check(o.Name, o.RoleRef, o.Subjects)
			}
		}
		for role := range roles {
			t.Errorf("%s is bound to nobody", role)
		}
		for owner, spec := range podSpecs(objects) {
			if !accounts[namespace+"/"+spec.ServiceAccountName] {
				t.Errorf("%s runs as service account %q, which does not exist", owner, spec.ServiceAccountName)
			}
		}
	})
}

// Every pod, those of the examples too, is as closed as it can be; the agent is
// the one exception, and only as far as it must.
func TestPodsAreHardened(t *testing.T) {
	eachVariant(t, func(t *testing.T, _ string, objects []runtime.Object) {
		specs := podSpecs(objects)
		maps.Copy(specs, podSpecs(examples(t)))
		for owner, spec := range specs {
			if len(spec.Containers) != 1 || len(spec.InitContainers) != 0 {
				t.Fatalf("%s: want one container", owner)
			}
			if spec.HostNetwork || spec.HostPID || spec.HostIPC {
				t.Errorf("%s shares a namespace of the host", owner)
			}
			if p := spec.SecurityContext.SeccompProfile; p == nil || p.Type != corev1.SeccompProfileTypeRuntimeDefault {
				t.Errorf("%s: seccomp profile is %v, want RuntimeDefault", owner, p)
			}
			c := spec.Containers[0].SecurityContext
			if c.ReadOnlyRootFilesystem == nil || !*c.ReadOnlyRootFilesystem {
				t.Errorf("%s can write to its root file system", owner)
			}
			if !slices.Equal(c.Capabilities.Drop, []corev1.Capability{"ALL"}) {
				t.Errorf("%s drops %v, want ALL", owner, c.Capabilities.Drop)
			}
			if spec.Containers[0].ImagePullPolicy != corev1.PullIfNotPresent {
				t.Errorf("%s: image pull policy is %q", owner, spec.Containers[0].ImagePullPolicy)
			}
			if owner == "signet-agent" {
				checkAgentSecurity(t, c)
				continue
			}
			if c.Privileged != nil || len(c.Capabilities.Add) > 0 || c.AllowPrivilegeEscalation == nil || *c.AllowPrivilegeEscalation {
				t.Errorf("%s may gain privileges: %+v", owner, c)
			}
			if s := spec.SecurityContext; s.RunAsNonRoot == nil || !*s.RunAsNonRoot || s.RunAsUser == nil || *s.RunAsUser == 0 {
				t.Errorf("%s may run as root", owner)
			}
			for _, v := range spec.Volumes {
				if v.CSI == nil {
					t.Errorf("%s mounts %s: %+v", owner, v.Name, v.VolumeSource)
				}
			}
		}
	})
}

func checkAgentSecurity(t *testing.T, c *corev1.SecurityContext) {
	t.Helper()
	if c.Privileged == nil || !*c.Privileged || c.RunAsUser == nil || *c.RunAsUser != 0 {
		t.Errorf("the agent must be privileged and root to mount: %+v", c)
	}
	if want := []corev1.Capability{"SYS_ADMIN", "CHOWN", "DAC_OVERRIDE"}; !slices.Equal(c.Capabilities.Add, want) {
		t.Errorf("the agent adds capabilities %v, want %v", c.Capabilities.Add, want)
	}
}

// Each mount of the agent has its reason here; each path is the same inside and
// on the host, because kubelet names host paths. The one other mount is the agent's
// alone: a folder of the host could be mounted by others, and with delegates is.
func TestAgentMountsOnlyWhatItMust(t *testing.T) {
	reasons := map[string]struct {
		why         string
		propagation corev1.MountPropagationMode
	}{
		"/var/lib/kubelet/plugins/" + request.DefaultDriverName: {"the CSI socket; a tmpfs per volume, which must outlive the agent", corev1.MountPropagationBidirectional},
		"/var/lib/kubelet/pods":                                 {"volumes are bind-mounted into pods' directories", corev1.MountPropagationBidirectional},
		"/var/lib/kubelet/plugins_registry":                     {"kubelet finds drivers there", ""},
	}
	const admin = "/run/signet" // --admin-socket-path is in it.
	eachVariant(t, func(t *testing.T, variant string, objects []runtime.Object) {
		spec := find[*appsv1.DaemonSet](t, objects, "signet-agent").Spec.Template.Spec
		host := map[string]string{}
		private, wantPrivate := 0, 1
		if variant == "delegates" {
			wantPrivate = 0
		}
		for _, v := range spec.Volumes {
			if v.EmptyDir != nil && v.EmptyDir.Medium == corev1.StorageMediumMemory {
				host[v.Name] = admin
				private++
				continue
			}
			if v.HostPath == nil {
				t.Fatalf("volume %s is not a host path", v.Name)
			}
			host[v.Name] = v.HostPath.Path
		}
		want := len(reasons) + 1
		if len(spec.Containers[0].VolumeMounts) != want || len(host) != want || private != wantPrivate {
			t.Errorf("the agent has %d volumes, %d of them in memory, and %d mounts, want %d, %d and %d", len(host), private, len(spec.Containers[0].VolumeMounts), want, wantPrivate, want)
		}
		for _, m := range spec.Containers[0].VolumeMounts {
			reason, ok := reasons[m.MountPath]
			if !ok && m.MountPath != admin {
				t.Errorf("the agent mounts %s without a reason", m.MountPath)
			}
			if host[m.Name] != m.MountPath {
				t.Errorf("host path %s is mounted at %s", host[m.Name], m.MountPath)
			}
			got := corev1.MountPropagationMode("")
			if m.MountPropagation != nil {
				got = *m.MountPropagation
			}
			if got != reason.propagation {
				t.Errorf("%s has propagation %q, want %q: %s", m.MountPath, got, reason.propagation, reason.why)
			}
		}
	})
}

// flagsOf reads arguments of the form --name=value; a flag given twice is an
// error.
func flagsOf(t *testing.T, spec corev1.PodSpec) map[string]string {
	t.Helper()
	flags := map[string]string{}
	for _, arg := range spec.Containers[0].Args {
		name, value, _ := strings.Cut(strings.TrimPrefix(arg, "--"), "=")
		if _, twice := flags[name]; twice {
			t.Errorf("--%s is given twice", name)
		}
		flags[name] = value
	}
	return flags
}

// What is said in more than one place is said alike.
func TestThePartsAgree(t *testing.T) {
	eachVariant(t, func(t *testing.T, name string, objects []runtime.Object) {
		specs := podSpecs(objects)
		agent, approver := flagsOf(t, specs["signet-agent"]), flagsOf(t, specs["signet-approver"])
		for _, flag := range []string{"csi-driver-name", "trust-domain", "issuer-name", "issuer-kind", "issuer-group", "certificate-request-duration", "requester",
			"runtime-issuance-config-map-name", "runtime-issuance-config-map-namespace"} {
			optional := strings.HasPrefix(flag, "runtime-") && name != "runtime-issuer"
			if agent[flag] == "" && !optional || agent[flag] != approver[flag] {
				t.Errorf("--%s is %q for the agent and %q for the approver", flag, agent[flag], approver[flag])
			}
		}
		wantRequester := request.RequesterAgent
		wantUsername := identity.ServiceAccountUsername(namespace, specs["signet-agent"].ServiceAccountName)
		if strings.HasPrefix(name, "requester-pod") {
			wantRequester, wantUsername = request.RequesterPod, ""
		}
		if agent["requester"] != string(wantRequester) || approver["driver-service-account"] != wantUsername {
			t.Errorf("requester is %q with agent %q, want %q with %q", agent["requester"], approver["driver-service-account"], wantRequester, wantUsername)
		}
		if approver["leader-election-namespace"] != namespace {
			t.Errorf("lease is in namespace %q", approver["leader-election-namespace"])
		}
		if _, got := approver["auto-approve-non-spiffe"]; got != (name == "approve-others") {
			t.Errorf("--auto-approve-non-spiffe given: %t", got)
		}
		if _, got := agent["watch-pods"]; got != (name == "watch-pods") {
			t.Errorf("--watch-pods given: %t", got)
		}
		if got := agent["authorized-delegates"]; (got == "0") != (name == "delegates") || name != "delegates" && got != "" {
			t.Errorf("--authorized-delegates is %q", got)
		}
		plugin := "/var/lib/kubelet/plugins/" + agent["csi-driver-name"]
		if agent["endpoint"] != "unix://"+plugin+"/csi.sock" || agent["data-root"]+"/"+agent["csi-driver-name"] != plugin {
			t.Errorf("endpoint %s and volumes below %s are not in %s, which is what is mounted", agent["endpoint"], agent["data-root"], plugin)
		}
		if agent["node-id"] != "$(NODE_NAME)" || specs["signet-agent"].Containers[0].Env[0].ValueFrom.FieldRef.FieldPath != "spec.nodeName" {
			t.Error("the agent is not told its node's name")
		}
		checkIssuer(t, objects, agent)
		checkPorts(t, specs["signet-agent"].Containers[0], map[string]string{"http": agent["http-bind-address"]})
		checkPorts(t, specs["signet-approver"].Containers[0], map[string]string{
			"health": approver["readiness-probe-bind-address"], "metrics": approver["metrics-bind-address"]})
	})
}

// checkIssuer: the approver may approve for the issuer that is asked, and the
// example makes that issuer.
func checkIssuer(t *testing.T, objects []runtime.Object, agent map[string]string) {
	t.Helper()
	want := fmt.Sprintf("%ss.%s/*", strings.ToLower(agent["issuer-kind"]), agent["issuer-group"])
	role := find[*rbacv1.ClusterRole](t, objects, "signet-approver")
	if !slices.ContainsFunc(role.Rules, func(r rbacv1.PolicyRule) bool { return slices.Contains(r.ResourceNames, want) }) {
		t.Errorf("the approver may not approve for signer %s", want)
	}
	issuer := find[*cmapi.ClusterIssuer](t, examples(t), agent["issuer-name"])
	root := find[*cmapi.Certificate](t, examples(t), issuer.Spec.CA.SecretName)
	if root.Spec.SecretName != issuer.Spec.CA.SecretName || root.Namespace != "cert-manager" || !root.Spec.IsCA {
		t.Errorf("the example's root does not make the Secret of its issuer")
	}
}

func checkPorts(t *testing.T, c corev1.Container, addresses map[string]string) {
	t.Helper()
	if len(c.Ports) != len(addresses) {
		t.Errorf("%s has %d ports, want %d", c.Name, len(c.Ports), len(addresses))
	}
	for _, p := range c.Ports {
		if got := fmt.Sprintf(":%d", p.ContainerPort); got != addresses[p.Name] {
			t.Errorf("%s: port %s is %s, the flag says %s", c.Name, p.Name, got, addresses[p.Name])
		}
	}
	for path, probe := range map[string]*corev1.Probe{"/healthz": c.LivenessProbe, "/readyz": c.ReadinessProbe} {
		if probe == nil || probe.HTTPGet.Path != path || addresses[probe.HTTPGet.Port.StrVal] == "" {
			t.Errorf("%s: probe of %s is %+v", c.Name, path, probe)
		}
	}
}

func TestImagesAreOneRelease(t *testing.T) {
	_, version, _ := strings.Cut(agentImage, ":")
	eachVariant(t, func(t *testing.T, _ string, objects []runtime.Object) {
		specs := podSpecs(objects)
		maps.Copy(specs, podSpecs(examples(t)))
		for owner, spec := range specs {
			c := spec.Containers[0]
			component, command := "sample", "/sample"
			switch owner {
			case "signet-agent", "signet-approver":
				component, command = strings.TrimPrefix(owner, "signet-"), "/"+owner
			}
			if want := "ghcr.io/signet-spiffe/signet-" + component + ":" + version; c.Image != want || !slices.Equal(c.Command, []string{command}) {
				t.Errorf("%s runs %v of %s, want %s of %s", owner, c.Command, c.Image, command, want)
			}
		}
	})
}

// The SPIFFE IDs in the examples are those that their service accounts get, and
// the volumes are ones that the driver accepts.
func TestExamplesUseTheIdentitiesTheyGet(t *testing.T) {
	objects := examples(t)
	accounts := map[string]bool{}
	for _, o := range objects {
		if a, ok := o.(*corev1.ServiceAccount); ok {
			accounts["spiffe://cluster.local/ns/"+a.Namespace+"/sa/"+a.Name] = true
		}
	}
	for owner, spec := range podSpecs(objects) {
		for _, arg := range spec.Containers[0].Args {
			if id, ok := strings.CutPrefix(arg, "--peer="); ok && !accounts[id] {
				t.Errorf("%s expects %s, which no service account of the examples gets", owner, id)
			}
		}
		csi := spec.Volumes[0].CSI
		if csi == nil || csi.Driver != request.DefaultDriverName || csi.ReadOnly == nil || !*csi.ReadOnly {
			t.Errorf("%s: volume %+v is not a read-only one of the driver", owner, spec.Volumes[0])
		}
		mount := spec.Containers[0].VolumeMounts[0].MountPath
		if env := spec.Containers[0].Env; env[0].Name != "SPIFFE_ENDPOINT_SOCKET" || env[0].Value != "unix://"+mount+"/spiffe.sock" {
			t.Errorf("%s looks for the socket at %v, the volume is at %s", owner, env, mount)
		}
	}
}

// The binaries know every flag and can read every value: with --help added, a
// command line is parsed to its end and nothing is started.
func TestBinariesAcceptTheirArguments(t *testing.T) {
	if testing.Short() {
		t.Skip("builds both binaries")
	}
	bin := t.TempDir()
	for owner, source := range map[string]string{"signet-agent": "../agent", "signet-approver": "../approver"} {
		out, err := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-o", filepath.Join(bin, owner), source).CombinedOutput()
		if err != nil {
			t.Fatalf("build %s: %v\n%s", owner, err, out)
		}
	}
	eachVariant(t, func(t *testing.T, _ string, objects []runtime.Object) {
		for owner, spec := range podSpecs(objects) {
			args := append(slices.Clone(spec.Containers[0].Args), "--help")
			out, err := exec.CommandContext(t.Context(), filepath.Join(bin, owner), args...).CombinedOutput()
			if err != nil || !strings.Contains(string(out), "Usage:") {
				t.Errorf("%s %v: %v\n%s", owner, args, err, out)
			}
		}
	})
}
