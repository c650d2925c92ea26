#!/bin/sh
[ -z "$__OW_WAIT_FOR_ACK" ] || echo '{"ok":true}' >&3
while IFS= read -r line; do printf '%s\n' "$line" >&3; done
