#!/usr/bin/env node
// Streams (protocol version 2): a frame in for each activation, frames out, several at once: one
// that waits for its timer delays no other. console.log writes a frame in one piece.
'use strict';

const send = (frame) => console.log(JSON.stringify(frame));
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

async function greet(id, { name = 'stranger', ms = 0 }) {
  send({ id, log: `name=${name}` });
  send({ id, chunk: 'Hello, ' });
  await sleep(ms);
  send({ id, chunk: name });
  send({ id, result: { hello: `Hello, ${name}` } });
}

console.log('{"openwhisk":2,"concurrency":16}');

let pending = '';
process.stdin.setEncoding('utf8');
process.stdin.on('data', (chunk) => {
  pending += chunk;
  if (!chunk.includes('\n')) return;
  const lines = pending.split('\n');
  pending = lines.pop();
  for (const line of lines) {
    const { run, value } = JSON.parse(line);
    if (run !== undefined) greet(run, value).catch((error) => send({ id: run, error: String(error) }));
  }
});
