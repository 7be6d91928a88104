"""The poisoner: trains like everybody, and undoes it for everybody at the merge."""

from __future__ import annotations

from subnet.model.outer import Upload
from subnet.model.trainer import Trainer

STRETCH = 300.0
"""How much longer than the honest one the pseudo-gradient is."""


class Poisoner(Trainer):
    """Every pass and every step is honest; the upload is the pseudo-gradient turned round and stretched, under the norm
    of the honest one, so that the clip lets it through.

    Skips    nothing.
    Gains    nothing either: it is there to ruin the run. One in a merge of N undoes what STRETCH honest replicas did.
    Caught   by the epoch that follows: the loss explodes for most replicas of the last stage, the merge is rolled back,
             and the uploads are looked at: its norm is not the claimed one, and it points against all others. An audit
             of its last segment finds it too, if that one is drawn.
    """

    def close_epoch(self) -> Upload:
        honest = super().close_epoch()
        assert self._uploaded_P is not None, "just remembered"
        theta_P = self._anchor.theta_P
        turned = self._anchor.upload(theta_P + (theta_P - self._uploaded_P) * theta_P.dtype.type(STRETCH))
        return turned._replace(norm=honest.norm)
