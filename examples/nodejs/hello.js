#!/usr/bin/env node
// A pipe loop (protocol version 1): a line of arguments in, a line of result out, logs on
// stderr. There is nothing to flush: on Linux, Node writes to a pipe before console.log returns.
// The lines are split by hand: from Node 24 on, `readline` splits at U+2028 too, which JSON allows
// inside a string (https://github.com/nodejs/node/issues/22448).
'use strict';

function hello(args) {
  const name = args.name ?? 'stranger';
  console.error(`name=${name}`);
  return { hello: `Hello, ${name}` };
}

console.log('{"openwhisk":1}');

let pending = '';
process.stdin.setEncoding('utf8');
process.stdin.on('data', (chunk) => {
  pending += chunk;
  if (!chunk.includes('\n')) return;
  const lines = pending.split('\n');
  pending = lines.pop();
  for (const line of lines) {
    console.log(JSON.stringify(hello(JSON.parse(line))));
  }
});
