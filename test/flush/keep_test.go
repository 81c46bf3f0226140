//go:build kernel

package flush

import (
	"encoding/gob"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/csi-dmsnap/csi-dmsnap/test/powercut/history"
)

// kept is a power cut after which something was wrong.
type kept struct {
	Disks []map[int64][]byte // what it left on the disks, by piece
	Model *history.Model
}

// keep writes the power cut to a file of the host, and says how to check it again.
func (p *player) keep(l loss, seed uint64) string {
	dir := os.Getenv("DMSNAP_SHARE")
	if dir == "" {
		return "to keep the disks for another check, set DMSNAP_SHARE to a directory"
	}
	k := kept{Model: p.story.model}
	for _, m := range p.left(l, seed) {
		k.Disks = append(k.Disks, m.whole())
	}
	path := filepath.Join(dir, fmt.Sprintf("flushes-%d", seed))
	f, err := os.Create(path)
	if err == nil {
		err = errors.Join(gob.NewEncoder(f).Encode(k), f.Close())
	}
	if err != nil {
		return fmt.Sprintf("the disks could not be kept: %v", err)
	}
	return fmt.Sprintf(`to check it again: DMSNAP_SHARE=%s go test -tags kernel -exec "$PWD/hack/testkernel exec" -run TestFlushes -v ./test/flush -args -again %s`, dir, path)
}

// again checks a power cut that was kept.
func (r *rig) again(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	k := kept{Model: history.NewModel()}
	if err := gob.NewDecoder(f).Decode(&k); err != nil {
		return err
	}
	var disks []*memory
	for _, pieces := range k.Disks {
		disks = append(disks, &memory{pieces: pieces})
	}
	return r.examine(disks, k.Model)
}

// whole returns all pieces that are not zeroes.
func (m *memory) whole() map[int64][]byte {
	pieces := map[int64][]byte{}
	for ; m != nil; m = m.below {
		for i, p := range m.pieces {
			if _, newer := pieces[i]; !newer {
				pieces[i] = p
			}
		}
	}
	return pieces
}
