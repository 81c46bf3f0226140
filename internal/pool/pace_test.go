package pool

import (
	"context"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestPace_windowGrows: the next window has the size that is copied in a second, at most
// four times the last size, and from 16 MiB to 1 GiB.
func TestPace_windowGrows(t *testing.T) {
	for _, c := range []struct {
		copied size.Bytes
		took   time.Duration
		next   size.Bytes
	}{
		{16 * size.MiB, 20 * time.Millisecond, 64 * size.MiB},
		{64 * size.MiB, 80 * time.Millisecond, 256 * size.MiB},
		{256 * size.MiB, 500 * time.Millisecond, 512 * size.MiB},
		{512 * size.MiB, 4 * time.Second, 128 * size.MiB},
		{64 * size.MiB, 100 * time.Second, 16 * size.MiB},
		{size.MiB, time.Millisecond, 16 * size.MiB},
		{size.GiB, 100 * time.Millisecond, size.GiB},
	} {
		p := pace{pool: &Pool{group: group{facts: newFacts()}}}
		if p.pause(context.Background(), c.copied, c.took); p.next != c.next {
			t.Errorf("after %v in %v, the next window has %v, want %v", c.copied, c.took, p.next, c.next)
		}
	}
}

// TestPace_pauses: while others use the disks, pauses leave hydration only its share of
// the time.
func TestPace_pauses(t *testing.T) {
	p := pace{pool: &Pool{group: group{facts: newFacts()}, setting: setting{config: Config{HydrationShare: 25}}}, busy: true}
	began := time.Now()
	p.pause(context.Background(), size.MiB, 20*time.Millisecond)
	if took := time.Since(began); took < 60*time.Millisecond {
		t.Errorf("the pause took %v, want at least 60ms", took)
	}
}

// TestUseOf_unknownDevice: the use of a device that does not exist is unknown.
func TestUseOf_unknownDevice(t *testing.T) {
	if _, known := useOf(dm.Device{Major: 4095, Minor: 4095}); known {
		t.Error("the use of a device that does not exist is known")
	}
}
