package main

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"math"
)

// The grid, in pixels: boxes fill their columns except for a gap.
const (
	columnWidth = 130.0
	rowHeight   = 74.0
	gap         = 14.0
	boxHeight   = 46.0
	margin      = 16.0
	lineHeight  = 16.0
)

var fills = map[string][2]string{ // fill and border
	"user":   {"#e3f4e1", "#3c8a36"},
	"device": {"#dfeaf8", "#2f6db3"},
	"store":  {"#ffe9cc", "#c9781a"},
	"frozen": {"#eeeeee", "#777777"},
	"gone":   {"#ffffff", "#bbbbbb"},
	"plain":  {"#ffffff", "#444444"},
}

var strokes = map[string]string{"read": "#2f6db3", "write": "#222222", "copy": "#c9781a"}

// svg draws the picture. The same text always gives the same bytes.
func (p *picture) svg() []byte {
	width, height := 0.0, 0.0
	for _, b := range p.boxes {
		width, height = max(width, b.x()+b.w()), max(height, b.y()+b.h())
	}
	for _, t := range p.texts {
		width = max(width, margin+t.column*columnWidth+7*float64(len([]rune(t.words))))
		height = max(height, margin+t.row*rowHeight+lineHeight)
	}
	width, height = math.Ceil(width+margin), math.Ceil(height+margin)
	var out bytes.Buffer
	fmt.Fprintf(&out, `<svg xmlns="http://www.w3.org/2000/svg" width="%.0f" height="%.0f" viewBox="0 0 %[1]v %[2]v" role="img" font-family="sans-serif" font-size="13">`+"\n", width, height)
	fmt.Fprintf(&out, "<title>%s</title>\n", escaped(p.title))
	out.WriteString("<defs>\n")
	for _, kind := range arrowKinds {
		fmt.Fprintf(&out, `<marker id="%s" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto-start-reverse"><path d="M0 0 10 5 0 10z" fill="%s"/></marker>`+"\n", kind, strokes[kind])
	}
	out.WriteString("</defs>\n")
	fmt.Fprintf(&out, `<rect width="%.0f" height="%.0f" fill="#ffffff"/>`+"\n", width, height)
	for _, b := range p.boxes {
		b.draw(&out)
	}
	for _, a := range p.arrows {
		a.draw(&out)
	}
	for _, t := range p.texts {
		words(&out, margin+t.column*columnWidth, margin+t.row*rowHeight+lineHeight, "start", t.words)
	}
	out.WriteString("</svg>\n")
	return out.Bytes()
}

func (b *box) x() float64 { return margin + b.column*columnWidth }
func (b *box) y() float64 { return margin + b.row*rowHeight }
func (b *box) w() float64 { return b.width*columnWidth - gap }
func (b *box) h() float64 { return max(boxHeight, 14+lineHeight*float64(len(b.lines))) }

func (b *box) draw(out *bytes.Buffer) {
	fill, dashes := fills[b.kind], ""
	if b.kind == "gone" {
		dashes = ` stroke-dasharray="5 4"`
	}
	fmt.Fprintf(out, `<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" rx="5" fill="%s" stroke="%s" stroke-width="1.4"%s/>`+"\n",
		b.x(), b.y(), b.w(), b.h(), fill[0], fill[1], dashes)
	top := b.y() + b.h()/2 - lineHeight*float64(len(b.lines)-1)/2 + 4.5
	for i, line := range b.lines {
		words(out, b.x()+b.w()/2, top+lineHeight*float64(i), "middle", line)
	}
}

func (a *arrow) draw(out *bytes.Buffer) {
	x1, y1 := a.from.edge(a.to)
	x2, y2 := a.to.edge(a.from)
	dashes := ""
	if a.kind == "copy" {
		dashes = ` stroke-dasharray="6 4"`
	}
	fmt.Fprintf(out, `<path d="M%.1f %.1f %.1f %.1f" fill="none" stroke="%s" stroke-width="1.8"%s marker-end="url(#%s)"/>`+"\n",
		x1, y1, x2, y2, strokes[a.kind], dashes, a.kind)
	if a.words == "" {
		return
	}
	anchor, x, y := "start", (x1+x2)/2+7, (y1+y2)/2+4
	if math.Abs(x1-x2) > math.Abs(y1-y2) {
		anchor, x, y = "middle", (x1+x2)/2, (y1+y2)/2-7
	}
	words(out, x, y, anchor, a.words)
}

// edge returns the point where the line between the centres of two boxes leaves b.
// If one box is above the other, the line is vertical.
func (b *box) edge(other *box) (x, y float64) {
	cx, cy := b.x()+b.w()/2, b.y()+b.h()/2
	ox, oy := other.x()+other.w()/2, other.y()+other.h()/2
	left, right := max(b.x(), other.x()), min(b.x()+b.w(), other.x()+other.w())
	if right-left > 20 {
		cx = (left + right) / 2
		ox = cx
	}
	dx, dy := ox-cx, oy-cy
	scale := math.Inf(1)
	if dx != 0 {
		scale = b.w() / 2 / math.Abs(dx)
	}
	if dy != 0 {
		scale = min(scale, b.h()/2/math.Abs(dy))
	}
	return cx + dx*scale, cy + dy*scale
}

func words(out *bytes.Buffer, x, y float64, anchor, text string) {
	fmt.Fprintf(out, `<text x="%.1f" y="%.1f" text-anchor="%s" fill="#222222">%s</text>`+"\n", x, y, anchor, escaped(text))
}

func escaped(text string) string {
	var b bytes.Buffer
	_ = xml.EscapeText(&b, []byte(text)) // writing to a Buffer never fails
	return b.String()
}
