package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Each line of a text has one item. COLUMN and ROW may have decimals; WIDTH is in
// columns:
//
//	title WORDS                             a description for readers who cannot see the picture
//	box NAME COLUMN ROW WIDTH KIND [WORDS]  "|" in WORDS begins a new line
//	arrow FROM TO [KIND] [WORDS]            from the edge of one box to the edge of another
//	text COLUMN ROW WORDS
//	# WORDS                                 a comment, not drawn
//
// Kinds of boxes: user, device, store, frozen, gone, plain. Kinds of arrows:
// read, write, copy.
type picture struct {
	title  string
	boxes  []box
	arrows []arrow
	texts  []label
}

type box struct {
	name               string
	column, row, width float64
	kind               string
	lines              []string
}

type arrow struct {
	from, to *box
	kind     string
	words    string
}

type label struct {
	column, row float64
	words       string
}

var (
	boxKinds   = []string{"user", "device", "store", "frozen", "gone", "plain"}
	arrowKinds = []string{"read", "write", "copy"}
)

func parse(text string) (*picture, error) {
	p := &picture{}
	var arrows [][]string
	n := 0
	for line := range strings.Lines(text) {
		n++
		words := strings.Fields(line)
		if len(words) == 0 || strings.HasPrefix(words[0], "#") {
			continue
		}
		var err error
		switch words[0] {
		case "title":
			p.title = strings.Join(words[1:], " ")
		case "box":
			err = p.box(words[1:])
		case "text":
			err = p.text(words[1:])
		case "arrow": // drawn later, when all boxes are known
			arrows = append(arrows, words[1:])
		default:
			err = fmt.Errorf("%q is neither title, box, arrow nor text", words[0])
		}
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
	}
	for _, words := range arrows {
		if err := p.arrow(words); err != nil {
			return nil, fmt.Errorf("arrow %s: %w", strings.Join(words, " "), err)
		}
	}
	if p.title == "" || len(p.boxes) == 0 {
		return nil, fmt.Errorf("a picture needs a title and a box")
	}
	return p, nil
}

func (p *picture) box(words []string) error {
	if len(words) < 5 {
		return fmt.Errorf("a box needs a name, a column, a row, a width and a kind")
	}
	at, err := numbers(words[1:4])
	if err != nil {
		return err
	}
	b := box{words[0], at[0], at[1], at[2], words[4], strings.Split(strings.Join(words[5:], " "), "|")}
	if !slices.Contains(boxKinds, b.kind) {
		return fmt.Errorf("a box has the unknown kind %q: must be one of %v", b.kind, boxKinds)
	}
	if p.find(b.name) != nil {
		return fmt.Errorf("two boxes have the name %q", b.name)
	}
	p.boxes = append(p.boxes, b)
	return nil
}

func (p *picture) find(name string) *box {
	for i := range p.boxes {
		if p.boxes[i].name == name {
			return &p.boxes[i]
		}
	}
	return nil
}

func (p *picture) arrow(words []string) error {
	if len(words) < 2 {
		return fmt.Errorf("an arrow needs two boxes")
	}
	a := arrow{from: p.find(words[0]), to: p.find(words[1]), kind: arrowKinds[0]}
	if a.from == nil || a.to == nil {
		return fmt.Errorf("no box has one of the names")
	}
	words = words[2:]
	if len(words) > 0 && slices.Contains(arrowKinds, words[0]) {
		a.kind, words = words[0], words[1:]
	}
	a.words = strings.Join(words, " ")
	p.arrows = append(p.arrows, a)
	return nil
}

func (p *picture) text(words []string) error {
	if len(words) < 3 {
		return fmt.Errorf("a text needs a column, a row and words")
	}
	at, err := numbers(words[:2])
	if err != nil {
		return err
	}
	p.texts = append(p.texts, label{at[0], at[1], strings.Join(words[2:], " ")})
	return nil
}

func numbers(words []string) ([]float64, error) {
	all := make([]float64, len(words))
	for i, w := range words {
		var err error
		if all[i], err = strconv.ParseFloat(w, 64); err != nil {
			return nil, fmt.Errorf("%q is not a number", w)
		}
	}
	return all, nil
}
