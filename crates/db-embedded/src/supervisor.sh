# Keeps a PostgreSQL server running for as long as somebody holds a lease on its folder.
#
#   sh -s -- VERB KIND FOLDER SOCKETS LOCKER ORPHAN PROGRAM [ARGUMENT..]
#
#   VERB     init: run PROGRAM (initdb) and end with its status; serve: keep PROGRAM (postgres) running
#   KIND     kept, or throwaway: the folder goes when the last lease does
#   FOLDER   holds the lock files, the data and the log
#   SOCKETS  a socket folder elsewhere, to remove at the end; empty when it is inside FOLDER
#   LOCKER   flock or perl: what takes locks here
#   ORPHAN   the process id of a server that lost its supervisor; empty to start a new one
#
# It comes in by standard input, so that `ps` shows one line, and is all functions but for its last line, so that one
# that was cut short by the death of its sender does nothing. It runs in a process group of its own and as the account
# that owns the data, and outlives whoever started it.
#
# The descriptors: 8 is the lock file `running`, held for as long as this shell lives. 9 is `lease`: users hold it
# shared, so to get it exclusively is to know that the last one went. A lock belongs to the open file and lasts until
# each process that inherited it closed it; hence 8 and 9 are closed in the server, or an orphan would keep both.

# Takes the exclusive lock on descriptor $1 within $2 seconds. Replaces the process: call it in a subshell.
lock() {
    case $locker in
    flock) exec flock -x -w "$2" "$1" ;;
    perl) exec perl -e '
        use Fcntl ":flock";
        my ($descriptor, $patience) = @ARGV;
        open my $file, ">>&=", $descriptor or exit 2;
        $SIG{ALRM} = sub { exit 1 };
        alarm $patience;
        flock $file, $patience ? LOCK_EX : LOCK_EX | LOCK_NB or exit 1;
    ' "$1" "$2" ;;
    esac
    exit 2
}

say() {
    echo "db-embedded: $*" >&2
}

# Removes what has to go. The folder leaves its name in one step, so that nobody can step into half of it.
clean() {
    [ -z "$sockets" ] || rm -rf "$sockets"
    [ "$kind" = throwaway ] || return 0
    mv "$folder" "$folder.gone-$$" && rm -rf "$folder.gone-$$"
}

init() {
    "$@" 9>&-
    status=$?
    # Whoever asked for the data may have died meanwhile; then nobody else would remove it.
    [ "$kind" = kept ] || ! ( lock 9 0 ) || clean
    exit "$status"
}

# A server that is killed while it makes a lock file leaves it empty, and the next one takes that for a server at work.
# Nobody but us starts one here, and ours is gone.
forget() {
    for lock in "$folder/data/postmaster.pid" "${sockets:-$folder/run}"/.s.PGSQL.*.lock; do
        [ -s "$lock" ] || rm -f "$lock"
    done
}

launch() {
    forget
    born=$(date +%s)
    "$@" 8>&- 9>&- &
    server=$!
}

# The server died while leases are held. Its data recovers when it starts again.
revive() {
    if [ -e "$folder/starting" ]; then
        # It never came up, and its starter is watching: better an error now than the same one five times.
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
    # Its processes need a while to notice, and to let go of the shared memory: the longest, to finish a query.
    if [ "$short" -le 1 ]; then sleep 0.1; else sleep "$short"; fi
    launch "$@"
}

# Repeats the signal: a server that is only just starting still ignores it, as sh has its background jobs do.
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
    # Interrupts `wait` below when the server dies, where the shell can do that; the second of patience is for the rest.
    trap : CHLD
    waiter=
    while :; do
        kill -0 "$server" 2>/dev/null || revive "$@"
        # Waits for one second only, so that it does not outlive a killed supervisor, nor that one wait for a killed it.
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
    # What the starter left open by accident, such as somebody's pipe, must not stay open with the server.
    exec </dev/null 3>&- 4>&- 5>&- 6>&- 7>&- 8>>"$folder/running" 9>>"$folder/lease" || exit 2
    "$verb" "$@"
}

main "$@"; exit
