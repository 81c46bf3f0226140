package figures

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

const thinSuffix = "/thin"

// table prints the figures as a table, with dm-thin in a column of its own.
func (s *Set) table(to io.Writer) error {
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\nfigure\tours\tlvm2\ttimes better\tdm-thin\ttimes better\ttarget")
	for _, f := range s.Figures {
		name, isThin := strings.CutSuffix(f.Name, thinSuffix)
		theirs, ratio, thin, thinRatio := "", "", "", ""
		switch {
		case isThin && s.find(name) != nil:
			continue // printed in the line of that figure
		case isThin:
			thin, thinRatio = f.against()
		default:
			theirs, ratio = f.against()
			if t := s.find(f.Name + thinSuffix); t != nil {
				thin, thinRatio = t.against()
			}
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", f.Name, amount(f.Ours, f.OursP99, f.Unit), theirs, ratio, thin, thinRatio, f.verdict())
	}
	if err := w.Flush(); err != nil {
		return err
	}
	notes := append([]string(nil), s.Notes...)
	for _, f := range s.Figures {
		if f.Note != "" {
			notes = append(notes, f.Name+": "+f.Note)
		}
	}
	for _, n := range notes {
		if _, err := fmt.Fprintln(to, "-", n); err != nil {
			return err
		}
	}
	return nil
}

// against returns the value that the figure is compared with, and the ratio.
func (f *Figure) against() (theirs, ratio string) {
	if f.Theirs == nil {
		return "", ""
	}
	theirs = amount(*f.Theirs, f.TheirsP99, f.Unit)
	if f.Against != LVM2 && f.Against != Thin {
		theirs += " (" + f.Against + ")"
	}
	if f.Ratio == nil {
		return theirs, ""
	}
	ratio = number(*f.Ratio)
	if f.Low != nil {
		ratio += fmt.Sprintf(" (%s to %s)", number(*f.Low), number(*f.High))
	}
	return theirs, ratio
}

func (f *Figure) verdict() string {
	switch {
	case f.Met == nil:
		return ""
	case *f.Met:
		return f.Target + ": met"
	}
	return f.Target + ": MISSED"
}

func amount(median float64, p99 *float64, unit string) string {
	if p99 == nil {
		return number(median) + " " + unit
	}
	return fmt.Sprintf("%s %s (p99 %s)", number(median), unit, number(*p99))
}

// number formats a value with three significant digits.
func number(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	case v >= 0.01 || v == 0:
		return fmt.Sprintf("%.2f", v)
	}
	return fmt.Sprintf("%.2g", v)
}
