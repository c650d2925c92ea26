#!/usr/bin/env php
<?php
// The actionloop dialect: a whole activation in, its result as a line on descriptor 3, so that
// stdout is free for logs. The flush is for the log to come before its result; fwrite itself
// holds nothing back. No acknowledgement is sent.
$results = fopen('php://fd/3', 'w') or exit(1);

while (($line = fgets(STDIN)) !== false) {
    $activation = json_decode($line, true);
    $name = $activation['value']['name'] ?? 'stranger';
    echo "name=$name\n";
    flush();
    fwrite($results, json_encode(['hello' => "Hello, $name"]) . "\n");
}
