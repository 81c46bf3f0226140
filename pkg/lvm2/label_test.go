//go:build !kernel

package lvm2

import (
	"bytes"
	"errors"
	"reflect"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestLabel_asLVM2: lvm2's label decodes and encodes to the same bytes, and a
// damaged label is an error.
func TestLabel_asLVM2(t *testing.T) {
	written := golden(t, "label.bin")
	l, err := findLabel(atSector(1, written))
	if err != nil || l == nil {
		t.Fatal(l, err)
	}
	want := label{id: "gY0xmQ2q4DdrYUMR1Oo2qdwijL1mvcLb", size: size.GiB, data: []region{{size.MiB, 0}}, metadata: []region{{4 * size.KiB, 1044480}}, used: true}
	if !reflect.DeepEqual(*l, want) {
		t.Errorf("got %+v, want %+v", *l, want)
	}
	if !bytes.Equal(l.encode(), written) {
		t.Errorf("encoded\n%x\nlvm2 wrote\n%x", l.encode(), written)
	}
	if l, err := findLabel(atSector(2, written)); l != nil || err != nil {
		t.Errorf("a label in another sector than it names: %v, %v", l, err)
	}
	damaged := bytes.Clone(written)
	damaged[100] ^= 1
	if l, err := findLabel(atSector(1, damaged)); !errors.Is(err, ErrDamaged) {
		t.Errorf("damaged: %v, %v", l, err)
	}
}

// FuzzLabel: a label that decodes survives a round trip.
func FuzzLabel(f *testing.F) {
	f.Add(golden(f, "label.bin"))
	f.Fuzz(func(t *testing.T, sector []byte) {
		if len(sector) != size.SectorBytes {
			return
		}
		// Without the checksum, which a fuzzer would not guess.
		l, err := decodeLabel(sector)
		if err != nil || l == nil || len(l.data)+len(l.metadata) > 15 {
			return
		}
		again, err := findLabel(atSector(labelSector, l.encode()))
		if err != nil || !reflect.DeepEqual(l, again) {
			t.Fatalf("%+v became %+v, %v", l, again, err)
		}
	})
}
