package lifecycle

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestSteady_findsPauses: a log with a pause, or without writes at the begin or the
// end, is not steady.
func TestSteady_findsPauses(t *testing.T) {
	begin := time.Unix(1000, 0)
	end := begin.Add(100 * time.Second)
	log := func(times ...int) string {
		var b strings.Builder
		for _, s := range times {
			fmt.Fprintln(&b, s)
		}
		return b.String()
	}
	for name, c := range map[string]struct {
		log  string
		good bool
	}{
		"all the time":      {log(1000, 1015, 1030, 1045, 1060, 1075, 1090), true},
		"and long before":   {log(10, 800, 1000, 1015, 1030, 1045, 1060, 1075, 1090), true},
		"nothing":           {"", false},
		"not at the begin":  {log(1030, 1045, 1060, 1075, 1090), false},
		"a pause":           {log(1000, 1015, 1045, 1060, 1075, 1090), false},
		"not up to the end": {log(1000, 1015, 1030, 1045, 1060), false},
		"damaged":           {log(1000, 1015, 1030) + "\x00\n", false},
	} {
		if err := steady(c.log, begin, end); (err == nil) != c.good {
			t.Errorf("%s: %v", name, err)
		}
	}
}
