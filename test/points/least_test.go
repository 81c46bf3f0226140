//go:build kernel && points

package points

// least is how many points an operation has at least: some more come and go with the
// background work. The sample takes only what is listed here.
var least = map[string]int{
	"cut-first":     40,
	"cut-read":      56,
	"cut-fork":      44,
	"cut-forked":    60,
	"expand-read":   36,
	"expand-fork":   50,
	"delete-newest": 8,
	"hydrate":       90,
	"rollback":      50,
}
