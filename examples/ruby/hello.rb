#!/usr/bin/env ruby
# A pipe loop (protocol version 1): a line of arguments in, a line of result out, logs on
# stderr. `sync` flushes after each puts, since stdout is a pipe: Ruby would keep the line in
# its buffer while the caller waits for it. JSON is UTF-8, whatever the locale says.
require 'json'

$stdin.set_encoding('UTF-8')
$stdout.sync = true

puts '{"openwhisk":1}'
$stdin.each_line do |line|
  name = JSON.parse(line)['name'] || 'stranger'
  warn "name=#{name}"
  puts JSON.generate(hello: "Hello, #{name}")
end
