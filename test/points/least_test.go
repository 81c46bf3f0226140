//go:build kernel && points

package points

// least is how many points an operation has at least. Background work, above all the
// copy of a fork, adds some in one run and none in the next: 46 and 128 were seen of
// cut-forked. The sample takes only what is listed here.
var least = map[string]int{
	"cut-first":     40,
	"cut-read":      44,
	"cut-fork":      30,
	"cut-forked":    30,
	"expand-read":   30,
	"expand-fork":   36,
	"delete-newest": 8,
	"hydrate":       50,
	"rollback":      44,
}
