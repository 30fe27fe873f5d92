// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"fmt"
	"net"
	"os"

	"github.com/vishvananda/netlink"
)

const bridgeName = "nodes"

// setUpControlPlaneNetwork makes the bridge that the nodes hang on, in the
// network namespace of the supervisor.
func setUpControlPlaneNetwork() error {
	if err := loopbackUp(); err != nil {
		return err
	}
	// Until kube-proxy has programmed its rules, and for the control plane
	// itself, the service address is simply the API server's.
	if err := addAddress("lo", kubernetesServiceIP+"/32"); err != nil {
		return err
	}
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridgeName}}); err != nil {
		return fmt.Errorf("add bridge: %w", err)
	}
	if err := addAddress(bridgeName, controlPlaneIP+"/24"); err != nil {
		return err
	}
	return forward()
}

// connectNode joins node i (from 1), whose init process has the given number
// in this PID namespace, to the bridge.
func connectNode(i, pid int) error {
	bridge, err := netlink.LinkByName(bridgeName)
	if err != nil {
		return fmt.Errorf("connect %s: find bridge: %w", nodeName(i), err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = nodeName(i)
	attrs.MasterIndex = bridge.Attrs().Index
	pair := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsPid(pid)}
	if err := netlink.LinkAdd(pair); err != nil {
		return fmt.Errorf("connect %s: add veth pair: %w", nodeName(i), err)
	}
	if err := netlink.LinkSetUp(pair); err != nil {
		return fmt.Errorf("connect %s: set link up: %w", nodeName(i), err)
	}
	return addRoute(podRange(i), nodeIP(i))
}

// disconnectNode removes what connectNode made. The kernel removes the pair by
// itself too, but only some time after the node has ended.
func disconnectNode(i int) error {
	link, err := netlink.LinkByName(nodeName(i))
	if _, gone := err.(netlink.LinkNotFoundError); gone {
		err, link = nil, nil
	}
	if err != nil {
		return fmt.Errorf("disconnect %s: %w", nodeName(i), err)
	}
	if link != nil {
		if err := netlink.LinkDel(link); err != nil {
			return fmt.Errorf("disconnect %s: %w", nodeName(i), err)
		}
	}
	return nil
}

// setUpNodeNetwork configures node i of n, in its own network namespace, once
// it has been connected.
func setUpNodeNetwork(i, n int) error {
	if err := loopbackUp(); err != nil {
		return err
	}
	if err := addAddress("eth0", nodeIP(i)+"/24"); err != nil {
		return err
	}
	if err := addRoute("0.0.0.0/0", controlPlaneIP); err != nil {
		return err
	}
	for other := range n {
		if other+1 == i {
			continue
		}
		if err := addRoute(podRange(other+1), nodeIP(other+1)); err != nil {
			return err
		}
	}
	return forward()
}

func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback interface: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set loopback interface up: %w", err)
	}
	return nil
}

// addAddress gives an interface an address and sets it up.
func addAddress(name, cidr string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find interface %s: %w", name, err)
	}
	addr, err := netlink.ParseAddr(cidr)
	if err != nil {
		return fmt.Errorf("address %s: %w", cidr, err)
	}
	if err := netlink.AddrAdd(link, addr); err != nil {
		return fmt.Errorf("add address %s to %s: %w", cidr, name, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set interface %s up: %w", name, err)
	}
	return nil
}

func addRoute(to, via string) error {
	_, network, err := net.ParseCIDR(to)
	if err != nil {
		return fmt.Errorf("route to %s: %w", to, err)
	}
	if err := netlink.RouteReplace(&netlink.Route{Dst: network, Gw: net.ParseIP(via)}); err != nil {
		return fmt.Errorf("add route to %s via %s: %w", to, via, err)
	}
	return nil
}

// forward lets the kernel route between interfaces of this network namespace.
func forward() error {
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0); err != nil {
		return fmt.Errorf("enable forwarding: %w", err)
	}
	return nil
}
