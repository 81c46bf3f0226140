package pool

import (
	"maps"
	"slices"
	"sync"

	"k8s.io/klog/v2"
)

// outside holds the devices of the machine that seem to belong to the pool, but do
// not. Its methods may be called concurrently.
type outside struct {
	logged *deviceLog

	mu        sync.Mutex // guards the fields below; no other lock is taken while it is held
	leftOut   []LeftOut  // devices that match the configuration, but are not in the group
	strangers []string   // devices that pretend to be the pool's
}

// deviceLog is what was logged about left out devices, by device. All attempts to open a
// pool share it.
type deviceLog struct {
	mu  sync.Mutex // guards why
	why map[string]string
}

// leaveOut records the devices that match the configuration, but are not in the
// group. It logs each of them once, and again if the reason changes.
func (o *outside) leaveOut(log klog.Logger, left []LeftOut) {
	o.mu.Lock()
	o.leftOut = left
	o.mu.Unlock()
	o.logged.mu.Lock()
	defer o.logged.mu.Unlock()
	now := map[string]bool{}
	for _, l := range left {
		now[l.Device] = true
		if former, known := o.logged.why[l.Device]; !known || former != l.Why {
			log.Info("Left out a device that matches the configuration", "device", l.Device, "why", l.Why)
		}
		o.logged.why[l.Device] = l.Why
	}
	maps.DeleteFunc(o.logged.why, func(device, _ string) bool { return !now[device] })
}

// leftOuts returns the devices that match the configuration, but are not in the
// group, as of the last look.
func (o *outside) leftOuts() []LeftOut {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.leftOut)
}

// setStrangers records the devices that pretend to be the pool's, and logs them if
// they have changed.
func (o *outside) setStrangers(log klog.Logger, now []string) {
	o.mu.Lock()
	same := slices.Equal(o.strangers, now)
	o.strangers = now
	o.mu.Unlock()
	if same {
		return
	}
	for _, what := range now {
		log.Info("Ignored a device that is not the pool's", "what", what)
	}
}

// pretenders returns the devices that pretend to be the pool's, as of the last
// look.
func (o *outside) pretenders() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.strangers
}
