# Cases of a file system, one line each: what a call returned, or E and the number of its error.
use strict;
use warnings;
use Fcntl qw(:DEFAULT :flock :mode :seek);
use POSIX ();

my ($SETXATTR, $GETXATTR, $LISTXATTR, $REMOVEXATTR) = (188, 191, 194, 197);
my ($FALLOCATE, $RENAMEAT2, $UTIMENSAT, $COPY_FILE_RANGE) = (285, 316, 280, 326);
my $AT_FDCWD = -100;

sub t {
    my ($name, $act) = @_;
    $! = 0;
    my $result = $act->();
    my $errno = $! + 0;
    print "$name: ", ($result ? $result : "E$errno"), "\n";
}

sub is {
    my @s = lstat $_[0] or return undef;
    sprintf "%o %d %d:%d %d", $s[2], $s[3], $s[4], $s[5], S_ISREG($s[2]) ? $s[7] : 0;
}

sub make {
    my ($path, $text) = @_;
    open my $f, ">", $path or return undef;
    print $f $text // "";
    close $f;
}

sub content { open my $f, "<", $_[0] or return undef; local $/; my $c = <$f>; length $c ? $c : "(empty)" }
sub call { my $r = syscall(shift, @_); $r == -1 ? undef : $r == 0 ? 1 : $r }

# What another user's process gets.
sub as_user {
    my ($uid, $act) = @_;
    pipe my $from, my $to;
    my $pid = fork;
    if (!$pid) {
        POSIX::setgid($uid);
        $( = $) = "$uid $uid";
        POSIX::setuid($uid);
        $! = 0;
        my $r = $act->();
        my $errno = $! + 0;
        syswrite $to, $r ? "1" : "E$errno";
        POSIX::_exit(0);
    }
    waitpid $pid, 0;
    close $to;
    my $text = <$from>;
    $text;
}

chdir "/v" or die "chdir: $!";
umask 022;

# Making, linking, removing.
t "make", sub { make "a", "one" };
t "is", sub { is "a" };
t "link", sub { link "a", "b" };
t "links", sub { is "b" };
t "link onto what is there", sub { link "a", "b" };
t "link of what is not there", sub { link "none", "c" };
t "link a folder", sub { mkdir "d"; link "d", "e" };
t "symlink", sub { symlink "a", "s" };
t "is a symlink", sub { is "s" };
t "readlink", sub { readlink "s" };
t "readlink a file", sub { readlink "a" };
t "symlink onto what is there", sub { symlink "x", "a" };
t "through a symlink", sub { content "s" };
t "dangling", sub { symlink "none", "n"; content "n" };
t "loop", sub { symlink "l2", "l1"; symlink "l1", "l2"; content "l1" };
t "unlink a folder", sub { call(87, my $p = "d") };
t "unlink", sub { unlink "b" };
t "links after unlink", sub { is "a" };
t "unlink what is not there", sub { unlink "b" };
t "mkdir", sub { mkdir "d/in", 0777 };
t "mkdir what is there", sub { mkdir "d/in" };
t "mkdir in a file", sub { mkdir "a/x" };
t "mkdir in nothing", sub { mkdir "none/x" };
t "is a folder", sub { is "d/in" };
t "links of a folder", sub { is "d" };
t "rmdir a full folder", sub { rmdir "d" };
t "rmdir a file", sub { rmdir "a" };
t "rmdir", sub { rmdir "d/in" };
t "a name of 255 bytes", sub { make "x" x 255 };
t "a name of 256 bytes", sub { make "x" x 256 };
t "remove it", sub { unlink "x" x 255 };
t "an odd name", sub { make "\xff\n\t \\" and is "\xff\n\t \\" };
t "fifo", sub { POSIX::mkfifo("fifo", 0640) and is "fifo" };
t "socket", sub { call(133, my $p = "socket", 0140600, 0) and is "socket" };

# Renaming.
t "rename", sub { make "r1", "r1"; rename "r1", "r2" };
t "rename onto a file", sub { make "r3", "r3"; rename "r2", "r3" and content "r3" };
t "rename onto itself", sub { rename "r3", "r3" };
t "rename what is not there", sub { rename "none", "r4" };
t "rename a file onto a folder", sub { mkdir "rd"; rename "r3", "rd" };
t "rename a folder onto a file", sub { rename "rd", "r3" };
t "rename a folder into itself", sub { rename "rd", "rd/in" };
t "rename onto a full folder", sub { mkdir "re"; make "re/x"; rename "rd", "re" };
t "rename onto an empty folder", sub { unlink "re/x"; rename "rd", "re" };
t "rename with NOREPLACE onto a file", sub { make "r5"; call($RENAMEAT2, $AT_FDCWD, my $p = "r3", $AT_FDCWD, my $q = "r5", 1) };
t "rename with NOREPLACE", sub { call($RENAMEAT2, $AT_FDCWD, my $p = "r3", $AT_FDCWD, my $q = "r6", 1) };
t "rename with EXCHANGE", sub { call($RENAMEAT2, $AT_FDCWD, my $p = "r5", $AT_FDCWD, my $q = "r6", 2) and content "r5" };
t "rename with EXCHANGE of nothing", sub { call($RENAMEAT2, $AT_FDCWD, my $p = "r5", $AT_FDCWD, my $q = "none", 2) };
t "rename with all flags", sub { call($RENAMEAT2, $AT_FDCWD, my $p = "r5", $AT_FDCWD, my $q = "r6", 3) };

# Modes, owners, times.
t "chmod", sub { chmod 04751, "a" and is "a" };
t "chmod what is not there", sub { chmod 0644, "none" };
t "chown", sub { chown 12, 34, "a" and is "a" };
t "chown the group", sub { chmod 06755, "a"; chown -1, 35, "a" and is "a" };
t "lchown", sub { call(94, my $p = "s", 7, 8) and is "s" };
t "another user's chmod", sub { as_user 1000, sub { chmod 0777, "a" } };
t "another user's chown", sub { as_user 1000, sub { chown 1000, 1000, "a" } };
t "own chown to another", sub { as_user 12, sub { chown 13, -1, "a" } };
t "utime", sub { utime 1000000000, 1234567890, "a" and join " ", (stat "a")[8, 9] };
t "another user's utime", sub { as_user 1000, sub { utime 1, 1, "a" } };
t "utime of now, who may write", sub { chmod 0666, "a"; as_user 1000, sub { utime undef, undef, "a" } };
t "nanoseconds", sub {
    my $times = pack "q4", 5, 123456789, 6, 987654321;
    call($UTIMENSAT, $AT_FDCWD, my $p = "a", $times, 0) or return undef;
    my $stat = "\0" x 144;
    call(4, my $q = "a", $stat) or return undef;
    join " ", (unpack "q18", $stat)[9 .. 12];
};
t "setuid bit after a write of another", sub {
    make "suid", "x";
    chmod 04777, "suid";
    as_user 1000, sub { open my $f, ">>", "suid" or return 0; syswrite $f, "y" };
    my @s = stat "suid";
    sprintf "%o", $s[2] & ~022;
};
t "another user reads a private file", sub { make "private", "x"; chmod 0600, "private"; as_user 1000, sub { open my $f, "<", "private" } };
t "another user in a private folder", sub { mkdir "pd", 0700; make "pd/x"; as_user 1000, sub { -e "pd/x" } };
t "make a folder setgid", sub { mkdir "sg"; chown 0, 50, "sg"; chmod 02755, "sg" and is "sg" };
t "mode of a file in a setgid folder", sub { make "sg/f"; is "sg/f" };
t "mode of a folder in a setgid folder", sub { mkdir "sg/d"; is "sg/d" };
t "sticky", sub { mkdir "st"; chmod 01777, "st"; make "st/root"; is "st" };
t "another user's unlink in a sticky folder", sub { as_user 1000, sub { unlink "st/root" } };
t "another user's rename in a sticky folder", sub { as_user 1000, sub { rename "st/root", "st/mine" } };
t "own unlink in a sticky folder", sub { as_user 1000, sub { make "st/own" and unlink "st/own" } };
t "owner of what another user made", sub { chmod 0777, "d"; as_user(1000, sub { make "d/user" }); is "d/user" };
t "umask", sub { umask 077; make "um"; umask 022; is "um" };

# Opening.
t "open O_EXCL what is there", sub { sysopen my $f, "a", O_RDWR | O_CREAT | O_EXCL };
t "open O_EXCL a dangling link", sub { sysopen my $f, "n", O_RDWR | O_CREAT | O_EXCL };
t "open O_NOFOLLOW a link", sub { sysopen my $f, "s", O_RDONLY | O_NOFOLLOW };
t "open O_DIRECTORY a file", sub { sysopen my $f, "a", O_RDONLY | O_DIRECTORY };
t "open a folder to write", sub { sysopen my $f, "d", O_RDWR };
t "open with a slash behind", sub { sysopen my $f, "a/", O_RDONLY };
t "open O_TRUNC", sub { make "tr", "12345"; sysopen my $f, "tr", O_WRONLY | O_TRUNC; is "tr" };
t "open O_APPEND", sub { sysopen my $f, "tr", O_WRONLY | O_APPEND; syswrite $f, "abc"; sysseek $f, 0, 0; syswrite $f, "def"; content "tr" };
t "write what was opened to read", sub { sysopen my $f, "tr", O_RDONLY; syswrite $f, "x" };
t "read what was opened to write", sub { sysopen my $f, "tr", O_WRONLY; sysread $f, my $b, 1 };
t "an open file without a name", sub {
    make "gone", "still";
    open my $f, "+<", "gone";
    unlink "gone";
    syswrite $f, "STILL here";
    sysseek $f, 0, 0;
    sysread $f, my $b, 100;
    $b . " " . (stat $f)[3];
};
t "a new file with a mode that forbids it", sub { sysopen my $f, "ro", O_RDWR | O_CREAT, 0444; syswrite $f, "x" and is "ro" };

# Lengths and holes.
t "truncate", sub { make "t", "123456"; truncate "t", 3 and content "t" };
t "truncate longer", sub { truncate "t", 10 and (content "t") eq "123" . "\0" x 7 };
t "truncate what is not there", sub { truncate "none", 1 };
t "truncate a folder", sub { truncate "d", 1 };
t "truncate to less than nothing", sub { call(76, my $p = "t", -1) };
t "write beyond the end", sub { open my $f, "+>", "h"; sysseek $f, 2 << 20, 0; syswrite $f, "x" x 4096; is "h" };
t "hole begins", sub {
    open my $f, "+>", "hole";
    syswrite $f, "x" x (1 << 20);
    sysseek $f, 3 << 20, 0;
    syswrite $f, "y" x 4096;
    POSIX::lseek(fileno $f, 0, 4);
};
t "data begins", sub { open my $f, "<", "hole"; POSIX::lseek(fileno $f, 1 << 20, 3) };
t "no data behind the end", sub { open my $f, "<", "hole"; POSIX::lseek(fileno $f, 100 << 20, 3) };
t "fallocate", sub { open my $f, "+>", "fa"; call($FALLOCATE, fileno $f, 0, 0, 1 << 20) and is "fa" };
t "fallocate keeping the length", sub { open my $f, "+<", "fa"; call($FALLOCATE, fileno $f, 1, 0, 2 << 20) and is "fa" };
t "punch a hole", sub { open my $f, "+<", "hole"; call($FALLOCATE, fileno $f, 3, 0, 65536) or return undef; sysread $f, my $b, 4; $b eq "\0\0\0\0" };
t "copy a range", sub { open my $f, "<", "tr"; open my $g, "+>", "cp"; call($COPY_FILE_RANGE, fileno $f, 0, fileno $g, 0, 6, 0) and content "cp" };
t "blocks of a hole", sub { truncate "h", 1 << 30; (stat "h")[12] < 100 };

# Attributes.
t "set an attribute", sub { call($SETXATTR, my $p = "a", my $n = "user.name", my $v = "value", 5, 0) };
t "get an attribute", sub { my $b = "\0" x 16; my $r = call($GETXATTR, my $p = "a", my $n = "user.name", $b, 16); defined $r ? substr $b, 0, $r : undef };
t "get an attribute with too little room", sub { my $b = "\0" x 2; call($GETXATTR, my $p = "a", my $n = "user.name", $b, 2) };
t "get none", sub { my $b = "\0" x 16; call($GETXATTR, my $p = "a", my $n = "user.none", $b, 16) };
t "make one that is there", sub { call($SETXATTR, my $p = "a", my $n = "user.name", my $v = "other", 5, 1) };
t "replace one that is not", sub { call($SETXATTR, my $p = "a", my $n = "user.none", my $v = "other", 5, 2) };
t "attribute of a link", sub { call(189, my $p = "s", my $n = "user.name", my $v = "x", 1, 0) };
t "remove an attribute", sub { call($REMOVEXATTR, my $p = "a", my $n = "user.name") };
t "remove none", sub { call($REMOVEXATTR, my $p = "a", my $n = "user.name") };

# Locks, among processes that see the same kernel.
t "flock", sub { open our $held, "+<", "a"; flock $held, LOCK_EX | LOCK_NB };
t "a lock that is held", sub { open my $f, "+<", "a"; flock $f, LOCK_EX | LOCK_NB };
t "a lock that was given back", sub { our $held; close $held; open my $f, "+<", "a"; flock $f, LOCK_EX | LOCK_NB };
t "fcntl locks", sub {
    open my $f, "+<", "a";
    my $lock = pack "s s l! l! i", F_WRLCK, SEEK_SET, 0, 10, 0;
    fcntl $f, F_SETLK, $lock or return undef;
    as_user 0, sub { open my $g, "+<", "a"; my $l = pack "s s l! l! i", F_WRLCK, SEEK_SET, 5, 1, 0; fcntl $g, F_SETLK, $l };
};

# Many names.
t "entries", sub {
    mkdir "many";
    make "many/$_" for 1 .. 2000;
    opendir my $d, "many";
    my %seen = map { $_ => 1 } grep { !/^\.\.?$/ } readdir $d;
    scalar keys %seen;
};
t "entries while they go", sub {
    opendir my $d, "many";
    my $count = 0;
    while (defined(my $name = readdir $d)) {
        next if $name =~ /^\.\.?$/;
        unlink "many/$name" and $count++;
    }
    $count;
};
t "rmdir after that", sub { rmdir "many" };
t "end", sub { 1 };
