// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"strconv"

	clientcmdapiv1 "k8s.io/client-go/tools/clientcmd/api/v1"
	"sigs.k8s.io/yaml"
)

// The network of every cluster. Clusters never meet, so all use the same.
const (
	controlPlaneIP = "10.77.0.1"
	serviceRange   = "10.0.0.0/24"
	// kubernetesServiceIP is the first address of serviceRange, which the API
	// server gives to the service "kubernetes".
	kubernetesServiceIP = "10.0.0.1"
	apiServerPort       = 443
	webhookPort         = 10250
	etcdURL             = "http://127.0.0.1:2379"
)

// nodeIP is the address of node i (from 1) on the bridge.
func nodeIP(i int) string { return netip.AddrFrom4([4]byte{10, 77, 0, byte(1 + i)}).String() }

// podRange is the part of the pod network on node i (from 1): 4,094 addresses.
func podRange(i int) string {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 88, byte(16 * (i - 1)), 0}), 20).String()
}

// Paths inside a node, on the node's own tmpfs.
const (
	nodeConfigDir    = "/run/kubernetes"
	nodeCNIConfigDir = "/run/cni/net.d"
	containerdSocket = "/run/containerd/containerd.sock"
	containerdRoot   = "/var/lib/containerd"
	kubeletRoot      = "/var/lib/kubelet"
	pauseImage       = "signet.invalid/pause:1"
)

// component is a process of a cluster: what a supervisor or a node starts,
// stops and watches.
type component struct {
	Name string
	Path string
	Args []string
	Env  []string
	// Log is the host path of the file that stdout and stderr are appended to.
	Log string
}

// controlPlanePaths are the files of the control plane, on the supervisor's
// tmpfs.
type controlPlanePaths struct{ root string }

func (p controlPlanePaths) pki(file string) string { return filepath.Join(p.root, "pki", file) }
func (p controlPlanePaths) kubeconfig(user string) string {
	return filepath.Join(p.root, "kubeconfig", user)
}
func (p controlPlanePaths) schedulerConfig() string { return filepath.Join(p.root, "scheduler.yaml") }
func (p controlPlanePaths) etcd() string            { return filepath.Join(p.root, "etcd") }
func (p controlPlanePaths) tmp() string             { return filepath.Join(p.root, "tmp") }

// controlPlane renders the components outside the nodes, in the order in
// which they start.
func (p plan) controlPlane(paths controlPlanePaths) []component {
	list := []component{
		p.etcd(paths), p.apiServer(paths), p.controllerManager(paths), p.scheduler(paths),
		p.certManager(paths), p.webhook(paths),
	}
	for i := range list {
		c := &list[i]
		c.Path = p.Binaries[c.Name]
		c.Env = append(c.Env, "TMPDIR="+paths.tmp())
		c.Log = filepath.Join(p.LogDir, c.Name+".log")
	}
	return list
}

func (p plan) etcd(paths controlPlanePaths) component {
	return component{Name: componentEtcd, Args: []string{
		"--data-dir=" + paths.etcd(),
		"--listen-client-urls=" + etcdURL,
		"--advertise-client-urls=" + etcdURL,
		"--listen-peer-urls=http://127.0.0.1:2380",
		// The data lives on a tmpfs and dies with the cluster.
		"--unsafe-no-fsync=true",
	}}
}

func (p plan) apiServer(paths controlPlanePaths) component {
	return component{Name: componentAPIServer, Args: append([]string{
		"--etcd-servers=" + etcdURL,
		"--bind-address=0.0.0.0",
		"--secure-port=" + strconv.Itoa(apiServerPort),
		"--advertise-address=" + controlPlaneIP,
		"--service-cluster-ip-range=" + serviceRange,
		"--tls-cert-file=" + paths.pki("apiserver.crt"),
		"--tls-private-key-file=" + paths.pki("apiserver.key"),
		"--client-ca-file=" + paths.pki("ca.crt"),
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file=" + paths.pki("service-account.pub"),
		"--service-account-signing-key-file=" + paths.pki("service-account.key"),
		"--authorization-mode=Node,RBAC",
		"--enable-admission-plugins=NodeRestriction",
		"--allow-privileged=true",
		"--kubelet-certificate-authority=" + paths.pki("ca.crt"),
		"--kubelet-client-certificate=" + paths.pki("apiserver-kubelet.crt"),
		"--kubelet-client-key=" + paths.pki("apiserver-kubelet.key"),
		"--kubelet-preferred-address-types=InternalIP",
	}, p.APIServerArgs...)}
}

func (p plan) controllerManager(paths controlPlanePaths) component {
	return component{Name: componentControllerManager, Args: []string{
		"--kubeconfig=" + paths.kubeconfig(componentControllerManager),
		"--bind-address=127.0.0.1",
		"--leader-elect=false",
		"--allocate-node-cidrs=false",
		"--root-ca-file=" + paths.pki("ca.crt"),
		"--service-account-private-key-file=" + paths.pki("service-account.key"),
		"--use-service-account-credentials=true",
		"--cluster-signing-cert-file=" + paths.pki("ca.crt"),
		"--cluster-signing-key-file=" + paths.pki("ca.key"),
		"--kube-api-qps=500",
		"--kube-api-burst=1000",
	}}
}

func (p plan) scheduler(paths controlPlanePaths) component {
	return component{Name: componentScheduler, Args: []string{
		"--config=" + paths.schedulerConfig(),
		"--bind-address=127.0.0.1",
	}}
}

// certManager runs with the flags that the project's measurements are made
// with; its own approver is not linked in.
func (p plan) certManager(paths controlPlanePaths) component {
	return component{Name: componentCertManager, Args: []string{
		"--kubeconfig=" + paths.kubeconfig(componentCertManager),
		"--cluster-resource-namespace=" + certManagerNamespace,
		"--kube-api-qps=1000",
		"--kube-api-burst=2000",
		"--concurrent-workers=20",
	}}
}

func (p plan) webhook(paths controlPlanePaths) component {
	return component{
		Name: componentWebhook,
		Args: []string{
			"-test.run=^TestServe$", "-test.timeout=0", "-test.v", "--",
			"--kubeconfig=" + paths.kubeconfig(componentWebhook),
			"--tls-cert-file=" + paths.pki("webhook.crt"),
			"--tls-private-key-file=" + paths.pki("webhook.key"),
		},
		Env: []string{"CERT_MANAGER_WEBHOOK_PORT=" + strconv.Itoa(webhookPort)},
	}
}

// schedulerConfig raises the client limits, which would otherwise be what a
// burst of pods waits for.
func schedulerConfig(paths controlPlanePaths) ([]byte, error) {
	return yaml.Marshal(map[string]any{
		"apiVersion":     "kubescheduler.config.k8s.io/v1",
		"kind":           "KubeSchedulerConfiguration",
		"leaderElection": map[string]any{"leaderElect": false},
		"clientConnection": map[string]any{
			"kubeconfig": paths.kubeconfig(componentScheduler),
			"qps":        500,
			"burst":      1000,
		},
	})
}

// nodeComponents renders what runs on node i (from 1).
func (p plan) nodeComponents(i int) []component {
	list := []component{
		{Name: componentContainerd, Args: []string{"--config=" + nodeConfigDir + "/containerd.toml"}},
		{Name: componentKubelet, Args: []string{
			"--config=" + nodeConfigDir + "/kubelet.yaml",
			"--kubeconfig=" + nodeConfigDir + "/kubelet.kubeconfig",
			"--root-dir=" + kubeletRoot,
			"--hostname-override=" + nodeName(i),
			"--node-ip=" + nodeIP(i),
			"--v=2",
		}},
		{Name: componentProxy, Args: []string{"--config=" + nodeConfigDir + "/kube-proxy.yaml"}},
	}
	for k := range list {
		c := &list[k]
		c.Path = p.Binaries[c.Name]
		c.Env = []string{"TMPDIR=/run/tmp"}
		c.Log = filepath.Join(p.LogDir, nodeName(i), c.Name+".log")
	}
	// A containerd that starts finds the shim of running containers by its name, and
	// takes containers for dead whose shim it does not find.
	list[0].Env = append(list[0].Env, "PATH="+nodeShimDir+":"+searchPath)
	return list
}

// nodeShimDir is where a node has the shim under its name.
const nodeShimDir = nodeConfigDir + "/bin"

// kubeletConfig is the KubeletConfiguration of node i (from 1).
func (p plan) kubeletConfig(i int) ([]byte, error) {
	config := map[string]any{
		"apiVersion": "kubelet.config.k8s.io/v1beta1",
		"kind":       "KubeletConfiguration",
		"authentication": map[string]any{
			"anonymous": map[string]any{"enabled": false},
			"webhook":   map[string]any{"enabled": true},
			"x509":      map[string]any{"clientCAFile": nodeConfigDir + "/ca.crt"},
		},
		"authorization":            map[string]any{"mode": "Webhook"},
		"tlsCertFile":              nodeConfigDir + "/kubelet.crt",
		"tlsPrivateKeyFile":        nodeConfigDir + "/kubelet.key",
		"containerRuntimeEndpoint": "unix://" + containerdSocket,
		"cgroupDriver":             "cgroupfs",
		"cgroupRoot":               "/" + nodeCgroup(p.Name, i),
		// Hosts that still have cgroup v1, or swap, are fine to test on.
		"failCgroupV1": false,
		"failSwapOn":   false,
		// Lowering a score needs CAP_SYS_RESOURCE, which containers lack.
		"oomScoreAdj": 0,
		// The machine is shared with whatever else runs on it, so nothing is
		// carved out of it and nothing evicted for its sake.
		"enforceNodeAllocatable":      []string{},
		"evictionHard":                map[string]any{"memory.available": "1Mi"},
		"imageGCHighThresholdPercent": 100,
		"imageGCLowThresholdPercent":  99,
		// There is no DNS server; a pod that asks is told at once that its
		// address cannot be reached.
		"clusterDNS":                      []string{"10.0.0.10"},
		"clusterDomain":                   "cluster.local",
		"serializeImagePulls":             false,
		"resolvConf":                      "/dev/null",
		"maxPods":                         250,
		"volumePluginDir":                 kubeletRoot + "/volume-plugins",
		"protectKernelDefaults":           true,
		"eventRecordQPS":                  0,
		"nodeStatusReportFrequency":       "1m0s",
		"shutdownGracePeriod":             "0s",
		"shutdownGracePeriodCriticalPods": "0s",
	}
	maps.Copy(config, p.KubeletConfig)
	return yaml.Marshal(config)
}

// kubeProxyConfig is the same on every node but for its name.
func kubeProxyConfig(i int) ([]byte, error) {
	return yaml.Marshal(map[string]any{
		"apiVersion":         "kubeproxy.config.k8s.io/v1alpha1",
		"kind":               "KubeProxyConfiguration",
		"mode":               "iptables",
		"hostnameOverride":   nodeName(i),
		"clientConnection":   map[string]any{"kubeconfig": nodeConfigDir + "/kube-proxy.kubeconfig"},
		"metricsBindAddress": "127.0.0.1:10249",
		"oomScoreAdj":        0,
		// The sizes of the connection tracking table are the machine's, not
		// this network namespace's.
		"conntrack": map[string]any{
			"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s",
		},
	})
}

// containerdConfig disables what would look outside the node: AppArmor
// profiles, NRI sockets, /opt, and the snapshotters that want devices.
func containerdConfig(prog programs, shim string) string {
	return fmt.Sprintf(`version = 3
root = %[1]q
state = "/run/containerd"
disabled_plugins = [
  "io.containerd.nri.v1.nri",
  "io.containerd.internal.v1.opt",
  "io.containerd.snapshotter.v1.blockfile",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.erofs",
  "io.containerd.snapshotter.v1.zfs",
]

[grpc]
  address = %[2]q

[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = %[3]q

[plugins."io.containerd.cri.v1.runtime"]
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = [%[4]q]
    conf_dir = %[5]q
  [plugins."io.containerd.cri.v1.runtime".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      runtime_path = %[6]q
      [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
        BinaryName = %[7]q
        SystemdCgroup = false
`, containerdRoot, containerdSocket, pauseImage, prog.CNIDir, nodeCNIConfigDir, shim, prog.Runc)
}

// cniConfig routes pods instead of bridging them: with a bridge, answers
// between pods of one node bypass the service translation unless the host has
// loaded br_netfilter.
func cniConfig(i int) ([]byte, error) {
	return json.Marshal(map[string]any{
		"cniVersion": "1.0.0",
		"name":       "pods",
		"plugins": []any{
			map[string]any{
				"type":   "ptp",
				"ipMasq": false,
				"ipam": map[string]any{
					"type":    "host-local",
					"ranges":  [][]map[string]string{{{"subnet": podRange(i)}}},
					"routes":  []map[string]string{{"dst": "0.0.0.0/0"}},
					"dataDir": "/run/cni/networks",
				},
			},
			map[string]any{"type": "portmap", "capabilities": map[string]any{"portMappings": true}},
		},
	})
}

// kubeconfig renders a kubeconfig with an embedded client certificate.
func kubeconfig(server string, ca []byte, user string, pair keyPair) ([]byte, error) {
	return yaml.Marshal(clientcmdapiv1.Config{
		APIVersion:     clientcmdapiv1.SchemeGroupVersion.Version,
		Kind:           "Config",
		CurrentContext: "signet",
		Clusters: []clientcmdapiv1.NamedCluster{{Name: "signet", Cluster: clientcmdapiv1.Cluster{
			Server: server, CertificateAuthorityData: ca,
		}}},
		AuthInfos: []clientcmdapiv1.NamedAuthInfo{{Name: user, AuthInfo: clientcmdapiv1.AuthInfo{
			ClientCertificateData: pair.certPEM, ClientKeyData: pair.keyPEM,
		}}},
		Contexts: []clientcmdapiv1.NamedContext{{Name: "signet", Context: clientcmdapiv1.Context{
			Cluster: "signet", AuthInfo: user,
		}}},
	})
}
