package dm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// errShort is the error of all decoders: the kernel's answer ends too early or
// an offset in it points outside the answer.
var errShort = errors.New("kernel's answer is malformed")

// Layout of struct dm_target_spec.
const (
	specLen  = 40
	specNext = 20
	specType = 24
	typeLen  = 16
)

// Flags of a record of the device list.
const (
	listHasUUID = 1 << 0
	listNoUUID  = 1 << 1
)

// align8 rounds n up to a multiple of 8, where the kernel puts the next record.
func align8(n int) int { return (n + 7) &^ 7 }

// cString returns b up to the first NUL.
func cString(b []byte) string {
	s, _, _ := bytes.Cut(b, []byte{0})
	return string(s)
}

// encodeString returns s with a terminating NUL. room is the length of the
// destination field in bytes, with the NUL.
func encodeString(s string, room int) ([]byte, error) {
	switch {
	case len(s) >= room:
		return nil, fmt.Errorf("has %d bytes, device-mapper accepts at most %d", len(s), room-1)
	case strings.IndexByte(s, 0) >= 0:
		return nil, errors.New("has a NUL byte")
	}
	return append([]byte(s), 0), nil
}

// encodeTable encodes t for a table load, where a record's next field is the
// distance from this record to the next.
func encodeTable(t Table) ([]byte, error) {
	if err := t.check(); err != nil {
		return nil, err
	}
	var out []byte
	o := binary.NativeEndian
	for _, s := range t {
		params, err := encodeString(s.Target.Params(), maxRoom)
		if err != nil {
			return nil, fmt.Errorf("parameters of %s at %d: %w", s.Target.Type(), s.Start, err)
		}
		spec := make([]byte, align8(specLen+len(params)))
		o.PutUint64(spec, uint64(s.Start))
		o.PutUint64(spec[8:], uint64(s.Length))
		o.PutUint32(spec[specNext:], uint32(len(spec)))
		copy(spec[specType:], s.Target.Type())
		copy(spec[specLen:], params)
		out = append(out, spec...)
	}
	return out, nil
}

// spec is a decoded struct dm_target_spec and the string after it: the
// parameters of a table, or a status.
type spec struct {
	start, length size.Sectors
	typ, params   string
}

// decodeSpecs decodes n records of a table or status answer, where a record's
// next field is the distance from the first record to the next.
func decodeSpecs(b []byte, n int) ([]spec, error) {
	var specs []spec
	o := binary.NativeEndian
	for at := 0; len(specs) < n; {
		if at < 0 || at > len(b)-specLen {
			return nil, errShort
		}
		r := b[at:]
		next := int(o.Uint32(r[specNext:]))
		if next < at+specLen || next > len(b) {
			// The last record's next field may point past the end of the answer.
			if len(specs) < n-1 {
				return nil, errShort
			}
			next = len(b)
		}
		specs = append(specs, spec{
			start:  size.Sectors(o.Uint64(r)),
			length: size.Sectors(o.Uint64(r[8:])),
			typ:    cString(r[specType : specType+typeLen]),
			params: cString(b[at+specLen : next]),
		})
		at = next
	}
	return specs, nil
}

// record is an entry of the device list. Kernels before 5.13 do not list UUIDs.
type record struct {
	ListEntry
	uuidKnown bool
}

func decodeList(b []byte) ([]record, error) {
	const nameAt = 12 // after dev and next
	o := binary.NativeEndian
	var records []record
	for len(b) > 0 {
		if len(b) < nameAt {
			return nil, errShort
		}
		dev, next := o.Uint64(b), int(o.Uint32(b[8:]))
		if dev == 0 {
			break // "no devices", from kernels that always send a record
		}
		if next > len(b) || next < 0 || next > 0 && next < nameAt {
			return nil, errShort
		}
		own := b
		if next > 0 {
			own = b[:next]
		}
		r := record{ListEntry: ListEntry{Device: decodeDevice(dev), Name: cString(own[nameAt:])}}
		if at := align8(nameAt + len(r.Name) + 1); at+4 <= len(own) {
			r.EventNr = o.Uint32(own[at:])
			if at+8 <= len(own) {
				flags := o.Uint32(own[at+4:])
				r.uuidKnown = flags&(listHasUUID|listNoUUID) != 0
				if flags&listHasUUID != 0 {
					r.UUID = cString(own[at+8:])
				}
			}
		}
		records = append(records, r)
		if next == 0 {
			break
		}
		b = b[next:]
	}
	return records, nil
}

// decodeDeps decodes struct dm_target_deps, which is missing for a device
// without a table.
func decodeDeps(b []byte) ([]Device, error) {
	if len(b) == 0 {
		return nil, nil
	}
	if len(b) < 8 {
		return nil, errShort
	}
	o := binary.NativeEndian
	n := int(o.Uint32(b))
	b = b[8:]
	if n > len(b)/8 {
		return nil, errShort
	}
	deps := make([]Device, n)
	for i := range deps {
		deps[i] = decodeDevice(o.Uint64(b[8*i:]))
	}
	return deps, nil
}

// decodeTargets decodes a chain of struct dm_target_versions.
func decodeTargets(b []byte) (map[string]Version, error) {
	const nameAt = 16 // after next and the version
	o := binary.NativeEndian
	targets := map[string]Version{}
	for len(b) > 0 {
		if len(b) < nameAt {
			return nil, errShort
		}
		next := int(o.Uint32(b))
		targets[cString(b[nameAt:])] = Version{o.Uint32(b[4:]), o.Uint32(b[8:]), o.Uint32(b[12:])}
		if next == 0 {
			break
		}
		if next < nameAt || next > len(b) {
			return nil, errShort
		}
		b = b[next:]
	}
	return targets, nil
}
