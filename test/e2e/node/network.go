package node

import (
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
)

// device is the test kernel's name of its tap device.
const device = "vec0"

// connect gives the node its address, and the default route.
func connect(c *Config) error {
	link, err := netlink.LinkByName(device)
	if err != nil {
		return fmt.Errorf("network device %s: %w", device, err)
	}
	if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: ipNet(c.Address)}); err != nil {
		return fmt.Errorf("address %v: %w", c.Address, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("network device %s: %w", device, err)
	}
	route := netlink.Route{LinkIndex: link.Attrs().Index, Gw: c.Gateway.AsSlice()}
	if err := netlink.RouteAdd(&route); err != nil {
		return fmt.Errorf("default route through %v: %w", c.Gateway, err)
	}
	return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
