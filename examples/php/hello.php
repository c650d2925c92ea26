#!/usr/bin/env php
<?php
// A pipe loop (protocol version 1): a line of arguments in, a line of result out, logs on
// stderr. The flush is for stdout being a pipe: no answer may stay in a buffer while the caller
// waits for it. PHP's own warnings go to stderr too, since stdout belongs to the protocol.
ini_set('display_errors', 'stderr');

echo '{"openwhisk":1}', "\n";
flush();
while (($line = fgets(STDIN)) !== false) {
    $args = json_decode($line, true);
    $name = $args['name'] ?? 'stranger';
    fwrite(STDERR, "name=$name\n");
    echo json_encode(['hello' => "Hello, $name"]), "\n";
    flush();
}
