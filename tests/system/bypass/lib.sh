# What the cases share. A case is run with its own name as $0.
name=$(basename "$0")

# Do what ought to be accounted for.
act() { echo "ACTED-$name"; }

# Try what ought to be turned down; say so if it is not.
must_fail() {
    if "$@" >/dev/null 2>&1 </dev/null; then echo "WORKED: $*"; fi
}

# The recorder of this session: there is no other when cases run.
relay() { pgrep -u recuse -x recuse-shell; }

# The terminal that the recorder has from sshd.
outer() { echo "/dev/$(ps -o tty= -p "$(relay)")"; }

# Wait for the end of a condition that something else brings about.
until_true() { timeout 10 sh -c "until $1; do read -t 0.02 x <>\"\$0\"; done" "$(pause)" || echo "WORKED: no end of waiting for $1"; }
pause() { p=$(mktemp -u); mkfifo "$p"; echo "$p"; }

shell=/usr/lib/recuse/recuse-shell
