package lvm2

import (
	"fmt"
	"strings"
)

// valueKind is the kind of a scalar of the metadata text.
type valueKind byte

const (
	stringValue valueKind = iota // quoted, or a bare word
	intValue
	floatValue
)

// value is a scalar. The text of a string is unescaped; the text of a number is
// unchanged.
type value struct {
	kind valueKind
	text string
}

// node is "key = value", "key = [ values ]" or "key { nodes }". It keeps its source
// text, so that unknown nodes can be written again unchanged.
type node struct {
	key      string
	section  bool
	array    bool
	children []node  // of a section
	values   []value // of a key
	source   string
}

type tokenKind byte

const (
	endToken tokenKind = iota
	wordToken
	stringToken
	rawStringToken
	intToken
	floatToken
	charToken // { } [ ] , =
)

// maxDepth bounds the nesting of sections; lvm2 writes four levels.
const maxDepth = 32

// parser parses LVM2's configuration grammar, with the lexical rules of
// libdm-config.c.
type parser struct {
	src        string
	kind       tokenKind
	start, end int // of the current token
	last       int // end of the previous token
	depth      int
	nodes      arena[node]
	values     arena[value]
}

// arena allocates memory for lists, which may be nested. One allocation serves many
// lists: a text has tens of thousands of short lists.
type arena[T any] struct {
	open   []T // lists that are being collected, one after another
	closed []T // memory for complete lists
}

// close completes the list that began when open had n elements.
func (a *arena[T]) close(n int) []T {
	list := a.open[n:]
	if len(list) == 0 {
		return nil
	}
	if len(list) > cap(a.closed)-len(a.closed) {
		a.closed = make([]T, 0, max(1024, len(list)))
	}
	begin := len(a.closed)
	a.closed = append(a.closed, list...)
	a.open = a.open[:n]
	return a.closed[begin:len(a.closed):len(a.closed)]
}

// parseText returns the top-level nodes of a metadata text, which ends at the first
// NUL.
func parseText(text string) ([]node, error) {
	if i := strings.IndexByte(text, 0); i >= 0 {
		text = text[:i]
	}
	p := &parser{src: text}
	if err := p.next(); err != nil {
		return nil, err
	}
	for p.kind != endToken {
		n, err := p.node()
		if err != nil {
			return nil, err
		}
		p.nodes.open = append(p.nodes.open, n)
	}
	return p.nodes.close(0), nil
}

func (p *parser) failf(format string, args ...any) error {
	line := 1 + strings.Count(p.src[:p.start], "\n")
	return fmt.Errorf("metadata text line %d: %s: %w", line, fmt.Sprintf(format, args...), ErrDamaged)
}

func (p *parser) token() string { return p.src[p.start:p.end] }

// is reports whether the current token is the single character c.
func (p *parser) is(c byte) bool { return p.kind == charToken && p.src[p.start] == c }

// node parses a node, whose key is the current token.
func (p *parser) node() (node, error) {
	begin := p.start
	key, err := p.scalar()
	if err != nil {
		return node{}, err
	}
	if key.kind != stringValue || key.text == "" {
		return node{}, p.failf("there is %q instead of a key", p.token())
	}
	if strings.IndexByte(key.text, '/') >= 0 {
		// lvm2 reads this as a path of sections, and never writes it.
		return node{}, p.failf("key %q has a slash", key.text)
	}
	n := node{key: key.text}
	switch {
	case p.is('{'):
		n.section = true
		err = p.section(&n)
	case p.is('='):
		err = p.assignment(&n)
	default:
		err = p.failf("key %q is followed by %q", key.text, p.token())
	}
	n.source = p.src[begin:p.last]
	return n, err
}

func (p *parser) section(n *node) error {
	if p.depth++; p.depth > maxDepth {
		return p.failf("sections are nested deeper than %d", maxDepth)
	}
	if err := p.next(); err != nil {
		return err
	}
	begin := len(p.nodes.open)
	for !p.is('}') {
		if p.kind == endToken {
			return p.failf("section %q has no end", n.key)
		}
		child, err := p.node()
		if err != nil {
			return err
		}
		p.nodes.open = append(p.nodes.open, child)
	}
	n.children = p.nodes.close(begin)
	p.depth--
	return p.next()
}

func (p *parser) assignment(n *node) error {
	if err := p.next(); err != nil {
		return err
	}
	if n.array = p.is('['); !n.array {
		v, err := p.scalar()
		p.values.open = append(p.values.open, v)
		n.values = p.values.close(0)
		return err
	}
	if err := p.next(); err != nil {
		return err
	}
	for !p.is(']') {
		v, err := p.scalar()
		if err != nil {
			return err
		}
		p.values.open = append(p.values.open, v)
		if p.is(',') {
			if err := p.next(); err != nil {
				return err
			}
		}
	}
	n.values = p.values.close(0)
	return p.next()
}

// scalar returns the current token as a scalar and moves to the next token.
func (p *parser) scalar() (value, error) {
	v := value{text: p.token()}
	switch p.kind {
	case wordToken:
	case intToken:
		v.kind = intValue
	case floatToken:
		v.kind = floatValue
	case stringToken:
		v.text = unescape(v.text[1 : len(v.text)-1])
	case rawStringToken:
		v.text = v.text[1 : len(v.text)-1]
	default:
		return v, p.failf("there is %q instead of a value", v.text)
	}
	return v, p.next()
}

func isSpace(c byte) bool { return c == ' ' || '\t' <= c && c <= '\r' }

// isSpecial reports whether the character c is a complete token.
func isSpecial(c byte) bool {
	return c == '{' || c == '}' || c == '[' || c == ']' || c == ',' || c == '='
}

// endsWord reports whether a bare word ends before c. A bare word may have brackets
// and commas.
func endsWord(c byte) bool {
	return isSpace(c) || c == '#' || c == '=' || c == '{' || c == '}'
}

// next moves to the next token. A token is a number only where a value may begin:
// after '=', '[' and ','. Elsewhere digits begin a bare word.
func (p *parser) next() error {
	number := p.is('=') || p.is('[') || p.is(',')
	p.last = p.end
	i := p.end
	for i < len(p.src) && (isSpace(p.src[i]) || p.src[i] == '#') {
		if p.src[i] == '#' {
			for i < len(p.src) && p.src[i] != '\n' {
				i++
			}
			continue
		}
		i++
	}
	p.start = i
	if i == len(p.src) {
		p.kind, p.end = endToken, i
		return nil
	}
	switch c := p.src[i]; {
	case isSpecial(c):
		p.kind, p.end = charToken, i+1
	case c == '"', c == '\'':
		return p.quoted(c)
	case number && (c == '.' || c == '+' || c == '-' || '0' <= c && c <= '9'):
		p.number()
	default:
		for i < len(p.src) && !endsWord(p.src[i]) {
			i++
		}
		p.kind, p.end = wordToken, i
	}
	return nil
}

func (p *parser) quoted(quote byte) error {
	p.kind = stringToken
	if quote == '\'' {
		p.kind = rawStringToken
	}
	for i := p.start + 1; i < len(p.src); i++ {
		switch c := p.src[i]; {
		case c == quote:
			p.end = i + 1
			return nil
		case c == '\\' && quote == '"':
			i++
		}
	}
	p.end = len(p.src)
	return p.failf("a string has no end")
}

func (p *parser) number() {
	i := p.start
	p.kind = intToken
	if p.src[i] == '.' {
		p.kind = floatToken
	}
	for i++; i < len(p.src); i++ {
		if p.src[i] == '.' && p.kind == intToken {
			p.kind = floatToken
		} else if p.src[i] < '0' || p.src[i] > '9' {
			break
		}
	}
	p.end = i
}

// unescape replaces \" and \\. It keeps a backslash before any other character.
func unescape(s string) string {
	if strings.IndexByte(s, '\\') < 0 {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) && (s[i+1] == '"' || s[i+1] == '\\') {
			i++
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// quote escapes s, the inverse of unescape, and adds quotation marks.
func quote(s string) string {
	if !strings.ContainsAny(s, `"\`) {
		return `"` + s + `"`
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}
