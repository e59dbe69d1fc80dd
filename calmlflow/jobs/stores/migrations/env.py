"""Run the migrations of a store on the connection that `calmlflow.jobs.stores.sql` passes."""

from alembic import context

from calmlflow.jobs.stores.sql import METADATA, VERSION_TABLE

context.configure(
    connection=context.config.attributes["connection"], target_metadata=METADATA, version_table=VERSION_TABLE
)
with context.begin_transaction():
    context.run_migrations()
