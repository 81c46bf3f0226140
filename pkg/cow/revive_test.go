package cow

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestRevive_onlyTheMark: Revive changes only the mark of a lost store, and
// nothing on a device without a store.
func TestRevive_onlyTheMark(t *testing.T) {
	whole := append(NewHeader(16*size.KiB), bytes.Repeat([]byte{0xa5}, int(MinChunk+headerRead))...)
	lost := bytes.Clone(whole)
	binary.LittleEndian.PutUint32(lost[4:], 0)
	foreign := bytes.Clone(lost)
	foreign[0] = 'x'
	for _, x := range []struct {
		name         string
		before, want []byte
		err          error
	}{
		{"lost", lost, whole, nil},
		{"well", whole, whole, nil},
		{"foreign", foreign, foreign, ErrNotStore},
		{"fresh", make([]byte, len(whole)), make([]byte, len(whole)), ErrFresh},
	} {
		path := filepath.Join(t.TempDir(), "store")
		if err := os.WriteFile(path, x.before, 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := rewriteIn(f, "revive", revive); !errors.Is(err, x.err) {
			t.Errorf("%s: %v", x.name, err)
		}
		f.Close()
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, x.want) {
			t.Errorf("%s: the content is wrong, %v", x.name, err)
		}
	}
}

// TestCondemn_onlyTheHeader: Condemn makes any content the store of a lost snapshot, and
// changes nothing behind the header.
func TestCondemn_onlyTheHeader(t *testing.T) {
	for _, before := range [][]byte{bytes.Repeat([]byte{0xa5}, int(2*headerRead)), make([]byte, 2*headerRead), NewHeader(MinChunk)} {
		path := filepath.Join(t.TempDir(), "store")
		if err := os.WriteFile(path, append(before, make([]byte, headerRead)...), 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(rewriteIn(f, "condemn", condemn(16*size.KiB)), f.Close()); err != nil {
			t.Error(err)
		}
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if h, err := parseHeader(got); err != nil || h.Valid || h.Chunk != 16*size.KiB {
			t.Errorf("the header is %+v, %v", h, err)
		}
		if want := append(before[headerBytes:], make([]byte, headerRead)...); !bytes.Equal(got[headerBytes:], want) {
			t.Error("what follows the header has changed")
		}
	}
}

// TestEmpty_firstArea: a store is empty if its first area is, whatever its header is.
func TestEmpty_firstArea(t *testing.T) {
	const chunk = 16 * size.KiB
	store := make([]byte, 4*chunk)
	is := func(want bool) {
		t.Helper()
		if got, err := NewStore("store", bytes.NewReader(store), size.Bytes(len(store))).Empty(chunk); got != want || err != nil {
			t.Errorf("it is empty: %t, %v", got, err)
		}
	}
	is(true)
	copy(store, NewHeader(chunk))
	is(true)
	store[chunk+8] = 2 // the first chunk of the store that has content
	is(false)
	clear(store[:headerBytes])
	is(false)
	if _, err := NewStore("store", bytes.NewReader(store[:chunk]), chunk).Empty(chunk); err == nil {
		t.Error("a store without an area is empty")
	}
}
