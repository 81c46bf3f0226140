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
		if err := revive(f); !errors.Is(err, x.err) {
			t.Errorf("%s: %v", x.name, err)
		}
		f.Close()
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, x.want) {
			t.Errorf("%s: the content is wrong, %v", x.name, err)
		}
	}
}
