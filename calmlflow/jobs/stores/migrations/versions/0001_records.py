"""Make the tables of job records, history and quarantine."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

# A migration stays as it was written: it does not follow later changes of `calmlflow.jobs.stores.base`.
_WHOLE = ("n_files", "drizcorr", "pctecorr", "crsplit", "subarray", "detector", "dtype", "instr", "mem_bin")
_NUMBERS = ("total_mb", "wallclock", "memory")


def _record() -> list[sa.Column]:
    return [
        sa.Column("timestamp", sa.BigInteger),
        *(sa.Column(name, sa.BigInteger) for name in _WHOLE),
        *(sa.Column(name, sa.Double) for name in _NUMBERS),
        sa.Column("bin_pred", sa.BigInteger),
        *(sa.Column(name, sa.Double) for name in ("mem_pred", "wall_pred", "wc_mean", "wc_std", "wc_err")),
        sa.Column("split", sa.Text),
        sa.Column("trained_at", sa.BigInteger),
    ]


def upgrade() -> None:
    """Make the three tables."""
    op.create_table("calcloud_jobs", sa.Column("ipst", sa.Text, primary_key=True), *_record())
    op.create_index("calcloud_jobs_timestamp", "calcloud_jobs", ["timestamp"])
    op.create_table(
        "calcloud_history",
        sa.Column("ipst", sa.Text, primary_key=True),
        sa.Column("digest", sa.Text, primary_key=True),
        *_record(),
        sa.Column("replaced_at", sa.BigInteger),
    )
    op.create_table(
        "calcloud_quarantine",
        sa.Column("ipst", sa.Text, primary_key=True),
        sa.Column("digest", sa.Text, primary_key=True),
        sa.Column("timestamp", sa.BigInteger),
        *(sa.Column(name, sa.Text) for name in ("kind", "reason", "source", "record")),
        *(sa.Column(name, sa.BigInteger) for name in ("first_seen", "last_seen", "tries", "resolved_at")),
    )
