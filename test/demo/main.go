// Command demo takes a volume through its life by calls to the CSI socket, on a
// real kernel, and prints each step. It checks every claim and exits with code
// 1 at the first claim that does not hold.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/csi-dmsnap/csi-dmsnap/test/machine"
)

const (
	group = "volumeGroup" // the names of the kernel's document
	gib   = int64(1) << 30

	otherGroup = "vg-large"
	allDisks   = "/dev/disk/by-id/nvme-*"

	fsType  = "ext4"
	timeout = 5 * time.Minute
)

func main() {
	driver := flag.String("driver", "bin/csi-dmsnap", "the driver's binary")
	flag.Parse()
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	dir, err := os.MkdirTemp("", "dmsnap-demo-")
	if err != nil {
		fail("%v", err)
	}
	d := &demo{ctx: ctx, dir: dir}
	disks := strings.Split(os.Getenv("DMSNAP_TEST_DISKS"), ",")
	if len(disks) < 3 {
		fail("DMSNAP_TEST_DISKS must name three scratch disks; run hack/demo")
	}
	kernel := strings.TrimSpace(string(must(os.ReadFile("/proc/sys/kernel/osrelease"))))
	fmt.Printf("Kernel %s, scratch disk %s.\n", kernel, disks[0])
	pools, devices := 1, disks[0]
	if err := machine.Ours(); err == nil {
		d.prepare(disks[1], disks[2])
		pools, devices = 2, allDisks
	}
	stop := d.start(*driver, disks[0], devices, pools)
	d.run()
	stop()
	for _, undo := range slices.Backward(d.undo) {
		must(0, undo())
	}
	fmt.Printf("\nAll %d checks held.\n", d.checks)
}

// demo is a running demonstration.
type demo struct {
	ctx        context.Context
	dir        string
	conn       *grpc.ClientConn
	controller csi.ControllerClient
	node       csi.NodeClient
	undo       []func() error // undo the preparation of the machine
	steps      int
	checks     int
}

func fail(format string, args ...any) {
	fmt.Printf("\n  FAILED: "+format+"\n", args...)
	os.Exit(1)
}

// say begins a step.
func (d *demo) say(format string, args ...any) {
	d.steps++
	fmt.Printf("\n%d. %s\n", d.steps, fmt.Sprintf(format, args...))
}

// check reports a claim and ends the demonstration if it does not hold.
func (d *demo) check(holds bool, format string, args ...any) {
	claim := fmt.Sprintf(format, args...)
	if !holds {
		fail("%s", claim)
	}
	d.checks++
	fmt.Printf("   ✓ %s\n", claim)
}

// must ends the demonstration on an error.
func must[T any](v T, err error) T {
	if err != nil {
		fail("%v", err)
	}
	return v
}

// show runs a command in a shell and prints the command and its output.
func show(command string) string {
	fmt.Printf("\n   # %s\n", command)
	out, err := exec.Command("sh", "-c", command).CombinedOutput()
	for _, line := range strings.Split(strings.TrimRight(string(out), "\n"), "\n") {
		fmt.Printf("   %s\n", line)
	}
	if err != nil {
		fail("%s: %v", command, err)
	}
	return string(out)
}

// prepare makes the machine look like a typical one: udev, a system disk, and a
// volume group that is not the driver's.
func (d *demo) prepare(system, large string) {
	fmt.Printf("udev is running, each disk has three links, and LVM2 uses a devices file.\n"+
		"%s is the system disk, %s has a volume group of LVM2's, and the third disk is blank.\n", system, large)
	root := filepath.Join(d.dir, "root")
	must(0, os.Mkdir(root, 0o700))
	for _, part := range []func() (func() error, error){
		machine.Links, func() (func() error, error) { return machine.System(system, root) }, machine.Udev, machine.DevicesFile,
	} {
		undo := must(part())
		d.undo = append(d.undo, undo)
	}
	show("vgcreate -q " + otherGroup + " " + large)
	show("ls /dev/disk/by-id | head -6; lsblk -o NAME,SIZE,MOUNTPOINTS -e 7 -e 43")
}

// start configures a pool of devices, of which only disk is suitable. It starts
// the driver and connects to it.
func (d *demo) start(driver, disk, devices string, pools int) (stop func()) {
	d.say("Start the driver with a pool on the blank disk")
	config, socket := filepath.Join(d.dir, "config.yaml"), filepath.Join(d.dir, "csi.sock")
	text := fmt.Sprintf("pools:\n- name: fast\n  volumeGroup: %s\n  devices: [%s]\n  create: true\n  chunkSize: 8Ki\n  firstStoreSize: 100Mi\n", group, devices)
	if pools > 1 {
		text += "- name: large\n  volumeGroup: " + otherGroup + "\n"
	}
	must(0, os.WriteFile(config, []byte(text), 0o600))
	args := []string{"node", "--config", config, "--endpoint", "unix://" + socket, "--node-name", "demo", "--kubelet-dir", d.dir}
	fmt.Printf("   csi-dmsnap %s\n   with\n      %s\n", strings.Join(args, " "), strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n      "))
	log := must(os.Create(filepath.Join(d.dir, "driver.log")))
	cmd := exec.Command(driver, args...)
	cmd.Stdout, cmd.Stderr = log, log
	must(0, cmd.Start())
	d.conn = must(grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials())))
	d.controller, d.node = csi.NewControllerClient(d.conn), csi.NewNodeClient(d.conn)
	identity := csi.NewIdentityClient(d.conn)
	ready := false
	for wait, end := d.ctx, time.Now().Add(30*time.Second); !ready && time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		r, err := identity.Probe(wait, &csi.ProbeRequest{})
		ready = err == nil && (r.GetReady() == nil || r.GetReady().GetValue())
	}
	if !ready {
		text, _ := os.ReadFile(log.Name())
		fail("the driver did not become ready; its log:\n%s", text)
	}
	info := must(identity.GetPluginInfo(d.ctx, &csi.GetPluginInfoRequest{}))
	d.check(info.GetName() == "dmsnap.csi-dmsnap.github.io", "the driver answers on its socket: %s %s", info.GetName(), info.GetVendorVersion())
	if pools > 1 {
		out := show(driver + " pools --config " + config)
		d.check(strings.Count(out, "\nfast ") == 6 && strings.Contains(out, "has partitions") && !strings.Contains(out, "wipe"),
			"only the blank disk is in the pool, of all devices that the pattern matches")
		out = show("pvs -o pv_name,vg_name")
		d.check(strings.Contains(out, disk+" "), "LVM2 uses its devices file and sees the new group on %s", disk)
	}
	return func() {
		d.say("Stop the driver")
		must(0, cmd.Process.Signal(os.Interrupt))
		err := cmd.Wait()
		d.check(err == nil, "the driver stopped cleanly")
	}
}
