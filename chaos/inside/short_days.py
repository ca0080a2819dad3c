"""Days of a few seconds, so that retention, roll-up and pruning run while one watches."""

import os

from webapp import counters, retention
from webapp.delivery import relay
from webapp.outbox import kinds, outcomes

DAY = float(os.environ["CHAOS_DAY"])

retention.DAY = DAY
for module in (kinds, outcomes):
    module.PURGE_AFTER = 7 * DAY  # type: ignore[attr-defined]
# Minutes otherwise. Rows must be counted before retention deletes them.
relay.PRUNE_SECONDS = counters.SETTLED_SECONDS = counters.FOLD_SECONDS = DAY
