package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/pflag"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	"k8s.io/client-go/util/jsonpath"
	"sigs.k8s.io/yaml"
)

const (
	outputTable    = "table"
	outputJSON     = "json"
	outputYAML     = "yaml"
	outputJSONPath = "jsonpath=" // before a template
)

// addOutputFlag adds the flag that says how a command prints its result. note
// follows the list of formats in the help.
func addOutputFlag(flags *pflag.FlagSet, output *string, note string) {
	flags.StringVarP(output, "output", "o", outputTable, "table, json, yaml or jsonpath=TEMPLATE"+note)
}

// checkOutput returns an error unless printAs accepts output. Commands call it
// before they change anything.
func checkOutput(output string) error {
	_, err := newPrinter(output)
	return err
}

// printAs prints a command's result: the table for people, or data for programs.
func printAs(w io.Writer, output, table string, data any) error {
	p, err := newPrinter(output)
	if err != nil {
		return err
	}
	return p(w, table, data)
}

type printer func(w io.Writer, table string, data any) error

func newPrinter(output string) (printer, error) {
	if template, is := strings.CutPrefix(output, outputJSONPath); is && template != "" {
		path := jsonpath.New("output").AllowMissingKeys(true) // as kubectl has it
		if err := path.Parse(template); err != nil {
			return nil, fmt.Errorf("invalid output %q: %w", output, err)
		}
		return func(w io.Writer, _ string, data any) error { return printJSONPath(w, path, data) }, nil
	}
	switch output {
	case outputTable:
		return func(w io.Writer, table string, _ any) error {
			_, err := io.WriteString(w, table)
			return err
		}, nil
	case outputJSON:
		return func(w io.Writer, _ string, data any) error {
			e := json.NewEncoder(w)
			e.SetIndent("", "  ")
			return e.Encode(data)
		}, nil
	case outputYAML:
		return func(w io.Writer, _ string, data any) error {
			text, err := yaml.Marshal(data)
			if err == nil {
				_, err = w.Write(text)
			}
			return err
		}, nil
	}
	return nil, fmt.Errorf("invalid output %q: must be table, json, yaml or jsonpath=TEMPLATE", output)
}

// printJSONPath prints the parts of data that path selects, by the keys of
// -o json.
func printJSONPath(w io.Writer, path *jsonpath.JSONPath, data any) error {
	text, err := json.Marshal(data)
	if err != nil {
		return err
	}
	// encoding/json would turn lengths into floating-point numbers, which print as 1e+09.
	var decoded any
	if err := utiljson.Unmarshal(text, &decoded); err != nil {
		return err
	}
	if err := path.Execute(w, decoded); err != nil {
		return fmt.Errorf("print as jsonpath: %w", err)
	}
	return nil
}
