// Looks each argument up by Go's own resolver and prints a line: milliseconds, then the addresses or the error.
package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"time"
)

func main() {
	resolver := &net.Resolver{PreferGo: true}
	for _, name := range os.Args[1:] {
		start := time.Now()
		all, err := resolver.LookupIPAddr(context.Background(), name)
		fmt.Printf("%.3f", float64(time.Since(start).Microseconds())/1e3)
		if err != nil {
			fmt.Printf(" error: %v", err)
		}
		for _, one := range all {
			fmt.Printf(" %s", one.IP)
		}
		fmt.Println()
	}
}
