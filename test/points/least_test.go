//go:build kernel && points

package points

// least is how many points an operation has at least: some come and go with the background work.
var least = map[string]int{}
