// Command hello-fd3 speaks the actionloop dialect: a whole activation in, its result as a line
// on descriptor 3, so that stdout is free for logs. There is nothing to flush: an os.File has no
// buffer. The acknowledgement tells the proxy that the program is up.
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
	fmt.Printf("name=%s\n", name)
	return map[string]any{"hello": "Hello, " + name}
}

func main() {
	descriptor3 := os.NewFile(3, "descriptor 3")
	if _, err := fmt.Fprintln(descriptor3, `{"ok":true}`); err != nil {
		log.Fatal(err)
	}
	activations := json.NewDecoder(os.Stdin)
	results := json.NewEncoder(descriptor3)
	for {
		var activation struct {
			Value map[string]any `json:"value"`
		}
		if err := activations.Decode(&activation); err == io.EOF {
			return
		} else if err != nil {
			log.Fatal(err)
		}
		if err := results.Encode(hello(activation.Value)); err != nil {
			log.Fatal(err)
		}
	}
}
