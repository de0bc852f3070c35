# Keeps a PostgreSQL server running while any process holds a lease on its folder.
#
#   sh -s -- VERB KIND FOLDER SOCKETS LOCKER ORPHAN PROGRAM [ARGUMENT..]
#
#   VERB     init: run PROGRAM (initdb) and end with its status; serve: keep PROGRAM (postgres) running
#   KIND     kept, or throwaway: the folder is removed after the last lease
#   FOLDER   holds the lock files, the data and the log
#   SOCKETS  a socket folder elsewhere, to remove at the end; empty when it is inside FOLDER
#   LOCKER   flock or perl: the program that takes locks
#   ORPHAN   the process id of a server that lost its supervisor; empty to start a new one
#
# The script arrives on standard input, so that `ps` shows one line. All but its last line is functions, so a script that its
# sender's death cut short does nothing. It runs in a process group of its own and as the account that owns the data, and
# outlives the process that started it.
#
# Descriptor 8 is the lock file `running`, held while this shell lives. Descriptor 9 is `lease`: users hold it shared, so the
# exclusive lock means that no lease is left. A lock belongs to the open file and lasts until each process that inherited it has
# closed it; therefore the server starts without 8 and 9, or an orphaned server would keep both locks.

# Takes the exclusive lock on descriptor $1 within $2 seconds. Replaces the process: call it in a subshell.
lock() {
    case $locker in
    flock) exec flock -x -w "$2" "$1" ;;
    perl) exec perl -e '
        use Fcntl ":flock";
        my ($descriptor, $seconds) = @ARGV;
        open my $file, ">>&=", $descriptor or exit 2;
        $SIG{ALRM} = sub { exit 1 };
        alarm $seconds;
        flock $file, $seconds ? LOCK_EX : LOCK_EX | LOCK_NB or exit 1;
    ' "$1" "$2" ;;
    esac
    exit 2
}

say() {
    echo "db-embedded: $*" >&2
}

# Removes the socket folder, and a throwaway's folder. A rename comes first, so that no process enters a half-deleted folder.
clean() {
    [ -z "$sockets" ] || rm -rf "$sockets"
    [ "$kind" = throwaway ] || return 0
    mv "$folder" "$folder.gone-$$" && rm -rf "$folder.gone-$$"
}

init() {
    "$@" 9>&-
    status=$?
    # If the starter has died meanwhile, nobody else removes the folder.
    [ "$kind" = kept ] || ! ( lock 9 0 ) || clean
    exit "$status"
}

# A server killed while it makes a lock file leaves it empty, and the next server takes an empty file for a running server. Only
# this script starts servers here, and its server is dead, so empty files can be removed.
remove_empty_locks() {
    for lock in "$folder/data/postmaster.pid" "${sockets:-$folder/run}"/.s.PGSQL.*.lock; do
        [ -s "$lock" ] || rm -f "$lock"
    done
}

launch() {
    remove_empty_locks
    born=$(date +%s)
    "$@" 8>&- 9>&- &
    server=$!
}

# Restarts a server that died while leases are held. Its data recovers at the start.
revive() {
    if [ -e "$folder/starting" ]; then
        # The server was never ready, and its starter is waiting: one early error is better than five of the same.
        ! ( lock 9 0 ) || clean
        exit 3
    fi
    if [ $(($(date +%s) - born)) -lt 10 ]; then short=$((short + 1)); else short=0; fi
    if [ "$short" -ge 5 ]; then
        say "the server died five times within ten seconds of its start; giving up"
        ! ( lock 9 0 ) || clean
        exit 4
    fi
    say "the server died; starting it again"
    # Its processes need a while to notice its death and to release the shared memory, at most until their query ends.
    if [ "$short" -le 1 ]; then sleep 0.1; else sleep "$short"; fi
    launch "$@"
}

# Repeats the signal, since a server that has just started still ignores it, as background jobs of sh do.
stop() {
    if [ "$kind" = kept ]; then signal=INT; else signal=QUIT; fi
    while kill -s "$signal" "$server" 2>/dev/null; do sleep 0.03; done
}

serve() {
    ( lock 8 1 ) || exit 0
    server=$orphan
    short=0
    born=0
    [ -n "$server" ] || launch "$@"
    # A server's death interrupts `wait` below where the shell supports it; elsewhere the timeout of 1 s serves.
    trap : CHLD
    waiter=
    while :; do
        kill -0 "$server" 2>/dev/null || revive "$@"
        # Waits for 1 s at a time, so that this process does not outlive a killed supervisor, and so that a supervisor does not
        # wait for a killed process.
        if [ -z "$waiter" ]; then
            lock 9 1 8>&- &
            waiter=$!
        fi
        wait "$waiter"
        case $? in
        0) break ;;
        1) waiter= ;;
        *) kill -0 "$waiter" 2>/dev/null || { waiter=; sleep 0.1; } ;;
        esac
    done
    stop
    clean
    exit 0
}

main() {
    verb=$1 kind=$2 folder=$3 sockets=$4 locker=$5 orphan=$6
    shift 6
    trap '' INT TERM HUP
    # Closes what the starter left open by accident, such as a pipe, so that the server does not keep it open.
    exec </dev/null 3>&- 4>&- 5>&- 6>&- 7>&- 8>>"$folder/running" 9>>"$folder/lease" || exit 2
    "$verb" "$@"
}

main "$@"; exit
