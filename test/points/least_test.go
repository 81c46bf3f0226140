//go:build kernel && points

package points

// least has the least number of points of each operation. Background work,
// above all the copy of a fork, adds points in one run and none in the next:
// cut-forked had between 46 and 128. The sample takes only the operations in
// this list.
var least = map[string]int{
	"activate":      24,
	"adopt":         12,
	"clone":         60,
	"copy":          80,
	"copy-delete":   30,
	"create":        34,
	"cut-first":     40,
	"cut-fork":      30,
	"cut-forked":    30,
	"cut-inactive":  10,
	"cut-next":      40,
	"cut-read":      44,
	"deactivate":    8,
	"delete-hidden": 8,
	"delete-middle": 16,
	"delete-newest": 8,
	"delete-oldest": 30,
	"delete-only":   28,
	"delete-plain":  30,
	"expand-fork":   36,
	"expand-plain":  30,
	"expand-read":   30,
	"flat-below":    90,
	"flat-end":      30,
	"flat-make":     36,
	"extend":        60,
	"fold":          100,
	"grow":          30,
	"hydrate":       50,
	"import":        18,
	"mode":          8,
	"reader":        30,
	"reader-end":    12,
	"restore":       60,
	"rollback":      44,
	"transient":     50,
	"wipe":          30,
}
