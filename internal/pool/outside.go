package pool

import (
	"maps"
	"slices"
	"sync"

	"k8s.io/klog/v2"
)

// outside is what is on the machine beside the pool and seems to belong to it.
// Its methods may be called concurrently.
type outside struct {
	told *told

	mu        sync.Mutex // guards what follows; no other lock is taken meanwhile
	leftOut   []LeftOut  // devices that the configuration means and that are not the group's
	strangers []string   // devices that pretend to be the pool's
}

// told is what was logged of devices that are left out. All attempts to open a
// pool share it.
type told struct {
	mu  sync.Mutex // guards why
	why map[string]string
}

// leaveOut notes which of the devices that the configuration means are not the
// pool's, and logs what was not logged before.
func (o *outside) leaveOut(log klog.Logger, left []LeftOut) {
	o.mu.Lock()
	o.leftOut = left
	o.mu.Unlock()
	o.told.mu.Lock()
	defer o.told.mu.Unlock()
	now := map[string]bool{}
	for _, l := range left {
		now[l.Device] = true
		if former, known := o.told.why[l.Device]; !known || former != l.Why {
			log.Info("Left out a device that matches the configuration", "device", l.Device, "why", l.Why)
		}
		o.told.why[l.Device] = l.Why
	}
	maps.DeleteFunc(o.told.why, func(device, _ string) bool { return !now[device] })
}

// leftOuts lists the devices that the configuration means and that are not the
// group's, as of the last look.
func (o *outside) leftOuts() []LeftOut {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.leftOut)
}

// setStrangers notes which devices pretend to be the pool's, and logs them if they are others than before.
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

// pretenders lists the devices that pretend to be the pool's, as of the last look.
func (o *outside) pretenders() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.strangers
}
