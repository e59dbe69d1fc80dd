"""Add mosaics and predictions, and the time at which a record was stored."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_FEATURES = ("n_files", "total_mb", "drizcorr", "pctecorr", "crsplit", "subarray", "detector", "dtype", "instr")
_PROBABILITIES = ("prob_2g", "prob_8g", "prob_16g", "prob_64g")


def upgrade() -> None:
    """Make two tables, and add a column to two."""
    for table in ("calcloud_jobs", "calcloud_history"):
        op.add_column(table, sa.Column("stored_at", sa.BigInteger))
    op.create_table(
        "calcloud_mosaics",
        sa.Column("ipst", sa.Text, primary_key=True),
        sa.Column("timestamp", sa.BigInteger),
        *(sa.Column(name, sa.Double) for name in ("wallclock", "memory", "disk")),
        sa.Column("stored_at", sa.BigInteger),
    )
    op.create_table(
        "calcloud_predictions",
        sa.Column("ipst", sa.Text, primary_key=True),
        sa.Column("timestamp", sa.Double, primary_key=True),
        *(sa.Column(name, sa.Double) for name in _FEATURES),
        sa.Column("bin_pred", sa.BigInteger),
        *(sa.Column(name, sa.Double) for name in ("mem_pred", "wall_pred")),
        sa.Column("kill_time", sa.BigInteger),
        *(sa.Column(name, sa.Double) for name in _PROBABILITIES),
        sa.Column("unseen", sa.BigInteger),
        *(sa.Column(name, sa.Text) for name in ("version", "source")),
    )
