// Command hello is a pipe loop (protocol version 1): a line of arguments in, a line of result
// out, logs on stderr. There is nothing to flush: os.Stdout has no buffer, and Encode writes its
// line at once. (A bufio.Scanner would refuse lines of more than 64 KiB; a json.Decoder does not.)
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"log"
	"os"
)

func hello(args map[string]any) map[string]any {
	name, ok := args["name"].(string)
	if !ok {
		name = "stranger"
	}
	fmt.Fprintf(os.Stderr, "name=%s\n", name)
	return map[string]any{"hello": "Hello, " + name}
}

func main() {
	fmt.Println(`{"openwhisk":1}`)
	arguments := json.NewDecoder(os.Stdin)
	results := json.NewEncoder(os.Stdout)
	for {
		var args map[string]any
		if err := arguments.Decode(&args); err == io.EOF {
			return
		} else if err != nil {
			log.Fatal(err)
		}
		if err := results.Encode(hello(args)); err != nil {
			log.Fatal(err)
		}
	}
}
