"""The policy and the notices as files; a copy of the policy for a start that finds it broken.

Part of the agent.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Optional

from . import files
from .approval import ApprovalPolicy
from .approvaltoml import parse_approval
from .config import Paths, read_policy_dir, read_trusted
from .errors import ConfigError, Fault, PolicyError, RecuseError
from .journal import Journal
from .notices import Notices, read_notices
from .policy import Policy
from .policytoml import parse_policy
from .tomlfile import did_you_mean

FAULTS_SHOWN = 5


def say_faults(error: RecuseError) -> str:
    """Word every fault with file and line, the first few at length."""
    faults = [str(fault) for fault in getattr(error, "faults", ())]
    if not faults:
        return error.message
    more = len(faults) - FAULTS_SHOWN
    return "; ".join(faults[:FAULTS_SHOWN]) + (f"; and {more} more" if more > 0 else "")


def load_policy(paths: Paths) -> Policy:
    """Read the policy in /etc. Raises: PolicyError"""
    return parse_policy(read_policy_dir(paths.policy_dir))


def load_notices(paths: Paths) -> Notices:
    """Read the templates of notices in /etc. Raises: ConfigError"""
    try:
        files = read_policy_dir(paths.notices_dir)
    except PolicyError as error:
        raise ConfigError("templates of notices are not used", faults=error.faults) from None
    return read_notices(files)


def load_approval(paths: Paths, policy: Policy) -> ApprovalPolicy:
    """Read the approval policy in /etc. Raises: PolicyError"""
    return parse_approval(read_policy_dir(paths.approval_dir), policy)


def boot_approval(paths: Paths, policy: Policy, journal: Journal) -> ApprovalPolicy:
    """Read the approval policy; a bad one means that nothing can be asked for."""
    try:
        return load_approval(paths, policy)
    except PolicyError as error:
        journal.write("policy-bad", fault=say_faults(error), proceeding="no approval policy")
        return parse_approval([], policy)


def check_names(policy: Policy, notices: Notices) -> None:
    """See that there is every template of a notice that a rule asks for. Raises: ConfigError"""
    faults = [
        Fault(
            rule.file,
            rule.line,
            f"rule {rule.name!r} asks for notice {rule.terms.notice!r}, which notices.d has not"
            + did_you_mean(rule.terms.notice, notices.names),
        )
        for rule in policy.rules
        if rule.terms.notice is not None and rule.terms.notice not in notices.names
    ]
    if faults:
        raise ConfigError("rules ask for notices that are not there", faults=faults)


def boot_policy(paths: Paths, journal: Journal) -> Policy:
    """Read the policy; a bad one means the last good one, else that everybody is recorded."""
    try:
        policy = load_policy(paths)
    except PolicyError as error:
        fault = say_faults(error)
    else:
        keep_policy(paths)
        return policy
    last = _read_last(paths)
    if last is not None:
        journal.write("policy-bad", fault=fault, proceeding="the last good policy")
        return last
    journal.write("policy-bad", fault=fault, proceeding="recording everybody")
    return parse_policy([])


def keep_policy(paths: Paths) -> None:
    """Copy the policy, which was good, for a start that finds it broken."""
    # The copy is a convenience; what is in force is in memory.
    with contextlib.suppress(OSError, PolicyError, ValueError):
        found = read_policy_dir(paths.policy_dir)
        kept = {os.path.basename(name): content.decode() for name, content in found}
        data = json.dumps(kept, indent=1).encode() + b"\n"
        if not _last(paths).exists() or _last(paths).read_bytes() != data:
            files.replace(_last(paths), data, 0o600)


def _read_last(paths: Paths) -> Optional[Policy]:
    try:
        kept = json.loads(read_trusted(_last(paths)))
        return parse_policy([(str(_last(paths) / name), kept[name].encode()) for name in kept])
    except (OSError, ValueError, TypeError, AttributeError, RecuseError):
        return None


def _last(paths: Paths) -> Path:
    return paths.state / "policy.last"
