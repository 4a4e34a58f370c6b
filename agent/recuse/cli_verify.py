"""`recuse verify`: what the signatures, the order and the content of an archive prove."""

from __future__ import annotations

import os
import time
from typing import Any, Callable, Iterator, Optional, Sequence, TypeVar

from recuse import amounts, audit, catalog, cli_own, config, keys
from recuse.approval import ApprovalPolicy
from recuse.approvaltoml import parse_approval
from recuse.cast import printable
from recuse.checkpoint import Verifier
from recuse.console import Add, Call, archive, as_json
from recuse.errors import CryptoError, FaultsFound, NotFound, RecuseError, count_faults
from recuse.policytoml import parse_policy
from recuse.sshsig import MAX_REVOKED_BYTES, AllowedSigners, RevokedKeys, SignersError

_T = TypeVar("_T")

_NAMED = 3  # hosts
_GIVE_KEY = "give its host.pub, from a place you trust: --key FILE, once for each host"


def add_commands(add: Add, commands: Any) -> None:
    """Add `verify`."""
    one = add("verify", verify, "check signatures, order and content; name every fault")
    one.add_argument("id", metavar="ID", nargs="?", help="only faults of this session")
    one.add_argument(
        "--mine", action="store_true", help="the caller's own entries, which the agent proves"
    )
    one.add_argument(
        "--key",
        "--host-key",
        action="append",
        default=[],
        metavar="VKEY",
        help="host's public key, a file or a vkey; may be repeated",
    )
    one.add_argument(
        "--collector-key",
        action="append",
        default=[],
        metavar="VKEY",
        help="collector's public key",
    )
    one.add_argument(
        "--blobs",
        choices=audit.BLOB_MODES,
        default="require",
        help="an absent segment is a fault (require), is fine (present); or look at none (skip)",
    )
    one.add_argument("--min-size", type=int, default=0, metavar="N", help="entries there must be")
    one.add_argument(
        "--approvers", metavar="FILE", help="whose signatures count for grants; an allowed-signers"
    )
    one.add_argument(
        "--approval-policy", metavar="DIR", action="append", default=[],
        help="approval.d that was in force, beside its policy.d; the newest last",
    )  # fmt: skip
    one.add_argument("--revoked", metavar="FILE", help="keys that do not: a list of keys, or a KRL")
    archive(one)
    as_json(one)


class _Watched:
    """A source that tells how far it was read, and looks for segments in central storage too."""

    def __init__(self, source: Any, found: catalog.Catalog, tell: Callable[[int], None]) -> None:
        self._source = source
        self._catalog = found
        self._tell = tell

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    @property
    def is_central(self) -> bool:
        return bool(self._source.is_central or self._catalog.stores)

    def entries(self) -> Iterator[Any]:
        for count, entry in enumerate(self._source.entries()):
            if count % 256 == 0:
                self._tell(count)
            yield entry

    def blob(self, name: str) -> Optional[bytes]:
        found: Optional[bytes] = self._source.blob(name)
        return self._catalog.blob(name) if found is None else found


def _key(given: str) -> Verifier:
    """Read a vkey from a file, or as it stands."""
    if os.path.exists(given) or "+" not in given:
        return keys.read_vkey(given)
    return Verifier.parse(given)


def _file_of_keys(path: Optional[str], parse: Callable[[bytes, str], _T]) -> Optional[_T]:
    """Read a file of approvers or of revoked keys. Raises: NotFound, CryptoError"""
    if path is None:
        return None
    try:
        with open(path, "rb") as file:
            return parse(file.read(MAX_REVOKED_BYTES + 1), path)
    except FileNotFoundError:
        raise NotFound("%s does not exist" % printable(path)) from None
    except OSError as e:
        raise RecuseError("%s: %s" % (printable(path), (e.strerror or str(e)).lower())) from None
    except SignersError as error:
        faults = "; ".join(map(str, error.faults[:3]))
        raise CryptoError(f"{error.message}: {faults}" if faults else error.message) from None


def _approval_policy(directory: str) -> ApprovalPolicy:
    """Read an approval policy, and the policy beside it, whose reasons and roles it names.

    Raises: NotFound, PolicyError
    """
    if not os.path.isdir(directory):
        raise NotFound("%s is no directory" % printable(directory))
    beside = os.path.join(directory, os.pardir, "policy.d")
    policy = parse_policy(config.read_policy_dir(beside))
    return parse_approval(config.read_policy_dir(directory), policy)


def _trusted(call: Call, sources: Sequence[audit.Source]) -> dict[str, audit.Trusted]:
    """Find the keys to check each host's ledger with: those given, else those of this host.

    Hosts of which there is none are left out.
    """
    args, paths = call.args, call.paths
    hosts = {audit.split_epoch(k.name)[0]: k for k in map(_key, args.key)}
    wanted = set(hosts)  # of whom nothing is here, is missed
    collectors = [_key(given) for given in args.collector_key]
    if args.dir is None:
        if not hosts:
            found = keys.read_vkey(paths.host_pub)
            hosts[audit.split_epoch(found.name)[0]] = found
        if not collectors:
            central = catalog.central_directory(paths)
            near = [paths.collector_pub] + ([central / "store.pub"] if central else [])
            collectors = [keys.read_vkey(path) for path in near if path.exists()]
    elif not hosts:
        for source in sources:
            offered = getattr(source, "offered_vkey", None)
            if offered:
                found = Verifier.parse(offered)
                hosts[audit.split_epoch(source.origin)[0]] = found
        if hosts:
            call.console.warn(
                "keys were taken from %s itself, proceeding: this shows that nothing was damaged, "
                "not who signed it; give --key" % printable(args.dir)
            )
    approvers = _file_of_keys(args.approvers, AllowedSigners.parse)
    revoked = _file_of_keys(args.revoked, RevokedKeys.parse)
    policies = tuple(map(_approval_policy, args.approval_policy))
    if args.approvers is None and args.dir is None and paths.approvers.exists():
        approvers = _file_of_keys(str(paths.approvers), AllowedSigners.parse)
    trusted = {}
    grouped = audit.group_by_host(sources, hosts)
    for prefix in [*grouped, *sorted(wanted - set(grouped))]:
        if prefix in hosts:
            trusted[prefix] = audit.Trusted(
                hosts[prefix], tuple(collectors), args.min_size, approvers, revoked, policies
            )
    return trusted


def verify(call: Call) -> int:
    args, console = call.args, call.console
    if args.mine:
        return cli_own.verify(call)
    found = call.catalog(add_up=args.id is not None)
    name = found.session(args.id).session if args.id else None
    trusted = _trusted(call, found.sources)
    if not trusted and not found.sources:
        raise NotFound("there is no ledger in %s" % printable(args.dir or "this host's storage"))
    watched = console.err.isatty()

    def tell(count: int) -> None:
        if watched:
            done = amounts.number(count, "entry", "entries")
            console.err.write("\r\x1b[Kverifying: %s" % done)
            console.err.flush()

    sources: list[Any] = [_Watched(source, found, tell) for source in found.sources]
    try:
        reports = audit.verify_all(
            sources,
            trusted,
            blobs=args.blobs,
            now_ns=time.time_ns() if args.dir is None else None,
        )
    finally:
        if watched:
            console.err.write("\r\x1b[K")
    faults = 0
    if args.json:
        console.json({"ok": all(r.ok for r in reports), "ledgers": [r.to_json() for r in reports]})
    for report in reports:
        listed = report.faults if name is None else report.of_session(name)
        faults += len(listed)
        if args.json:
            continue
        if name is None:
            for line in report.lines():
                console.print(printable(line))
            continue
        for fault in listed:
            console.print("fault: %s" % printable(str(fault)))
    of = None if name is None else found.view.sessions[name].origin
    unchecked = _unchecked(reports, found.sources, of)
    if name is not None and not (faults or unchecked or args.json):
        console.print("session %s verified" % name)
    if faults:
        words = "verification found " + count_faults(faults)
        if unchecked:
            words += ", and has no trusted key for " + _say_hosts(unchecked)
        raise FaultsFound(words, _bare_ledger(call, reports) or _GIVE_KEY * bool(unchecked))
    if unchecked:
        raise CryptoError("no trusted key for " + _say_hosts(unchecked), _GIVE_KEY)
    return 0


def _unchecked(
    reports: Sequence[audit.Report], sources: Sequence[audit.Source], of: Optional[str]
) -> list[str]:
    """Name the hosts of which there was no key; with `of` no other than that ledger's."""
    hosts = audit.group_by_host(sources)
    wanted = {
        one.origin
        for host in hosts.values()
        if of is None or of in [one.origin for one in host]
        for one in host
    }
    left = [one.origin for one in reports if not one.checked and one.origin in wanted]
    return sorted({audit.split_epoch(origin)[0] for origin in left})


def _say_hosts(names: Sequence[str]) -> str:
    """Word which hosts they are, the first few by name."""
    told = ", ".join(map(printable, names[:_NAMED]))
    more = len(names) - _NAMED
    which = "host" if len(names) == 1 else "%d hosts:" % len(names)
    return "%s %s%s" % (which, told, " and %d more" % more if more > 0 else "")


def _bare_ledger(call: Call, reports: Sequence[audit.Report]) -> Optional[str]:
    """Give a hint if all that is wrong is that no segment lies beside the ledgers."""
    found = {fault.code for report in reports for fault in report.faults}
    if found != {"blob-missing"} or any(report.blobs_checked for report in reports):
        return None
    if call.args.dir is None:
        central = catalog.central_directory(call.paths)
        return "central storage %s is not there" % central if central else None
    if call.args.collector_key:
        return "no segment is here; --blobs present verifies the ledger without them"
    return "no segment is here; --collector-key believes receipts, --blobs present does without"
