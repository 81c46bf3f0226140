package cluster

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"

	"github.com/vishvananda/netlink"

	"github.com/csi-dmsnap/csi-dmsnap/test/e2e/controlplane"
)

// nodeNet is the network of one node: a tap device whose other end is in the
// control plane's network namespace, which routes between the nodes.
type nodeNet struct {
	tap     string
	gateway netip.Prefix // the namespace's end
	address netip.Prefix // the node's end
	pods    netip.Prefix
}

// netOf returns the network of the node with the number i, from 1.
func netOf(i int) nodeNet {
	third := byte(i)
	return nodeNet{
		tap:     "tap" + strconv.Itoa(i),
		gateway: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 200, third, 1}), 24),
		address: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 200, third, 2}), 24),
		pods:    netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, third, 0}), 24),
	}
}

// connectNamespace sets up this process's network namespace, which must be a
// new one. The namespace and its devices end with the last process in it.
func connectNamespace(nodes []nodeNet) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("setting up lo: %w", err)
	}
	service := netip.PrefixFrom(netip.MustParseAddr(controlplane.ServiceIP), 32)
	if err := netlink.AddrAdd(lo, &netlink.Addr{IPNet: ipNet(service)}); err != nil {
		return fmt.Errorf("address of the API server: %w", err)
	}
	for _, n := range nodes {
		if err := n.connect(); err != nil {
			return fmt.Errorf("network device %s: %w", n.tap, err)
		}
	}
	return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0)
}

func (n nodeNet) connect() error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = n.tap
	if err := netlink.LinkAdd(&netlink.Tuntap{LinkAttrs: attrs, Mode: netlink.TUNTAP_MODE_TAP}); err != nil {
		return err
	}
	link, err := netlink.LinkByName(n.tap)
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: ipNet(n.gateway)}); err != nil {
		return err
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return err
	}
	return netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(n.pods), Gw: n.address.Addr().AsSlice()})
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
