"""The error tree, ordered by who must act.

    SubnetError
    ├── ConfigError          the operator: a flag, file or variable is wrong; carries the field and the remedy
    ├── PeerFault            the protocol: another party sent something it must not; carries the evidence
    ├── Unavailable          nobody: the outside is away for a moment; retried, and only inside adapters
    ├── Desync               ourselves: we are behind the others and must catch up
    └── InvariantViolation   a developer: the program contradicts itself; crash and keep the journal

Every error here says one sentence. Nothing else may be raised across a band on purpose.
"""


class SubnetError(Exception):
    """Base of every error this project raises on purpose."""


class ConfigError(SubnetError):
    """The operator must act. Shown as one line, exit code 2, never a traceback."""

    def __init__(self, field: str, problem: str, remedy: str) -> None:
        super().__init__(f"{field}: {problem}; {remedy}")
        self.field, self.problem, self.remedy = field, problem, remedy


class PeerFault(SubnetError):
    """A peer broke the protocol: refuse, record, score.

    `code` is a `protocol.reasons.Reason` value, `evidence` what a third party needs to see it too.
    """

    def __init__(self, code: str, sentence: str, evidence: str = "") -> None:
        super().__init__(sentence)
        self.code, self.sentence, self.evidence = code, sentence, evidence


class Unavailable(SubnetError):
    """Something outside did not answer; the same call may succeed later."""


class Desync(SubnetError):
    """Our own state is behind the others'; fetch and go on."""


class InvariantViolation(SubnetError):
    """The program contradicts itself; the journal is the bug report."""
