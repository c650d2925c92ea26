#!/usr/bin/env perl
# The actionloop dialect: a whole activation in, its result as a line on descriptor 3, so that
# stdout is free for logs. Both are flushed after each print: the result because the caller
# waits for it, the log so that it comes before its result. No acknowledgement is sent.
use strict;
use warnings;
use IO::Handle;
use JSON::PP;

open my $results, '>&=', 3 or die "descriptor 3: $!\n";
$_->autoflush(1) for *STDOUT, $results;
binmode STDOUT, ':encoding(UTF-8)';
my $json = JSON::PP->new->utf8;

while (my $line = <STDIN>) {
    my $activation = $json->decode($line);
    my $name = $activation->{value}{name} // 'stranger';
    print "name=$name\n";
    print {$results} $json->encode({ hello => "Hello, $name" }) . "\n";
}
