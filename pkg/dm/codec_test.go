package dm

import (
	"encoding/binary"
	"errors"
	"reflect"
	"testing"
)

// message builds an answer of the kernel.
type message []byte

func (m message) u32(v uint32) message { return binary.NativeEndian.AppendUint32(m, v) }

func (m message) u64(v uint64) message { return binary.NativeEndian.AppendUint64(m, v) }

func (m message) text(s string) message { return append(append(m, s...), 0) }

func (m message) field(s string, n int) message {
	return append(append(m, s...), make([]byte, n-len(s))...)
}

func (m message) align() message {
	return append(m, make([]byte, align8(len(m))-len(m))...)
}

// Answers of the kernel. listNew and listOld list the same two devices: with UUIDs,
// and as kernels before 5.13 list them.
var (
	listNew = message{}.u64(0xfe00).u32(32).text("a").align().u32(7).u32(listHasUUID).text("uuid").align().
		u64(0xfe01).u32(0).text("bc").align().u32(8).u32(listNoUUID)
	listOld = message{}.u64(0xfe00).u32(24).text("a").align().u32(7).align().
		u64(0xfe01).u32(0).text("bc").align().u32(8)
	specs = message{}.u64(0).u64(8).u32(0).u32(48).field("zero", typeLen).text("").align().
		u64(8).u64(16).u32(0).u32(104).field("linear", typeLen).text("254:1 384").align()
	deps    = message{}.u32(2).u32(0).u64(0xfe01).u64(0x800)
	targets = message{}.u32(24).u32(1).u32(4).u32(0).text("linear").align().
		u32(0).u32(1).u32(2).u32(3).text("zero").align()
)

// TestDecodeList_kernels: the device list is decoded as new and as old kernels
// send it.
func TestDecodeList_kernels(t *testing.T) {
	a, b := Device{254, 0}, Device{254, 1}
	for name, c := range map[string]struct {
		data message
		want []record
	}{
		"none":     {nil, nil},
		"old none": {message{}.u64(0).u32(0).u32(0), nil},
		"new":      {listNew, []record{{ListEntry{"a", "uuid", a, 7}, true}, {ListEntry{"bc", "", b, 8}, true}}},
		"old":      {listOld, []record{{ListEntry{"a", "", a, 7}, false}, {ListEntry{"bc", "", b, 8}, false}}},
	} {
		got, err := decodeList(c.data)
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

// TestDecodeSpecs_table: segments are decoded in order.
func TestDecodeSpecs_table(t *testing.T) {
	got, err := decodeSpecs(specs, 2)
	want := []spec{{0, 8, "zero", ""}, {8, 16, "linear", "254:1 384"}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("decoded as %+v, %v", got, err)
	}
	if got, err := decodeSpecs(nil, 0); err != nil || got != nil {
		t.Errorf("an empty table is %+v, %v", got, err)
	}
}

// TestDecodeDeps_devices: dependencies are decoded as device numbers.
func TestDecodeDeps_devices(t *testing.T) {
	got, err := decodeDeps(deps)
	if want := []Device{{254, 1}, {8, 0}}; err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("decoded as %v, %v", got, err)
	}
}

// TestDecodeTargets_versions: targets are decoded with their versions.
func TestDecodeTargets_versions(t *testing.T) {
	got, err := decodeTargets(targets)
	if want := (map[string]Version{"linear": {1, 4, 0}, "zero": {1, 2, 3}}); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("decoded as %v, %v", got, err)
	}
}

// TestDecode_malformed: a truncated answer, or an offset outside the answer, is
// an error and not a panic.
func TestDecode_malformed(t *testing.T) {
	far := func(m message, at int) message {
		m = append(message{}, m...)
		binary.NativeEndian.PutUint32(m[at:], 1<<31)
		return m
	}
	list := func(b message) error { _, err := decodeList(b); return err }
	spec2 := func(b message) error { _, err := decodeSpecs(b, 2); return err }
	dep := func(b message) error { _, err := decodeDeps(b); return err }
	target := func(b message) error { _, err := decodeTargets(b); return err }
	reply := func(b message) error { _, err := decodeReply(b); return err }
	header := message(new(request).encode(8))
	for name, err := range map[string]error{
		"list header":    list(listNew[:11]),
		"list next":      list(far(listNew, 8)),
		"list next 1":    list(message{}.u64(1).u32(1).text("a")),
		"specs missing":  spec2(specs[:48]),
		"specs cut":      spec2(specs[:60]),
		"specs next":     spec2(far(specs, specNext)),
		"deps count":     dep(far(deps, 0)),
		"deps cut":       dep(deps[:len(deps)-1]),
		"deps header":    dep(deps[:4]),
		"targets next":   target(far(targets, 0)),
		"targets next 1": target(message{}.u32(1).u32(1).u32(1).u32(1).text("")),
		"targets cut":    target(targets[:10]),
		"reply":          reply(header[:headerLen-1]),
		"reply size":     reply(far(header, offDataSize)),
	} {
		if !errors.Is(err, errShort) {
			t.Errorf("%s: error is %v", name, err)
		}
	}
}

// TestEncodeTable_next: a record's next field counts from the record itself,
// unlike in an answer.
func TestEncodeTable_next(t *testing.T) {
	table, err := ParseTable("0 8 zero\n8 16 linear 254:1 384")
	if err != nil {
		t.Fatal(err)
	}
	got, err := encodeTable(table)
	if err != nil {
		t.Fatal(err)
	}
	// The second record's next counts from the record itself.
	want := append(message{}, specs...)
	binary.NativeEndian.PutUint32(want[48+specNext:], 56)
	if !reflect.DeepEqual(message(got), want) {
		t.Errorf("encoded as\n%x, not\n%x", got, want)
	}
	if _, err := encodeTable(Table{{0, 8, Unknown{"thin", "1\x00"}}}); err == nil {
		t.Error("parameters with a NUL byte were accepted")
	}
}

// FuzzDecode: no decoder panics, whatever the kernel answers.
func FuzzDecode(f *testing.F) {
	for _, m := range []message{listNew, listOld, specs, deps, targets, message(new(request).encode(0))} {
		f.Add([]byte(m), 2)
	}
	f.Fuzz(func(t *testing.T, b []byte, n int) {
		if specs, err := decodeSpecs(b, n); err == nil && n > 0 && len(specs) != n {
			t.Errorf("%d of %d records", len(specs), n)
		}
		if deps, err := decodeDeps(b); err == nil && len(deps)*8 > len(b) {
			t.Errorf("%d devices in %d bytes", len(deps), len(b))
		}
		if list, err := decodeList(b); err == nil && len(list)*12 > len(b) {
			t.Errorf("%d devices in %d bytes", len(list), len(b))
		}
		if targets, err := decodeTargets(b); err == nil && len(targets)*16 > len(b) {
			t.Errorf("%d targets in %d bytes", len(targets), len(b))
		}
		if rep, err := decodeReply(b); err == nil && len(rep.data) > len(b) {
			t.Errorf("%d bytes of data in %d", len(rep.data), len(b))
		}
	})
}
