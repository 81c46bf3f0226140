package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
)

// queries is the number of times that each question is asked.
const queries = 5

// existing returns the ids of the pool's volumes by their logical volumes, and
// the names of the logical volumes of its snapshots. A short plain name is the
// logical volume's name too.
func (d *driver) existing() (volumes map[string]string, snapshots map[string]bool, err error) {
	v, err := d.controller.ListVolumes(context.Background(), &csi.ListVolumesRequest{})
	if err != nil {
		return nil, nil, err
	}
	s, err := d.controller.ListSnapshots(context.Background(), &csi.ListSnapshotsRequest{})
	if err != nil {
		return nil, nil, err
	}
	volumes, snapshots = map[string]string{}, map[string]bool{}
	for _, e := range v.GetEntries() {
		volumes[lastPart(e.GetVolume().GetVolumeId())] = e.GetVolume().GetVolumeId()
	}
	for _, e := range s.GetEntries() {
		snapshots[lastPart(e.GetSnapshot().GetSnapshotId())] = true
	}
	return volumes, snapshots, nil
}

func lastPart(id string) string { return id[strings.LastIndexByte(id, '/')+1:] }

// asked calls f several times, and returns the median time.
func asked(f func() error) (*figure, error) {
	_, took, err := together(queries, 1, func(int) error { return f() })
	if err != nil {
		return nil, err
	}
	return median(took), nil
}

// queries measures what the driver's lists, its metrics and the operator's commands
// cost, and the driver's memory before and after.
func (s *scale) queries(d *driver, at *step) (err error) {
	if at.RSS, err = d.rss(); err != nil {
		return err
	}
	if at.ListVolumes, err = asked(func() error {
		r, err := d.controller.ListVolumes(context.Background(), &csi.ListVolumesRequest{})
		if err == nil && len(r.GetEntries()) < at.Volumes {
			err = fmt.Errorf("ListVolumes has %d volumes, and %d were made", len(r.GetEntries()), at.Volumes)
		}
		return err
	}); err != nil {
		return err
	}
	if at.ListSnapshots, err = asked(func() error {
		r, err := d.controller.ListSnapshots(context.Background(), &csi.ListSnapshotsRequest{})
		if err == nil && len(r.GetEntries()) < at.Snapshots {
			err = fmt.Errorf("ListSnapshots has %d snapshots, and %d were made", len(r.GetEntries()), at.Snapshots)
		}
		return err
	}); err != nil {
		return err
	}
	length := 0
	if at.Metrics, err = asked(func() (err error) { length, err = scrape(); return err }); err != nil {
		return err
	}
	at.MetricsSize = value(float64(length)/1024, "KiB")
	for name, to := range map[string]**figure{"volumes": &at.CommandVolumes, "snapshots": &at.CommandSnapshots, "check": &at.CommandCheck} {
		began := time.Now()
		out, err := exec.Command(d.binary, name, "--config", d.config(), "--endpoint", "unix://"+d.socket()).CombinedOutput()
		if err != nil {
			return fmt.Errorf("csi-dmsnap %s: %w\n%s", name, err, out)
		}
		*to = value(time.Since(began).Seconds(), "s")
	}
	at.RSSAsked, err = d.rss()
	return err
}

// scrape returns the length of the driver's metrics.
func scrape() (length int, err error) {
	r, err := http.Get("http://" + metricsAt + "/metrics")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, r.Body.Close()) }()
	text, err := io.ReadAll(r.Body)
	if err == nil && (r.StatusCode != http.StatusOK || !strings.Contains(string(text), "csi_dmsnap_pool_volumes")) {
		err = fmt.Errorf("the driver's metrics: %s\n%s", r.Status, text)
	}
	return len(text), err
}

// activation measures how long all volumes of a node with a snapshot each need to
// get their devices after a boot: by the driver, and by vgchange.
func (s *scale) activation(disk string, volumes int) error {
	dir := filepath.Join(s.dir, "activation")
	d, err := start(s.binary, dir, disk)
	if err != nil {
		return err
	}
	defer func() { d.kill() }()
	a := &activation{Volumes: volumes}
	s.results.Activation = a
	fmt.Printf("%d volumes with a snapshot each\n", volumes)
	ids := make([]string, volumes)
	if _, _, err := together(volumes, creators, func(i int) (err error) {
		ids[i], err = d.create(volumeName(i), true)
		return err
	}); err != nil {
		return err
	}
	if _, _, err := together(volumes, snapshooters, func(i int) error {
		_, err := d.snapshot(ids[i], snapshotName(i, 0))
		return err
	}); err != nil {
		return err
	}
	all := func(f func(id string) error) (*figure, error) {
		rate, _, err := together(volumes, stagers, func(i int) error { return f(ids[i]) })
		if err != nil {
			return nil, err
		}
		return say("all volumes", value(float64(volumes)/rate, "s")), nil
	}
	// The first activation also records that somebody may write to the volume.
	if a.First, err = all(d.stage); err != nil {
		return err
	}
	if err := d.stop(); err != nil {
		return err
	}
	if d, err = start(s.binary, dir, disk); err != nil {
		return err
	}
	a.StartActive = d.started
	if a.RSSActive, err = d.rss(); err != nil {
		return err
	}
	if a.MetricsActive, err = asked(func() error { _, err := scrape(); return err }); err != nil {
		return err
	}
	if a.Deactivate, err = all(d.unstage); err != nil {
		return err
	}
	if err := d.stop(); err != nil {
		return err
	}
	if d, err = start(s.binary, dir, disk); err != nil { // as after a boot: no device is there
		return err
	}
	a.Start = d.started
	if a.Driver, err = all(d.stage); err != nil {
		return err
	}
	if _, err := all(d.unstage); err != nil {
		return err
	}
	if err := d.stop(); err != nil {
		return err
	}
	return s.vgchange(a)
}

// vgchange measures LVM2's own activation.
func (s *scale) vgchange(a *activation) error {
	for _, x := range []struct {
		how string
		to  **figure
	}{{"-ay", &a.LVM2}, {"-an", &a.LVM2Deactivate}} {
		began := time.Now()
		out, err := exec.Command("vgchange", x.how, group).CombinedOutput()
		if err != nil {
			return fmt.Errorf("vgchange %s: %w\n%s", x.how, err, out)
		}
		*x.to = say("vgchange "+x.how, value(time.Since(began).Seconds(), "s"))
	}
	a.Ratio = value(a.LVM2.Value/a.Driver.Value, "×")
	return nil
}
