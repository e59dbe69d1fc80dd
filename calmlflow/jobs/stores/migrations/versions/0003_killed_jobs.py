"""Add killed jobs."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_FLAGS = ("drizcorr", "pctecorr", "crsplit", "subarray", "detector", "dtype", "instr")


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "calcloud_killed_jobs",
        sa.Column("ipst", sa.Text, primary_key=True),
        sa.Column("timestamp", sa.BigInteger, primary_key=True),
        sa.Column("n_files", sa.BigInteger),
        sa.Column("total_mb", sa.Double),
        *(sa.Column(name, sa.BigInteger) for name in _FLAGS),
        sa.Column("kind", sa.Text),
        *(sa.Column(name, sa.Double) for name in ("wallclock", "memory")),
        sa.Column("reason", sa.Text),
        sa.Column("stored_at", sa.BigInteger),
    )
