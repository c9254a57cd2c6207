"""What error codes mean, for `vswitchctl explain`: code -> (what it means, what to do).

The first digit says what sort of error it is: 1 what was asked makes no sense, 2 something is not
there or is there already, 3 the state does not allow it now, 4 no room, 5 somebody did not answer
in time, 6 refused for the data's safety, 9 a defect or damage.
"""

from __future__ import annotations

from vswitchd.errors_text import asked, rest, state

EXPLAIN: dict[str, tuple[str, str]] = {**asked.TEXTS, **state.TEXTS, **rest.TEXTS}
