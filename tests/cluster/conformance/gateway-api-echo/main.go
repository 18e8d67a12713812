// Echo is the program in the pods of the Gateway API's suite: a server that answers with what it saw of a request, and a
// client that prints such answers in the form that the suite reads. Which one it is, its name says.
package main

import (
	"fmt"
	"os"
	"path/filepath"
)

func main() {
	var err error
	switch name := filepath.Base(os.Args[0]); name {
	case "client":
		err = request(os.Args[1:])
	case "server":
		err = serve(os.Args[1:])
	default:
		err = fmt.Errorf("called as %q; link it as client or server", name)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
