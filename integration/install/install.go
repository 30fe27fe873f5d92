// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package install

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	apiutil "github.com/cert-manager/cert-manager/pkg/api/util"
	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	cmclient "github.com/cert-manager/cert-manager/pkg/client/clientset/versioned"
	"golang.org/x/sync/errgroup"
	appsv1 "k8s.io/api/apps/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/retry"

	"github.com/signet-spiffe/signet/integration/cluster"
)

// Installer installs on one cluster.
type Installer struct {
	cluster  *cluster.Cluster
	kubectl  string
	root     string
	progress io.Writer

	// Kube and CertManager are clients with an administrator's rights and
	// without a client-side rate limit.
	Kube        kubernetes.Interface
	CertManager cmclient.Interface
}

// New prepares to install on c; progress receives one line per step.
func New(c *cluster.Cluster, progress io.Writer) (*Installer, error) {
	root, err := repository()
	if err != nil {
		return nil, err
	}
	kube, err := kubernetes.NewForConfig(c.RESTConfig())
	if err != nil {
		return nil, fmt.Errorf("make a client: %w", err)
	}
	certManager, err := cmclient.NewForConfig(c.RESTConfig())
	if err != nil {
		return nil, fmt.Errorf("make a cert-manager client: %w", err)
	}
	return &Installer{
		cluster: c, kubectl: c.Binaries()["kubectl"], root: root, progress: progress, Kube: kube, CertManager: certManager,
	}, nil
}

// stepTimeout bounds each step; a loaded machine with two cores needs a small
// part of it.
const stepTimeout = 3 * time.Minute

// Issuer applies the example issuer, approves its root as an administrator
// does, and waits until it can sign.
func (in *Installer) Issuer(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	manifest, err := os.ReadFile(filepath.Join(in.root, "deploy", "examples", "cluster-issuer.yaml"))
	if err != nil {
		return fmt.Errorf("install issuer: %w", err)
	}
	if err := in.cluster.Apply(ctx, manifest); err != nil {
		return fmt.Errorf("install issuer: %w", err)
	}
	if err := in.approveRoot(ctx); err != nil {
		return fmt.Errorf("install issuer: %w", err)
	}
	_, err = Await(ctx, Selection{
		Client: in.CertManager.CertmanagerV1().RESTClient(), Resource: "clusterissuers", Name: IssuerName,
		What: "ClusterIssuer " + IssuerName + " to be ready",
	}, func(issuer *cmapi.ClusterIssuer, _ bool) error {
		if apiutil.IssuerHasCondition(issuer, cmapi.IssuerCondition{Type: cmapi.IssuerConditionReady, Status: cmmeta.ConditionTrue}) {
			return nil
		}
		return fmt.Errorf("its conditions are %+v", issuer.Status.Conditions)
	})
	if err != nil {
		return fmt.Errorf("install issuer: %w", err)
	}
	fmt.Fprintf(in.progress, "ClusterIssuer %s is ready\n", IssuerName)
	return nil
}

// rootNamespace is where the example's root Certificate lives.
const rootNamespace = "cert-manager"

// approveRoot approves the one request that exists before there is an approver:
// the root's own.
func (in *Installer) approveRoot(ctx context.Context) error {
	request, err := Await(ctx, Selection{
		Client: in.CertManager.CertmanagerV1().RESTClient(), Resource: "certificaterequests", Namespace: rootNamespace,
		What: "the CertificateRequest of the root",
	}, func(cr *cmapi.CertificateRequest, deleted bool) error {
		if deleted || !cr.Spec.IsCA {
			return fmt.Errorf("CertificateRequest %s is not it", cr.Name)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return in.Approve(ctx, request.Namespace, request.Name)
}

// Approve approves a request with an administrator's rights, as
// `cmctl approve` does.
func (in *Installer) Approve(ctx context.Context, namespace, name string) error {
	requests := in.CertManager.CertmanagerV1().CertificateRequests(namespace)
	err := retry.RetryOnConflict(retry.DefaultRetry, func() error {
		cr, err := requests.Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if apiutil.CertificateRequestIsApproved(cr) {
			return nil
		}
		apiutil.SetCertificateRequestCondition(cr, cmapi.CertificateRequestConditionApproved, cmmeta.ConditionTrue,
			"ApprovedByAdministrator", "approved by hand")
		_, err = requests.UpdateStatus(ctx, cr, metav1.UpdateOptions{})
		return err
	})
	if err != nil {
		return fmt.Errorf("approve CertificateRequest %s/%s: %w", namespace, name, err)
	}
	return nil
}

// Signet applies deploy/manifests, changed as o says, and waits until agents and
// approvers are ready and kubelet knows the driver on every node. Calling it
// again with other options changes the installation.
func (in *Installer) Signet(ctx context.Context, o Options) error {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	manifest, err := kustomize(ctx, in.kubectl, filepath.Join(in.root, "deploy"), o)
	if err != nil {
		return fmt.Errorf("install signet: %w", err)
	}
	if manifest, err = edit(manifest, o); err != nil {
		return fmt.Errorf("install signet: %w", err)
	}
	if err := in.cluster.Apply(ctx, manifest); err != nil {
		return fmt.Errorf("install signet: %w", err)
	}
	if err := in.WaitReady(ctx); err != nil {
		return fmt.Errorf("install signet: %w", err)
	}
	return nil
}

// WaitReady waits until the agents and approvers of the latest manifests run
// and kubelet knows the driver on every node. When they do not, its error says
// which pod is to blame.
func (in *Installer) WaitReady(ctx context.Context) error {
	return in.waitReady(ctx, Namespace, DriverName)
}

func (in *Installer) waitReady(ctx context.Context, namespace, driver string) error {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	group, waiting := errgroup.WithContext(ctx)
	group.Go(func() error { return in.waitAgents(waiting, namespace, driver) })
	group.Go(func() error { return in.waitApprovers(waiting, namespace) })
	if err := group.Wait(); err != nil {
		// The context may have ended; what went wrong is still there to read.
		reading, cancel := context.WithTimeout(context.WithoutCancel(ctx), 15*time.Second)
		defer cancel()
		return errors.Join(err, in.blame(reading, namespace))
	}
	return nil
}

func (in *Installer) waitAgents(ctx context.Context, namespace, driver string) error {
	_, err := Await(ctx, Selection{
		Client: in.Kube.AppsV1().RESTClient(), Resource: "daemonsets", Namespace: namespace, Name: AgentName,
		What: "the agents to be ready",
	}, func(d *appsv1.DaemonSet, _ bool) error {
		s := d.Status
		if s.ObservedGeneration >= d.Generation && int(s.DesiredNumberScheduled) == len(in.cluster.Nodes()) &&
			s.UpdatedNumberScheduled == s.DesiredNumberScheduled && s.NumberAvailable == s.DesiredNumberScheduled {
			return nil
		}
		return fmt.Errorf("%d of %d agents are up to date, %d are ready", s.UpdatedNumberScheduled, len(in.cluster.Nodes()), s.NumberAvailable)
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(in.progress, "agents are ready on %d nodes\n", len(in.cluster.Nodes()))
	for _, node := range in.cluster.Nodes() {
		if err := in.waitDriver(ctx, node.Name, driver); err != nil {
			return err
		}
	}
	fmt.Fprintf(in.progress, "kubelet knows the driver on every node\n")
	return nil
}

func (in *Installer) waitDriver(ctx context.Context, node, name string) error {
	_, err := Await(ctx, Selection{
		Client: in.Kube.StorageV1().RESTClient(), Resource: "csinodes", Name: node,
		What: "CSINode " + node + " to list driver " + name,
	}, func(n *storagev1.CSINode, _ bool) error {
		for _, driver := range n.Spec.Drivers {
			if driver.Name == name {
				return nil
			}
		}
		return fmt.Errorf("it lists %d other drivers", len(n.Spec.Drivers))
	})
	return err
}

func (in *Installer) waitApprovers(ctx context.Context, namespace string) error {
	_, err := Await(ctx, Selection{
		Client: in.Kube.AppsV1().RESTClient(), Resource: "deployments", Namespace: namespace, Name: ApproverName,
		What: "the approvers to be ready",
	}, func(d *appsv1.Deployment, _ bool) error {
		s := d.Status
		if s.ObservedGeneration >= d.Generation && s.Replicas == *d.Spec.Replicas &&
			s.UpdatedReplicas == *d.Spec.Replicas && s.AvailableReplicas == *d.Spec.Replicas {
			return nil
		}
		return fmt.Errorf("%d of %d approvers are up to date, %d are ready", s.UpdatedReplicas, *d.Spec.Replicas, s.AvailableReplicas)
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(in.progress, "approvers are ready\n")
	return nil
}

// Example applies a file of deploy/examples, object by object: those that change
// returns true for, as it has left them.
func (in *Installer) Example(ctx context.Context, file string, change func(*unstructured.Unstructured) (bool, error)) error {
	manifest, err := os.ReadFile(filepath.Join(in.root, "deploy", "examples", file))
	if err != nil {
		return fmt.Errorf("apply example: %w", err)
	}
	objects, err := decode(manifest)
	if err != nil {
		return fmt.Errorf("apply example %s: %w", file, err)
	}
	var wanted []*unstructured.Unstructured
	for _, object := range objects {
		keep, err := change(object)
		if err != nil {
			return fmt.Errorf("apply example %s: %s %s: %w", file, object.GetKind(), object.GetName(), err)
		}
		if keep {
			wanted = append(wanted, object)
		}
	}
	changed, err := encode(wanted)
	if err != nil {
		return fmt.Errorf("apply example %s: %w", file, err)
	}
	return in.cluster.Apply(ctx, changed)
}

// SetFlags sets flags of a workload's only container, by name with dashes.
func SetFlags(workload *unstructured.Unstructured, flags map[string]string) error {
	return setFlags(workload, flags)
}
