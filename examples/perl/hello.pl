#!/usr/bin/env perl
# A pipe loop (protocol version 1): a line of arguments in, a line of result out, logs on
# stderr. `$| = 1` flushes after each print, since stdout is a pipe: Perl would keep the line
# in its buffer while the caller waits for it.
use strict;
use warnings;
use JSON::PP;

$| = 1;
binmode STDERR, ':utf8';
my $json = JSON::PP->new->utf8;

print qq({"openwhisk":1}\n);
while (my $line = <STDIN>) {
    my $args = $json->decode($line);
    my $name = $args->{name} // 'stranger';
    print STDERR "name=$name\n";
    print $json->encode({ hello => "Hello, $name" }) . "\n";
}
