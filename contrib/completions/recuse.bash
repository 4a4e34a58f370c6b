# bash completion for recuse(1)

_recuse_ids() {
    recuse sessions --json 2>/dev/null | sed -n 's/^ *"session": "\([sl]-[a-z2-7]*\)",\{0,1\}$/\1/p'
}

_recuse_grants() {
    recuse grants --all --json 2>/dev/null | sed -n 's/^ *"grant": "\(g-[a-z2-7]*\)",\{0,1\}$/\1/p'
}

_recuse() {
    local cur prev words cword command='' i
    _init_completion -s 2>/dev/null || {
        COMPREPLY=()
        words=("${COMP_WORDS[@]}") cword=$COMP_CWORD
        cur=${words[cword]} prev=${words[cword - 1]}
    }
    for ((i = 1; i < cword; i++)); do
        case ${words[i]} in
            -*) ;;
            *)
                command=${words[i]}
                [[ $command == @(policy|notify|grant) && $((i + 1)) -lt $cword ]] && command+=-${words[i + 1]}
                break
                ;;
        esac
    done

    local options=''
    case $prev in
        --dir | --bundle | --approval-policy) COMPREPLY=($(compgen -d -- "$cur")); return ;;
        -o | --output | --key | --host-key | --collector-key | --mailbox-key | --ca | --html | --pseudonym-key | \
            --policy | --signature | --approvers | --revoked)
            COMPREPLY=($(compgen -f -- "$cur")); return ;;
        --user) COMPREPLY=($(compgen -u -- "$cur")); return ;;
        --group) COMPREPLY=($(compgen -g -- "$cur")); return ;;
        --verdict) COMPREPLY=($(compgen -W 'record exempt refuse' -- "$cur")); return ;;
        --outcome)
            COMPREPLY=($(compgen -W 'recorded partial exempt refused failed lost live' -- "$cur"))
            return ;;
        --level) COMPREPLY=($(compgen -W 'metadata commands output' -- "$cur")); return ;;
        --outer) COMPREPLY=($(compgen -W 'record exempt' -- "$cur")); return ;;
        --tty) COMPREPLY=($(compgen -W 'yes no' -- "$cur")); return ;;
        --format) COMPREPLY=($(compgen -W 'cast cast3 text json' -- "$cur")); return ;;
        --ignore)
            COMPREPLY=($(compgen -W 'expired expires-soon never-matches unknown-account shadowed
                covered overlaps broad exempts-much exempt-unanswered unused-role unused-ask program' \
                -- "$cur"))
            return ;;
        --scope) COMPREPLY=($(compgen -W 'session pause' -- "$cur")); return ;;
        --blobs) COMPREPLY=($(compgen -W 'require present skip' -- "$cur")); return ;;
        --since | --until | --at) COMPREPLY=($(compgen -W 'now today yesterday' -- "$cur")); return ;;
        -s | --speed | -k | --smallest-group | --settle | -i | --idle-limit | --start | --seek | --min-size | --url | --token | --collector | \
            --service | --uid | --source | --claimed-source | --ruser | --command | --host | \
            --host-tag | --tag | --claimed-tag | --answer | --days | --percent | --reason | --why | --ticket | --for | --begin | \
            --uses | --max | --from | --words)
            return ;;
    esac
    case $command in
        '')
            options='status sync sessions show pause resume play export verify notify policy tags report request requests grants approve review
                reject revoke break-glass grant doctor enable disable
                enroll --debug --version --help' ;;
        status | sync | tags) options='--json' ;;
        report)
            options='--since --until --html --works-council --smallest-group --pseudonym-key --dir
                --json' ;;
        doctor) options='--coverage --since --settle --json' ;;
        sessions) options='--user --mine --verdict --outcome --since --until --dir --json' ;;
        show) options='--dir --json' ;;
        pause) options='--reason --ticket --for --words --status --json' ;;
        resume) options='--json' ;;
        play) options='--speed --idle-limit --start --seek --follow --raw --dir' ;;
        export) options='--format --output --merge-stderr --plain --bundle --approvers --dir' ;;
        verify)
            options='--mine --key --host-key --collector-key --blobs --min-size --approvers'
            options+=' --approval-policy --revoked --dir --json' ;;
        request)
            options='--reason --why --ticket --for --begin --uses --level --scope --max --supervised --host
                --from --user --json' ;;
        requests) options='--collector --ca --mailbox-key --host --json' ;;
        grants) options='--all --debts --collector --ca --mailbox-key --dir --json' ;;
        approve) options='--key --signature --password --yes --collector --ca --mailbox-key --json' ;;
        review) options='--key --signature --words --password --collector --ca --mailbox-key --yes --json' ;;
        reject | revoke) options='--why --key --yes --collector --ca --mailbox-key --json' ;;
        break-glass) options='--why --ticket --json' ;;
        grant) options='export import' ;;
        grant-export) options='--request' ;;
        grant-import) options='--json' ;;
        notify) options='check status test' ;;
        notify-check | notify-status) options='--json' ;;
        policy) options='check explain replay lint test' ;;
        policy-check) options='--json' ;;
        policy-replay) options='--policy --since --until --dir --json' ;;
        policy-lint)
            options='--days --sessions --percent --accounts --ignore --dir --json' ;;
        policy-test) options='--policy --json' ;;
        policy-explain)
            options='--user --service --uid --group --source --claimed-source --ruser --tty
                --command --login --host --host-tag --tag --claimed-tag --answer --outer --at --policy
                --json' ;;
        enable | disable) options='--dry-run' ;;
        enroll) options='--url --token --ca' ;;
    esac
    if [[ -n $command && $cur != -* ]]; then
        case $command in
            show | play | export | verify)
                COMPREPLY=($(compgen -W "$(_recuse_ids)" -- "$cur"))
                [[ $command == play || $command == export ]] &&
                    COMPREPLY+=($(compgen -f -X '!*.cast' -- "$cur"))
                return ;;
            approve | review | reject | revoke | grant-export)
                COMPREPLY=($(compgen -W "$(_recuse_grants)" -- "$cur"))
                return ;;
            policy-check | policy-lint | policy-test | grant-import) COMPREPLY=($(compgen -f -- "$cur")); return ;;
        esac
    fi
    COMPREPLY=($(compgen -W "$options" -- "$cur"))
}

complete -o filenames -F _recuse recuse
