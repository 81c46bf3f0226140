//go:build kernel

package lvm2

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"
)

// TestLockVG_lvm2: lvm2 waits for the locks of this package, and this package
// for lvm2's.
func TestLockVG_lvm2(t *testing.T) {
	ctx := context.Background()
	disks := scratch(t, 1)
	lvm(t, "vgcreate", "vg", disks[0])
	lvm(t, "lvcreate", "-an", "-Zn", "-Wn", "-n", "a", "-l", "1", "vg")

	for _, c := range []struct {
		mode    LockMode
		command string
		blocks  bool
	}{
		{Exclusive, "lvs vg", true}, {Exclusive, "lvchange --addtag x vg/a", true},
		{Shared, "lvs vg", false}, {Shared, "lvchange --addtag y vg/a", true},
	} {
		l, err := kernelHost.LockVG(ctx, "vg", c.mode)
		if err != nil {
			t.Fatal(err)
		}
		cmd := lvmCommand(strings.Fields(c.command)...)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		limit := 700 * time.Millisecond
		if !c.blocks {
			limit = 20 * time.Second
		}
		select {
		case err := <-ended:
			if c.blocks || err != nil {
				t.Errorf("%s ended while the test held the lock in mode %v: %v", c.command, c.mode, err)
			}
			ended <- err
		case <-time.After(limit):
			if !c.blocks {
				t.Errorf("%s waits for a lock in mode %v", c.command, c.mode)
			}
		}
		if err := l.Unlock(); err != nil {
			t.Error(err)
		}
		if err := <-ended; err != nil {
			t.Errorf("%s: %v", c.command, err)
		}
	}
	if row := fields(t, "lvs", "-o", "lv_tags", "vg")[0]; row[0] != "x,y" {
		t.Errorf("tags %v", row)
	}

	// vgremove asks its question while it holds the lock.
	cmd := lvmCommand("vgremove", "vg")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := bufio.NewReader(out).ReadString('?'); err != nil {
		t.Fatalf("vgremove does not ask: %v", err)
	}
	for _, mode := range []LockMode{Shared, Exclusive} {
		short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
		if l, err := kernelHost.LockVG(short, "vg", mode); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("mode %v while vgremove holds the lock: %v", mode, err)
			if l != nil {
				l.Unlock()
			}
		}
		cancel()
	}
	got := make(chan error, 1)
	go func() {
		l, err := kernelHost.LockVG(ctx, "vg", Exclusive)
		if err == nil {
			err = l.Unlock()
		}
		got <- err
	}()
	if _, err := io.WriteString(in, "n\n"); err != nil {
		t.Fatal(err)
	}
	in.Close()
	if err := <-got; err != nil {
		t.Errorf("after vgremove ended: %v", err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("vgremove continued after the answer n")
	}
	if entries, err := os.ReadDir("/run/lock/lvm"); err != nil || len(entries) > 0 {
		t.Errorf("left in the lock directory: %v, %v", entries, err)
	}
}
