#!/usr/bin/perl
# Does what the member "do" of its arguments asks, valid or not, and answers with their "id".
# Speaks the protocol that SPEAKS names: 0, 1, 2 (one at a time and without ids) or actionloop.
use strict;
use warnings;

my $speaks = $ENV{SPEAKS};
open(my $results, '>&=', $speaks eq 'actionloop' ? 3 : 1) or die;

sub put {
    my ($text) = @_;
    while (length $text) {
        my $written = syswrite($results, $text);
        exit 7 unless defined $written;
        substr($text, 0, $written) = '';
    }
}

sub nap { select(undef, undef, undef, $_[0] / 1000) }

# Waits until the proxy has read the whole pipe.
sub wait_until_read {
    for (1 .. 5000) {
        my $unread = pack('i', 0);
        ioctl($results, 0x541B, $unread) or return;    # FIONREAD
        return if unpack('i', $unread) == 0;
        nap(0.5);
    }
}

sub work {
    my ($line) = @_;
    my ($id) = $line =~ /"id":"([^"]+)"/;
    my ($do) = $line =~ /"do":"([^"]+)"/;
    my ($ms) = $line =~ /"ms":(\d+)/;
    my $answer = qq({"id":"$id"});
    my ($head, $tail) = $speaks eq '2' ? ('{"result":', '}') : ('', '');
    print STDERR "begin $id\n";
    print "out $id\n" if $speaks eq 'actionloop';
    $| = 1;
    if ($do eq 'exit')   { exit 3 }
    if ($do eq 'kill')   { kill 'KILL', $$; nap(5000) }
    if ($do eq 'half')   { put($head . substr($answer, 0, 8)); exit 3 }
    if ($do eq 'number') { $answer = '42' }
    if ($do eq 'big')    { $answer = sprintf('{"id":"%s","pad":"%s"}', $id, 'x' x 300_000) }
    if ($do eq 'slow' || $do eq 'late_for_its_deadline') { nap($ms) }
    if ($do eq 'logs')   { print STDERR "line $_ of $id\n" for 1 .. 50 }
    $answer = "$head$answer$tail";
    if ($do eq 'parts') { put(substr($answer, 0, 5)); nap($ms); $answer = substr($answer, 5) }
    print STDERR "end $id\n";
    if ($do eq 'two')    { $answer .= "\n$answer" }
    put("$answer\n");
    if ($do eq 'leave')  { exit 0 }
    if ($do eq 'stray' && $speaks ne '0') {
        # The proxy reads it before the next line is read, so it can be distinguished from an answer.
        wait_until_read();
        nap($ms);
        put(qq($head\{"id":"a stray of $id"}$tail\n));
        wait_until_read();
    }
}

$| = 1;
if ($speaks eq '0') {
    work($ARGV[0]);
    exit 0;
}
put(qq({"openwhisk":$speaks}\n)) if $speaks ne 'actionloop';
my $buffer = '';
while (1) {
    while ($buffer =~ s/^([^\n]*)\n//) { work($1) }
    sysread(STDIN, $buffer, 65536, length $buffer) or exit 0;
}
