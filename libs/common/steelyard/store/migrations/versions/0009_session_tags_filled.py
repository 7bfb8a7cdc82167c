"""Tags of the sessions of before are counted, a page of sessions at a time: their writers wait for one page at most."""

from alembic import op
from sqlalchemy import text

from steelyard.store import online

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    with online.own_transactions():
        op.execute(PAGE)
        bind = op.get_bind()
        # Row-level security is forced, upon the owner too; the workers' role sees the rows of every project.
        if not bind.scalar(text("SELECT pg_has_role(current_user, 'steelyard_worker', 'SET')")):
            op.execute("GRANT steelyard_worker TO CURRENT_USER WITH SET TRUE")
        op.execute("SET ROLE steelyard_worker")
        project, session = "00000000-0000-0000-0000-000000000000", ""
        while row := bind.execute(NEXT, {"project": project, "session": session}).one_or_none():
            project, session = row.project_id, row.session_id
        op.execute("RESET ROLE")
        op.execute("DROP FUNCTION session_tags_filled(uuid, text)")


def downgrade() -> None:
    pass


# As many sessions as have 20,000 traces together, and one in any case; the last of them, or nothing.
PAGE = """
    CREATE OR REPLACE FUNCTION session_tags_filled(
        after_project uuid, after_session text, OUT project_id uuid, OUT session_id text
    ) RETURNS SETOF record LANGUAGE plpgsql SET search_path = public AS $$
    #variable_conflict use_column
    DECLARE projects uuid[]; names text[];
    BEGIN
        SELECT array_agg(project_id ORDER BY project_id, session_id), array_agg(session_id ORDER BY project_id, session_id)
        INTO projects, names
        FROM (
            SELECT project_id, session_id, sum(trace_count) OVER (ORDER BY project_id, session_id) - trace_count AS before
            FROM (
                SELECT project_id, session_id, trace_count FROM sessions
                WHERE (project_id, session_id) > (after_project, after_session) ORDER BY project_id, session_id LIMIT 200
            ) ahead
        ) summed WHERE before < 20000;
        IF projects IS NULL THEN
            RETURN;
        END IF;
        project_id := projects[cardinality(projects)];
        session_id := names[cardinality(names)];
        -- Locked, then looked at: who writes to one of them meanwhile has counted it.
        PERFORM 1 FROM sessions s JOIN unnest(projects, names) AS k (project_id, session_id)
            USING (project_id, session_id) ORDER BY s.project_id, s.session_id FOR NO KEY UPDATE OF s;
        SELECT array_agg(s.project_id), array_agg(s.session_id) INTO projects, names
        FROM sessions s JOIN unnest(projects, names) AS k (project_id, session_id)
            ON s.project_id = k.project_id AND s.session_id = k.session_id
        WHERE s.tag_count IS NULL;
        IF projects IS NOT NULL THEN
            PERFORM session_tags_counted(projects, names);
        END IF;
        RETURN NEXT;
    END $$
"""
NEXT = text("SELECT project_id, session_id FROM session_tags_filled(CAST(:project AS uuid), :session)")
