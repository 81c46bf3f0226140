package lvm2

import (
	"fmt"
	"os"
	"time"
)

const (
	looksAtOnce  = 32                    // number of devices that are read at a time
	lookPatience = 20 * time.Millisecond // a device that takes longer does not count any more
)

// look is a device that is opened and read, and waited for for a limited time.
type look struct {
	path  string
	limit time.Duration // 0: no limit
	late  <-chan time.Time
	waits *waits
	done  chan seenDevice
	ended chan struct{} // closed when the device has answered
}

// seenDevice is the result of a look. If the device was opened, the receiver closes it.
type seenDevice struct {
	d   *device
	p   *disk
	err error
}

// look begins to open and read a device, for at most limit; 0 is no limit, and then look
// returns after the device has answered.
func (f *finder) look(path string, limit time.Duration) *look {
	l := &look{path: path, limit: limit, waits: f.waits, done: make(chan seenDevice, 1), ended: make(chan struct{})}
	if limit == 0 {
		l.run()
		return l
	}
	l.waits = f.other
	if l.waits.longer(path, limit) { // an earlier search still waits for it
		l.done <- seenDevice{err: l.silent()}
		close(l.ended)
		return l
	}
	l.late = time.After(limit)
	go l.run()
	return l
}

func (l *look) run() {
	var r seenDevice
	if r.d, r.err = openWaited(l.path, os.O_RDONLY, l.waits); r.err == nil {
		r.p, r.err = inspect(r.d)
	}
	l.done <- r
	close(l.ended)
}

// await waits until the device has answered, or for a time.
func (l *look) await(patience time.Duration) {
	select {
	case <-l.ended:
	case <-time.After(patience):
	}
}

func (l *look) silent() error {
	return fmt.Errorf("device %s has not answered for %v, and was skipped", l.path, l.limit)
}

// wait waits for the end of the look, or of its time. A device that has answered by now
// is in time: wait may be called late.
func (l *look) wait() seenDevice {
	select {
	case <-l.ended:
		return <-l.done
	default:
	}
	select {
	case <-l.ended:
		return <-l.done
	case <-l.late:
		go func() {
			if r := <-l.done; r.d != nil {
				r.d.file.Close()
			}
		}()
		return seenDevice{err: l.silent()}
	}
}

// looked is wait for a search. It returns nil for a device that was already added under
// another path.
func (f *finder) looked(l *look) (*disk, error) {
	r := l.wait()
	switch {
	case r.d == nil:
		return nil, r.err
	case f.seen(r.d.id):
		return nil, r.d.file.Close()
	}
	r.d.waits = f.waits
	f.opened = append(f.opened, r.d)
	return r.p, r.err
}

// addOthers is add for many devices that may not answer. It waits for all of them at the
// same time.
func (f *finder) addOthers(paths []string, open map[identity]*device, limit time.Duration) {
	var looks []*look
	begun := map[identity]bool{}
	for _, path := range paths {
		id, err := identifyPath(path)
		switch {
		case err == nil && open[id] != nil:
			f.add(path, open, limit)
			continue
		case err == nil && (f.seen(id) || begun[id]):
			continue
		}
		begun[id] = err == nil
		looks = append(looks, f.look(path, limit))
		if n := len(looks) - looksAtOnce; n >= 0 {
			looks[n].await(lookPatience) // so that devices that answer do not need a thread each
		}
	}
	for _, l := range looks {
		f.found(f.looked(l))
	}
}
