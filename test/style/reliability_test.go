package style

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// UPDATE=1 rewrites the tables instead of comparing them.
const reliabilityPage = "../../docs/reliability.md"

// sums are the columns of a record of runs that are added up for each kernel.
var sums = map[string][]string{
	"cuts":  {"power cuts", "drivers killed", "operations", "verified", "findings"},
	"model": {"operations", "findings", "minutes"},
}

// TestReliability_tables: the tables of docs/reliability.md are the sums of the runs
// in docs/reliability.
func TestReliability_tables(t *testing.T) {
	page := read(t, "docs/reliability.md")
	for name, columns := range sums {
		table, err := sumTable(read(t, "docs/reliability/"+name+".tsv"), columns)
		if err != nil {
			t.Fatalf("docs/reliability/%s.tsv: %v", name, err)
		}
		begin, end := "<!-- the sums of "+name+".tsv -->\n", "<!-- end of the sums -->\n"
		before, rest, found := strings.Cut(page, begin)
		is, after, closed := strings.Cut(rest, end)
		if !found || !closed {
			t.Fatalf("docs/reliability.md has no table between %q and %q", begin, end)
		}
		if is != table && os.Getenv("UPDATE") == "" {
			t.Errorf("docs/reliability.md has for %s.tsv\n%swant\n%s(UPDATE=1 rewrites it)", name, is, table)
		}
		page = before + begin + table + end + after
	}
	if os.Getenv("UPDATE") != "" {
		if err := os.WriteFile(reliabilityPage, []byte(page), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// sumTable adds up the columns of a record for each kernel and number of
// processors. A run without a figure has a hyphen.
func sumTable(record string, columns []string) (string, error) {
	lines := strings.Split(strings.TrimSpace(record), "\n")
	head := strings.Split(lines[0], "\t")
	at := func(column string) int { return slices.Index(head, column) }
	totals, runs := map[string][]int{}, map[string]int{}
	for n, line := range lines[1:] {
		cells := strings.Split(line, "\t")
		if len(cells) != len(head) {
			return "", fmt.Errorf("line %d has %d columns, not %d", n+2, len(cells), len(head))
		}
		for _, kernel := range []string{fmt.Sprintf("%s | %s", cells[at("release")], cells[at("processors")]), "**all** |"} {
			if totals[kernel] == nil {
				totals[kernel] = make([]int, len(columns))
			}
			runs[kernel]++
			for i, c := range columns {
				figure, err := strconv.Atoi(cells[at(c)])
				if err != nil && cells[at(c)] != "-" {
					return "", fmt.Errorf("line %d: %w", n+2, err)
				}
				totals[kernel][i] += figure
			}
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "\n| kernel | processors | runs | %s |\n|---|---|---|%s\n", strings.Join(columns, " | "), strings.Repeat("---|", len(columns)))
	kernels := make([]string, 0, len(runs))
	for k := range runs {
		kernels = append(kernels, k)
	}
	slices.Sort(kernels)
	// "**all**" sorts before digits, and comes last in the table.
	for _, k := range append(slices.DeleteFunc(kernels, func(k string) bool { return strings.HasPrefix(k, "*") }), "**all** |") {
		if runs[k] == 0 {
			continue
		}
		fmt.Fprintf(&b, "| %s | %d |", k, runs[k])
		for _, n := range totals[k] {
			fmt.Fprintf(&b, " %d |", n)
		}
		b.WriteString("\n")
	}
	return b.String() + "\n", nil
}
