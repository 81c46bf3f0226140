package reports

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestReasons_complete: the list has exactly the reasons in the node's code.
func TestReasons_complete(t *testing.T) {
	used := regexp.MustCompile(`(?:Inaccessible|Degraded|DataLoss), "([A-Z]\w+)"|[Rr]eason\w*\s*[:=]=?\s*"([A-Z]\w+)"`)
	var found []string
	for _, dir := range []string{"../pool", "../../pkg/driver", "../../cmd/csi-dmsnap"} {
		files, err := filepath.Glob(filepath.Join(dir, "*.go"))
		if err != nil || len(files) == 0 {
			t.Fatal(dir, err)
		}
		for _, f := range files {
			if strings.HasSuffix(f, "_test.go") {
				continue
			}
			text, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range used.FindAllStringSubmatch(string(text), -1) {
				found = append(found, m[1]+m[2])
			}
		}
	}
	for _, reason := range found {
		if got, _ := Listed(reason, ""); got != reason {
			t.Errorf("%s is told as %s: add it to reasons.go", reason, got)
		}
	}
	for _, reason := range reasons {
		if !slices.Contains(found, reason) {
			t.Errorf("%s is listed, but nobody reports it", reason)
		}
	}
}

// TestBounded_length: a text becomes one line of limited length, and a reason
// that is not listed becomes part of the message.
func TestBounded_length(t *testing.T) {
	for text, want := range map[string]string{
		"well":                    "well",
		"a\nb\x1b[31m":            "a b [31m",
		strings.Repeat("ä", 1000): strings.Repeat("ä", 510) + "...",
	} {
		if got := Bounded(text); got != want {
			t.Errorf("%.20q: %q, want %q", text, got, want)
		}
	}
	if reason, message := Listed(strings.Repeat("R", 1<<20), "gone"); reason != ReasonOther || len(message) > 2*MaxMessage || !strings.HasSuffix(message, ": gone") {
		t.Errorf("%s: %d bytes", reason, len(message))
	}
}

// TestLog_bounded: the log keeps only so many happenings, with messages of
// limited length.
func TestLog_bounded(t *testing.T) {
	l := NewLog()
	for range 2 * room {
		l.Add(t.Context(), Happening{Message: strings.Repeat("x", 1<<16)})
	}
	all, _, _ := l.after(0)
	if len(all) != room || len(all[0].GetMessage()) > MaxMessage {
		t.Errorf("%d happenings, a message of %d bytes", len(all), len(all[0].GetMessage()))
	}
}
