#!/usr/bin/env node
// The actionloop dialect: a whole activation in, its result as a line on descriptor 3, so that
// stdout is free for logs. There is nothing to flush: console.log and writeFileSync return when
// all is written. No acknowledgement is sent. For the splitting of lines see hello.js.
'use strict';

const fs = require('fs');

function hello(args) {
  const name = args.name ?? 'stranger';
  console.log(`name=${name}`);
  return { hello: `Hello, ${name}` };
}

let pending = '';
process.stdin.setEncoding('utf8');
process.stdin.on('data', (chunk) => {
  pending += chunk;
  if (!chunk.includes('\n')) return;
  const lines = pending.split('\n');
  pending = lines.pop();
  for (const line of lines) {
    const activation = JSON.parse(line);
    fs.writeFileSync(3, JSON.stringify(hello(activation.value)) + '\n');
  }
});
