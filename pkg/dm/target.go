package dm

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// Target is the destination of a table's segment: the name of a kernel target and
// its parameters.
type Target interface {
	Type() string   // name of the target, such as "linear"
	Params() string // parameters, in the format in which the kernel prints them
}

// Linear maps to a range of another device that begins at Offset.
type Linear struct {
	Device Device
	Offset size.Sectors
}

// Area is the beginning of a stripe or a mirror leg on a device.
type Area struct {
	Device Device
	Offset size.Sectors
}

// Striped distributes chunks of ChunkSize over the stripes in turn.
type Striped struct {
	ChunkSize size.Sectors
	Stripes   []Area
}

// Zero reads as zeroes and discards writes.
type Zero struct{}

// ErrorTarget fails all I/O.
type ErrorTarget struct{}

// Unknown is a target, or a variant of a target, without a type of its own.
type Unknown struct {
	Name string // result of Type
	Args string // result of Params
}

// Type returns "linear".
func (Linear) Type() string { return "linear" }

// Params returns the device and the offset.
func (l Linear) Params() string { return Area(l).String() }

// Type returns "striped".
func (Striped) Type() string { return "striped" }

// Params returns the number of stripes, the chunk size and the stripes.
func (s Striped) Params() string {
	return fmt.Sprintf("%d %d%s", len(s.Stripes), s.ChunkSize, areas(s.Stripes))
}

// Type returns "zero".
func (Zero) Type() string { return "zero" }

// Params returns "".
func (Zero) Params() string { return "" }

// Type returns "error".
func (ErrorTarget) Type() string { return "error" }

// Params returns "".
func (ErrorTarget) Params() string { return "" }

// Type returns Name.
func (u Unknown) Type() string { return u.Name }

// Params returns Args.
func (u Unknown) Params() string { return u.Args }

// String prints a as in tables: "8:19 384".
func (a Area) String() string { return fmt.Sprintf("%v %d", a.Device, a.Offset) }

func areas(list []Area) string {
	var b strings.Builder
	for _, a := range list {
		b.WriteString(" " + a.String())
	}
	return b.String()
}

// ParseTarget parses the parameters of a target of type typ, in the format in
// which the kernel prints them: devices are numbers, not paths.
func ParseTarget(typ, params string) (Target, error) {
	if err := checkTypeName(typ); err != nil {
		return nil, err
	}
	if strings.IndexByte(params, 0) >= 0 {
		return nil, fmt.Errorf("parameters of target %s have a NUL byte", typ)
	}
	a := &args{words: strings.Fields(params)}
	var t Target
	switch {
	case typ == "linear":
		t = Linear(a.area())
	case typ == "striped":
		n := a.count()
		t = Striped{a.sectors(), a.areas(n)}
	case typ == "snapshot-origin":
		t = SnapshotOrigin{a.device()}
	case typ == "snapshot":
		t = Snapshot(a.snapshot())
	case typ == "snapshot-merge":
		t = SnapshotMerge(a.snapshot())
	case typ == "mirror" && a.hasCoreLog():
		t = a.mirror()
	case typ == "zero" && len(a.words) == 0:
		t = Zero{}
	case typ == "error" && len(a.words) == 0:
		t = ErrorTarget{}
	default:
		return Unknown{typ, strings.Join(a.words, " ")}, nil
	}
	if err := a.end(); err != nil {
		return nil, fmt.Errorf("parameters %q of target %s: %w", params, typ, err)
	}
	return t, nil
}

// checkTypeName rejects strings that cannot be a target's name.
func checkTypeName(typ string) error {
	odd := func(r rune) bool { return r == 0 || unicode.IsSpace(r) }
	if typ == "" || len(typ) >= typeLen || strings.ContainsFunc(typ, odd) {
		return fmt.Errorf("%q cannot be the name of a target; a name has 1 to %d bytes without spaces", typ, typeLen-1)
	}
	return nil
}

// args reads words one after the other. It keeps the first error, so that callers
// check only once, at the end.
type args struct {
	words []string
	err   error
}

var errTooFew = errors.New("too few words")

func (a *args) next() string {
	if len(a.words) == 0 {
		if a.err == nil {
			a.err = errTooFew
		}
		return ""
	}
	w := a.words[0]
	a.words = a.words[1:]
	return w
}

func (a *args) number() uint64 {
	n, err := strconv.ParseUint(a.next(), 10, 64)
	if err != nil && a.err == nil {
		a.err = err
	}
	return n
}

func (a *args) sectors() size.Sectors { return size.Sectors(a.number()) }

// count reads the number of items that follow. The result is never greater than
// the number of remaining words, so it can size a slice.
func (a *args) count() int {
	n := a.number()
	if n > uint64(len(a.words)) {
		if a.err == nil {
			a.err = errTooFew
		}
		return 0
	}
	return int(n)
}

func (a *args) device() Device {
	d, err := ParseDevice(a.next())
	if err != nil && a.err == nil {
		a.err = err
	}
	return d
}

func (a *args) area() Area { return Area{a.device(), a.sectors()} }

// areas reads n areas. No target has 0 areas, so n = 0 is an error.
func (a *args) areas(n int) []Area {
	if n == 0 && a.err == nil {
		a.err = errTooFew
	}
	var list []Area
	for range n {
		list = append(list, a.area())
	}
	return list
}

// features reads a number and as many words. The list may be missing.
func (a *args) features() []string {
	if len(a.words) == 0 {
		return nil
	}
	n := a.count()
	list := slices.Clone(a.words[:n])
	a.words = a.words[n:]
	return list
}

func (a *args) end() error {
	if a.err == nil && len(a.words) > 0 {
		a.err = fmt.Errorf("too many words, from %q on", a.words[0])
	}
	return a.err
}
