//go:build kernel

package flush

import "github.com/csi-dmsnap/csi-dmsnap/pkg/size"

const piece = 64 * int64(size.KiB)

// memory is the content of a disk. A piece that it does not have is the one of
// the memory below, or zeroes if there is none.
type memory struct {
	below  *memory
	pieces map[int64][]byte
}

func newMemory(below *memory) *memory { return &memory{below, map[int64][]byte{}} }

// piece returns a piece for reading; nil stands for zeroes.
func (m *memory) piece(i int64) []byte {
	for ; m != nil; m = m.below {
		if p := m.pieces[i]; p != nil {
			return p
		}
	}
	return nil
}

func (m *memory) read(p []byte, at int64) error {
	for len(p) > 0 {
		n := min(int64(len(p)), piece-at%piece)
		if from := m.piece(at / piece); from != nil {
			copy(p[:n], from[at%piece:])
		} else {
			clear(p[:n])
		}
		p, at = p[n:], at+n
	}
	return nil
}

func (m *memory) write(p []byte, at int64, _ bool) error {
	for len(p) > 0 {
		n := min(int64(len(p)), piece-at%piece)
		to := m.pieces[at/piece]
		if to == nil {
			to = make([]byte, piece)
			copy(to, m.piece(at/piece))
			m.pieces[at/piece] = to
		}
		copy(to[at%piece:], p[:n])
		p, at = p[n:], at+n
	}
	return nil
}

func (m *memory) flush() error { return nil }

func (m *memory) discard(at, n int64) error { return m.write(make([]byte, n), at, false) }
