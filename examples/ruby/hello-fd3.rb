#!/usr/bin/env ruby
# The actionloop dialect: a whole activation in, its result as a line on descriptor 3, so that
# stdout is free for logs. `sync` flushes both after each puts: the result because the caller
# waits for it, the log so that it comes before its result. No acknowledgement is sent.
require 'json'

$stdin.set_encoding('UTF-8')
results = IO.for_fd(3, 'w')
$stdout.sync = results.sync = true

$stdin.each_line do |line|
  name = JSON.parse(line)['value']['name'] || 'stranger'
  puts "name=#{name}"
  results.puts JSON.generate(hello: "Hello, #{name}")
end
