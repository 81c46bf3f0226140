package filesystem

import (
	"errors"
	"testing"
)

// Only a single file system has a type; every other content is ErrContent.
func TestParseProbe_contents(t *testing.T) {
	for _, c := range []struct {
		out, want string
		content   bool
	}{
		{out: "DEVNAME=/dev/x\nUUID=1\nTYPE=ext4\nUSAGE=filesystem\n", want: "ext4"},
		{out: "DEVNAME=/dev/x\nTYPE=iso9660\nUSAGE=filesystem\n", want: "iso9660"},
		{out: "DEVNAME=/dev/x\nPTUUID=1\nPTTYPE=gpt\n", content: true},
		{out: "DEVNAME=/dev/x\nTYPE=ext4\nUSAGE=filesystem\nPTTYPE=dos\n", content: true},
		{out: "DEVNAME=/dev/x\nTYPE=LVM2_member\nUSAGE=raid\n", content: true},
		{out: "DEVNAME=/dev/x\nTYPE=crypto_LUKS\nUSAGE=crypto\n", content: true},
		{out: "DEVNAME=/dev/x\nTYPE=swap\nUSAGE=other\n", content: true},
		{out: "DEVNAME=/dev/x\n", content: true},
	} {
		got, err := parseProbe("/dev/x", c.out)
		if got != c.want || errors.Is(err, ErrContent) != c.content || (err != nil) != c.content {
			t.Errorf("%q: %q, %v", c.out, got, err)
		}
	}
}
