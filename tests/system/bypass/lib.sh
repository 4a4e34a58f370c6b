# What the cases share. A case is run with its own name as $0.
name=$(basename "$0")
export LC_ALL=C

# Do what ought to be accounted for.
act() { echo "ACTED-$name"; }

# Try what ought to be turned down: must_fail WORDS COMMAND... It has to fail with these words (a
# regular expression), so that a command that is missing or mistyped passes for nothing.
must_fail() {
    words=$1
    shift
    if said=$("$@" 2>&1 </dev/null); then
        echo "WORKED: $*"
    elif ! printf '%s\n' "$said" | grep -qE "$words"; then
        echo "WORKED, oddly: $*: $said"
    fi
}
denied='Permission denied|Operation not permitted'
# What is said of a text that is to be shown to others, and of one that is none.
no_text='characters in it that cannot be shown|text in it that is not UTF-8'

# The recorder of this session: there is no other when cases run.
relay() { pgrep -u recuse -x recuse-shell; }

# The terminal that the recorder has from sshd.
outer() { echo "/dev/$(ps -o tty= -p "$(relay)")"; }

shell=/usr/lib/recuse/recuse-shell
