// Command hello-stream speaks protocol version 2: a frame in for each activation, frames out, many
// at once. Each has a goroutine of its own, and one goroutine writes, so that frames do not mix.
package main

import (
	"encoding/json"
	"os"
	"time"
)

type frame map[string]any

func greet(id, args frame, out chan<- frame) {
	send := func(kind string, payload any) { out <- frame{"id": id["run"], kind: payload} }
	name, named := args["name"].(string)
	if !named {
		name = "stranger"
	}
	send("log", "name="+name)
	send("chunk", "Hello, ")
	ms, _ := args["ms"].(float64)
	time.Sleep(time.Duration(ms) * time.Millisecond)
	send("chunk", name)
	send("result", frame{"hello": "Hello, " + name})
}

func main() {
	out := make(chan frame)
	go func() {
		for writer := json.NewEncoder(os.Stdout); ; {
			writer.Encode(<-out)
		}
	}()
	out <- frame{"openwhisk": 2, "concurrency": 16}
	for f, in := (frame{}), json.NewDecoder(os.Stdin); in.Decode(&f) == nil; f = (frame{}) {
		if args, runs := f["value"].(map[string]any); runs {
			go greet(f, args, out)
		}
	}
}
