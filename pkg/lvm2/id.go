package lvm2

import (
	"crypto/rand"
	"fmt"
	"strings"
)

// ID identifies a volume group, physical volume or logical volume: 32 characters of
// [0-9a-zA-Z!#], without hyphens.
type ID string

const idLength = 32

// idAlphabet has the characters of lvm2's new ids. lvm2 also accepts ! and #.
const idAlphabet = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"

// NewID returns a random id.
func NewID() ID {
	id := make([]byte, 0, idLength)
	var random [2 * idLength]byte
	for len(id) < idLength {
		rand.Read(random[:])
		for _, r := range random {
			// 248 = 4*62: larger bytes would favour the first characters.
			if r < 248 && len(id) < idLength {
				id = append(id, idAlphabet[int(r)%len(idAlphabet)])
			}
		}
	}
	return ID(id)
}

// ParseID parses an id of 32 characters, with or without hyphens in groups of
// 6-4-4-4-4-4-6.
//
// Errors: ErrInvalid.
func ParseID(s string) (ID, error) {
	plain := s
	if len(s) == idLength+6 {
		plain = strings.ReplaceAll(s, "-", "")
		if ID(plain).String() != s {
			return "", fmt.Errorf("id %q does not have hyphens in groups of 6-4-4-4-4-4-6: %w", s, ErrInvalid)
		}
	}
	if len(plain) != idLength {
		return "", fmt.Errorf("id %q does not have %d characters: %w", s, idLength, ErrInvalid)
	}
	for i := 0; i < len(plain); i++ {
		if c := plain[i]; !isAlnum(c) && c != '!' && c != '#' {
			return "", fmt.Errorf("id %q has the character %q: %w", s, c, ErrInvalid)
		}
	}
	return ID(plain), nil
}

// String prints the id in lvm2's format, in groups of 6-4-4-4-4-4-6.
func (id ID) String() string {
	if len(id) != idLength {
		return string(id)
	}
	s := string(id)
	return strings.Join([]string{s[:6], s[6:10], s[10:14], s[14:18], s[18:22], s[22:26], s[26:]}, "-")
}

func isAlnum(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}
