//go:build kernel

package flush

import (
	"bytes"
	"encoding/json"
	"fmt"

	"github.com/csi-dmsnap/csi-dmsnap/test/powercut/history"
)

// story follows the worker's history, from the writes to its disk. Every such
// write is durable when it ends.
type story struct {
	model *history.Model
	log   *memory
	read  int64  // up to where the log was read
	rest  []byte // of the last line, if it is not whole yet

	loading bool // the last load has begun
	acked   int  // operations and writes that were acknowledged
}

func newStory() *story { return &story{model: history.NewModel(), log: newMemory(nil)} }

// happen takes an event of any disk.
func (s *story) happen(e event) error {
	if e.Disk != historyDisk || e.Kind == flush {
		return nil
	}
	data := e.Data
	if data == nil {
		data = make([]byte, e.Len)
	}
	if err := s.log.write(data, e.At, false); err != nil {
		return err
	}
	for {
		b := make([]byte, 64<<10)
		_ = s.log.read(b, s.read)
		if end := bytes.IndexByte(b, 0); end >= 0 {
			b = b[:end]
		}
		if len(b) == 0 {
			return nil
		}
		s.read += int64(len(b))
		s.rest = append(s.rest, b...)
		for {
			line, rest, ok := bytes.Cut(s.rest, []byte{'\n'})
			if !ok {
				break
			}
			s.rest = rest
			var x history.Event
			if err := json.Unmarshal(line, &x); err != nil {
				return fmt.Errorf("line %q of the history: %w", line, err)
			}
			if err := s.model.Apply(x); err != nil {
				return err
			}
			if x.Kind == history.Done || x.Kind == history.Wrote {
				s.acked++
			}
			s.loading = s.loading || x.Kind == history.Load && x.Last
		}
	}
}
