package main

import (
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	logsapi "k8s.io/component-base/logs/api/v1"
	_ "k8s.io/component-base/logs/json/register" // --logging-format=json
)

// loggingFlags adds the flags that say how the program logs. It returns the
// function that applies them; that must run before the program logs.
func loggingFlags(flags *pflag.FlagSet) func(*cobra.Command, []string) error {
	config := logsapi.NewLoggingConfiguration()
	all := pflag.NewFlagSet("logging", pflag.ContinueOnError)
	logsapi.AddFlags(config, all)
	// The others need a feature gate, which the program does not have.
	for _, name := range []string{"v", "vmodule", "logging-format"} {
		flags.AddFlag(all.Lookup(name))
	}
	return func(*cobra.Command, []string) error { return logsapi.ValidateAndApply(config, nil) }
}
