"""`splitpoint keys`: what it makes, and where it cannot."""

from __future__ import annotations

from pathlib import Path

import pytest

from splitpoint.certificates import make
from splitpoint.errors import MissingExtraError, StorageError

# --- keys for a lab -------------------------------------------------------------------------------------------------


def test_keys_where_nothing_can_be_written(tmp_path: Path) -> None:
    from datetime import datetime, timezone

    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        make(tmp_path / "file" / "k", ["localhost"], now=datetime.now(timezone.utc))


def test_without_cryptography_the_install_line_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    from datetime import datetime, timezone

    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(MissingExtraError, match=r"\[tls\]\): .* install 'cryptography>="):
        make(tmp_path / "k", ["localhost"], now=datetime.now(timezone.utc))
