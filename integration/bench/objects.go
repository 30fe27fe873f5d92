// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	cmclient "github.com/cert-manager/cert-manager/pkg/client/clientset/versioned"
	"golang.org/x/sync/errgroup"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/signet-spiffe/signet/integration/install"
)

const (
	// nodeID is the name of the node without kubelet, in Kubernetes.
	nodeID = "bench"
	// namespaces is over how many the pods are spread.
	namespaces = 10
	// workloadAccount is the service account of all pods, one in each namespace.
	workloadAccount = "workload"
	// tokenLife is more than a run takes.
	tokenLife = 2 * time.Hour
	// creators is how many objects are made at the same time.
	creators = 16
)

// pod is what kubelet would know of a pod.
type pod struct{ namespace, name, uid, account string }

// everything tolerates all taints: the node controller sees that nobody speaks for
// the node, and taints it.
var everything = []corev1.Toleration{{Operator: corev1.TolerationOpExists}}

// objects makes what is needed in the API.
type objects struct {
	config      *rest.Config // the administrator's, without a rate limit
	kube        kubernetes.Interface
	certManager cmclient.Interface
}

// newObjects turns the administrator's configuration of the host into one that
// reaches the API server as pods do.
func newObjects(ctx context.Context, config *rest.Config, address string) (*objects, error) {
	config = rest.CopyConfig(config)
	config.Host, config.QPS = "https://"+address, -1
	kube, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("make a client: %w", err)
	}
	certManager, err := cmclient.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("make a cert-manager client: %w", err)
	}
	if _, err := kube.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx); err != nil {
		return nil, fmt.Errorf("reach the API server from the node: %w", err)
	}
	return &objects{config: config, kube: kube, certManager: certManager}, nil
}

// APIServerAddress is where nodes reach the API server: what stands behind the
// service "kubernetes".
func APIServerAddress(ctx context.Context, kube kubernetes.Interface) (string, error) {
	slices, err := kube.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault).List(ctx, metav1.ListOptions{
		LabelSelector: discoveryv1.LabelServiceName + "=kubernetes",
	})
	if err != nil {
		return "", fmt.Errorf("find the API server's address: %w", err)
	}
	for _, slice := range slices.Items {
		if len(slice.Endpoints) > 0 && len(slice.Endpoints[0].Addresses) > 0 && len(slice.Ports) > 0 && slice.Ports[0].Port != nil {
			return net.JoinHostPort(slice.Endpoints[0].Addresses[0], strconv.Itoa(int(*slice.Ports[0].Port))), nil
		}
	}
	return "", errors.New("find the API server's address: service kubernetes has no endpoint")
}

// node makes the Node and the agent's pod on it, and writes a kubeconfig whose
// token is bound to that pod.
func (o *objects) node(ctx context.Context, kubeconfig string) error {
	// No label kubernetes.io/os: the DaemonSet of the agents passes it by.
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: nodeID}}
	if _, err := o.kube.CoreV1().Nodes().Create(ctx, node, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("create the node: %w", err)
	}
	agent := podObject(install.Namespace, "bench-agent", install.AgentName)
	made, err := o.kube.CoreV1().Pods(install.Namespace).Create(ctx, agent, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("create the agent's pod: %w", err)
	}
	seconds := int64(tokenLife.Seconds())
	token, err := o.kube.CoreV1().ServiceAccounts(install.Namespace).CreateToken(ctx, install.AgentName, &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{
			ExpirationSeconds: &seconds,
			BoundObjectRef:    &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: made.Name, UID: made.UID},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("make the agent's token: %w", err)
	}
	return o.writeKubeconfig(kubeconfig, token.Status.Token)
}

// writeKubeconfig gives the token alone: a client certificate would win over it.
func (o *objects) writeKubeconfig(path, token string) error {
	const name = "agent"
	err := clientcmd.WriteToFile(clientcmdapi.Config{
		CurrentContext: name,
		Clusters: map[string]*clientcmdapi.Cluster{name: {
			Server: o.config.Host, CertificateAuthorityData: o.config.CAData, CertificateAuthority: o.config.CAFile,
		}},
		AuthInfos: map[string]*clientcmdapi.AuthInfo{name: {Token: token}},
		Contexts:  map[string]*clientcmdapi.Context{name: {Cluster: name, AuthInfo: name}},
	}, path)
	if err != nil {
		return fmt.Errorf("write the agent's kubeconfig: %w", err)
	}
	return nil
}

// pods makes n pods on the node, spread over the namespaces, which are made too.
func (o *objects) pods(ctx context.Context, n int) ([]pod, error) {
	for i := range namespaces {
		if err := o.namespace(ctx, namespaceName(i)); err != nil {
			return nil, err
		}
	}
	made := make([]pod, n)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(creators)
	for i := range made {
		group.Go(func() error {
			object := podObject(namespaceName(i%namespaces), fmt.Sprintf("workload-%d", i), workloadAccount)
			created, err := o.kube.CoreV1().Pods(object.Namespace).Create(ctx, object, metav1.CreateOptions{})
			if err != nil {
				return fmt.Errorf("create pod %s/%s: %w", object.Namespace, object.Name, err)
			}
			made[i] = pod{created.Namespace, created.Name, string(created.UID), workloadAccount}
			return nil
		})
	}
	return made, group.Wait()
}

func namespaceName(i int) string { return fmt.Sprintf("bench-%d", i) }

func (o *objects) namespace(ctx context.Context, name string) error {
	if _, err := o.kube.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("create namespace %s: %w", name, err)
	}
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: workloadAccount}}
	if _, err := o.kube.CoreV1().ServiceAccounts(name).Create(ctx, account, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("create service account in namespace %s: %w", name, err)
	}
	return nil
}

// podObject is a pod that is bound to the node and mounts the driver. Nothing runs
// it.
func podObject(namespace, name, account string) *corev1.Pod {
	no, yes, now := false, true, int64(0)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec: corev1.PodSpec{
			NodeName: nodeID, ServiceAccountName: account, AutomountServiceAccountToken: &no,
			Tolerations: everything, TerminationGracePeriodSeconds: &now,
			Containers: []corev1.Container{{
				Name: "app", Image: "signet.invalid/none",
				VolumeMounts: []corev1.VolumeMount{{Name: volumeName, MountPath: "/var/run/secrets/spiffe.io", ReadOnly: true}},
			}},
			Volumes: []corev1.Volume{{
				Name:         volumeName,
				VolumeSource: corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{Driver: install.DriverName, ReadOnly: &yes}},
			}},
		},
	}
}

// approverMetrics reads the metrics of all replicas of the approver, through the
// API server.
func (o *objects) approverMetrics(ctx context.Context) (Metrics, error) {
	pods, err := o.kube.CoreV1().Pods(install.Namespace).List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=" + install.ApproverName})
	if err != nil {
		return nil, fmt.Errorf("find the approvers: %w", err)
	}
	all := Metrics{}
	for _, p := range pods.Items {
		text, err := o.kube.CoreV1().Pods(p.Namespace).ProxyGet("http", p.Name, "9402", "metrics", nil).DoRaw(ctx)
		if err != nil {
			return nil, fmt.Errorf("read metrics of %s: %w", p.Name, err)
		}
		m, err := ParseMetrics(text)
		if err != nil {
			return nil, fmt.Errorf("read metrics of %s: %w", p.Name, err)
		}
		all.Join(m)
	}
	return all, nil
}
